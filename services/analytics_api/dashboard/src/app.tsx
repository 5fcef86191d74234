/** The page: who may see it, and what it shows. */

import type { JSX } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import type { Overview, Summary } from "./api";
import { Api, forgetKey, keepKey, readKey, walkthroughPath } from "./api";
import { useAsked } from "./data";
import { Header } from "./header";
import { KeyScreen } from "./key-screen";
import { useLive } from "./live";
import { OrganizationPages, PAGE_NAMES } from "./organization";
import { Answered } from "./parts";
import { useRefused } from "./refused";
import type { View } from "./state";
import { cohort, NOTHING, within } from "./state";
import { useView } from "./view";
import { WalkthroughPage } from "./walkthrough";

export function App(): JSX.Element {
  const [key, setKey] = useState(readKey);
  const [denied, setDenied] = useState("");
  const api = useMemo(() => new Api(key), [key]);
  const enter = (text: string, keep: boolean) => {
    keepKey(text, keep);
    setDenied("");
    setKey(text);
  };
  const leave = (why: string) => {
    forgetKey();
    setDenied(why);
    setKey("");
  };
  return key ? <Dashboard api={api} leave={leave} /> : <KeyScreen denied={denied} enter={enter} />;
}

function Dashboard({ api, leave }: { api: Api; leave: (why: string) => void }): JSX.Element {
  const [view, change] = useView();
  const live = useLive(api, view.walkthrough);
  const overview = useAsked<Overview>(`overview ${api.key}`, view.walkthrough ? 0 : live.tick, (signal) =>
    api.get("organization", {}, signal),
  );
  const summary = useSummary(api, view, live.tick);
  const refused = useRefused(api, view.walkthrough === "");
  const status = overview.error?.status ?? summary.error?.status;
  // biome-ignore lint/correctness/useExhaustiveDependencies: once for each answer, not for each `leave`
  useEffect(() => {
    if (status === 401) leave("This key is not good: it is mistyped, expired or revoked.");
  }, [status]);
  const pageName = view.page === "refused" && !view.walkthrough ? PAGE_NAMES.refused : "";
  useTitle(summary.data?.walkthrough.title ?? pageName);

  /** Opens a walkthrough, of the same days; without an id, the organization. */
  const open = (id: string, server?: string) => {
    const { period, from, to } = view;
    const servers = server ? [server] : [];
    change(id ? { ...NOTHING, walkthrough: id, period, from, to, servers } : NOTHING, true);
  };

  return (
    <>
      <Header
        walkthrough={view.walkthrough}
        all={overview.data?.walkthroughs ?? []}
        live={live}
        fallback={summary.data?.freshness ?? overview.data?.freshness ?? null}
        open={open}
        forgetKey={() => leave("")}
      />
      <main>
        {view.walkthrough === "" ? (
          <OrganizationPages
            api={api}
            page={view.page}
            overview={overview}
            refused={refused}
            open={open}
            openPage={(page) => change({ ...NOTHING, page }, true)}
          />
        ) : (
          <>
            {summary.error && summary.data === null && view.segments.length > 0 && (
              <button type="button" onClick={() => change({ segments: [] })}>
                Ask without the segment
              </button>
            )}
            <Answered asked={summary}>
              {(answer) =>
                answer && (
                  <WalkthroughPage api={api} view={view} answer={answer} tick={live.tick} change={change} />
                )
              }
            </Answered>
          </>
        )}
      </main>
      <Release version={overview.data?.version ?? ""} />
    </>
  );
}

/** Which release answers: it says so itself, so that the page need not be built for it. */
function Release(props: { version: string }): JSX.Element {
  return <footer class="release">{props.version && `Stepstream ${props.version}`}</footer>;
}

function useSummary(api: Api, view: View, tick: number) {
  const { walkthrough } = view;
  const query = { ...cohort(view), ...within(view) };
  return useAsked<Summary | null>(JSON.stringify([`summary of ${walkthrough}`, query]), tick, (signal) =>
    walkthrough ? api.get(walkthroughPath(walkthrough), query, signal) : Promise.resolve(null),
  );
}

function useTitle(shown: string): void {
  useEffect(() => {
    document.title = shown ? `${shown} · Stepstream` : "Stepstream";
  }, [shown]);
}

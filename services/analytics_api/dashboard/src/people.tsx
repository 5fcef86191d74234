/** The people behind a figure, and from them to what each of them did. */

import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { Api, Journeys, Walkthrough } from "./api";
import { walkthroughPath } from "./api";
import { useAsked } from "./data";
import { queryOf } from "./figure";
import { count, duration, many, OUTCOMES, time } from "./format";
import { JourneyView, SessionView } from "./journey";
import { Answered, Table } from "./parts";
import { PeopleToolbar } from "./people-toolbar";
import type { Query } from "./state";
import { paths } from "./state";
import type { Change, ViewProps } from "./view";

export function PeopleView(props: ViewProps): JSX.Element {
  if (props.view.session) return <SessionView {...props} />;
  if (props.view.journey) return <JourneyView {...props} />;
  return <PeopleList {...props} />;
}

/** The people, page after page: at each tick the first one is asked again, and the others are let go. */
function usePages(api: Api, path: string, query: Query, tick: number) {
  const question = JSON.stringify([path, query]);
  const asked = useAsked<Journeys>(question, tick, (signal) =>
    api.get(path, { ...query, limit: 50 }, signal),
  );
  const [more, setMore] = useState<{ question: string; pages: Journeys[] }>({ question, pages: [] });
  const pages = more.question === question ? more.pages : [];
  // biome-ignore lint/correctness/useExhaustiveDependencies: a new first page makes the others old
  useEffect(() => setMore({ question, pages: [] }), [question, asked.data]);
  const loadMore = async (after: string) => {
    const page = await api.get<Journeys>(path, { ...query, limit: 50, after });
    setMore({ question, pages: [...pages, page] });
  };
  return { asked, pages, loadMore };
}

function PeopleList({ api, view, walkthrough, tick, change }: ViewProps): JSX.Element {
  const path = walkthroughPath(view.walkthrough, "journeys");
  const query = { ...paths(view), ...queryOf(view.figure) };
  const { asked, pages, loadMore } = usePages(api, path, query, tick);
  return (
    <section aria-label="People">
      <h2 class="lead">{view.label ? `People who ${view.label}` : "Everybody"}</h2>
      <PeopleToolbar
        api={api}
        view={view}
        walkthrough={walkthrough}
        change={change}
        path={path}
        query={query}
      />
      <Answered
        asked={asked}
        isEmpty={(page) => page.journeys.length === 0}
        empty={
          <>
            <strong>Nobody</strong>
            <p>No journey is like that in these days and servers.</p>
          </>
        }
      >
        {(first) => {
          const all = [first, ...pages];
          const next = all.at(-1)?.next;
          const journeys = all.flatMap((page) => page.journeys);
          return (
            <>
              <PeopleTable journeys={journeys} walkthrough={walkthrough} change={change} />
              <p class="hint">
                {next
                  ? `The last active ${count(journeys.length)}${first.of === null ? "" : ` of ${count(first.of)}`}. `
                  : `${many(journeys.length, "person", "people")}. `}
                {next && (
                  <button type="button" onClick={() => void loadMore(next)}>
                    Show 50 more
                  </button>
                )}
              </p>
            </>
          );
        }}
      </Answered>
    </section>
  );
}

interface TableProps {
  journeys: Journey[];
  walkthrough: Walkthrough;
  change: Change;
}

type Journey = Journeys["journeys"][number];

function PeopleTable({ journeys, walkthrough, change }: TableProps): JSX.Element {
  const titles = new Map(walkthrough.steps.map((step) => [step.id, step.title]));
  const servers = new Map(walkthrough.servers.map((server) => [server.id, server.name]));
  return (
    <Table
      caption="People, the last active first"
      label="people"
      columns={[
        { title: "Person" },
        { title: "Server" },
        { title: "Began (UTC)" },
        { title: "Last active (UTC)" },
        { title: "Steps", isNumber: true },
        { title: "Stands" },
        { title: "Took", isNumber: true },
      ]}
      rows={journeys.map((journey) => rowOf(journey, titles, servers, change))}
    />
  );
}

type Names = ReadonlyMap<string, string>;

function rowOf(journey: Journey, titles: Names, servers: Names, change: Change) {
  const id = journey.mcp_server_user_id;
  const person = (
    <button type="button" class="link" onClick={() => change({ journey: id }, true)}>
      {id}
    </button>
  );
  const stands = (
    <>
      <span class={`badge ${journey.outcome}`}>{OUTCOMES[journey.outcome]}</span>
      {journey.next_step_id && <> before {titles.get(journey.next_step_id)}</>}
      {journey.next_step_assumed && <i> (assumed)</i>}
    </>
  );
  return {
    key: id,
    cells: [
      person,
      servers.get(journey.mcp_server_id) ?? journey.mcp_server_id,
      time(journey.began_at),
      time(journey.last_active_at),
      `${count(journey.steps_done)}${journey.steps_skipped ? ` and ${count(journey.steps_skipped)} skipped` : ""}`,
      stands,
      duration(journey.duration_ms),
    ],
  };
}

/** The page: who may see it, what it shows, and how fresh that is. */

import type { JSX } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import { Api, forgetKey, keepKey, readKey } from "./api";
import type { Freshness, Overview, Summary, Walkthrough } from "./api";
import { CompareView } from "./compare";
import { useAsked } from "./data";
import { FlowView } from "./flow";
import { ago, count, duration, many, share } from "./format";
import { useLive } from "./live";
import type { Live } from "./live";
import { OverviewTable } from "./overview";
import { Answered, Segments } from "./parts";
import { PeopleView } from "./people";
import { refusedLately, RefusedView, useRefused } from "./refused";
import { cohort, NOTHING, PAGES, PERIODS, readView, TABS, writeView } from "./state";
import type { Page, Tab, View } from "./state";
import { StepsView } from "./steps";
import { TrendsView } from "./trends";

const TAB_NAMES: Record<Tab, string> = {
  flow: "Flow",
  steps: "Steps",
  trends: "Trends",
  compare: "Compare",
  people: "People",
};
const PAGE_NAMES: Record<Page, string> = { walkthroughs: "Walkthroughs", refused: "Refused events" };
const PERIOD_NAMES = {
  "7": "7 days",
  "30": "30 days",
  "90": "3 months",
  all: "All time",
  custom: "Days…",
} as const;

function useView(): [View, (part: Partial<View>, push?: boolean) => void] {
  const [view, setView] = useState(() => readView(location.search));
  useEffect(() => {
    const onPop = () => setView(readView(location.search));
    window.addEventListener("popstate", onPop);
    return () => window.removeEventListener("popstate", onPop);
  }, []);
  const change = (part: Partial<View>, push = false) => {
    setView((before) => {
      const next = { ...before, ...part };
      if (push) history.pushState(null, "", writeView(next));
      else history.replaceState(null, "", writeView(next));
      return next;
    });
  };
  return [view, change];
}

export function App(): JSX.Element {
  const [key, setKey] = useState(readKey);
  const [denied, setDenied] = useState("");
  const api = useMemo(() => new Api(key), [key]);
  const leave = (why: string) => {
    forgetKey();
    setDenied(why);
    setKey("");
  };
  if (!key) {
    return (
      <KeyScreen
        denied={denied}
        enter={(text, keep) => {
          keepKey(text, keep);
          setDenied("");
          setKey(text);
        }}
      />
    );
  }
  return <Dashboard api={api} leave={leave} />;
}

function KeyScreen(props: { denied: string; enter: (key: string, keep: boolean) => void }): JSX.Element {
  const [text, setText] = useState("");
  const [keep, setKeep] = useState(false);
  useEffect(() => {
    document.title = "Stepstream";
  }, []);
  return (
    <main class="key-screen">
      <h1>
        <Logo /> Stepstream
      </h1>
      <p>Where people go in your walkthroughs, where they stop, and how long it takes.</p>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (text.trim()) props.enter(text.trim(), keep);
        }}
      >
        <label for="key">API key of your organization</label>
        <input
          id="key"
          type="password"
          autocomplete="off"
          spellcheck={false}
          value={text}
          placeholder="sst_…"
          aria-describedby="key-help"
          aria-invalid={props.denied !== ""}
          onInput={(e) => setText(e.currentTarget.value)}
        />
        <label class="check">
          <input type="checkbox" checked={keep} onChange={(e) => setKeep(e.currentTarget.checked)} /> Keep it
          on this computer
        </label>
        <button type="submit" class="primary">
          Show the figures
        </button>
        {props.denied && (
          <p class="problem" role="alert">
            {props.denied}
          </p>
        )}
        <p id="key-help" class="hint">
          An operator makes one: <code>stepstream keys create --organization ID</code>
        </p>
      </form>
    </main>
  );
}

function Dashboard({ api, leave }: { api: Api; leave: (why: string) => void }): JSX.Element {
  const [view, change] = useView();
  const live = useLive(api, view.walkthrough);
  const overview = useAsked<Overview>(`overview ${api.key}`, view.walkthrough ? 0 : live.tick, (signal) =>
    api.get("organization", {}, signal),
  );
  const summaryQuery = cohort(view);
  const summary = useAsked<Summary | null>(
    JSON.stringify([`summary of ${view.walkthrough}`, summaryQuery]),
    live.tick,
    (signal) =>
      view.walkthrough
        ? api.get(`walkthroughs/${encodeURIComponent(view.walkthrough)}`, summaryQuery, signal)
        : Promise.resolve(null),
  );
  const refused = useRefused(api, view.walkthrough === "");
  const status = overview.error?.status ?? summary.error?.status;
  useEffect(() => {
    if (status === 401) leave("This key is not good: it is mistyped, expired or revoked.");
  }, [status]);

  const walkthrough = summary.data?.walkthrough ?? null;
  useEffect(() => {
    const shown =
      walkthrough?.title ?? (view.page === "refused" && !view.walkthrough ? PAGE_NAMES.refused : "");
    document.title = shown ? `${shown} · Stepstream` : "Stepstream";
  }, [walkthrough?.title, view.page, view.walkthrough]);
  const all = overview.data?.walkthroughs ?? [];
  const open = (id: string, server?: string) =>
    change(
      {
        ...NOTHING,
        walkthrough: id,
        period: view.period,
        from: view.from,
        to: view.to,
        servers: server ? [server] : [],
      },
      true,
    );

  return (
    <>
      <header class="top">
        <button type="button" class="home" onClick={() => change({ ...NOTHING }, true)}>
          <Logo /> Stepstream
        </button>
        <label class="picker">
          <span class="visually-hidden">Walkthrough</span>
          <select
            value={view.walkthrough}
            onChange={(e) =>
              e.currentTarget.value ? open(e.currentTarget.value) : change({ ...NOTHING }, true)
            }
          >
            <option value="">All walkthroughs</option>
            {all.map((w) => (
              <option key={w.walkthrough_id} value={w.walkthrough_id}>
                {w.title}
              </option>
            ))}
          </select>
        </label>
        <FreshnessBadge
          live={live}
          fallback={summary.data?.freshness ?? overview.data?.freshness ?? null}
          isWatching={view.walkthrough !== ""}
        />
        <ThemeButton />
        <button type="button" class="quiet" onClick={() => leave("")}>
          Forget key
        </button>
      </header>
      <main>
        {view.walkthrough === "" ? (
          <>
            <Pages
              page={view.page}
              lately={refusedLately(refused.data, Date.now())}
              open={(page) => change({ ...NOTHING, page }, true)}
            />
            {view.page === "refused" ? (
              <Answered asked={refused}>
                {(answer) => answer && <RefusedView api={api} answer={answer} />}
              </Answered>
            ) : (
              <Answered asked={overview}>
                {(answer) => <OverviewTable overview={answer} open={open} />}
              </Answered>
            )}
          </>
        ) : (
          <Answered asked={summary}>
            {(answer) =>
              answer && (
                <>
                  <h1 class="lead">{answer.walkthrough.title}</h1>
                  <Filters view={view} walkthrough={answer.walkthrough} change={change} />
                  <Figures answer={answer} change={change} />
                  <nav class="tabs" aria-label="Views">
                    {TABS.map((tab) => (
                      <button
                        type="button"
                        key={tab}
                        aria-current={view.tab === tab ? "page" : undefined}
                        onClick={() =>
                          change(
                            {
                              tab,
                              journey: "",
                              session: "",
                              ...(tab === "people" ? { figure: [], label: "" } : {}),
                            },
                            true,
                          )
                        }
                      >
                        {TAB_NAMES[tab]}
                      </button>
                    ))}
                  </nav>
                  <Body
                    api={api}
                    view={view}
                    walkthrough={answer.walkthrough}
                    tick={live.tick}
                    change={change}
                  />
                </>
              )
            }
          </Answered>
        )}
      </main>
    </>
  );
}

function Pages(props: { page: Page; lately: number; open: (page: Page) => void }): JSX.Element {
  return (
    <nav class="tabs" aria-label="Organization">
      {PAGES.map((page) => (
        <button
          type="button"
          key={page}
          aria-current={props.page === page ? "page" : undefined}
          onClick={() => props.open(page)}
        >
          {PAGE_NAMES[page]}
          {page === "refused" && props.lately > 0 && (
            <span class="count">
              {count(props.lately)}
              <span class="visually-hidden"> {props.lately === 1 ? "class" : "classes"} in the last day</span>
            </span>
          )}
        </button>
      ))}
    </nav>
  );
}

interface BodyProps {
  api: Api;
  view: View;
  walkthrough: Walkthrough;
  tick: number;
  change: (part: Partial<View>, push?: boolean) => void;
}

function Body(props: BodyProps): JSX.Element {
  switch (props.view.tab) {
    case "steps":
      return <StepsView {...props} />;
    case "trends":
      return <TrendsView {...props} />;
    case "compare":
      return <CompareView {...props} />;
    case "people":
      return <PeopleView {...props} />;
    default:
      return <FlowView {...props} />;
  }
}

function Filters({ view, walkthrough, change }: Omit<BodyProps, "api" | "tick">): JSX.Element {
  const title = (id: string) => walkthrough.steps.find((s) => s.id === id)?.title ?? id;
  return (
    <div class="filters" role="group" aria-label="Filters">
      <Segments
        name="Period in which journeys began"
        options={PERIODS.map((p) => [p, PERIOD_NAMES[p]] as const)}
        value={view.period}
        onChange={(period) => change({ period })}
      />
      {view.period === "custom" && (
        <>
          <label>
            from{" "}
            <input
              type="date"
              value={view.from}
              max={view.to || undefined}
              onChange={(e) => change({ from: e.currentTarget.value })}
            />
          </label>
          <label>
            to{" "}
            <input
              type="date"
              value={view.to}
              min={view.from || undefined}
              onChange={(e) => change({ to: e.currentTarget.value })}
            />
          </label>
        </>
      )}
      {walkthrough.servers.length > 1 && (
        <div class="segments" role="group" aria-label="Servers">
          <button
            type="button"
            aria-pressed={view.servers.length === 0}
            onClick={() => change({ servers: [] })}
          >
            All servers
          </button>
          {walkthrough.servers.map((s) => (
            <button
              type="button"
              key={s.id}
              aria-pressed={view.servers.includes(s.id)}
              onClick={() =>
                change({
                  servers: view.servers.includes(s.id)
                    ? view.servers.filter((x) => x !== s.id)
                    : [...view.servers, s.id],
                })
              }
            >
              {s.name}
            </button>
          ))}
        </div>
      )}
      {view.startAt && (
        <Chip text={`Starts at ${title(view.startAt)}`} remove={() => change({ startAt: "" })} />
      )}
      {view.endAt && <Chip text={`Ends at ${title(view.endAt)}`} remove={() => change({ endAt: "" })} />}
      {view.hidden.map((step) => (
        <Chip
          key={step}
          text={`Without ${title(step)}`}
          remove={() => change({ hidden: view.hidden.filter((s) => s !== step) })}
        />
      ))}
    </div>
  );
}

function Chip({ text, remove }: { text: string; remove: () => void }): JSX.Element {
  return (
    <button type="button" class="chip" onClick={remove} aria-label={`${text}: remove`}>
      {text} <span aria-hidden="true">✕</span>
    </button>
  );
}

function Figures({ answer, change }: { answer: Summary; change: BodyProps["change"] }): JSX.Element {
  const people = (outcome: string, label: string) =>
    change({ tab: "people", figure: [["outcome", outcome]], label, journey: "", session: "" }, true);
  return (
    <ul class="figures" aria-label="Key figures">
      <li>
        <b>{count(answer.started)}</b>
        <span>started</span>
      </li>
      <li class="finished">
        <button type="button" onClick={() => people("finished", "finished")}>
          <b>{share(answer.completion_rate)}</b>
          <span>finished ({count(answer.finished)})</span>
        </button>
      </li>
      <li class="in_progress">
        <button type="button" onClick={() => people("in_progress", "are in progress")}>
          <b>{count(answer.in_progress)}</b>
          <span>in progress</span>
        </button>
      </li>
      <li class="dropped">
        <button type="button" onClick={() => people("dropped", "stopped")}>
          <b>{count(answer.dropped)}</b>
          <span>stopped</span>
        </button>
      </li>
      <li>
        <b>{duration(answer.median_to_finish_ms)}</b>
        <span>median to finish (9 in 10: {duration(answer.p90_to_finish_ms)})</span>
      </li>
      <li>
        <b>{answer.steps_per_session === null ? "–" : answer.steps_per_session.toFixed(1)}</b>
        <span>steps a session</span>
      </li>
      <li>
        <b>{share(answer.resume_rate)}</b>
        <span>came back in another session</span>
      </li>
    </ul>
  );
}

function useNow(): number {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = window.setInterval(() => setNow(Date.now()), 1_000);
    return () => window.clearInterval(timer);
  }, []);
  return now;
}

function FreshnessBadge(props: { live: Live; fallback: Freshness | null; isWatching: boolean }): JSX.Element {
  const now = useNow();
  const fresh = props.live.freshness ?? props.fallback;
  const waiting = (fresh?.groups ?? []).reduce((most, g) => Math.max(most, g.lag ?? 0), fresh?.marks ?? 0);
  let state: string, text: string;
  if (props.isWatching && (props.live.connection === "cut" || props.live.connection === "gone")) {
    [state, text] = ["stale", "Not connected: figures stand still"];
  } else if (fresh === null) [state, text] = ["unknown", "Looking…"];
  else if (fresh.current === null) [state, text] = ["unknown", "Freshness not known"];
  else if (fresh.current) [state, text] = ["current", "Exact now"];
  else if (waiting === 0 && fresh.events_waiting) {
    [state, text] = ["behind", `${many(fresh.events_waiting, "event")} held up in the database`];
  } else [state, text] = ["behind", `Counting: ${many(waiting, "event")} to go`];
  const newest = fresh?.newest_event_at;
  return (
    <p class={`freshness ${state}`} title={fresh?.problem ?? undefined}>
      <i aria-hidden="true" /> <span role="status">{text}</span>
      {newest ? <small>newest event {ago(newest, now)}</small> : null}
    </p>
  );
}

function ThemeButton(): JSX.Element {
  const [theme, setTheme] = useState(() => localStorage.getItem("stepstream.theme") ?? "auto");
  useEffect(() => {
    if (theme === "auto") {
      delete document.documentElement.dataset.theme;
      localStorage.removeItem("stepstream.theme");
    } else {
      document.documentElement.dataset.theme = theme;
      localStorage.setItem("stepstream.theme", theme);
    }
  }, [theme]);
  const next = theme === "auto" ? "light" : theme === "light" ? "dark" : "auto";
  return (
    <button type="button" class="quiet" onClick={() => setTheme(next)}>
      Theme: {theme}
    </button>
  );
}

function Logo(): JSX.Element {
  return (
    <svg class="logo" viewBox="0 0 32 32" width="22" height="22" aria-hidden="true">
      <rect width="32" height="32" rx="7" fill="var(--accent)" />
      <path d="M5 9c9 0 12 1 22 1v6C17 16 14 13 5 13z" fill="#fff" />
      <path d="M5 17c8 0 10 4 22 8v-3C17 20 13 15 5 15z" fill="#ffb98a" />
    </svg>
  );
}

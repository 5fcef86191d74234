/** The people behind a figure, what each of them did, and the replay of a session. */

import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { Api, Event, JourneyDetail, Journeys, Session, Walkthrough } from "./api";
import { useAsked } from "./data";
import { count, daysAgo, duration, many, OUTCOME_NAMES, OUTCOMES, time } from "./format";
import { Answered, Download } from "./parts";
import { paths } from "./state";
import type { Figure, Query, View } from "./state";

interface Props {
  api: Api;
  view: View;
  walkthrough: Walkthrough;
  tick: number;
  change: (part: Partial<View>, push?: boolean) => void;
}

function asQuery(figure: Figure): Query {
  const query: Record<string, string[]> = {};
  for (const [name, value] of figure) (query[name] ??= []).push(value);
  const one = new Set(["position", "ended_after", "next_step", "active_from", "active_to"]);
  return Object.fromEntries(
    Object.entries(query).map(([name, values]) => [name, one.has(name) ? values[0] : values]),
  );
}

export function PeopleView(props: Props): JSX.Element {
  const { view } = props;
  if (view.session) return <Replay {...props} />;
  if (view.journey) return <Somebody {...props} />;
  return <List {...props} />;
}

function List({ api, view, walkthrough, tick, change }: Props): JSX.Element {
  const root = `walkthroughs/${encodeURIComponent(view.walkthrough)}/journeys`;
  const query: Query = { ...paths(view), ...asQuery(view.figure) };
  const question = JSON.stringify([root, query]);
  const asked = useAsked<Journeys>(question, tick, (signal) =>
    api.get(root, { ...query, limit: 50 }, signal),
  );
  const [more, setMore] = useState<{ question: string; pages: Journeys[] }>({ question, pages: [] });
  const pages = more.question === question ? more.pages : [];
  useEffect(() => setMore({ question, pages: [] }), [question, asked.data]);
  const titles = new Map(walkthrough.steps.map((s) => [s.id, s.title]));
  const servers = new Map(walkthrough.servers.map((s) => [s.id, s.name]));

  const value = (name: string) => view.figure.find(([n]) => n === name)?.[1] ?? "";
  const set = (name: string, values: string[]) =>
    change({
      figure: [
        ...view.figure.filter(([n]) => n !== name),
        ...values.filter(Boolean).map((v): [string, string] => [name, v]),
      ],
    });
  const setDays = (from: string, to: string) =>
    change({
      figure: [
        ...view.figure.filter(([n]) => n !== "active_from" && n !== "active_to"),
        ...(from ? [["active_from", from] as [string, string]] : []),
        ...(to ? [["active_to", to] as [string, string]] : []),
      ],
    });
  const loadMore = async (after: string) => {
    const page = await api.get<Journeys>(root, { ...query, limit: 50, after });
    setMore({ question, pages: [...pages, page] });
  };

  return (
    <section aria-label="People">
      <h2 class="lead">{view.label ? `People who ${view.label}` : "Everybody"}</h2>
      <div class="toolbar">
        <label>
          Stand{" "}
          <select
            value={value("next_step")}
            onChange={(e) =>
              change({
                label: "",
                figure: [
                  ...view.figure.filter(
                    ([n]) => !["next_step", "position", "step", "from_step", "ended_after"].includes(n),
                  ),
                  ...(e.currentTarget.value
                    ? [["next_step", e.currentTarget.value] as [string, string]]
                    : []),
                ],
              })
            }
          >
            <option value="">anywhere</option>
            {walkthrough.steps.map((s, i) => (
              <option key={s.id} value={s.id}>
                before {i + 1}. {s.title}
              </option>
            ))}
          </select>
        </label>
        <label>
          Outcome{" "}
          <select
            value={view.figure
              .filter(([n]) => n === "outcome")
              .map(([, v]) => v)
              .join(",")}
            onChange={(e) => set("outcome", e.currentTarget.value.split(","))}
          >
            <option value="">any</option>
            <option value="dropped,in_progress">not finished</option>
            {OUTCOME_NAMES.map((o) => (
              <option key={o} value={o}>
                {OUTCOMES[o].toLowerCase()}
              </option>
            ))}
          </select>
        </label>
        <label>
          Last active (UTC day) from{" "}
          <input
            type="date"
            value={value("active_from")}
            onChange={(e) => setDays(e.currentTarget.value, value("active_to"))}
          />
        </label>
        <label>
          to{" "}
          <input
            type="date"
            value={value("active_to")}
            onChange={(e) => setDays(value("active_from"), e.currentTarget.value)}
          />
        </label>
        <button type="button" class="quiet" onClick={() => setDays(daysAgo(0), daysAgo(0))}>
          Today
        </button>
        <button type="button" class="quiet" onClick={() => setDays(daysAgo(1), daysAgo(1))}>
          Yesterday
        </button>
        {(view.figure.length > 0 || view.label) && (
          <button type="button" class="quiet" onClick={() => change({ figure: [], label: "" })}>
            Everybody
          </button>
        )}
        <Download api={api} path={root} query={{ ...query, limit: 500 }} />
      </div>
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
          const last = all[all.length - 1]?.next;
          const rows = all.flatMap((page) => page.journeys);
          return (
            <>
              <div class="table-scroll" tabIndex={0} role="region" aria-label="Table: people">
                <table>
                  <caption class="visually-hidden">People, the last active first</caption>
                  <thead>
                    <tr>
                      <th scope="col">Person</th>
                      <th scope="col">Server</th>
                      <th scope="col">Began (UTC)</th>
                      <th scope="col">Last active (UTC)</th>
                      <th scope="col" class="number">
                        Steps
                      </th>
                      <th scope="col">Stands</th>
                      <th scope="col" class="number">
                        Took
                      </th>
                    </tr>
                  </thead>
                  <tbody>
                    {rows.map((j) => (
                      <tr key={j.mcp_server_user_id}>
                        <th scope="row">
                          <button
                            type="button"
                            class="link"
                            onClick={() => change({ journey: j.mcp_server_user_id }, true)}
                          >
                            {j.mcp_server_user_id}
                          </button>
                        </th>
                        <td>{servers.get(j.mcp_server_id) ?? j.mcp_server_id}</td>
                        <td>{time(j.began_at)}</td>
                        <td>{time(j.last_active_at)}</td>
                        <td class="number">{count(j.steps_done)}</td>
                        <td>
                          <span class={`badge ${j.outcome}`}>{OUTCOMES[j.outcome]}</span>
                          {j.next_step_id && <> before {titles.get(j.next_step_id)}</>}
                        </td>
                        <td class="number">{duration(j.duration_ms)}</td>
                      </tr>
                    ))}
                  </tbody>
                </table>
              </div>
              <p class="hint">
                {last
                  ? `The last active ${count(rows.length)}. `
                  : `${many(rows.length, "person", "people")}. `}
                {last && (
                  <button type="button" onClick={() => void loadMore(last)}>
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

function Somebody({ api, view, tick, change }: Props): JSX.Element {
  const path = `walkthroughs/${encodeURIComponent(view.walkthrough)}/journeys/${encodeURIComponent(view.journey)}`;
  const asked = useAsked<JourneyDetail>(path, tick, (signal) => api.get(path, {}, signal));
  return (
    <section aria-label="Journey">
      <button type="button" class="quiet" onClick={() => change({ journey: "" }, true)}>
        ← Back to the people
      </button>
      <Answered asked={asked}>
        {(answer) => (
          <>
            <h2 class="lead">{answer.journey.mcp_server_user_id}</h2>
            <p>
              <span class={`badge ${answer.journey.outcome}`}>{OUTCOMES[answer.journey.outcome]}</span>{" "}
              {many(answer.journey.steps_done, "step")} of {answer.walkthrough.steps.length} in{" "}
              {many(answer.sessions, "session")}, {duration(answer.journey.duration_ms)} from the beginning to
              the last step.
            </p>
            <Timeline events={answer.events} onSession={(session) => change({ session }, true)} />
            <div class="toolbar">
              <Download api={api} path={path} query={{}} />
            </div>
          </>
        )}
      </Answered>
    </section>
  );
}

function Replay({ api, view, tick, change }: Props): JSX.Element {
  const path = `sessions/${encodeURIComponent(view.session)}`;
  const asked = useAsked<Session>(path, tick, (signal) => api.get(path, {}, signal));
  return (
    <section aria-label="Session">
      <button type="button" class="quiet" onClick={() => change({ session: "" }, true)}>
        ← Back to the journey
      </button>
      <Answered
        asked={asked}
        isEmpty={(s) => s.events.length === 0}
        empty={<strong>Nothing happened in this session</strong>}
      >
        {(answer) => (
          <>
            <h2 class="lead">Session {answer.id}</h2>
            <p>
              On {answer.server}, {many(answer.events.length, "event")} in {duration(answer.duration_ms)}.
            </p>
            <Timeline events={answer.events} withWalkthrough />
            <div class="toolbar">
              <Download api={api} path={path} query={{}} />
            </div>
          </>
        )}
      </Answered>
    </section>
  );
}

function Timeline(props: {
  events: Event[];
  onSession?: (id: string) => void;
  withWalkthrough?: boolean;
}): JSX.Element {
  let session = "";
  return (
    <ol class="timeline">
      {props.events.map((event, i) => {
        const isNew = event.mcp_server_session_id !== session;
        session = event.mcp_server_session_id;
        return (
          <li key={i} class={event.kind}>
            {i > 0 && <span class="gap">{duration(event.since_previous_ms)} later</span>}
            {isNew && props.onSession && (
              <span class="gap">
                <button
                  type="button"
                  class="link"
                  onClick={() => props.onSession?.(event.mcp_server_session_id)}
                >
                  Session {event.mcp_server_session_id}
                </button>
              </span>
            )}
            <b>
              {event.kind === "started"
                ? `Opened ${event.walkthrough}`
                : `Did ${event.step ?? event.step_id}`}
            </b>
            <time dateTime={new Date(event.at).toISOString()}>{time(event.at)}</time>
            {props.withWalkthrough && event.kind === "completed" && <i>{event.walkthrough}</i>}
          </li>
        );
      })}
    </ol>
  );
}

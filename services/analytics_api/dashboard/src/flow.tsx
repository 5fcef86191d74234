/** The view of the Sankey: the chart or its table, what is pinned, and the figures of what is chosen. */

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import type { Api, Sankey } from "./api";
import { useAsked } from "./data";
import { count, duration, many, OUTCOMES, share } from "./format";
import { draw } from "./layout";
import type { DrawnNode } from "./layout";
import { Answered, Download, Segments, Table } from "./parts";
import { SankeyChart } from "./sankey";
import { paths } from "./state";
import type { Figure, View } from "./state";

interface Props {
  api: Api;
  view: View;
  tick: number;
  change: (part: Partial<View>, push?: boolean) => void;
}

export function FlowView({ api, view, tick, change }: Props): JSX.Element {
  const path = `walkthroughs/${encodeURIComponent(view.walkthrough)}/sankey`;
  const query = {
    ...paths(view),
    nodes: view.detail || undefined,
    positions: view.places || undefined,
    unfold: view.unfolded,
  };
  const asked = useAsked<Sankey>(JSON.stringify([path, query]), tick, (signal) =>
    api.get(path, query, signal),
  );
  const pinQuery = { ...paths(view), positions: view.places || undefined, through: view.pins };
  const pinned = useAsked<Sankey | null>(
    JSON.stringify([path, view.pins.length ? pinQuery : null]),
    tick,
    (signal) => (view.pins.length ? api.get(path, pinQuery, signal) : Promise.resolve(null)),
    false,
  );
  const [chosen, setChosen] = useState("");
  const panel = useRef<HTMLElement>(null);

  const clear = () => {
    setChosen("");
    if (view.pins.length) change({ pins: [] });
  };
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.key === "Escape" && !event.defaultPrevented) clear();
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  });

  const pin = (node: DrawnNode) => {
    const mine = pinsOf(node);
    const has = mine.every((p) => view.pins.includes(p));
    const others = view.pins.filter((p) => Number(p.split(":")[0]) !== node.column - 1);
    change({ pins: has ? others : [...others, ...mine] });
  };

  return (
    <section aria-label="Flow">
      <div class="toolbar">
        <Segments
          name="Shown as"
          options={[
            ["chart", "Chart"],
            ["table", "Table"],
          ]}
          value={view.table ? "table" : "chart"}
          onChange={(value) => change({ table: value === "table" })}
        />
        <label>
          Steps at each place{" "}
          <select
            value={view.detail}
            onChange={(e) => change({ detail: Number(e.currentTarget.value), unfolded: [] })}
          >
            {[3, 6, 12, 0].map((n) => (
              <option key={n} value={n}>
                {n === 0 ? "all" : `${n} largest`}
              </option>
            ))}
          </select>
        </label>
        <label>
          Places{" "}
          <select value={view.places} onChange={(e) => change({ places: Number(e.currentTarget.value) })}>
            {[4, 8, 16, 0].map((n) => (
              <option key={n} value={n}>
                {n === 0 ? "all" : `the first ${n}`}
              </option>
            ))}
          </select>
        </label>
        {view.unfolded.length > 0 && (
          <button type="button" class="quiet" onClick={() => change({ unfolded: [] })}>
            Fold small steps again
          </button>
        )}
        {view.pins.length > 0 && (
          <button type="button" class="quiet" onClick={clear}>
            Clear pins (Esc)
          </button>
        )}
        <Download api={api} path={path} query={query} />
      </div>
      <Answered asked={asked} isEmpty={(answer) => answer.journeys === 0} empty={<Empty view={view} />}>
        {(answer) =>
          view.table ? (
            <FlowTable answer={answer} change={change} />
          ) : (
            <div class={`flow-and-panel ${chosen ? "with-panel" : ""}`}>
              <SankeyChart
                answer={answer}
                pinned={view.pins.length ? pinned.data : null}
                pins={new Set(answer.nodes.filter((n) => isPinned(n, view.pins)).map((n) => n.id))}
                chosen={chosen}
                label={`Flow of ${many(answer.journeys, "journey")} through ${answer.walkthrough.title}`}
                onChoose={setChosen}
                onPin={pin}
                onClear={clear}
                onMenu={() => window.setTimeout(() => panel.current?.querySelector("button")?.focus(), 30)}
              />
              {chosen && (
                <Panel
                  of={chosen}
                  answer={answer}
                  view={view}
                  change={change}
                  pin={pin}
                  close={() => setChosen("")}
                  at={(element) => {
                    panel.current = element;
                  }}
                />
              )}
            </div>
          )
        }
      </Answered>
      <p class="hint">
        Width is people. Green ends are finished; red ends stopped: they were not active for 7 days; grey ends
        were, and are still in progress. Click a step to pin the paths through it; the panel beside it leads
        to the people.
      </p>
    </section>
  );
}

function pinsOf(node: DrawnNode): string[] {
  const steps =
    node.kind === "other" ? (node.node?.folded ?? []).map((f) => f.step_id) : [node.node?.step_id ?? ""];
  return steps.map((step) => `${node.column - 1}:${step}`);
}

function isPinned(node: Sankey["nodes"][number], pins: string[]): boolean {
  const steps = node.kind === "other" ? (node.folded ?? []).map((f) => f.step_id) : [node.step_id];
  return steps.length > 0 && steps.every((step) => pins.includes(`${node.position}:${step}`));
}

function Empty({ view }: { view: View }): JSX.Element {
  const isNarrowed = view.period !== "all" || view.servers.length > 0 || view.startAt || view.endAt;
  return (
    <>
      <strong>Nobody here</strong>
      <p>
        {isNarrowed
          ? "No journey is in these days, servers and steps. Widen the filters above."
          : "Nobody has begun this walkthrough yet. As soon as somebody does, they appear here by themselves."}
      </p>
    </>
  );
}

interface PanelProps {
  of: string;
  answer: Sankey;
  view: View;
  change: Props["change"];
  pin: (node: DrawnNode) => void;
  close: () => void;
  at: (element: HTMLElement | null) => void;
}

/** The figures of what is chosen, and what can be done with it. */
function Panel({ of, answer, view, change, pin, close, at }: PanelProps): JSX.Element {
  const drawing = draw(answer, 900);
  const node = drawing.nodes.find((n) => n.id === of);
  const link = drawing.links.find((l) => l.id === of);
  const title = (id: string) => drawing.nodes.find((n) => n.id === id)?.title ?? id;
  const people = (figure: Figure, label: string) =>
    change({ tab: "people", figure, label, journey: "", session: "" }, true);
  const stepsOf = (id: string): Figure => {
    const found = drawing.nodes.find((n) => n.id === id)?.node;
    if (!found || found.kind === "start") return [];
    const ids = found.kind === "other" ? (found.folded ?? []).map((f) => f.step_id) : [found.step_id ?? ""];
    return ids.map((step) => ["step", step]);
  };
  let head = "",
    body: JSX.Element | null = null;

  if (node?.node) {
    const own = node.node;
    const step = own.step_id;
    const into = drawing.links.filter((l) => l.target === node.id);
    const out = drawing.links.filter((l) => l.source === node.id);
    const flows = (links: typeof into, end: "source" | "target") => (
      <ul>
        {[...links]
          .sort((a, b) => b.journeys - a.journeys)
          .slice(0, 8)
          .map((l) => (
            <li key={l.id}>
              <span>{title(l[end])}</span> <b>{count(l.journeys)}</b>{" "}
              <i>{share(l.journeys / node.journeys)}</i>
            </li>
          ))}
      </ul>
    );
    head = own.kind === "start" ? "Start" : `${node.title}, place ${node.column}`;
    body = (
      <>
        <p>
          <b>{many(node.journeys, "person", "people")}</b>, {share(own.share)} of all.{" "}
          {count(own.ended.dropped ?? 0)} stopped here, {count(own.ended.in_progress ?? 0)} are in progress
          here.
        </p>
        {into.length > 0 && (
          <>
            <h3>Came from</h3>
            {flows(into, "source")}
          </>
        )}
        {out.length > 0 && (
          <>
            <h3>Went on to</h3>
            {flows(out, "target")}
          </>
        )}
        <div class="actions">
          {own.kind !== "start" && (
            <button type="button" onClick={() => pin(node)}>
              {isPinned(own, view.pins) ? "Unpin" : "Pin the paths through it"}
            </button>
          )}
          <button
            type="button"
            onClick={() =>
              people(
                own.kind === "start" ? [] : [["position", String(own.position)], ...stepsOf(node.id)],
                `came to ${node.title}`,
              )
            }
          >
            People who came here
          </button>
          {(own.ended.dropped ?? 0) + (own.ended.in_progress ?? 0) > 0 && (
            <button
              type="button"
              onClick={() =>
                people(
                  [
                    ["ended_after", String(own.position + 1)],
                    ...stepsOf(node.id),
                    ["outcome", "dropped"],
                    ["outcome", "in_progress"],
                  ],
                  `did not go on from ${node.title}`,
                )
              }
            >
              People who did not go on
            </button>
          )}
          {own.kind === "step" && step && (
            <>
              <button type="button" onClick={() => change({ startAt: step, pins: [] }, true)}>
                Start here
              </button>
              <button type="button" onClick={() => change({ endAt: step, pins: [] }, true)}>
                End here
              </button>
              <button
                type="button"
                onClick={() => {
                  close();
                  change({ hidden: [...view.hidden, step], pins: [] }, true);
                }}
              >
                Hide this step
              </button>
            </>
          )}
          {own.kind === "other" && (
            <button
              type="button"
              onClick={() => change({ unfolded: [...view.unfolded, own.position] }, true)}
            >
              Show these {own.folded?.length ?? 0} steps
            </button>
          )}
        </div>
      </>
    );
  } else if (node) {
    head = `${OUTCOMES[node.kind as keyof typeof OUTCOMES]}, after ${many(node.column - 1, "step")}`;
    body = (
      <>
        <p>
          <b>{many(node.journeys, "person", "people")}</b>, {share(node.journeys / answer.journeys)} of all.
        </p>
        <div class="actions">
          <button
            type="button"
            onClick={() =>
              people(
                [
                  ["ended_after", String(node.column - 1)],
                  ["outcome", node.kind],
                ],
                `${node.title.toLowerCase()} after ${many(node.column - 1, "step")}`,
              )
            }
          >
            These people
          </button>
        </div>
      </>
    );
  } else if (link) {
    head = `${title(link.source)} → ${title(link.target)}`;
    const figure: Figure = link.link
      ? [
          ["position", String(link.link.position)],
          ...stepsOf(link.target),
          ...stepsOf(link.source).map(([, step]): [string, string] => ["from_step", step]),
        ]
      : [
          ["ended_after", String(link.ending?.steps_done ?? 0)],
          ...stepsOf(link.source),
          ["outcome", link.ending?.outcome ?? "dropped"],
        ];
    body = (
      <>
        <p>
          <b>{many(link.journeys, "person", "people")}</b>, {share(link.journeys / answer.journeys)} of all
          and {share(link.link?.share_of_node ?? link.ending?.share_of_node)} of those at {title(link.source)}
          .{link.link && <> Mean time {duration(link.link.mean_ms)}.</>}
        </p>
        <div class="actions">
          <button type="button" onClick={() => people(figure, head)}>
            These people
          </button>
        </div>
      </>
    );
  } else {
    head = "Nobody any more";
    body = <p>What was chosen is not in this view.</p>;
  }
  return (
    <aside class="panel" ref={at} aria-label={`About ${head}`}>
      <header>
        <h2>{head}</h2>
        <button type="button" class="quiet" aria-label="Close" onClick={close}>
          ✕
        </button>
      </header>
      {body}
    </aside>
  );
}

/** The same figures as a table. */
function FlowTable({ answer, change }: { answer: Sankey; change: Props["change"] }): JSX.Element {
  const titles = new Map(answer.nodes.map((node) => [node.id, node.title]));
  const rows = [
    ...answer.links.map((link) => ({
      key: `${link.source}→${link.target}`,
      position: link.position,
      from: titles.get(link.source),
      to: titles.get(link.target),
      journeys: link.journeys,
      share: link.share,
      ofNode: link.share_of_node,
      mean: link.mean_ms,
      isEnd: false,
      figure: null as Figure | null,
    })),
    ...answer.endings.map((end) => ({
      key: `${end.node}→${end.outcome}`,
      position: end.steps_done,
      from: titles.get(end.node),
      to: OUTCOMES[end.outcome] as string,
      journeys: end.journeys,
      share: end.share,
      ofNode: end.share_of_node,
      mean: null,
      isEnd: true,
      figure: (end.step_id || end.steps_done === 0
        ? [
            ["ended_after", String(end.steps_done)],
            ...(end.step_id ? [["step", end.step_id]] : []),
            ["outcome", end.outcome],
          ]
        : null) as Figure | null,
    })),
  ].sort((a, b) => a.position - b.position || Number(a.isEnd) - Number(b.isEnd) || b.journeys - a.journeys);
  return (
    <Table
      caption={`Flows of ${answer.walkthrough.title}`}
      columns={[
        { title: "From" },
        { title: "To" },
        { title: "Place", isNumber: true },
        { title: "People", isNumber: true },
        { title: "Of all", isNumber: true },
        { title: "Of those there", isNumber: true },
        { title: "Mean time", isNumber: true },
      ]}
      rows={rows.map((row) => ({
        key: row.key,
        cells: [
          row.from,
          row.to,
          count(row.position + (row.isEnd ? 0 : 1)),
          row.figure ? (
            <button
              type="button"
              class="link"
              onClick={() =>
                change(
                  {
                    tab: "people",
                    figure: row.figure ?? [],
                    label: `${row.to} after ${row.from}`,
                    journey: "",
                    session: "",
                  },
                  true,
                )
              }
            >
              {count(row.journeys)}
            </button>
          ) : (
            count(row.journeys)
          ),
          share(row.share),
          share(row.ofNode),
          duration(row.mean),
        ],
      }))}
    />
  );
}

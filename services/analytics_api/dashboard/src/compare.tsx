/** Two servers or two periods side by side, and which differences are more than chance. */

import type { JSX } from "preact";
import type { Api, Comparison, Sankey, Walkthrough } from "./api";
import { useAsked } from "./data";
import { count, daysAgo, duration, many, points, share } from "./format";
import { Answered, Download, Segments, Table } from "./parts";
import { SankeyChart } from "./sankey";
import { cohort, paths } from "./state";
import type { Query, View } from "./state";

interface Props {
  api: Api;
  view: View;
  walkthrough: Walkthrough;
  tick: number;
  change: (part: Partial<View>, push?: boolean) => void;
}

interface Side {
  name: string;
  query: Query;
}

const PERIODS: [string, string, number, number][] = [
  ["last7", "last 7 days", 6, 0],
  ["before7", "the 7 days before", 13, 7],
  ["last30", "last 30 days", 29, 0],
  ["before30", "the 30 days before", 59, 30],
];

function sides(view: View, walkthrough: Walkthrough): [Side, Side] | null {
  if (view.compare === "periods") {
    const of = (id: string, otherwise: number): Side => {
      const found = PERIODS.find(([name]) => name === id) ?? PERIODS[otherwise] ?? PERIODS[0];
      const [, name, first, last] = found as [string, string, number, number];
      return { name, query: { server: view.servers, from: daysAgo(first), to: daysAgo(last) } };
    };
    return [of(view.a, 1), of(view.b, 0)];
  }
  const [one, two] = walkthrough.servers;
  if (!one || !two) return null;
  const of = (id: string, otherwise: typeof one): Side => {
    const server = walkthrough.servers.find((s) => s.id === id) ?? otherwise;
    return { name: server.name, query: { ...cohort(view), server: [server.id] } };
  };
  return [of(view.a, one), of(view.b, two)];
}

export function CompareView({ api, view, walkthrough, tick, change }: Props): JSX.Element {
  const chosen = sides(view, walkthrough);
  const options: [string, string][] =
    view.compare === "periods"
      ? PERIODS.map(([id, name]) => [id, name])
      : walkthrough.servers.map((s) => [s.id, s.name]);
  const current = (side: "a" | "b"): string => {
    const value = view[side];
    if (options.some(([id]) => id === value)) return value;
    const otherwise = view.compare === "periods" ? (side === "a" ? 1 : 0) : side === "a" ? 0 : 1;
    return options[otherwise]?.[0] ?? "";
  };
  return (
    <section aria-label="Compare">
      <div class="toolbar">
        <Segments
          name="Compare"
          options={[
            ["servers", "Two servers"],
            ["periods", "Two periods"],
          ]}
          value={view.compare}
          onChange={(compare) => change({ compare, a: "", b: "" })}
        />
        {options.length > 1 &&
          (["a", "b"] as const).map((side) => (
            <label key={side}>
              <span class={`side ${side}`}>{side.toUpperCase()}</span>{" "}
              <select value={current(side)} onChange={(e) => change({ [side]: e.currentTarget.value })}>
                {options.map(([id, name]) => (
                  <option key={id} value={id}>
                    {name}
                  </option>
                ))}
              </select>
            </label>
          ))}
      </div>
      {chosen === null ? (
        <div class="empty">
          <strong>One server alone</strong>
          <p>This walkthrough is on one server. Offer it on another one, or compare two periods.</p>
        </div>
      ) : (
        <Both api={api} view={view} tick={tick} a={chosen[0]} b={chosen[1]} />
      )}
    </section>
  );
}

function Both({
  api,
  view,
  tick,
  a,
  b,
}: {
  api: Api;
  view: View;
  tick: number;
  a: Side;
  b: Side;
}): JSX.Element {
  const root = `walkthroughs/${encodeURIComponent(view.walkthrough)}`;
  const path = paths(view);
  const query: Query = {
    start_at: path.start_at,
    end_at: path.end_at,
    exclude: path.exclude,
    server_a: a.query.server,
    from_a: a.query.from,
    to_a: a.query.to,
    server_b: b.query.server,
    from_b: b.query.from,
    to_b: b.query.to,
  };
  const asked = useAsked<Comparison>(JSON.stringify([root, "compare", query]), tick, (signal) =>
    api.get(`${root}/compare`, query, signal),
  );
  return (
    <Answered
      asked={asked}
      isEmpty={(c) => c.journeys_a + c.journeys_b === 0}
      empty={
        <>
          <strong>Nobody here</strong>
          <p>Neither side has a journey. Choose other days or servers.</p>
        </>
      }
    >
      {(answer) => (
        <>
          <Verdict answer={answer} a={a.name} b={b.name} />
          <div class="two sankeys">
            {(
              [
                ["A", a],
                ["B", b],
              ] as const
            ).map(([letter, side]) => (
              <figure key={letter}>
                <figcaption>
                  <span class={`side ${letter.toLowerCase()}`}>{letter}</span> {side.name}
                </figcaption>
                <Small api={api} view={view} tick={tick} side={side} />
              </figure>
            ))}
          </div>
          <div class="toolbar">
            <Download api={api} path={`${root}/compare`} query={query} />
          </div>
          <Table
            caption="Differences"
            columns={[
              { title: "From" },
              { title: "To" },
              { title: "Place", isNumber: true },
              { title: "A", isNumber: true },
              { title: "B", isNumber: true },
              { title: "Difference", isNumber: true },
              { title: "More than chance?" },
              { title: "Mean time A", isNumber: true },
              { title: "Mean time B", isNumber: true },
            ]}
            rows={rowsOf(answer)}
          />
          <p class="hint">
            Shares are of the people at the step that a flow comes from. Chance: Fisher&apos;s exact test,
            with many people the chi-squared test; p is adjusted for the number of flows compared (Benjamini
            and Hochberg), and below 0.05 is more than chance.
          </p>
        </>
      )}
    </Answered>
  );
}

function Verdict({ answer, a, b }: { answer: Comparison; a: string; b: string }): JSX.Element {
  const c = answer.completion;
  const worse = (c.difference ?? 0) < 0;
  return (
    <div class="findings">
      <p>
        <span>Completion</span>
        <b>
          {share(c.share_a)} on A ({a}), {share(c.share_b)} on B ({b})
        </b>
        {c.difference === null
          ? "one side has nobody"
          : c.difference === 0
            ? "the same"
            : `B did ${worse ? "worse" : "better"} by ${points(c.difference).replace(/^[+−]/, "")}: ${c.significant ? "more than chance" : "that may be chance"} (p = ${pText(c.p_value)}), of ${many(answer.journeys_a, "journey")} and ${many(answer.journeys_b, "journey")}`}
      </p>
    </div>
  );
}

const pText = (p: number | null): string => (p === null ? "–" : p < 0.001 ? "below 0.001" : p.toFixed(3));

function rowsOf(answer: Comparison) {
  const all = [
    ...answer.links.map((l) => ({ ...l, from: l.from_title, to: l.to_title, place: l.position + 1 })),
    ...answer.drops.map((d) => ({
      ...d,
      from: d.title,
      to: "Stopped",
      place: d.position + 1,
      mean_ms_a: null,
      mean_ms_b: null,
    })),
  ];
  return all
    .sort(
      (x, y) =>
        Number(y.significant) - Number(x.significant) ||
        (x.p_value ?? 2) - (y.p_value ?? 2) ||
        x.place - y.place,
    )
    .map((row) => ({
      key: `${row.place} ${row.from} ${row.to}`,
      isStrong: row.significant,
      cells: [
        row.from,
        row.to,
        count(row.place),
        `${share(row.share_a)} (${count(row.in_a)} of ${count(row.of_a)})`,
        `${share(row.share_b)} (${count(row.in_b)} of ${count(row.of_b)})`,
        points(row.difference),
        row.p_adjusted === null
          ? "one side has nobody"
          : `${row.significant ? "yes" : "no"}, p = ${pText(row.p_adjusted)}`,
        duration(row.mean_ms_a),
        duration(row.mean_ms_b),
      ],
    }));
}

function Small({ api, view, tick, side }: { api: Api; view: View; tick: number; side: Side }): JSX.Element {
  const path = `walkthroughs/${encodeURIComponent(view.walkthrough)}/sankey`;
  const query = {
    ...paths(view),
    from: undefined,
    to: undefined,
    ...side.query,
    nodes: view.detail || undefined,
    positions: view.places || undefined,
  };
  const asked = useAsked<Sankey>(JSON.stringify([path, query]), tick, (signal) =>
    api.get(path, query, signal),
  );
  return (
    <Answered asked={asked} isEmpty={(s) => s.journeys === 0} empty={<strong>Nobody here</strong>}>
      {(answer) => (
        <SankeyChart
          answer={answer}
          pinned={null}
          pins={new Set()}
          chosen=""
          label={`Flow of ${side.name}`}
          isCompact
          onChoose={() => undefined}
          onPin={() => undefined}
          onClear={() => undefined}
          onMenu={() => undefined}
        />
      )}
    </Answered>
  );
}

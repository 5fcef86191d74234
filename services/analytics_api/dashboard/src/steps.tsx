/** What became of each step: the funnel, where people stop, and how long steps take. */

import * as Plot from "@observablehq/plot";
import type { JSX } from "preact";
import type { Api, Funnel, Steps } from "./api";
import { Chart } from "./chart";
import { useAsked } from "./data";
import { count, duration, many, share, shorten } from "./format";
import { Answered, Download, Table } from "./parts";
import { cohort } from "./state";
import type { View } from "./state";

interface Props {
  api: Api;
  view: View;
  tick: number;
  change: (part: Partial<View>, push?: boolean) => void;
}

const scaleOf = (ms: number): [number, string] =>
  ms >= 2 * 86_400_000
    ? [86_400_000, "days"]
    : ms >= 2 * 3_600_000
      ? [3_600_000, "hours"]
      : ms >= 120_000
        ? [60_000, "minutes"]
        : [1_000, "seconds"];

export function StepsView({ api, view, tick, change }: Props): JSX.Element {
  const root = `walkthroughs/${encodeURIComponent(view.walkthrough)}`;
  const query = cohort(view);
  const steps = useAsked<Steps>(JSON.stringify([root, "steps", query]), tick, (signal) =>
    api.get(`${root}/steps`, query, signal),
  );
  const funnel = useAsked<Funnel>(JSON.stringify([root, "funnel", query]), tick, (signal) =>
    api.get(`${root}/funnel`, query, signal),
  );
  const waiting = (step: string, title: string, outcomes: string[]) =>
    change(
      {
        tab: "people",
        label: `stand before ${title}`,
        journey: "",
        session: "",
        figure: [["next_step", step], ...outcomes.map((o): [string, string] => ["outcome", o])],
      },
      true,
    );
  return (
    <section aria-label="Steps">
      <Answered
        asked={steps}
        isEmpty={(a) => a.started === 0}
        empty={
          <>
            <strong>Nobody here</strong>
            <p>No journey began in these days on these servers.</p>
          </>
        }
      >
        {(answer) => {
          const worst = [...answer.steps].sort((a, b) => b.dropped_here - a.dropped_here)[0];
          const slowest = [...answer.steps]
            .filter((s) => s.median_ms !== null)
            .sort((a, b) => (b.median_ms ?? 0) - (a.median_ms ?? 0))[0];
          return (
            <>
              <div class="findings">
                <p>
                  <span>Most people stop before</span>
                  {worst && worst.dropped_here > 0 ? (
                    <>
                      <b>{worst.title}</b> {many(worst.dropped_here, "person", "people")},{" "}
                      {share(worst.dropped_here / worst.reached)} of those who reached it.{" "}
                      <button
                        type="button"
                        class="link"
                        onClick={() => waiting(worst.step_id, worst.title, ["dropped", "in_progress"])}
                      >
                        Who stands there?
                      </button>
                    </>
                  ) : (
                    <b>nowhere: nobody has stopped for good</b>
                  )}
                </p>
                <p>
                  <span>The slowest step is</span>
                  {slowest ? (
                    <>
                      <b>{slowest.title}</b> half of the people need more than {duration(slowest.median_ms)},
                      one in ten more than {duration(slowest.p90_ms)}
                    </>
                  ) : (
                    <b>not known yet</b>
                  )}
                </p>
              </div>
              <div class="two">
                <figure>
                  <figcaption>How many get how far, in the order of the walkthrough</figcaption>
                  <Answered asked={funnel}>{(f) => <FunnelChart funnel={f} />}</Answered>
                </figure>
                <figure>
                  <figcaption>
                    Time before each step is done: half of the people (bar) and nine in ten (line)
                  </figcaption>
                  <TimeChart steps={answer} />
                </figure>
              </div>
              <div class="toolbar">
                <Download api={api} path={`${root}/steps`} query={query} />
              </div>
              <Table
                caption="Steps"
                columns={[
                  { title: "Step" },
                  { title: "Reached", isNumber: true },
                  { title: "Completed", isNumber: true },
                  { title: "Completed of reached", isNumber: true },
                  { title: "Stopped here", isNumber: true },
                  { title: "In progress here", isNumber: true },
                  { title: "Median time", isNumber: true },
                  { title: "Mean time", isNumber: true },
                  { title: "9 in 10 within", isNumber: true },
                ]}
                rows={answer.steps.map((s) => ({
                  key: s.step_id,
                  isStrong: s === worst && s.dropped_here > 0,
                  cells: [
                    `${s.place}. ${s.title}`,
                    count(s.reached),
                    count(s.completed),
                    share(s.completion_rate),
                    <People
                      n={s.dropped_here}
                      go={() => waiting(s.step_id, s.title, ["dropped"])}
                      what={`stopped before ${s.title}`}
                    />,
                    <People
                      n={s.in_progress_here}
                      go={() => waiting(s.step_id, s.title, ["in_progress"])}
                      what={`are in progress before ${s.title}`}
                    />,
                    duration(s.median_ms),
                    duration(s.mean_ms),
                    duration(s.p90_ms),
                  ],
                }))}
              />
              <p class="hint">
                Reached: did the step, or would be shown it next. Stopped: not active for 7 days. Time: since
                the step before, or since the start.{" "}
                {answer.times.exact
                  ? "Times are of every journey."
                  : `Times are of every ${answer.times.every}th person of ${count(answer.times.journeys)}.`}
              </p>
            </>
          );
        }}
      </Answered>
    </section>
  );
}

function People({ n, go, what }: { n: number; go: () => void; what: string }): JSX.Element {
  if (!n) return <>0</>;
  return (
    <button type="button" class="link" onClick={go} aria-label={`${count(n)} people ${what}`}>
      {count(n)}
    </button>
  );
}

function FunnelChart({ funnel }: { funnel: Funnel }): JSX.Element {
  const rows = [
    { name: "Started", people: funnel.started, share: 1 },
    ...funnel.stages.map((s) => ({ name: `${s.place}. ${s.title}`, people: s.through, share: s.share ?? 0 })),
  ];
  return (
    <Chart
      label="Funnel"
      data={funnel}
      make={(width) => ({
        height: rows.length * 30 + 20,
        marginLeft: Math.min(230, width / 2.4),
        marginRight: 90,
        x: { axis: null, domain: [0, Math.max(1, funnel.started)] },
        y: {
          domain: rows.map((r) => r.name),
          label: null,
          tickSize: 0,
          tickFormat: (t: string) => shorten(t, Math.floor(Math.min(230, width / 2.4) / 7)),
        },
        marks: [
          Plot.barX(rows, {
            x: "people",
            y: "name",
            fill: "var(--flow-strong)",
            rx: 3,
            insetTop: 3,
            insetBottom: 3,
          }),
          Plot.text(rows, {
            x: "people",
            y: "name",
            text: (r: { people: number; share: number }) => `${count(r.people)} · ${share(r.share)}`,
            textAnchor: "start",
            dx: 6,
          }),
        ],
      })}
    />
  );
}

function TimeChart({ steps }: { steps: Steps }): JSX.Element {
  const known = steps.steps.filter((s) => s.median_ms !== null);
  const [size, unit] = scaleOf(Math.max(0, ...known.map((s) => s.median_ms ?? 0)));
  const rows = known.map((s) => ({
    name: `${s.place}. ${s.title}`,
    median: (s.median_ms ?? 0) / size,
    p90: (s.p90_ms ?? 0) / size,
    text: duration(s.median_ms),
  }));
  return (
    <Chart
      label="Time before each step"
      data={steps}
      make={(width) => ({
        height: rows.length * 30 + 60,
        marginLeft: Math.min(230, width / 2.4),
        marginRight: 80,
        x: { label: unit, grid: true, nice: true },
        y: {
          domain: rows.map((r) => r.name),
          label: null,
          tickSize: 0,
          tickFormat: (t: string) => shorten(t, Math.floor(Math.min(230, width / 2.4) / 7)),
        },
        marks: [
          Plot.ruleY(rows, { y: "name", x1: "median", x2: "p90", stroke: "var(--progress)", strokeWidth: 2 }),
          Plot.barX(rows, {
            x: "median",
            y: "name",
            fill: "var(--flow-strong)",
            rx: 3,
            insetTop: 6,
            insetBottom: 6,
          }),
          Plot.text(rows, { x: "p90", y: "name", text: "text", textAnchor: "start", dx: 6 }),
        ],
      })}
    />
  );
}

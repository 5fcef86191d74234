/** Figures over time. */

import * as Plot from "@observablehq/plot";
import type { JSX } from "preact";
import type { Trends } from "./api";
import { walkthroughPath } from "./api";
import { Chart } from "./chart";
import { useAnswer } from "./data";
import { count, share } from "./format";
import { Answered, Download, Segments, Table } from "./parts";
import { cohort } from "./state";
import type { ViewProps } from "./view";

export function TrendsView({ api, view, tick, change }: ViewProps): JSX.Element {
  const path = walkthroughPath(view.walkthrough, "trends");
  const query = { ...cohort(view), by: view.by };
  const asked = useAnswer<Trends>(api, path, query, tick);
  return (
    <section aria-label="Trends">
      <div class="toolbar">
        <Segments
          name="Divided by"
          options={[
            ["day", "Days"],
            ["week", "Weeks"],
          ]}
          value={view.by}
          onChange={(by) => change({ by })}
        />
        <Download api={api} path={path} query={query} />
      </div>
      <Answered
        asked={asked}
        isEmpty={(a) => a.points.length === 0}
        empty={
          <>
            <strong>Nobody here</strong>
            <p>Nothing happened in these days.</p>
          </>
        }
      >
        {(answer) => (
          <>
            <div class="two">
              <figure>
                <figcaption>Journeys that began, and how many of those are finished by now</figcaption>
                <Lines
                  answer={answer}
                  of={[
                    ["started", "Began", "var(--flow-strong)"],
                    ["finished", "Finished by now", "var(--finished)"],
                  ]}
                />
              </figure>
              <figure>
                <figcaption>People active</figcaption>
                <Lines answer={answer} of={[["active_people", "Active", "var(--flow-strong)"]]} />
              </figure>
              <figure>
                <figcaption>Completion rate of those who began then</figcaption>
                <Rate answer={answer} />
              </figure>
              <figure>
                <figcaption>Journeys that reached their last step then</figcaption>
                <Lines answer={answer} of={[["finished_then", "Finished then", "var(--finished)"]]} />
              </figure>
            </div>
            <Table
              caption={answer.by === "day" ? "By day" : "By week"}
              columns={[
                { title: answer.by === "day" ? "Day (UTC)" : "Week from (UTC)" },
                { title: "Began", isNumber: true },
                { title: "Finished by now", isNumber: true },
                { title: "Completion rate", isNumber: true },
                { title: "Finished then", isNumber: true },
                { title: "People active", isNumber: true },
              ]}
              rows={[...answer.points].reverse().map((p) => ({
                key: p.since,
                cells: [
                  p.since,
                  count(p.started),
                  count(p.finished),
                  share(p.completion_rate),
                  count(p.finished_then),
                  count(p.active_people),
                ],
              }))}
            />
          </>
        )}
      </Answered>
    </section>
  );
}

type Counted = "started" | "finished" | "finished_then" | "active_people";

function Lines({ answer, of }: { answer: Trends; of: [Counted, string, string][] }): JSX.Element {
  const rows = of.flatMap(([field, name]) =>
    answer.points.map((p) => ({ day: new Date(p.since), n: p[field], name })),
  );
  return (
    <Chart
      label={of.map(([, name]) => name).join(", ")}
      data={answer}
      make={() => ({
        height: 220,
        marginLeft: 46,
        x: { type: "utc", label: null },
        y: {
          grid: true,
          label: null,
          nice: true,
          domain: [0, Math.max(1, ...rows.map((r) => r.n))],
          tickFormat: (n: number) => (Number.isInteger(n) ? count(n) : ""),
        },
        color: {
          domain: of.map(([, name]) => name),
          range: of.map(([, , colour]) => colour),
          legend: of.length > 1,
        },
        marks: [
          Plot.lineY(rows, { x: "day", y: "n", stroke: "name", strokeWidth: 2, curve: "monotone-x" }),
          Plot.dot(rows, {
            x: "day",
            y: "n",
            fill: "name",
            r: rows.length > 90 ? 0 : 2.5,
            tip: true,
            title: (r: { day: Date; n: number; name: string }) =>
              `${r.day.toISOString().slice(0, 10)}\n${r.name}: ${count(r.n)}`,
          }),
        ],
      })}
    />
  );
}

function Rate({ answer }: { answer: Trends }): JSX.Element {
  const rows = answer.points
    .filter((p) => p.completion_rate !== null)
    .map((p) => ({ day: new Date(p.since), rate: p.completion_rate ?? 0 }));
  return (
    <Chart
      label="Completion rate"
      data={answer}
      make={() => ({
        height: 220,
        marginLeft: 46,
        x: { type: "utc", label: null },
        y: { grid: true, label: null, domain: [0, 1], tickFormat: (n: number) => share(n) },
        marks: [
          Plot.lineY(rows, { x: "day", y: "rate", stroke: "var(--finished)", strokeWidth: 2 }),
          Plot.dot(rows, {
            x: "day",
            y: "rate",
            fill: "var(--finished)",
            r: 2.5,
            tip: true,
            title: (r: { day: Date; rate: number }) =>
              `${r.day.toISOString().slice(0, 10)}\n${share(r.rate)}`,
          }),
        ],
      })}
    />
  );
}

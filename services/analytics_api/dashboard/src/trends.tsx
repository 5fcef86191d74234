/** Figures over time. */

import * as Plot from "@observablehq/plot";
import type { JSX } from "preact";
import type { TimeToFinish, Trends, Version } from "./api";
import { walkthroughPath } from "./api";
import { TrendsByPart } from "./breakdown-figures";
import { Chart, linkOf } from "./chart";
import { useAnswer } from "./data";
import { count, many, share } from "./format";
import type { IsComplete } from "./incomplete";
import { hadTime, isOver, parts } from "./incomplete";
import { Answered, Download, Segments, Table } from "./parts";
import type { View } from "./state";
import { cohort, readView, within } from "./state";
import { FinishChart } from "./time-to-finish";
import type { Edit } from "./versions";
import { EditList, editMarks, editsBetween } from "./versions";
import type { ViewProps } from "./view";
import { WithinChoice } from "./within";

export function TrendsView({ api, view, walkthrough, versions, tick, change }: ViewProps): JSX.Element {
  const path = walkthroughPath(view.walkthrough, "trends");
  const query = { ...cohort(view), ...within(view), by: view.by };
  const asked = useAnswer<Trends>(api, path, query, tick);
  const finish = useAnswer<TimeToFinish>(
    api,
    walkthroughPath(view.walkthrough, "time-to-finish"),
    cohort(view),
    tick,
  );
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
        <WithinChoice view={view} change={change} />
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
            {/* biome-ignore lint/a11y: the lines are links; the list below has the same as buttons */}
            <div
              class="two"
              onClick={(e) => {
                const address = linkOf(e);
                if (address) change(readView(address), true);
              }}
            >
              <figure>
                <figcaption>Journeys that began, and how many of those are finished by now</figcaption>
                <Lines
                  {...marksOf(answer, versions, view)}
                  answer={answer}
                  isComplete={hadTime}
                  of={[
                    ["started", "Began", "var(--flow-strong)"],
                    ["finished", "Finished by now", "var(--finished)"],
                  ]}
                />
              </figure>
              <figure>
                <figcaption>People active</figcaption>
                <Lines
                  {...marksOf(answer, versions, view)}
                  answer={answer}
                  isComplete={isOver(answer.by)}
                  of={[["active_people", "Active", "var(--flow-strong)"]]}
                />
              </figure>
              <figure>
                <figcaption>
                  Finished within {many(answer.within_days, "day")}, of those who began then and have had the
                  time
                </figcaption>
                <Rate {...marksOf(answer, versions, view)} answer={answer} />
              </figure>
              <figure>
                <figcaption>Journeys that reached their last step then</figcaption>
                <Lines
                  {...marksOf(answer, versions, view)}
                  answer={answer}
                  isComplete={isOver(answer.by)}
                  of={[["finished_then", "Finished then", "var(--finished)"]]}
                />
              </figure>
              <figure>
                <figcaption>How many have finished, by the time since they began</figcaption>
                <Answered
                  asked={finish}
                  isEmpty={(f) => f.points.length === 0}
                  empty={<strong>Nobody has finished</strong>}
                >
                  {(f) => <FinishChart answer={f} />}
                </Answered>
              </figure>
            </div>
            {view.breakdown && <TrendsByPart api={api} view={view} walkthrough={walkthrough} tick={tick} />}
            <EditList edits={marksOf(answer, versions, view).edits} change={change} />
            <p class="hint">
              {answer.within_because} Dashed, and lighter: not all who began then have had{" "}
              {many(answer.within_days, "day")}, or the {answer.by} is not over.
            </p>
            <Table
              caption={answer.by === "day" ? "By day" : "By week"}
              columns={[
                { title: answer.by === "day" ? "Day (UTC)" : "Week from (UTC)" },
                { title: "Began", isNumber: true },
                { title: "Finished by now", isNumber: true },
                { title: `Have had ${many(answer.within_days, "day")}`, isNumber: true },
                { title: "Finished within them", isNumber: true },
                { title: "Rate", isNumber: true },
                { title: "Finished then", isNumber: true },
                { title: "People active", isNumber: true },
              ]}
              rows={[...answer.points].reverse().map((p) => ({
                key: p.since,
                cells: [
                  p.since,
                  count(p.started),
                  count(p.finished),
                  p.complete ? count(p.had_time) : `${count(p.had_time)} (not all yet)`,
                  count(p.finished_within),
                  share(p.completion_rate_within),
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

interface Marked {
  answer: Trends;
  /** Edits of the walkthrough in the time that is shown. */
  edits: Edit[];
  view: View;
}

function marksOf(answer: Trends, versions: Version[], view: View): { edits: Edit[]; view: View } {
  const first = answer.points[0]?.since ?? "";
  const last = answer.points.at(-1)?.since ?? "";
  const length = (answer.by === "week" ? 7 : 1) * 86_400_000;
  return { edits: editsBetween(versions, Date.parse(first), Date.parse(last) + length), view };
}

function Lines({
  answer,
  isComplete,
  of,
  edits,
  view,
}: Marked & {
  isComplete: IsComplete;
  of: [Counted, string, string][];
}): JSX.Element {
  const series = of.map(([field, name]) =>
    answer.points.map((p) => ({ day: new Date(p.since), n: p[field], name, isComplete: isComplete(p) })),
  );
  const rows = series.flat();
  const drawn = series.map(parts);
  const line = { x: "day", y: "n", stroke: "name", strokeWidth: 2, curve: "monotone-x" } as const;
  return (
    <Chart
      label={of.map(([, name]) => name).join(", ")}
      data={JSON.stringify([answer.points, edits, view])}
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
          ...editMarks(edits, view),
          Plot.lineY(
            drawn.flatMap(({ whole }) => whole),
            line,
          ),
          Plot.lineY(
            drawn.flatMap(({ dashed }) => dashed),
            { ...line, ...DASHED },
          ),
          Plot.dot(rows, {
            x: "day",
            y: "n",
            fill: "name",
            fillOpacity: (r: Row) => (r.isComplete ? 1 : 0.45),
            r: rows.length > 90 ? 0 : 2.5,
            tip: true,
            title: (r: Row & { n: number; name: string }) =>
              `${dayText(r)}\n${r.name}: ${count(r.n)}${r.isComplete ? "" : ", so far"}`,
          }),
        ],
      })}
    />
  );
}

interface Row {
  day: Date;
  isComplete: boolean;
}

const DASHED = { strokeDasharray: "4 4", strokeOpacity: 0.6 } as const;

const dayText = ({ day }: Row): string => day.toISOString().slice(0, 10);

function Rate({ answer, edits, view }: Marked): JSX.Element {
  const rows = answer.points
    .filter((p) => p.completion_rate_within !== null)
    .map((p) => ({
      day: new Date(p.since),
      rate: p.completion_rate_within ?? 0,
      of: `${count(p.finished_within)} of ${count(p.had_time)}`,
      isComplete: p.complete,
    }));
  const { whole, dashed } = parts(rows);
  // The last days, of which there is no rate yet, have their place.
  const days = [answer.points[0], answer.points.at(-1)].map((p) => new Date(p?.since ?? 0));
  const line = { x: "day", y: "rate", stroke: "var(--finished)", strokeWidth: 2 } as const;
  return (
    <Chart
      label="Completion rate"
      data={JSON.stringify([answer.points, edits, view])}
      make={() => ({
        height: 220,
        marginLeft: 46,
        x: { type: "utc", label: null, domain: days },
        y: { grid: true, label: null, domain: [0, 1], tickFormat: (n: number) => share(n) },
        marks: [
          ...editMarks(edits, view),
          Plot.lineY(whole, line),
          Plot.lineY(dashed, { ...line, ...DASHED }),
          Plot.dot(rows, {
            x: "day",
            y: "rate",
            fill: "var(--finished)",
            fillOpacity: (r: Row) => (r.isComplete ? 1 : 0.45),
            r: 2.5,
            tip: true,
            title: (r: Row & { rate: number; of: string }) =>
              `${dayText(r)}\n${share(r.rate)} (${r.of})${r.isComplete ? "" : ", not all have had the time"}`,
          }),
        ],
      })}
    />
  );
}

/** The figures of the views for each part of a breakdown: steps, trends, flows. */

import * as Plot from "@observablehq/plot";
import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import type { Breakdown, Funnel, Sankey, Steps, Trends } from "./api";
import type { OfParts, PartWith } from "./breakdown";
import { InParts, nameOfBreakdown, partsWith, useParts } from "./breakdown";
import { Chart } from "./chart";
import { count, duration, many, share, shorten } from "./format";
import { parts as partsOfLine } from "./incomplete";
import { Download, Table } from "./parts";
import { SankeyChart } from "./sankey";
import { paths, within } from "./state";

/** A colour for each part, and grey for all others. */
const PALETTE = [
  "#4269d0",
  "#efb118",
  "#ff725c",
  "#3ca951",
  "#a463f2",
  "#6cc5b0",
  "#ff8ab7",
  "#97bbf5",
  "#9c6b4e",
  "#b5a642",
];

function coloursOf(answer: Breakdown): { domain: string[]; range: string[]; legend: true } {
  return {
    domain: answer.parts.map((part) => part.title),
    range: answer.parts.map((part, i) => (part.value === null ? "#9498a0" : (PALETTE[i] ?? "#9498a0"))),
    legend: true,
  };
}

export function StepsByPart(props: OfParts): JSX.Element {
  const { api, view, walkthrough } = props;
  const funnels = useParts(props, "funnel");
  const steps = useParts(props, "steps");
  const name = nameOfBreakdown(view.breakdown, walkthrough);
  return (
    <section aria-label={`Steps by ${name}`}>
      <h2 class="lead">By {name}</h2>
      <InParts asked={funnels.asked}>
        {(answer) => (
          <figure>
            <figcaption>How many of each part get how far, in the order of the walkthrough</figcaption>
            <FunnelLines answer={answer} />
          </figure>
        )}
      </InParts>
      <div class="toolbar">
        <Download api={api} path={steps.path} query={steps.query} />
      </div>
      <InParts asked={steps.asked}>{(answer) => <StepsOfParts answer={answer} name={name} />}</InParts>
    </section>
  );
}

function FunnelLines({ answer }: { answer: Breakdown }): JSX.Element {
  const parts = partsWith<Funnel>(answer).filter((part) => part.answer.started > 0);
  const names = ["Started", ...(parts[0]?.answer.stages ?? []).map((s) => `${s.place}. ${s.title}`)];
  const rows = parts.flatMap((part) =>
    [part.answer.started, ...part.answer.stages.map((s) => s.through)].map((people, i) => ({
      part: part.title,
      step: names[i] ?? "",
      people,
      share: people / part.answer.started,
    })),
  );
  type Row = (typeof rows)[number];
  const line = { x: "step", y: "share", stroke: "part", z: "part" } as const;
  return (
    <Chart
      label="Funnel of each part"
      data={answer}
      make={(width) => ({
        height: 300,
        marginLeft: 46,
        marginBottom: 90,
        x: {
          domain: names,
          label: null,
          tickRotate: -30,
          tickFormat: (text: string) => shorten(text, Math.max(8, Math.floor(width / names.length / 5))),
        },
        y: { grid: true, label: null, domain: [0, 1], tickFormat: (n: number) => share(n) },
        color: coloursOf(answer),
        marks: [
          Plot.lineY(rows, { ...line, strokeWidth: 2 }),
          Plot.dot(rows, {
            ...line,
            fill: "part",
            r: 2.5,
            tip: true,
            title: (r: Row) => `${r.step}\n${r.part}: ${share(r.share)} (${count(r.people)})`,
          }),
        ],
      })}
    />
  );
}

/** Of each step and part, who completed it of those who reached it, who stopped, and the median time. */
function StepsOfParts({ answer, name }: { answer: Breakdown; name: string }): JSX.Element {
  const parts = partsWith<Steps>(answer);
  return (
    <Table
      caption={`Steps by ${name}`}
      columns={[
        { title: "Step" },
        ...parts.map((part) => ({ title: `${part.title}: completed, stopped, median`, isNumber: true })),
      ]}
      rows={answer.walkthrough.steps.map((step, i) => ({
        key: step.id,
        cells: [`${i + 1}. ${step.title}`, ...parts.map((part) => stepOf(part, step.id))],
      }))}
    />
  );
}

function stepOf(part: PartWith<Steps>, id: string): string {
  const step = part.answer.steps.find((s) => s.step_id === id);
  if (!step || step.reached === 0) return "–";
  const completed = `${share(step.completion_rate)} of ${count(step.reached)}`;
  return `${completed}, ${count(step.dropped_here)}, ${duration(step.median_ms)}`;
}

export function TrendsByPart(props: OfParts): JSX.Element {
  const { api, view, walkthrough } = props;
  const { path, query, asked } = useParts(props, "trends", { ...within(view), period: view.by });
  const name = nameOfBreakdown(view.breakdown, walkthrough);
  return (
    <section aria-label={`Trends by ${name}`}>
      <div class="toolbar">
        <h2 class="lead">By {name}</h2>
        <Download api={api} path={path} query={query} />
      </div>
      <InParts asked={asked}>
        {(answer) => (
          <div class="two">
            <figure>
              <figcaption>Journeys that began</figcaption>
              <PartLines answer={answer} />
            </figure>
            <figure>
              <figcaption>
                Finished within {many(answer.within_days ?? 0, "day")}, of those who began then and have had
                the time
              </figcaption>
              <PartLines answer={answer} isRate />
            </figure>
          </div>
        )}
      </InParts>
    </section>
  );
}

const wholeNumber = (n: number): string => (Number.isInteger(n) ? count(n) : "");

/** Journeys that began in each part over time, or the rate at which they finish; dashed where not all had the time. */
function PartLines({ answer, isRate = false }: { answer: Breakdown; isRate?: boolean }): JSX.Element {
  const series = partsWith<Trends>(answer).map((part) =>
    part.answer.points.flatMap((p) => {
      const value = isRate ? p.completion_rate_within : p.started;
      if (value === null) return [];
      const of = `${count(p.finished_within)} of ${count(p.had_time)}`;
      const told = isRate ? `${share(value)} (${of})` : count(value);
      return [{ day: new Date(p.since), value, part: part.title, told, isComplete: p.complete }];
    }),
  );
  const rows = series.flat();
  type Row = (typeof rows)[number];
  const drawn = series.map(partsOfLine);
  const line = { x: "day", y: "value", stroke: "part", z: "part", strokeWidth: 2 } as const;
  const whole = drawn.flatMap((of) => of.whole);
  const dashed = drawn.flatMap((of) => of.dashed);
  const most = isRate ? 1 : Math.max(1, ...rows.map((r) => r.value));
  return (
    <Chart
      label={isRate ? "Completion rate of each part" : "Began, of each part"}
      data={answer}
      make={() => ({
        height: 240,
        marginLeft: 46,
        x: { type: "utc", label: null },
        y: {
          grid: true,
          label: null,
          domain: [0, most],
          tickFormat: isRate ? share : wholeNumber,
        },
        color: coloursOf(answer),
        marks: [
          Plot.lineY(whole, line),
          Plot.lineY(dashed, { ...line, strokeDasharray: "4 4", strokeOpacity: 0.6 }),
          Plot.dot(rows, {
            x: "day",
            y: "value",
            fill: "part",
            fillOpacity: (r: Row) => (r.isComplete ? 1 : 0.45),
            r: rows.length > 200 ? 0 : 2.5,
            tip: true,
            title: (r: Row) =>
              `${r.day.toISOString().slice(0, 10)}\n${r.part}: ${r.told}${r.isComplete ? "" : ", so far"}`,
          }),
        ],
      })}
    />
  );
}

export function FlowByPart(props: OfParts): JSX.Element {
  const { view, walkthrough } = props;
  const { asked } = useParts(props, "sankey", {
    ...paths(view),
    nodes: view.detail || undefined,
    positions: view.places || undefined,
  });
  const name = nameOfBreakdown(view.breakdown, walkthrough);
  return (
    <section aria-label={`Flows by ${name}`}>
      <h2 class="lead">By {name}</h2>
      <InParts asked={asked}>
        {(answer) => (
          <div class="two sankeys">
            {partsWith<Sankey>(answer).map((part) => (
              <figure key={part.value ?? "\0"}>
                <figcaption>
                  {part.title}: {many(part.journeys, "journey")}
                </figcaption>
                {part.answer.journeys > 0 ? (
                  <PartFlow part={part} name={name} />
                ) : (
                  <p class="hint">None of them goes through these steps.</p>
                )}
              </figure>
            ))}
          </div>
        )}
      </InParts>
    </section>
  );
}

const nothing = () => undefined;

function PartFlow({ part, name }: { part: PartWith<Sankey>; name: string }): JSX.Element {
  const none = useMemo(() => new Set<string>(), []);
  return (
    <SankeyChart
      answer={part.answer}
      pinned={null}
      pins={none}
      chosen=""
      label={`Flow of ${part.title}, by ${name}`}
      isCompact
      onChoose={nothing}
      onPin={nothing}
      onClear={nothing}
      onMenu={nothing}
    />
  );
}

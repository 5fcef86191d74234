/** The funnel, and how long steps take. */

import * as Plot from "@observablehq/plot";
import type { JSX } from "preact";
import type { Funnel, Steps } from "./api";
import { Chart } from "./chart";
import { count, duration, share, shorten } from "./format";

const SCALES: { from: number; size: number; unit: string }[] = [
  { from: 2 * 86_400_000, size: 86_400_000, unit: "days" },
  { from: 2 * 3_600_000, size: 3_600_000, unit: "hours" },
  { from: 2 * 60_000, size: 60_000, unit: "minutes" },
];

/** The unit in which a chart whose longest time is so many milliseconds is drawn. */
export const scaleOf = (longest: number): { size: number; unit: string } =>
  SCALES.find(({ from }) => longest >= from) ?? { size: 1_000, unit: "seconds" };

const nameRoom = (width: number): number => Math.min(230, width / 2.4);

const nameAxis = (rows: { name: string }[], width: number): Plot.ScaleOptions => ({
  domain: rows.map((row) => row.name),
  label: null,
  tickSize: 0,
  tickFormat: (name: string) => shorten(name, Math.floor(nameRoom(width) / 7)),
});

export function FunnelChart({ funnel }: { funnel: Funnel }): JSX.Element {
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
        marginLeft: nameRoom(width),
        marginRight: 90,
        x: { axis: null, domain: [0, Math.max(1, funnel.started)] },
        y: nameAxis(rows, width),
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

export function TimeChart({ steps }: { steps: Steps }): JSX.Element {
  const known = steps.steps.filter((s) => s.median_ms !== null);
  const { size, unit } = scaleOf(Math.max(0, ...known.map((s) => s.median_ms ?? 0)));
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
        marginLeft: nameRoom(width),
        marginRight: 80,
        x: { label: unit, grid: true, nice: true },
        y: nameAxis(rows, width),
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

/** How many took how long: bins of a log scale, as the API has them. */

import * as Plot from "@observablehq/plot";
import type { JSX } from "preact";
import { Chart } from "./chart";
import { count, duration } from "./format";

export interface Bar {
  from: number;
  to: number;
  n: number;
}

/** What is worth an axis mark, in milliseconds. */
const MARKS = [
  1_000,
  10_000,
  60_000,
  600_000,
  3_600_000,
  6 * 3_600_000,
  86_400_000,
  7 * 86_400_000,
  30 * 86_400_000,
  365 * 86_400_000,
];

/** The bins from the first to the last that has anybody; what is open at an end is as wide as its neighbour. */
export function barsOf(bins: readonly number[], bounds: readonly number[]): Bar[] {
  const first = bins.findIndex((n) => n > 0);
  if (first < 0) return [];
  const last = bins.findLastIndex((n) => n > 0);
  const ratio = (bounds[1] ?? 2) / (bounds[0] ?? 1);
  return bins.slice(first, last + 1).map((n, i) => {
    const at = first + i;
    const to = bounds[at] ?? (bounds.at(-1) ?? 1) * ratio;
    return { from: bounds[at - 1] ?? to / ratio, to, n };
  });
}

interface Props {
  label: string;
  bins: readonly number[];
  bounds: readonly number[];
  median: number | null;
  height: number;
}

/** So many letters of an axis are as wide as this, in pixels. */
const MARK_ROOM = 58;

/** The marks between two times, in milliseconds: no more than there is room for. */
export function marksBetween(least: number, most: number, room: number): number[] {
  const marks = MARKS.filter((mark) => mark >= least && mark <= most);
  const every = Math.max(1, Math.ceil((marks.length * MARK_ROOM) / room));
  return marks.filter((_, i) => i % every === 0);
}

// Plot leaves out most labels of a log scale: it is given logarithms instead.
const log = Math.log10;

export function HistogramChart({ label, bins, bounds, median, height }: Props): JSX.Element {
  const bars = barsOf(bins, bounds);
  const least = bars[0]?.from ?? 1;
  const most = bars.at(-1)?.to ?? 10;
  const tallest = Math.max(...bars.map((bar) => bar.n));
  return (
    <Chart
      label={label}
      data={[label, bins, median]}
      make={(width) => ({
        height,
        marginLeft: 44,
        x: {
          domain: [log(least), log(most)],
          ticks: marksBetween(least, most, width - 44).map(log),
          tickFormat: (at: number) => duration(Math.round(10 ** at)),
          label: null,
        },
        y: { label: "people", grid: true, nice: true, ticks: Math.min(4, tallest), tickFormat: "d" },
        marks: [
          Plot.rectY(bars, {
            x1: (bar: Bar) => log(bar.from),
            x2: (bar: Bar) => log(bar.to),
            y: "n",
            fill: "var(--flow-strong)",
            insetLeft: 0.5,
            insetRight: 0.5,
            title: (bar: Bar) => `${duration(bar.from)} to ${duration(bar.to)}: ${count(bar.n)}`,
          }),
          ...(median === null
            ? []
            : [Plot.ruleX([log(Math.max(median, least))], { stroke: "var(--pin)", strokeWidth: 2 })]),
          Plot.ruleY([0]),
        ],
      })}
    />
  );
}

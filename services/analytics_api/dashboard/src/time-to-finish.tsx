/** How many have finished, by the time since they began. */

import * as Plot from "@observablehq/plot";
import type { JSX } from "preact";
import type { TimeToFinish } from "./api";
import { Chart } from "./chart";
import { count, duration, many, share } from "./format";
import { scaleOf } from "./step-charts";

/** When so many have finished, with its interval, in words. */
export function quantileText(ms: number | null, low: number | null, high: number | null): string {
  if (ms === null) return "at no time that is known";
  return `within ${duration(ms)} (19 times in 20: ${duration(low)} to ${high === null ? "not known" : duration(high)})`;
}

export function FinishChart({ answer }: { answer: TimeToFinish }): JSX.Element {
  const last = answer.points.at(-1)?.ms ?? 0;
  const { size, unit } = scaleOf(last);
  const rows = [
    { at: 0, share: 0, low: 0, high: 0, ms: 0 },
    ...answer.points.map((p) => ({
      at: p.ms / size,
      share: p.share,
      low: p.low ?? p.share,
      high: p.high ?? p.share,
      ms: p.ms,
    })),
  ];
  return (
    <>
      <Chart
        label="Share that has finished, by time since the beginning"
        data={answer}
        make={() => ({
          height: 220,
          marginLeft: 46,
          x: { label: unit, nice: true },
          y: { grid: true, label: null, domain: [0, 1], tickFormat: (n: number) => share(n) },
          marks: [
            Plot.areaY(rows, {
              x: "at",
              y1: "low",
              y2: "high",
              curve: "step-after",
              fill: "var(--finished)",
              fillOpacity: 0.18,
            }),
            Plot.lineY(rows, {
              x: "at",
              y: "share",
              curve: "step-after",
              stroke: "var(--finished)",
              strokeWidth: 2,
            }),
            Plot.tip(
              rows,
              Plot.pointerX({
                x: "at",
                y: "share",
                title: (r: { ms: number; share: number }) =>
                  `${share(r.share)} within ${duration(r.ms)} of their beginning`,
              }),
            ),
          ],
        })}
      />
      <p class="hint">
        Half of all have finished{" "}
        {quantileText(answer.median_ms, answer.median_low_ms, answer.median_high_ms)}; nine in ten{" "}
        {quantileText(answer.p90_ms, answer.p90_low_ms, answer.p90_high_ms)}. Of{" "}
        {many(answer.journeys, "journey")}
        {answer.times.exact ? "" : ` (every ${count(answer.times.every)}th person)`}, {count(answer.censored)}{" "}
        are not finished and count for as long as they have been on their way (Kaplan and Meier).
      </p>
    </>
  );
}

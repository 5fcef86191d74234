/** A chart of Observable Plot, drawn anew when its data, its room or the theme change. */

import * as Plot from "@observablehq/plot";
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { useWidth } from "./width";

export interface ChartProps {
  label: string;
  /** Everything that the chart depends on. */
  data: unknown;
  make: (width: number) => Plot.PlotOptions;
}

/** Where a click in a chart leads; nothing where it hit no link. */
export const linkOf = (event: MouseEvent): string | null =>
  (event.target as Element).closest("[data-href]")?.getAttribute("data-href") ?? null;

export function Chart({ label, data, make }: ChartProps): JSX.Element {
  const [measure, width] = useWidth();
  const place = useRef<HTMLDivElement>(null);
  // biome-ignore lint/correctness/useExhaustiveDependencies: the data stand for `make` and the label
  useEffect(() => {
    const room = Math.max(width, 260);
    const plot = Plot.plot({
      ...make(room),
      width: room,
      style: { background: "transparent", color: "inherit", fontFamily: "inherit", fontSize: "12px" },
    });
    // What is in it is told by the table beside it; the picture has its name alone.
    for (const part of plot.querySelectorAll("[aria-label], [aria-description]")) {
      part.removeAttribute("aria-label");
      part.removeAttribute("aria-description");
    }
    // A picture has no links within; `linkOf` finds where a click leads.
    for (const link of plot.querySelectorAll("a")) {
      const address = link.getAttribute("href") ?? link.getAttribute("xlink:href") ?? "";
      link.removeAttribute("href");
      link.removeAttribute("xlink:href");
      link.setAttribute("data-href", address);
    }
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", label);
    place.current?.replaceChildren(plot);
  }, [data, width]);
  return (
    <div
      class="chart"
      ref={(element) => {
        measure(element);
        place.current = element;
      }}
    />
  );
}

/** From a figure to the people behind it. */

import type { PathFigures, SankeyEnding } from "./api";
import type { Drawing, DrawnLink, DrawnNode } from "./layout";
import { stepsAt } from "./pins";
import type { Entry, Figure, Query, View } from "./state";

/** The parameters that the route takes once; of the others it takes several. */
const SINGLE = new Set(["position", "skipped", "ended_after", "next_step", "active_from", "active_to"]);

/** The figure as a question; of a parameter that the route takes once, the first value. */
export function queryOf(figure: Figure): Query {
  const query = new Map<string, string[]>();
  for (const [name, value] of figure) query.set(name, [...(query.get(name) ?? []), value]);
  return Object.fromEntries(
    [...query].map(([name, values]) => [name, SINGLE.has(name) ? values[0] : values] as const),
  );
}

export const valuesOf = (figure: Figure, name: string): string[] =>
  figure.filter(([one]) => one === name).map(([, value]) => value);

export const entries = (name: string, values: readonly string[]): Figure =>
  values.filter((value) => value !== "").map((value): Entry => [name, value]);

/** The figure with other entries in the place of those of some names. */
export const replaced = (figure: Figure, names: readonly string[], by: Figure): Figure => [
  ...figure.filter(([name]) => !names.includes(name)),
  ...by,
];

/** What leads to the list of the people behind a figure; it reads: people who `label`. */
export const peopleBehind = (figure: Figure, label: string): Partial<View> => ({
  tab: "people",
  figure,
  label,
  journey: "",
  session: "",
});

/** The steps of a drawn node as parameters; none at the start and where people end. */
function stepsOf(drawing: Drawing, id: string, name = "step"): Figure {
  const found = drawing.nodes.find((drawn) => drawn.id === id)?.node;
  return found && found.kind !== "start" ? stepsAt(found).map((step): Entry => [name, step]) : [];
}

/** Those who came to a step at its place; at the start, everybody. */
export const cameTo = (drawing: Drawing, { id, node }: DrawnNode): Figure =>
  !node || node.kind === "start" ? [] : [["position", String(node.position)], ...stepsOf(drawing, id)];

/** Those who did a step at its place, and nothing after it. */
export const didNotGoOnFrom = (drawing: Drawing, { id, column }: DrawnNode): Figure => [
  ["ended_after", String(column)],
  ...stepsOf(drawing, id),
  ["outcome", "dropped"],
  ["outcome", "in_progress"],
];

/** Those who took a flow. */
export const took = (drawing: Drawing, { link, ending, source, target }: DrawnLink): Figure =>
  link
    ? [
        ["position", String(link.position)],
        ["skipped", String(link.skipped)],
        ...stepsOf(drawing, target),
        ...stepsOf(drawing, source, "from_step"),
      ]
    : [
        ["ended_after", String((ending?.position ?? -1) + 1)],
        ...stepsOf(drawing, source),
        ["outcome", ending?.outcome ?? "dropped"],
      ];

/** Those who took a whole path; without steps, those who did nothing. */
export const tookPath = ({ step_ids, skipped_step_ids, outcome }: PathFigures): Figure => [
  ...(step_ids.length === 0
    ? entries("ended_after", ["0"])
    : entries(
        "path",
        step_ids.map((step) => `${skipped_step_ids.includes(step) ? "skipped" : "done"}:${step}`),
      )),
  ["outcome", outcome],
];

/** Those who ended so after a step; null where several steps are folded, because it is not known which. */
export function endedSo({ step_id, position, outcome }: SankeyEnding): Figure | null {
  if (!step_id && position >= 0) return null;
  return [["ended_after", String(position + 1)], ...entries("step", [step_id ?? ""]), ["outcome", outcome]];
}

/** Which steps at which places are pinned: `PLACE:STEP`, places counted from 0. */

import type { SankeyNode } from "./api";
import type { DrawnNode } from "./layout";

/** The steps that a node shows: its own, or those that are folded into it; "" at the start. */
export const stepsAt = (node: SankeyNode): string[] =>
  node.kind === "other" ? (node.folded ?? []).map((folded) => folded.step_id) : [node.step_id ?? ""];

const pinsOf = (node: DrawnNode): string[] =>
  (node.node ? stepsAt(node.node) : [""]).map((step) => `${node.column - 1}:${step}`);

/** Whether the paths through each step of a node are pinned. */
export function isPinned(node: SankeyNode, pins: readonly string[]): boolean {
  const steps = stepsAt(node);
  return steps.length > 0 && steps.every((step) => pins.includes(`${node.position}:${step}`));
}

/** The pins after a node was clicked: at its place it alone is pinned, or nothing if it was. */
export function toggled(pins: readonly string[], node: DrawnNode): string[] {
  const own = pinsOf(node);
  const others = pins.filter((pin) => Number(pin.split(":")[0]) !== node.column - 1);
  return own.every((pin) => pins.includes(pin)) ? others : [...others, ...own];
}

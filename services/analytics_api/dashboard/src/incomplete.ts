/** Periods of which not all is known yet: they are drawn lighter, and joined by dashes. */

import type { Trends } from "./api";
import { isoDay } from "./format";

type Point = Trends["points"][number];

export type IsComplete = (point: Point) => boolean;

/** Whether all who began then have had the days in which journeys are judged. */
export const hadTime: IsComplete = (point) => point.complete;

/** Whether the period is over. */
export const isOver =
  (by: Trends["by"], now = Date.now()): IsComplete =>
  ({ since }) =>
    isoDay(new Date(Date.parse(since) + (by === "week" ? 7 : 1) * 86_400_000)) <= isoDay(new Date(now));

/** Rows of whole periods, and those that dashes join: the others, behind the last whole one. */
export function parts<T extends { isComplete: boolean }>(rows: readonly T[]): { whole: T[]; dashed: T[] } {
  const first = rows.findIndex((row) => !row.isComplete);
  if (first < 0) return { whole: [...rows], dashed: [] };
  return { whole: rows.slice(0, first), dashed: rows.slice(Math.max(0, first - 1)) };
}

/** The two sides of a comparison, and what they can be chosen from. */

import type { Version, Walkthrough } from "./api";
import { daysAgo } from "./format";
import { decoded, nameOfSegment, narrowed } from "./segments";
import type { Query, View } from "./state";
import { cohort, group, isDay } from "./state";
import { nameOf } from "./versions";

export interface Side {
  name: string;
  query: Query;
}

type Letter = "a" | "b";
type Option = readonly [id: string, name: string];

interface Period {
  id: string;
  name: string;
  /** Days before today. */
  first: number;
  last: number;
}

const PERIODS: Period[] = [
  { id: "last7", name: "last 7 days", first: 6, last: 0 },
  { id: "before7", name: "the 7 days before", first: 13, last: 7 },
  { id: "last30", name: "last 30 days", first: 29, last: 0 },
  { id: "before30", name: "the 30 days before", first: 59, last: 30 },
];

/** Places among the options of what is compared while nothing is chosen; from the end where they are negative. */
const DEFAULTS: Record<View["compare"], Record<Letter, number>> = {
  servers: { a: 0, b: 1 },
  periods: { a: 1, b: 0 },
  days: { a: 0, b: 0 },
  segments: { a: 0, b: 0 },
  versions: { a: -2, b: -1 },
};

/** What a side can be. */
export function optionsOf(view: View, walkthrough: Walkthrough, versions: Version[]): Option[] {
  if (view.compare === "days" || view.compare === "segments") return [];
  if (view.compare === "versions") return versions.map((v) => [String(v.number), nameOf(v)] as const);
  return (view.compare === "periods" ? PERIODS : walkthrough.servers).map(
    ({ id, name }) => [id, name] as const,
  );
}

/** The id of what is chosen for a side, or else of its default. */
export function chosenFor(letter: Letter, view: View, options: readonly Option[]): string {
  const value = view[letter];
  if (options.some(([id]) => id === value)) return value;
  return options.at(DEFAULTS[view.compare][letter])?.[0] ?? "";
}

const DAYS = "..";

/** The first and the last day of a side; empty: the first, or the last, that there is. */
export function daysOf(text: string): { from: string; to: string } {
  const [from = "", to = ""] = text.split(DAYS);
  return { from: isDay(from) ? from : "", to: isDay(to) ? to : "" };
}

export const writeDays = ({ from, to }: { from: string; to: string }): string => `${from}${DAYS}${to}`;

function sideOfDays(text: string, view: View): Side {
  const { from, to } = daysOf(text);
  const name = from || to ? `${from || "the beginning"} to ${to || "today"}` : "all time";
  return { name, query: { ...group(view), from: from || undefined, to: to || undefined } };
}

function sideOfSegment(text: string, view: View, walkthrough: Walkthrough): Side | null {
  const segment = decoded(text);
  if (segment.length === 0) return null;
  const query = { ...cohort(view), segment: narrowed(view.segments, segment) };
  return { name: nameOfSegment(segment, walkthrough), query };
}

function sideOf(letter: Letter, view: View, walkthrough: Walkthrough, versions: Version[]): Side | null {
  if (view.compare === "days") return sideOfDays(view[letter], view);
  if (view.compare === "segments") return sideOfSegment(view[letter], view, walkthrough);
  const options = optionsOf(view, walkthrough, versions);
  const chosen = chosenFor(letter, view, options);
  if (view.compare === "versions") {
    const name = options.find(([id]) => id === chosen)?.[1];
    return name ? { name, query: { ...cohort(view), version: [Number(chosen)] } } : null;
  }
  if (view.compare === "periods") {
    const period = PERIODS.find(({ id }) => id === chosen);
    if (!period) return null;
    const { name, first, last } = period;
    const days = { from: daysAgo(first), to: daysAgo(last) };
    return { name, query: { ...group(view), ...days } };
  }
  const server = walkthrough.servers.find(({ id }) => id === chosen);
  return server ? { name: server.name, query: { ...cohort(view), server: [server.id] } } : null;
}

/** Both sides; null where one server, or one version, has no other to be compared with. */
export function sidesOf(
  view: View,
  walkthrough: Walkthrough,
  versions: Version[] = [],
): { a: Side; b: Side } | null {
  if (view.compare === "servers" && walkthrough.servers.length < 2) return null;
  if (view.compare === "versions" && versions.length < 2) return null;
  const a = sideOf("a", view, walkthrough, versions);
  const b = sideOf("b", view, walkthrough, versions);
  return a && b ? { a, b } : null;
}

/** Segments in the address and in words. */

import type { SegmentFigures, Walkthrough } from "./api";
import type { View } from "./state";

/** The texts of a segment as one, as a side of a comparison is kept. */
export const encoded = (segment: readonly string[]): string =>
  new URLSearchParams(segment.map((text) => ["segment", text])).toString();

export const decoded = (text: string): string[] => new URLSearchParams(text).getAll("segment");

const KINDS: Record<string, string> = { agent: "Agent", agent_version: "Agent version", did: "Did" };

function nameOf(text: string, walkthrough: Walkthrough): string {
  const colon = text.indexOf(":");
  const isNot = text.startsWith("not_");
  const kind = text.slice(isNot ? 4 : 0, colon);
  const value = text.slice(colon + 1);
  const shown = kind === "did" ? (walkthrough.steps.find((s) => s.id === value)?.title ?? value) : value;
  if (kind === "did") return `${isNot ? "Did not do" : "Did"} ${shown}`;
  const name = KINDS[kind] ?? kind.replace(/^metadata\./, "");
  return `${name}${isNot ? " not" : ""}: ${shown || "none"}`;
}

/** What a segment is called. */
export const nameOfSegment = (segment: readonly string[], walkthrough: Walkthrough): string =>
  segment.map((text) => nameOf(text, walkthrough)).join(", ");

/** The view of these journeys alone. */
export const onlyThese = (view: View, { segment }: SegmentFigures): Partial<View> => ({
  segments: [...new Set([...view.segments, ...segment])],
});

/** The comparison of a segment (A) with the others (B). */
export const againstTheOthers = ({ segment, rest }: SegmentFigures): Partial<View> => ({
  tab: "compare",
  compare: "segments",
  a: encoded(segment),
  b: encoded(rest),
});

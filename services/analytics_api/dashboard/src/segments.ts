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

/** What a segment of a list is called. */
export const nameOfFound = (of: SegmentFigures, walkthrough: Walkthrough): string =>
  of.kind === "did" ? `Did ${of.title}` : nameOfSegment(of.segment, walkthrough);

/** What a text is about: one of several values of it is enough, but all steps have to be done. */
function subjectOf(text: string): string {
  const bare = text.replace(/^not_/, "");
  return bare.startsWith("did:") ? bare : bare.slice(0, bare.indexOf(":"));
}

/** A segment narrowed by another: what that says of a subject stands in the place of what was said. */
export function narrowed(segment: readonly string[], by: readonly string[]): string[] {
  const subjects = new Set(by.map(subjectOf));
  return [...segment.filter((text) => !subjects.has(subjectOf(text))), ...by];
}

/** The view of these journeys alone. */
export const onlyThese = (view: View, { segment }: SegmentFigures): Partial<View> => ({
  segments: narrowed(view.segments, segment),
});

/** The comparison of a segment (A) with the others (B). */
export const againstTheOthers = ({ segment, rest }: SegmentFigures): Partial<View> => ({
  tab: "compare",
  compare: "segments",
  a: encoded(segment),
  b: encoded(rest),
});

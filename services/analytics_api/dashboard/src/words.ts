/** What a node or a flow of a drawn Sankey is, in words. */

import type { Sankey, SankeyLink } from "./api";
import { count, duration, many, OUTCOMES, share, shorten } from "./format";
import type { Drawing, DrawnLink, DrawnNode } from "./layout";
import { targetOf, titleIn } from "./layout";

/** What a screen reader is told. */
export function inWords(drawing: Drawing, item: DrawnNode | DrawnLink, answer: Sankey): string {
  const people = many(item.journeys, "person", "people");
  if ("path" in item) {
    const source = titleIn(drawing, item.source);
    if (item.ending) {
      const there = share(item.ending.share_of_node);
      return `${OUTCOMES[item.ending.outcome]} after ${source}: ${people}, ${there} of those there`;
    }
    const there = `${share(item.link?.share_of_node)} of those there`;
    return `From ${source} to ${targetOf(drawing, item)}: ${people}, ${there}, ${timesInWords(item.link)}`;
  }
  if (!item.node) return `${item.title}: ${people}, ${share(item.journeys / answer.journeys)} of all`;
  const place = item.kind === "start" ? "" : `, place ${item.column}`;
  const stopped = `${count(item.node.ended.dropped ?? 0)} stopped here`;
  return `${item.title}${place}: ${people}, ${share(item.node.share)} of all, ${stopped}`;
}

/** How long a flow takes: half of the people and nine in ten where that was asked for, else the mean. */
function timesInWords(link: SankeyLink | null): string {
  const active = link?.mean_active_ms == null ? "" : `, mean since shown ${duration(link.mean_active_ms)}`;
  if (link?.median_ms == null) return `mean time ${duration(link?.mean_ms)}${active}`;
  const half = `half within ${duration(link.median_ms)}, nine in ten within ${duration(link.p90_ms)}`;
  if (link.median_active_ms == null) return half;
  return `${half}, since it was shown half within ${duration(link.median_active_ms)}`;
}

export type Row = [name: string, value: string];

/** What a tooltip shows. */
export function rowsOf(drawing: Drawing, item: DrawnNode | DrawnLink, answer: Sankey): Row[] {
  return [
    ["People", count(item.journeys)],
    ["Share of all", share(item.journeys / answer.journeys)],
    ...("path" in item ? linkRows(drawing, item) : nodeRows(drawing, item)),
  ];
}

function linkRows(drawing: Drawing, { source, journeys, link }: DrawnLink): Row[] {
  const from = drawing.nodes.find((node) => node.id === source);
  const rows: Row[] = [
    [`Of those at ${shorten(titleIn(drawing, source), 24)}`, share(from ? journeys / from.journeys : null)],
  ];
  if (!link) return rows;
  const active = activeRows(link).map(([name, value]): Row => [`${name}, since shown`, value]);
  return [...rows, ...timeRows(link), ...active];
}

/** How long a flow takes from the step before; half of the people and nine in ten where that was asked for. */
export const timeRows = (link: SankeyLink): Row[] => spread(link.median_ms, link.p90_ms, link.mean_ms);

/** How much of that since its step was shown; nothing where that is not known. */
export const activeRows = (link: SankeyLink): Row[] =>
  link.mean_active_ms == null ? [] : spread(link.median_active_ms, link.p90_active_ms, link.mean_active_ms);

type Ms = number | null | undefined;

function spread(median: Ms, p90: Ms, mean: Ms): Row[] {
  const rows: Row[] =
    median == null
      ? []
      : [
          ["Half within", duration(median)],
          ["9 in 10 within", duration(p90)],
        ];
  return [...rows, ["Mean time", duration(mean)]];
}

function nodeRows(drawing: Drawing, drawn: DrawnNode): Row[] {
  if (!drawn.node) return [];
  const { ended, folded } = drawn.node;
  const dropped = ended.dropped ?? 0;
  const rows: Row[] = [["Stopped here", `${count(dropped)} (${share(dropped / drawn.journeys)})`]];
  if (ended.in_progress) rows.push(["In progress here", count(ended.in_progress)]);
  if (ended.finished) rows.push(["Finished here", count(ended.finished)]);
  rows.push(...timesBefore(drawing, drawn));
  const [shown, rest] = [(folded ?? []).slice(0, 6), (folded ?? []).slice(6)];
  for (const step of shown) rows.push([step.title, count(step.journeys)]);
  if (rest.length > 0) {
    rows.push([`${many(rest.length, "other step")}`, count(rest.reduce((n, s) => n + s.journeys, 0))]);
  }
  return rows;
}

/** How long it took to come to a step: half of the people and nine in ten where that was asked for. */
function timesBefore(drawing: Drawing, drawn: DrawnNode): Row[] {
  const mean = meanInto(drawing, drawn);
  if (mean === null) return [];
  const { median_ms, p90_ms } = drawn.node ?? {};
  const rows: Row[] =
    median_ms == null
      ? []
      : [
          ["Half came within", duration(median_ms)],
          ["9 in 10 within", duration(p90_ms)],
        ];
  return [...rows, ["Mean time before it", duration(mean)]];
}

/** Mean time before a step at its position, over all flows into it; null if none is timed. */
export function meanInto(drawing: Drawing, node: DrawnNode): number | null {
  let sum = 0;
  let timed = 0;
  for (const { link } of drawing.links.filter((l) => l.target === node.id)) {
    if (link && link.mean_ms !== null) {
      sum += link.mean_ms * link.timed_journeys;
      timed += link.timed_journeys;
    }
  }
  return timed ? sum / timed : null;
}

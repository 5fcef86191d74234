/** What a node or a flow of a drawn Sankey is, in words. */

import type { Sankey } from "./api";
import { count, duration, many, OUTCOMES, share, shorten } from "./format";
import type { Drawing, DrawnLink, DrawnNode } from "./layout";
import { titleIn } from "./layout";

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
    const mean = duration(item.link?.mean_ms);
    return `From ${source} to ${titleIn(drawing, item.target)}: ${people}, ${there}, mean time ${mean}`;
  }
  if (!item.node) return `${item.title}: ${people}, ${share(item.journeys / answer.journeys)} of all`;
  const place = item.kind === "start" ? "" : `, place ${item.column}`;
  const stopped = `${count(item.node.ended.dropped ?? 0)} stopped here`;
  return `${item.title}${place}: ${people}, ${share(item.node.share)} of all, ${stopped}`;
}

type Row = [name: string, value: string];

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
  if (link) rows.push(["Mean time", duration(link.mean_ms)]);
  return rows;
}

function nodeRows(drawing: Drawing, drawn: DrawnNode): Row[] {
  if (!drawn.node) return [];
  const { ended, folded } = drawn.node;
  const dropped = ended.dropped ?? 0;
  const rows: Row[] = [["Stopped here", `${count(dropped)} (${share(dropped / drawn.journeys)})`]];
  if (ended.in_progress) rows.push(["In progress here", count(ended.in_progress)]);
  if (ended.finished) rows.push(["Finished here", count(ended.finished)]);
  const mean = meanInto(drawing, drawn);
  if (mean !== null) rows.push(["Mean time before it", duration(mean)]);
  for (const step of (folded ?? []).slice(0, 6)) rows.push([step.title, count(step.journeys)]);
  return rows;
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

/** The figures of a smaller Sankey on the nodes and flows of a drawn one. */

import type { Sankey, SankeyNode } from "./api";
import { sinkOf } from "./layout";
import { stepsAt } from "./pins";

/** For each step of a smaller Sankey, the drawn node that shows it, which may fold several. */
function homesIn(drawn: Sankey): Map<string, string> {
  const homes = new Map<string, string>();
  const idOf = (node: SankeyNode, step: string) =>
    node.kind === "start" ? "start" : `${node.position}:step:${step}`;
  for (const node of drawn.nodes) {
    for (const step of stepsAt(node)) homes.set(idOf(node, step), node.id);
  }
  return homes;
}

/** How many journeys of a smaller Sankey took each node and flow of a drawn one. */
export function within(drawn: Sankey, part: Sankey): Map<string, number> {
  const homes = homesIn(drawn);
  const home = (id: string) => homes.get(id) ?? id;
  const counts = new Map<string, number>();
  const add = (id: string, journeys: number) => counts.set(id, (counts.get(id) ?? 0) + journeys);
  for (const node of part.nodes) add(home(node.id), node.journeys);
  for (const link of part.links) add(`${home(link.source)}→${home(link.target)}`, link.journeys);
  for (const ending of part.endings) {
    const sink = sinkOf(ending);
    add(sink, ending.journeys);
    add(`${home(ending.node)}→${sink}`, ending.journeys);
  }
  return counts;
}

/** The figures of a smaller Sankey on the nodes and flows of a drawn one. */

import type { Sankey, SankeyLink, SankeyNode } from "./api";
import { flowId, sinkOf } from "./layout";
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

/** An answer with the percentiles and histograms of another one to the same question. */
export function withTimes(answer: Sankey, timed: Sankey | null): Sankey {
  if (timed === null) return answer;
  const links = new Map(timed.links.map((link) => [flowId(link.source, link.target, link.skipped), link]));
  const nodes = new Map(timed.nodes.map((node) => [node.id, node]));
  return {
    ...answer,
    times: timed.times ?? null,
    bounds_ms: timed.bounds_ms ?? null,
    nodes: answer.nodes.map((node) => {
      const of = nodes.get(node.id);
      return of
        ? { ...node, median_ms: of.median_ms ?? null, p90_ms: of.p90_ms ?? null, timed: of.timed ?? null }
        : node;
    }),
    links: answer.links.map((link) => {
      const of = links.get(flowId(link.source, link.target, link.skipped));
      return of ? { ...link, ...timesOf(of) } : link;
    }),
  };
}

const timesOf = (link: SankeyLink) => ({
  median_ms: link.median_ms ?? null,
  p90_ms: link.p90_ms ?? null,
  timed: link.timed ?? null,
  median_active_ms: link.median_active_ms ?? null,
  p90_active_ms: link.p90_active_ms ?? null,
  active: link.active ?? null,
  histogram: link.histogram ?? null,
});

/** How many journeys of a smaller Sankey took each node and flow of a drawn one. */
export function within(drawn: Sankey, part: Sankey): Map<string, number> {
  const homes = homesIn(drawn);
  const home = (id: string) => homes.get(id) ?? id;
  const counts = new Map<string, number>();
  const add = (id: string, journeys: number) => counts.set(id, (counts.get(id) ?? 0) + journeys);
  for (const node of part.nodes) add(home(node.id), node.journeys);
  for (const link of part.links) {
    add(flowId(home(link.source), home(link.target), link.skipped), link.journeys);
  }
  for (const ending of part.endings) {
    const sink = sinkOf(ending);
    add(sink, ending.journeys);
    add(flowId(home(ending.node), sink), ending.journeys);
  }
  return counts;
}

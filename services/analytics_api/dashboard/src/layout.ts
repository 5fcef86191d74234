/** Where nodes and flows are drawn: columns by position; endings as thin flows of their own. */

import { sankey, sankeyLinkHorizontal } from "d3-sankey";
import type { Sankey, SankeyEnding, SankeyLink, SankeyNode } from "./api";
import type { OutcomeName } from "./format";
import { OUTCOME_NAMES, OUTCOMES } from "./format";

export interface DrawnNode {
  id: string;
  column: number;
  kind: "start" | "step" | "other" | OutcomeName;
  title: string;
  journeys: number;
  node: SankeyNode | null;
  x0: number;
  x1: number;
  y0: number;
  y1: number;
}

export interface DrawnLink {
  id: string;
  source: string;
  target: string;
  journeys: number;
  path: string;
  width: number;
  outcome: OutcomeName | null;
  link: SankeyLink | null;
  ending: SankeyEnding | null;
}

export interface Drawing {
  nodes: DrawnNode[];
  links: DrawnLink[];
  width: number;
  height: number;
  columnGap: number;
}

const COLUMN = 150;
const COMPACT = 118;
const NODE_WIDTH = 12;
const MARGIN = { top: 26, right: 130, bottom: 12, left: 2 };

interface Item {
  id: string;
  column: number;
  order: number;
  drawn: DrawnNode;
}

interface Flow {
  source: string;
  target: string;
  value: number;
  drawn: DrawnLink;
}

interface Graph {
  items: Item[];
  flows: Flow[];
}

/** The node in which the endings of one outcome after so many steps come together. */
export const sinkOf = (ending: SankeyEnding): string => `${ending.position + 2}:ended:${ending.outcome}`;

/** A flow's name within a drawing: those who skipped the step that it leads to have one of their own. */
export const flowId = (source: string, target: string, isSkipped = false): string =>
  `${source}→${target}${isSkipped ? " skipped" : ""}`;

/** The endings of each node and outcome, however many steps were skipped. */
export function endingsAt({ endings }: Sankey): SankeyEnding[] {
  const found = new Map<string, SankeyEnding>();
  for (const ending of endings) {
    const key = `${ending.node} ${ending.outcome}`;
    const other = found.get(key);
    found.set(key, other ? together(other, ending) : ending);
  }
  return [...found.values()];
}

const together = (a: SankeyEnding, b: SankeyEnding): SankeyEnding => ({
  ...a,
  journeys: a.journeys + b.journeys,
  share: (a.share ?? 0) + (b.share ?? 0),
  share_of_node: (a.share_of_node ?? 0) + (b.share_of_node ?? 0),
});

/** The title of a node of a drawing. */
export const titleIn = (drawing: Drawing, id: string): string =>
  drawing.nodes.find((node) => node.id === id)?.title ?? id;

/** Steps keep the order of the walkthrough, so that nothing moves when figures change. */
function orderOf(answer: Sankey): (node: SankeyNode) => number {
  const places = new Map(answer.walkthrough.steps.map((step, i) => [step.id, i]));
  return (node) => (node.kind === "step" ? (places.get(node.step_id ?? "") ?? 9_000) : 9_500);
}

function itemOf(drawn: Omit<DrawnNode, "x0" | "x1" | "y0" | "y1">, order: number): Item {
  return { id: drawn.id, column: drawn.column, order, drawn: { ...drawn, x0: 0, x1: 0, y0: 0, y1: 0 } };
}

function stepItems(answer: Sankey): Item[] {
  const order = orderOf(answer);
  return answer.nodes
    .filter((node) => node.journeys > 0)
    .map((node) => {
      const { id, kind, title, journeys } = node;
      return itemOf({ id, column: node.position + 1, kind, title, journeys, node }, order(node));
    });
}

function sinkItems(answer: Sankey): Item[] {
  const sinks = new Map<string, Item>();
  for (const ending of endingsAt(answer)) {
    const { outcome: kind, journeys } = ending;
    const id = sinkOf(ending);
    const sink = sinks.get(id);
    if (sink) {
      sink.drawn.journeys += journeys;
    } else {
      const drawn = { id, column: ending.position + 2, kind, title: OUTCOMES[kind], journeys, node: null };
      sinks.set(id, itemOf(drawn, 10_000 + OUTCOME_NAMES.indexOf(kind)));
    }
  }
  return [...sinks.values()];
}

function flowOf(
  source: string,
  target: string,
  journeys: number,
  of: Pick<DrawnLink, "outcome" | "link" | "ending">,
): Flow {
  const id = flowId(source, target, of.link?.skipped);
  const drawn = { id, source, target, journeys, path: "", width: 0, ...of };
  return { source, target, value: journeys, drawn };
}

function graphOf(answer: Sankey): Graph {
  const steps = answer.links.map((link) =>
    flowOf(link.source, link.target, link.journeys, { outcome: null, link, ending: null }),
  );
  const ends = endingsAt(answer).map((ending) =>
    flowOf(ending.node, sinkOf(ending), ending.journeys, { outcome: ending.outcome, link: null, ending }),
  );
  return { items: [...stepItems(answer), ...sinkItems(answer)], flows: [...steps, ...ends] };
}

/** Where a flow leads, in words. */
export const targetOf = (drawing: Drawing, { target, link }: DrawnLink): string =>
  `${titleIn(drawing, target)}${link?.skipped ? " (skipped)" : ""}`;

/** Draws an answer in `room` pixels, or wider where its columns need that. */
export function draw(answer: Sankey, room: number, isCompact = false): Drawing {
  const { items, flows } = graphOf(answer);
  const columns = Math.max(2, ...items.map((item) => item.column + 1));
  const tallest = Math.max(
    ...Array.from({ length: columns }, (_, column) => items.filter((item) => item.column === column).length),
  );
  const gap = isCompact ? COMPACT : COLUMN;
  const width = Math.max(room, MARGIN.left + MARGIN.right + (columns - 1) * gap);
  const height = Math.max(400, Math.min(1_400, tallest * 52 + MARGIN.top + MARGIN.bottom));
  if (flows.length === 0) return { nodes: [], links: [], width, height, columnGap: gap };

  const made = sankey<Item, Flow>()
    .nodeId((item) => item.id)
    .nodeAlign((item) => item.column)
    .nodeSort((a, b) => a.order - b.order)
    .linkSort((a, b) => orderAt(a.source) - orderAt(b.source) || orderAt(a.target) - orderAt(b.target))
    .nodeWidth(NODE_WIDTH)
    .nodePadding(24)
    .extent([
      [MARGIN.left, MARGIN.top],
      [width - MARGIN.right, height - MARGIN.bottom],
    ])
    .iterations(12)({ nodes: items, links: flows });

  const path = sankeyLinkHorizontal<Item, Flow>();
  return {
    nodes: made.nodes.map((n) => ({
      ...n.drawn,
      x0: n.x0 ?? 0,
      x1: n.x1 ?? 0,
      y0: n.y0 ?? 0,
      y1: n.y1 ?? 0,
    })),
    links: made.links.map((l) => ({ ...l.drawn, path: path(l) ?? "", width: l.width ?? 0 })),
    width,
    height,
    columnGap: (width - MARGIN.left - MARGIN.right - NODE_WIDTH) / (columns - 1),
  };
}

// Before it computes, d3-sankey puts the nodes themselves in the place of their ids.
function orderAt(end: unknown): number {
  return (end as Item).order;
}

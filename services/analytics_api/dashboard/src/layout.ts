/** Where nodes and flows are drawn: columns by position, from the left; endings as thin flows of their own. */

import { sankey, sankeyLinkHorizontal } from "d3-sankey";
import type { Sankey, SankeyEnding, SankeyLink, SankeyNode } from "./api";
import { OUTCOME_NAMES, OUTCOMES } from "./format";
import type { OutcomeName } from "./format";

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

/** Steps keep the order of the walkthrough, so that nothing moves when figures change. */
function orderOf(answer: Sankey): (node: SankeyNode) => number {
  const places = new Map(answer.walkthrough.steps.map((step, i) => [step.id, i]));
  return (node) => (node.kind === "step" ? (places.get(node.step_id ?? "") ?? 9_000) : 9_500);
}

export function draw(answer: Sankey, room: number, isCompact = false): Drawing {
  const column = isCompact ? COMPACT : COLUMN;
  const order = orderOf(answer);
  const items = new Map<string, Item>();
  const flows: Flow[] = [];
  const place = (drawn: Omit<DrawnNode, "x0" | "x1" | "y0" | "y1">, at: number) =>
    items.set(drawn.id, {
      id: drawn.id,
      column: drawn.column,
      order: at,
      drawn: { ...drawn, x0: 0, x1: 0, y0: 0, y1: 0 },
    });

  for (const node of answer.nodes) {
    if (!node.journeys) continue;
    place(
      {
        id: node.id,
        column: node.position + 1,
        kind: node.kind,
        title: node.title,
        journeys: node.journeys,
        node,
      },
      order(node),
    );
  }
  for (const link of answer.links) {
    flows.push({
      source: link.source,
      target: link.target,
      value: link.journeys,
      drawn: {
        id: `${link.source}→${link.target}`,
        source: link.source,
        target: link.target,
        journeys: link.journeys,
        path: "",
        width: 0,
        outcome: null,
        link,
        ending: null,
      },
    });
  }
  for (const ending of answer.endings) {
    const at = ending.steps_done + 1;
    const id = `${at}:ended:${ending.outcome}`;
    const sink = items.get(id);
    if (sink) sink.drawn.journeys += ending.journeys;
    else {
      place(
        {
          id,
          column: at,
          kind: ending.outcome,
          title: OUTCOMES[ending.outcome],
          journeys: ending.journeys,
          node: null,
        },
        10_000 + OUTCOME_NAMES.indexOf(ending.outcome),
      );
    }
    flows.push({
      source: ending.node,
      target: id,
      value: ending.journeys,
      drawn: {
        id: `${ending.node}→${id}`,
        source: ending.node,
        target: id,
        journeys: ending.journeys,
        path: "",
        width: 0,
        outcome: ending.outcome,
        link: null,
        ending,
      },
    });
  }

  const columns = Math.max(2, ...[...items.values()].map((item) => item.column + 1));
  const tallest = Math.max(
    ...Array.from({ length: columns }, (_, c) => [...items.values()].filter((i) => i.column === c).length),
  );
  const width = Math.max(room, MARGIN.left + MARGIN.right + (columns - 1) * column);
  const height = Math.max(400, Math.min(1_400, tallest * 52 + MARGIN.top + MARGIN.bottom));
  if (!flows.length) return { nodes: [], links: [], width, height, columnGap: column };

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
    .iterations(12)({ nodes: [...items.values()], links: flows });

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

function orderAt(end: unknown): number {
  return (end as Item).order;
}

/** How many journeys of a smaller Sankey took each flow of a drawn one, whose steps may be folded. */
export function within(drawn: Sankey, part: Sankey): Map<string, number> {
  const home = new Map<string, string>();
  for (const node of drawn.nodes) {
    for (const step of node.kind === "other" ? (node.folded?.map((f) => f.step_id) ?? []) : [node.step_id]) {
      home.set(node.kind === "start" ? "start" : `${node.position}:step:${step}`, node.id);
    }
  }
  const counts = new Map<string, number>();
  const add = (id: string, journeys: number) => counts.set(id, (counts.get(id) ?? 0) + journeys);
  for (const node of part.nodes) add(home.get(node.id) ?? node.id, node.journeys);
  for (const link of part.links) {
    add(`${home.get(link.source) ?? link.source}→${home.get(link.target) ?? link.target}`, link.journeys);
  }
  for (const ending of part.endings) {
    const sink = `${ending.steps_done + 1}:ended:${ending.outcome}`;
    add(sink, ending.journeys);
    add(`${home.get(ending.node) ?? ending.node}→${sink}`, ending.journeys);
  }
  return counts;
}

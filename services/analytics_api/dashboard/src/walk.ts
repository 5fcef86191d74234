/** Ways through a drawn Sankey: what is beside a node or a flow, and where an arrow key leads. */

import type { Drawing, DrawnLink, DrawnNode } from "./layout";

/** What is lit while something is pointed at: itself, its flows, and their ends. */
export function neighbours(drawing: Drawing, id: string): Set<string> {
  const lit = new Set([id]);
  for (const link of drawing.links) {
    if (link.id === id || link.source === id || link.target === id) {
      lit.add(link.id).add(link.source).add(link.target);
    }
  }
  return lit;
}

/** Where an arrow key leads: up and down among siblings, left and right along the largest flow. */
export function nextOf(drawing: Drawing, here: DrawnNode | DrawnLink, key: string): string | undefined {
  switch (key) {
    case "ArrowUp":
      return beside(siblingsOf(drawing, here), here.id, -1);
    case "ArrowDown":
      return beside(siblingsOf(drawing, here), here.id, 1);
    case "ArrowRight":
      return "path" in here ? here.target : largest(drawing.links.filter((l) => l.source === here.id));
    case "ArrowLeft":
      return "path" in here ? here.source : largest(drawing.links.filter((l) => l.target === here.id));
    case "Home":
      return drawing.nodes[0]?.id;
    default:
      return undefined;
  }
}

/** From the top: the nodes of a column, or the flows out of one node. */
function siblingsOf(drawing: Drawing, here: DrawnNode | DrawnLink): { id: string }[] {
  if (!("path" in here)) {
    return drawing.nodes.filter((n) => n.column === here.column).sort((a, b) => a.y0 - b.y0);
  }
  const y = new Map(drawing.nodes.map((node) => [node.id, node.y0]));
  return drawing.links
    .filter((l) => l.source === here.source)
    .sort((a, b) => (y.get(a.target) ?? 0) - (y.get(b.target) ?? 0));
}

function beside(all: { id: string }[], id: string, by: number): string | undefined {
  const at = all.findIndex((item) => item.id === id);
  return all[Math.max(0, Math.min(all.length - 1, at + by))]?.id;
}

function largest(links: DrawnLink[]): string | undefined {
  return links.reduce<DrawnLink | undefined>(
    (best, link) => (best && best.journeys >= link.journeys ? best : link),
    undefined,
  )?.id;
}

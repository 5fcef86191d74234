import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { OutcomeName } from "../src/format";
import { OUTCOME_NAMES } from "../src/format";
import type { Drawing, DrawnLink, DrawnNode } from "../src/layout";
import { draw } from "../src/layout";
import { sankeyOf, walks } from "./flows";

const sum = (numbers: number[]): number => numbers.reduce((all, one) => all + one, 0);
const into = (drawing: Drawing, node: DrawnNode): DrawnLink[] =>
  drawing.links.filter((link) => link.target === node.id);
const outOf = (drawing: Drawing, node: DrawnNode): DrawnLink[] =>
  drawing.links.filter((link) => link.source === node.id);

const columnOf = (drawing: Drawing, column: number): DrawnNode[] =>
  drawing.nodes.filter((node) => node.column === column).toSorted((a, b) => a.y0 - b.y0);
const rankOf = ({ node, kind }: DrawnNode): string =>
  node?.step_id ?? `~${OUTCOME_NAMES.indexOf(kind as OutcomeName)}`;

describe("whatever journeys there are", () => {
  const drawn = (check: (drawing: Drawing, journeys: number) => void) =>
    fc.assert(fc.property(walks, (all) => check(draw(sankeyOf(all), 900), all.length)));

  test("a node is as high as what comes into it, and as what goes out", () => {
    drawn((drawing) => {
      for (const node of drawing.nodes) {
        const height = node.y1 - node.y0;
        const incoming = into(drawing, node);
        const outgoing = outOf(drawing, node);
        if (incoming.length > 0) expect(sum(incoming.map((link) => link.width))).toBeCloseTo(height, 6);
        if (outgoing.length > 0) expect(sum(outgoing.map((link) => link.width))).toBeCloseTo(height, 6);
      }
    });
  });

  test("as many journeys come into a node as go out or end there, and all of them end", () => {
    drawn((drawing, journeys) => {
      for (const node of drawing.nodes) {
        if (node.kind !== "start") {
          expect(sum(into(drawing, node).map((link) => link.journeys))).toBe(node.journeys);
        }
        if (node.node) expect(sum(outOf(drawing, node).map((link) => link.journeys))).toBe(node.journeys);
      }
      const ends = drawing.nodes.filter((node) => node.node === null);
      expect(sum(ends.map((node) => node.journeys))).toBe(journeys);
    });
  });

  test("widths are in proportion to journeys", () => {
    drawn((drawing) => {
      const [first] = drawing.links;
      const each = (first?.width ?? 0) / (first?.journeys ?? 1);
      for (const link of drawing.links) expect(link.width).toBeCloseTo(each * link.journeys, 6);
    });
  });

  test("a flow leads one column to the right", () => {
    drawn((drawing) => {
      const columns = new Map(drawing.nodes.map((node) => [node.id, node.column]));
      for (const link of drawing.links) {
        expect(columns.get(link.target)).toBe((columns.get(link.source) ?? Number.NaN) + 1);
      }
    });
  });

  test("all nodes are in the picture", () => {
    drawn((drawing) => {
      for (const { x0, x1, y0, y1 } of drawing.nodes) {
        expect(Math.min(x0, y0)).toBeGreaterThanOrEqual(0);
        expect(x1).toBeLessThanOrEqual(drawing.width);
        expect(y1).toBeLessThanOrEqual(drawing.height + 1e-6);
      }
    });
  });

  test("in a column steps keep the order of the walkthrough, ends are below, and none overlap", () => {
    drawn((drawing) => {
      for (const { column } of drawing.nodes) {
        const nodes = columnOf(drawing, column);
        const order = nodes.map(rankOf);
        expect(order).toEqual(order.toSorted((a, b) => (a < b ? -1 : 1)));
        for (const [i, node] of nodes.entries()) {
          expect(nodes[i + 1]?.y0 ?? Number.POSITIVE_INFINITY).toBeGreaterThan(node.y1 - 1e-6);
        }
      }
    });
  });
});

test("where there is no flow, nothing is drawn", () => {
  expect(draw(sankeyOf([]), 900)).toMatchObject({ nodes: [], links: [] });
});

test("it takes the room that there is, and more where the columns need it", () => {
  const answer = sankeyOf([{ steps: ["a", "b", "c", "d"], outcome: "finished" }]);
  expect(draw(answer, 2_000).width).toBe(2_000);
  expect(draw(answer, 100).width).toBeGreaterThan(100);
  expect(draw(answer, 100, true).width).toBeLessThan(draw(answer, 100).width);
});

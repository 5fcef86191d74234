import fc from "fast-check";
import { expect, test } from "vitest";
import { draw } from "../src/layout";
import { neighbours, nextOf } from "../src/walk";
import { sankeyOf, walks } from "./flows";

const KEYS = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Home"];

test("from the start, arrow keys reach every node and flow, and lead to nothing else", () => {
  fc.assert(
    fc.property(walks, (all) => {
      const drawing = draw(sankeyOf(all), 900);
      const items = new Map([...drawing.nodes, ...drawing.links].map((item) => [item.id, item]));
      const reached = new Set(["start"]);
      for (const id of reached) {
        const here = items.get(id);
        if (!here) throw new Error(`nothing is called ${id}`);
        for (const key of KEYS) reached.add(nextOf(drawing, here, key) ?? id);
      }
      expect(reached).toEqual(new Set(items.keys()));
    }),
  );
});

test("the right arrow takes the largest flow, and another right arrow where it leads", () => {
  const drawing = draw(
    sankeyOf([
      { steps: ["a"], outcome: "finished" },
      { steps: ["b"], outcome: "finished" },
      { steps: ["b"], outcome: "dropped" },
    ]),
    900,
  );
  const start = drawing.nodes.find((node) => node.id === "start");
  const flow = drawing.links.find((link) => link.id === (start && nextOf(drawing, start, "ArrowRight")));
  expect(flow).toMatchObject({ source: "start", journeys: 2 });
  expect(flow && nextOf(drawing, flow, "ArrowRight")).toBe("0:step:b");
  expect(flow && nextOf(drawing, flow, "x")).toBeUndefined();
});

test("what is lit is what is pointed at, its flows and their ends", () => {
  fc.assert(
    fc.property(walks, (all) => {
      const drawing = draw(sankeyOf(all), 900);
      for (const link of drawing.links) {
        expect(neighbours(drawing, link.id)).toEqual(new Set([link.id, link.source, link.target]));
        expect(neighbours(drawing, link.source)).toContain(link.id);
      }
      expect(neighbours(drawing, "")).toEqual(new Set([""]));
    }),
  );
});

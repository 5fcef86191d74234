import fc from "fast-check";
import { expect, test } from "vitest";
import type { Sankey, SankeyNode } from "../src/api";
import { draw } from "../src/layout";
import { within, withTimes } from "../src/overlay";
import { isPinned, toggled } from "../src/pins";
import type { Walk } from "./flows";
import { sankeyOf, walks } from "./flows";

test("all journeys laid over themselves fill every node and flow", () => {
  fc.assert(
    fc.property(walks, (all) => {
      const answer = sankeyOf(all);
      const counts = within(answer, answer);
      const drawing = draw(answer, 900);
      for (const item of [...drawing.nodes, ...drawing.links]) {
        expect(counts.get(item.id)).toBe(item.journeys);
      }
    }),
  );
});

test("some of the journeys are in no node or flow more than all of them", () => {
  fc.assert(
    fc.property(walks, fc.nat(), (all, some) => {
      const answer = sankeyOf(all);
      const counts = within(answer, sankeyOf(all.slice(0, some % (all.length + 1))));
      const drawing = draw(answer, 900);
      for (const item of [...drawing.nodes, ...drawing.links]) {
        expect(counts.get(item.id) ?? 0).toBeLessThanOrEqual(item.journeys);
      }
    }),
  );
});

/** The same answer with all steps of the first place folded into one node. */
function folded(answer: Sankey): Sankey {
  const firsts = answer.nodes.filter((node) => node.position === 0);
  const other: SankeyNode = {
    ...(firsts[0] as SankeyNode),
    id: "0:other",
    kind: "other",
    step_id: null,
    folded: firsts.map((node) => ({
      step_id: node.step_id ?? "",
      title: node.title,
      journeys: node.journeys,
    })),
  };
  return { ...answer, nodes: [...answer.nodes.filter((node) => node.position !== 0), other] };
}

test("what is folded counts for the node that shows it", () => {
  const answer = sankeyOf([
    { steps: ["a", "c"], outcome: "finished" },
    { steps: ["b", "c"], outcome: "finished" },
    { steps: ["b"], outcome: "dropped" },
  ]);
  const counts = within(folded(answer), answer);
  expect(counts.get("0:other")).toBe(3);
  expect(counts.get("start→0:other")).toBe(3);
  expect(counts.get("0:other→1:step:c")).toBe(2);
  expect(counts.get("0:other→2:ended:dropped")).toBe(1);
});

test("percentiles of one answer are shown with the counts of another", () => {
  const walk: Walk = { steps: ["a", "b"], outcome: "finished" };
  const before = sankeyOf([walk]);
  const times = { exact: true, every: 1, journeys: 1 };
  const timed: Sankey = {
    ...before,
    times,
    bounds_ms: [1000],
    links: before.links.map((link, i) => ({ ...link, median_ms: i, timed: 1, histogram: [1, 0] })),
  };
  const now = sankeyOf([walk, walk, { steps: ["b"], outcome: "dropped" }]);
  const shown = withTimes(now, timed);
  expect(shown.times).toEqual(times);
  expect(shown.links.map((link) => link.journeys)).toEqual(now.links.map((link) => link.journeys));
  const medians = new Map(shown.links.map((link) => [`${link.source} ${link.target}`, link.median_ms]));
  expect(medians.get("start 0:step:a")).toBe(0);
  expect(medians.get("0:step:a 1:step:b")).toBe(1);
  expect(medians.get("start 0:step:b")).toBeUndefined();
  expect(withTimes(now, null)).toBe(now);
});

test("a click pins a step in the place of its neighbours, and a second one lets go of it", () => {
  fc.assert(
    fc.property(walks, fc.nat(), (all, pick) => {
      const drawing = draw(sankeyOf(all), 900);
      const steps = drawing.nodes.filter((node) => node.node?.kind === "step");
      const drawn = steps[pick % Math.max(1, steps.length)];
      if (!drawn?.node) return;
      const before = ["7:z", `${drawn.column - 1}:z`];
      const pins = toggled(before, drawn);
      expect(isPinned(drawn.node, pins)).toBe(true);
      expect(pins).toEqual(["7:z", `${drawn.node.position}:${drawn.node.step_id}`]);
      expect(toggled(pins, drawn)).toEqual(["7:z"]);
    }),
  );
});

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { cameTo, didNotGoOnFrom, endedSo, entries, queryOf, replaced, took, valuesOf } from "../src/figure";
import { draw, endingsAt } from "../src/layout";
import { PLACES } from "../src/people-toolbar";
import type { Entry } from "../src/state";
import type { Walk } from "./flows";
import { hasSkipped, sankeyOf, walks } from "./flows";

interface Parameters {
  position?: string;
  skipped?: string;
  ended_after?: string;
  step?: string[];
  from_step?: string[];
  outcome?: string[];
}

/** Whether a walk is behind a figure, as the journeys route reads its parameters. */
function isBehind(walk: Walk, query: ReturnType<typeof queryOf>): boolean {
  const { position, skipped, ended_after, step, from_step, outcome } = query as Parameters;
  const at = position === undefined ? walk.steps.length - 1 : Number(position);
  const has = (wanted: string[] | undefined, value: string | undefined) =>
    wanted === undefined || (value !== undefined && wanted.includes(value));
  return (
    (ended_after === undefined || walk.steps.length === Number(ended_after)) &&
    (position === undefined || at < walk.steps.length) &&
    (skipped === undefined || String(hasSkipped(walk, at)) === skipped) &&
    has(step, walk.steps[at]) &&
    has(from_step, walk.steps[at - 1]) &&
    has(outcome, walk.outcome)
  );
}

describe("the people behind a figure are as many as it says:", () => {
  const behind = (all: Walk[], figure: Entry[]) =>
    all.filter((walk) => isBehind(walk, queryOf(figure))).length;

  test("at a node", () => {
    fc.assert(
      fc.property(walks, (all) => {
        const drawing = draw(sankeyOf(all), 900);
        for (const node of drawing.nodes) {
          if (node.node) expect(behind(all, cameTo(drawing, node))).toBe(node.journeys);
        }
      }),
    );
  });

  test("those who did not go on from it", () => {
    fc.assert(
      fc.property(walks, (all) => {
        const drawing = draw(sankeyOf(all), 900);
        for (const drawn of drawing.nodes) {
          if (!drawn.node) continue;
          const { dropped, in_progress } = drawn.node.ended;
          expect(behind(all, didNotGoOnFrom(drawing, drawn))).toBe(dropped + in_progress);
        }
      }),
    );
  });

  test("in a flow", () => {
    fc.assert(
      fc.property(walks, (all) => {
        const drawing = draw(sankeyOf(all), 900);
        for (const link of drawing.links) expect(behind(all, took(drawing, link))).toBe(link.journeys);
      }),
    );
  });

  test("in an ending of the table", () => {
    fc.assert(
      fc.property(walks, (all) => {
        for (const ending of endingsAt(sankeyOf(all))) {
          expect(behind(all, endedSo(ending) ?? [])).toBe(ending.journeys);
        }
      }),
    );
  });
});

test("an ending at folded steps leads to nobody", () => {
  const [ending] = sankeyOf([{ steps: ["a"], outcome: "dropped" }]).endings;
  expect(ending && endedSo({ ...ending, step_id: null })).toBeNull();
});

test("parameters that the route takes once have one value, the others all of theirs", () => {
  const figure: Entry[] = [
    ["position", "1"],
    ["step", "a"],
    ["step", "b"],
    ["position", "2"],
  ];
  expect(queryOf(figure)).toEqual({ position: "1", step: ["a", "b"] });
});

test("what is put in the place of some names is read back, and the others stay", () => {
  const name = fc.constantFrom("outcome", "step", "position");
  const figures = fc.array(fc.tuple(name, fc.string({ minLength: 1 })));
  fc.assert(
    fc.property(figures, fc.array(fc.string()), (figure, values) => {
      const next = replaced(figure, ["outcome"], entries("outcome", values));
      expect(valuesOf(next, "outcome")).toEqual(values.filter((value) => value !== ""));
      expect(valuesOf(next, "step")).toEqual(valuesOf(figure, "step"));
    }),
  );
});

test("to ask where people stand leaves nothing of a flow but what became of them", () => {
  fc.assert(
    fc.property(walks, (all) => {
      const drawing = draw(sankeyOf(all), 900);
      for (const link of drawing.links) {
        const asked = replaced(took(drawing, link), PLACES, entries("next_step", ["a"]));
        expect(asked.every(([name]) => name === "next_step" || name === "outcome")).toBe(true);
      }
    }),
  );
});

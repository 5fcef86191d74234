import { describe, expect, test } from "vitest";
import type { Steps, Version } from "../src/api";
import { chanceOfStops, orderText, slowestOf, worstOf } from "../src/steps";

type Step = Steps["steps"][number];

const step = (id: string, more: Partial<Step> = {}): Step => ({
  place: 1,
  step_id: id,
  title: `title of ${id}`,
  reached: 100,
  completed: 50,
  skipped: 0,
  dropped_here: 0,
  in_progress_here: 0,
  completion_rate: 0.5,
  mean_ms: null,
  median_ms: null,
  p90_ms: null,
  timed: 0,
  histogram: [],
  mean_active_ms: null,
  median_active_ms: null,
  p90_active_ms: null,
  active: 0,
  ...more,
});

const stops = (counts: number[], like_it: string[] | null) => {
  const steps = counts.map((dropped_here, i) => step("abcde"[i] ?? "", { dropped_here }));
  const dropped = counts.reduce((sum, n) => sum + n, 0);
  return { steps, most_stop: { step_id: "b", dropped_here: counts[1] ?? 0, dropped, like_it } };
};

describe("where most people stop", () => {
  test("is the step that the answer names", () => {
    expect(worstOf(stops([1, 50], []))?.title).toBe("title of b");
    expect(worstOf({ steps: [step("a")], most_stop: null })).toBeUndefined();
  });

  test("is said to be chance where it may be", () => {
    expect(chanceOfStops(stops([1, 50], []))).toBe("");
    expect(chanceOfStops(stops([2, 5], null))).toBe("; so few have stopped that it may be chance");
    expect(chanceOfStops(stops([40, 45], ["a"]))).toBe("; by chance it may as well be title of a (40)");
    expect(chanceOfStops(stops([40, 45, 39, 41, 42], ["e", "d", "a", "c"]))).toBe(
      "; by chance it may as well be title of e (42), title of d (41), title of a (40) and 1 more step",
    );
  });
});

describe("the order of a funnel", () => {
  const version = (number: number, until: number | null, journeys: number): Version => ({
    number,
    since: number === 1 ? null : number * 1_000,
    until,
    made_at: number * 1_000,
    says: "",
    changes: [],
    steps: [],
    journeys,
  });

  test("is said to be another for people who began before it", () => {
    const versions = [version(1, 2_000, 0), version(2, 3_000, 7), version(3, null, 5)];
    expect(orderText({ order_since: null }, versions)).toBe("");
    expect(orderText({ order_since: 2_000 }, versions)).toBe("");
    expect(orderText({ order_since: 3_000 }, versions)).toContain(
      " since Jan 1, 1970, 00:00:03. Who began before",
    );
  });
});

describe("the slowest step", () => {
  test("is of many people, where a step is", () => {
    const few = step("a", { median_ms: 9_000, timed: 3 });
    const many = step("b", { median_ms: 2_000, timed: 30 });
    expect(slowestOf([few, many])).toBe(many);
    expect(slowestOf([few, step("c")])).toBe(few);
    expect(slowestOf([step("c")])).toBeUndefined();
  });
});

import { expect, test } from "vitest";
import { tookPath } from "../src/figure";
import { barsOf, marksBetween } from "../src/histogram";

const BOUNDS = [1_000, 10_000, 100_000];

test("bars are the bins from the first to the last that has anybody", () => {
  expect(barsOf([0, 2, 0, 0], BOUNDS)).toEqual([{ from: 1_000, to: 10_000, n: 2 }]);
  expect(barsOf([0, 2, 0, 5], BOUNDS)).toEqual([
    { from: 1_000, to: 10_000, n: 2 },
    { from: 10_000, to: 100_000, n: 0 },
    { from: 100_000, to: 1_000_000, n: 5 },
  ]);
  expect(barsOf([1, 0, 0, 0], BOUNDS)).toEqual([{ from: 100, to: 1_000, n: 1 }]);
  expect(barsOf([0, 0, 0, 0], BOUNDS)).toEqual([]);
});

test("an axis has no more marks than there is room for", () => {
  expect(marksBetween(1_500, 3_600_000, 1_000)).toEqual([10_000, 60_000, 600_000, 3_600_000]);
  expect(marksBetween(1_500, 3_600_000, 120)).toEqual([10_000, 600_000]);
});

test("a path leads to those who took exactly it", () => {
  const path = {
    place: 1,
    step_ids: ["a", "b"],
    skipped_step_ids: ["b"],
    outcome: "dropped" as const,
    journeys: 3,
    share: 1,
    started: 2,
    median_ms: 1,
    p90_ms: 1,
    timed: 3,
  };
  expect(tookPath(path)).toEqual([
    ["path", "done:a"],
    ["path", "skipped:b"],
    ["outcome", "dropped"],
  ]);
  expect(tookPath({ ...path, step_ids: [], skipped_step_ids: [] })).toEqual([
    ["ended_after", "0"],
    ["outcome", "dropped"],
  ]);
});

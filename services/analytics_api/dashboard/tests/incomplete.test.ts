import { describe, expect, test } from "vitest";
import type { Trends } from "../src/api";
import { hadTime, isOver, parts } from "../src/incomplete";

const point = (since: string, complete = true): Trends["points"][number] => ({
  since,
  started: 0,
  finished: 0,
  completion_rate: null,
  had_time: 0,
  finished_within: 0,
  completion_rate_within: null,
  complete,
  finished_then: 0,
  active_people: 0,
});

describe("a period is whole", () => {
  const now = Date.parse("2026-11-29T10:00:00Z");

  test("when it is over", () => {
    expect(isOver("day", now)(point("2026-11-28"))).toBe(true);
    expect(isOver("day", now)(point("2026-11-29"))).toBe(false);
    expect(isOver("week", now)(point("2026-11-16"))).toBe(true);
    expect(isOver("week", now)(point("2026-11-23"))).toBe(false);
  });

  test("when all who began then have had the time", () => {
    expect(hadTime(point("2026-11-28", false))).toBe(false);
    expect(hadTime(point("2026-11-20"))).toBe(true);
  });
});

describe("what is drawn", () => {
  const rows = (...all: boolean[]) => all.map((isComplete, n) => ({ n, isComplete }));

  test("dashes begin at the last whole one", () => {
    const { whole, dashed } = parts(rows(true, true, false, false));
    expect(whole.map((r) => r.n)).toEqual([0, 1]);
    expect(dashed.map((r) => r.n)).toEqual([1, 2, 3]);
  });

  test("all or nothing may be whole", () => {
    expect(parts(rows(true, true)).dashed).toEqual([]);
    expect(parts(rows(false)).whole).toEqual([]);
    expect(parts(rows(false)).dashed).toHaveLength(1);
    expect(parts(rows())).toEqual({ whole: [], dashed: [] });
  });
});

import { expect, test, vi } from "vitest";
import { check } from "../src/check.js";
import { stepCompleted, stepShown, stepSkipped, walkthroughStarted } from "../src/events.js";

const own = { distinct_id: "u-1", session_id: "s-1", walkthrough_id: "wt" };

test("builders fill in what is not given, and what they make is right", () => {
  vi.useFakeTimers({ now: 1_764_000_000_000 });
  const made = [
    stepCompleted({ ...own, step_id: "a" }),
    walkthroughStarted(own),
    stepShown({ ...own, step_id: "a", version: "v2" }),
    stepSkipped({ ...own, step_id: "a", reason: "done before" }),
  ];
  expect(made.map((event) => check(event, Date.now(), "http"))).toEqual(Array(4).fill(undefined));
  expect(made.map((event) => [event.type, Object.values(event).includes(1_764_000_000_000)])).toEqual([
    ["step-completed", true],
    ["walkthrough-started", true],
    ["step-shown", true],
    ["step-skipped", true],
  ]);
  vi.useRealTimers();
});

test("ids of events are of version 7, and in the order in which they were made", () => {
  const ids = Array.from({ length: 1_000 }, () => stepCompleted({ ...own, step_id: "a" }).event_id);
  expect(
    ids.every((id) => /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/.test(id)),
  ).toBe(true);
  expect(ids).toEqual([...new Set(ids)].sort((a, b) => (a < b ? -1 : 1)));
});

test("a time is given as a Date or as milliseconds, and an id of one's own stays", () => {
  const at = new Date("2026-11-24T09:00:00Z");
  const event_id = "0192f4c1-7a3e-7cc2-9d55-1b2f3c4d5e6f";
  const event = stepCompleted({ ...own, step_id: "a", completed_at: at, event_id });
  expect(event).toEqual({
    ...own,
    type: "step-completed",
    step_id: "a",
    completed_at: at.getTime(),
    event_id,
  });
  expect(stepCompleted({ ...own, step_id: "a", completed_at: at.getTime(), event_id })).toEqual(event);
});

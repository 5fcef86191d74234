import { describe, expect, test } from "vitest";
import type { Freshness } from "../src/api";
import { url, walkthroughPath } from "../src/api";
import { staysFor } from "../src/data";
import { badgeOf } from "../src/freshness";

describe("an answer stays", () => {
  const ask = (path: string, server: string) => JSON.stringify([path, { server }]);

  test("while the same is asked again, or the same thing narrowed", () => {
    expect(staysFor(ask("a", "1"), ask("a", "1"), false)).toBe(true);
    expect(staysFor(ask("a", "1"), ask("a", "2"), true)).toBe(true);
    expect(staysFor("overview key", "overview key", true)).toBe(true);
  });

  test("not for another thing, and not for another question where it must not", () => {
    expect(staysFor(ask("a", "1"), ask("b", "1"), true)).toBe(false);
    expect(staysFor(ask("a", "1"), ask("a", "2"), false)).toBe(false);
    expect(staysFor("overview key", "overview other", true)).toBe(false);
  });
});

test("a question is a path and parameters: several values repeat one, and none leaves it out", () => {
  expect(url("a")).toBe("/v1/a");
  expect(url("a", { x: undefined, y: [] })).toBe("/v1/a");
  expect(url("a", { x: 0, y: ["1", "&="] })).toBe("/v1/a?x=0&y=1&y=%26%3D");
  expect(walkthroughPath("a/b", "journeys", "c d")).toBe("walkthroughs/a%2Fb/journeys/c%20d");
});

describe("the badge says", () => {
  const fresh: Freshness = {
    newest_event_at: null,
    groups: [],
    marks: 0,
    events_waiting: 0,
    looked_at: null,
    current: false,
  };

  test.each([
    ["that nothing is known yet", null, "Looking…"],
    ["that freshness cannot be known", { ...fresh, current: null }, "Freshness not known"],
    ["that figures are exact", { ...fresh, current: true }, "Exact now"],
    ["how many events are to go", { ...fresh, marks: 1 }, "Counting: 1 event to go"],
    ["what is held up", { ...fresh, events_waiting: 2 }, "2 events held up in the database"],
    ["both as counting", { ...fresh, marks: 3, events_waiting: 2 }, "Counting: 3 events to go"],
  ])("%s", (_, freshness, text) => expect(badgeOf(freshness, "live").text).toBe(text));

  test("that figures stand still, whatever they were, once the stream is cut", () => {
    expect(badgeOf({ ...fresh, current: true }, "cut").state).toBe("stale");
    expect(badgeOf(null, "gone").state).toBe("stale");
    expect(badgeOf({ ...fresh, current: true }, null).state).toBe("current");
  });
});

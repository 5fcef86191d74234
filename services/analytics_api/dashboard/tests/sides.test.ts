import { describe, expect, test } from "vitest";
import type { Version, Walkthrough } from "../src/api";
import { chosenFor, optionsOf, sidesOf } from "../src/sides";
import { NOTHING } from "../src/state";

const walkthrough = (...servers: string[]): Walkthrough => ({
  id: "w",
  title: "W",
  type: null,
  status: null,
  steps: [],
  finished_means: "every step is completed or skipped",
  goal_step_ids: [],
  end_step_ids: [],
  servers: servers.map((id) => ({ id, name: `name of ${id}`, slug: id })),
});

describe("servers", () => {
  test("one alone has nothing to be compared with", () => {
    expect(sidesOf(NOTHING, walkthrough("x"))).toBeNull();
  });

  test("the first two are compared unless others are chosen", () => {
    const names = (view: typeof NOTHING) => {
      const sides = sidesOf(view, walkthrough("x", "y", "z"));
      return [sides?.a.name, sides?.b.name];
    };
    expect(names(NOTHING)).toEqual(["name of x", "name of y"]);
    expect(names({ ...NOTHING, b: "z" })).toEqual(["name of x", "name of z"]);
    expect(names({ ...NOTHING, a: "gone", b: "x" })).toEqual(["name of x", "name of x"]);
  });
});

describe("periods", () => {
  const view = { ...NOTHING, compare: "periods" as const, servers: ["x"] };

  test("the last week is compared with the one before, on the servers that are chosen", () => {
    const sides = sidesOf(view, walkthrough("x"));
    expect([sides?.a.name, sides?.b.name]).toEqual(["the 7 days before", "last 7 days"]);
    expect(sides?.b.query).toMatchObject({ server: ["x"] });
  });

  test("what is shown as chosen is what is compared", () => {
    const options = optionsOf(view, walkthrough(), []);
    expect(options.map(([id]) => id)).toEqual(["last7", "before7", "last30", "before30"]);
    expect(chosenFor("a", view, options)).toBe("before7");
    expect(chosenFor("a", { ...view, a: "last30" }, options)).toBe("last30");
    expect(chosenFor("b", { ...view, b: "nope" }, options)).toBe("last7");
  });
});

describe("versions", () => {
  const view = { ...NOTHING, compare: "versions" as const, servers: ["x"], versions: [9] };
  const version = (number: number): Version => ({
    number,
    since: number === 1 ? null : number * 1000,
    until: null,
    made_at: null,
    says: "",
    changes: [],
    steps: [],
    journeys: 0,
  });
  const three = [1, 2, 3].map(version);

  test("one alone has nothing to be compared with", () => {
    expect(sidesOf(view, walkthrough("x"), three.slice(0, 1))).toBeNull();
  });

  test("the newest is compared with the one before it, unless others are chosen", () => {
    const sides = sidesOf(view, walkthrough("x"), three);
    expect([sides?.a.query, sides?.b.query]).toEqual([
      { server: ["x"], version: [2] },
      { server: ["x"], version: [3] },
    ]);
    const chosen = sidesOf({ ...view, a: "1", b: "2" }, walkthrough("x"), three);
    expect([chosen?.a.query.version, chosen?.b.query.version]).toEqual([[1], [2]]);
    expect(sidesOf({ ...view, a: "7" }, walkthrough("x"), three)?.a.query.version).toEqual([2]);
  });
});

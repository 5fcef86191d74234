import { describe, expect, test } from "vitest";
import type { SegmentFigures, Version, Walkthrough } from "../src/api";
import { againstTheOthers, nameOfSegment, onlyThese } from "../src/segments";
import { chosenFor, daysOf, optionsOf, sidesOf, writeDays } from "../src/sides";
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

const found = {
  segment: ["agent:x&y", "agent_version:1"],
  rest: ["agent:x&y", "not_agent_version:1"],
} as SegmentFigures;

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

describe("chosen days", () => {
  const view = { ...NOTHING, compare: "days" as const, servers: ["x"], segments: ["agent:z"] };

  test("each side has its own, whatever else is chosen", () => {
    const sides = sidesOf({ ...view, a: "2026-01-01..2026-01-31", b: "2026-02-01.." }, walkthrough("x"));
    expect(sides?.a).toEqual({
      name: "2026-01-01 to 2026-01-31",
      query: { server: ["x"], segment: ["agent:z"], from: "2026-01-01", to: "2026-01-31" },
    });
    expect(sides?.b.name).toBe("2026-02-01 to today");
    expect(sides?.b.query.to).toBeUndefined();
  });

  test("what is none is left out", () => {
    expect(daysOf("yesterday..2026-13-01")).toEqual({ from: "", to: "" });
    expect(daysOf(writeDays({ from: "", to: "2026-01-02" }))).toEqual({ from: "", to: "2026-01-02" });
  });
});

describe("segments", () => {
  const view = { ...NOTHING, compare: "segments" as const, segments: ["did:a"] };

  test("nothing is compared until one is chosen", () => {
    expect(sidesOf(view, walkthrough("x"))).toBeNull();
  });

  test("what is said of a subject stands in the place of what was said before", () => {
    const even = { segment: ["agent:even"], rest: ["not_agent:even"] } as SegmentFigures;
    const chosen = { ...view, segments: ["did:a", "agent:odd", "metadata.plan:pro"] };
    expect(onlyThese(chosen, even)).toEqual({ segments: ["did:a", "metadata.plan:pro", "agent:even"] });
    const sides = sidesOf({ ...chosen, ...againstTheOthers(even) }, walkthrough("x"));
    expect(sides?.a.query.segment).toEqual(["did:a", "metadata.plan:pro", "agent:even"]);
    expect(sides?.b.query.segment).toEqual(["did:a", "metadata.plan:pro", "not_agent:even"]);
  });

  test("both sides are of the segment that is chosen already", () => {
    const sides = sidesOf({ ...view, ...againstTheOthers(found) }, walkthrough("x"));
    expect(sides?.a.query.segment).toEqual(["did:a", "agent:x&y", "agent_version:1"]);
    expect(sides?.b.query.segment).toEqual(["did:a", "agent:x&y", "not_agent_version:1"]);
    expect(sides?.b.name).toBe("Agent: x&y, Agent version not: 1");
  });

  test("what narrows by one is there once", () => {
    const once = { ...view, ...onlyThese(view, found) };
    expect(onlyThese(once, found)).toEqual({ segments: ["did:a", "agent:x&y", "agent_version:1"] });
  });

  test("has a name for each kind", () => {
    const of = (...segment: string[]) => nameOfSegment(segment, walkthrough());
    expect(of("agent:")).toBe("Agent: none");
    expect(of("metadata.plan:a:b")).toBe("plan: a:b");
    expect(of("not_metadata.plan:free")).toBe("plan not: free");
    expect(of("not_did:wts_1")).toBe("Did not do wts_1");
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

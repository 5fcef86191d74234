import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Entry, View } from "../src/state";
import { COMPARED, cohort, NOTHING, PAGES, PERIODS, paths, readView, TABS, writeView } from "../src/state";

const text = fc.string({ unit: "binary", maxLength: 12 });
const texts = fc.array(text, { maxLength: 3 });
const day = fc
  .date({ min: new Date("0001-01-01"), max: new Date("9999-12-31"), noInvalidDate: true })
  .map((date) => date.toISOString().slice(0, 10));
const entry: fc.Arbitrary<Entry> = fc.tuple(text, text);

const views: fc.Arbitrary<View> = fc
  .record<View>({
    walkthrough: text,
    page: fc.constantFrom(...PAGES),
    tab: fc.constantFrom(...TABS),
    servers: texts,
    versions: fc.array(fc.integer({ min: 1, max: 1_000_000 }), { maxLength: 3 }),
    segments: texts,
    explain: text,
    breakdown: text,
    period: fc.constantFrom(...PERIODS),
    from: fc.oneof(day, fc.constant("")),
    to: fc.oneof(day, fc.constant("")),
    startAt: text,
    endAt: text,
    hidden: texts,
    detail: fc.nat(200),
    places: fc.nat(200),
    unfolded: fc.array(fc.nat(9_999), { maxLength: 3 }),
    pins: fc.array(fc.tuple(fc.nat(9_999), fc.stringMatching(/^[\w:&=%+ ]+$/)).map((pin) => pin.join(":"))),
    table: fc.boolean(),
    by: fc.constantFrom("day", "week"),
    within: fc.nat(366),
    compare: fc.constantFrom(...COMPARED),
    a: text,
    b: text,
    figure: fc.array(entry, { maxLength: 4 }),
    label: text,
    journey: text,
    session: text,
  })
  // Days are in the address only while they are what is asked for.
  .map((view) => (view.period === "custom" ? view : { ...view, from: "", to: "" }));

describe("the address", () => {
  test("says the whole view: what is written is read back", () => {
    fc.assert(
      fc.property(views, (view) => {
        expect(readView(writeView(view))).toEqual(view);
      }),
    );
  });

  test("is read as a view that can be written, whatever somebody typed", () => {
    const typed = fc.array(
      fc.tuple(fc.constantFrom("w", "detail", "open", "pin", "people", "from", "tab"), text),
    );
    fc.assert(
      fc.property(
        fc.oneof(
          text,
          typed.map((pairs) => new URLSearchParams(pairs).toString()),
        ),
        (search) => {
          const view = readView(`?${search}`);
          const known = view.period === "custom" ? view : { ...view, from: "", to: "" };
          expect(readView(writeView(view))).toEqual(known);
        },
      ),
    );
  });

  test("is empty at the beginning", () => {
    expect(writeView(NOTHING)).toBe("");
    expect(readView("")).toEqual(NOTHING);
  });

  test.each([
    ["?detail=201", { detail: 6 }],
    ["?detail=1.5", { detail: 6 }],
    ["?detail=0", { detail: 0 }],
    ["?places=-1", { places: 16 }],
    ["?from=2026-02-30x", { from: "" }],
    ["?from=2026-13-01", { from: "" }],
    ["?open=-1&open=x&open=3", { unfolded: [3] }],
    ["?pin=a&pin=1:&pin=1:b", { pins: ["1:b"] }],
    ["?tab=nope&period=8&page=x&by=year&compare=x", {}],
  ])("leaves out what makes no sense: %s", (search, part) => {
    expect(readView(search)).toEqual({ ...NOTHING, ...part });
  });
});

describe("what is asked of the API", () => {
  test("all time has no days, chosen days have theirs", () => {
    expect(cohort(NOTHING)).toEqual({ server: [] });
    const view: View = { ...NOTHING, period: "custom", from: "2026-01-02" };
    expect(cohort(view)).toEqual({ server: [], from: "2026-01-02", to: undefined });
  });

  test("the part of the paths is added to which journeys", () => {
    expect(paths({ ...NOTHING, servers: ["s"], startAt: "a", hidden: ["b"] })).toEqual({
      server: ["s"],
      start_at: "a",
      end_at: undefined,
      exclude: ["b"],
    });
  });
});

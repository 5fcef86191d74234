import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ago, count, daysAgo, duration, isoDay, many, points, share, shorten, time } from "../src/format";

const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

test.each([
  [0, "0"],
  [999, "999"],
  [1_000, "1,000"],
  [1_234_567, "1,234,567"],
])("count(%d) is %s", (value, text) => expect(count(value)).toBe(text));

test("one of a thing has another word than none or many", () => {
  expect(many(0, "step")).toBe("0 steps");
  expect(many(1, "step")).toBe("1 step");
  expect(many(1_000, "person", "people")).toBe("1,000 people");
});

describe("share", () => {
  test.each([
    [null, "–"],
    [undefined, "–"],
    [0, "0 %"],
    [0.000_999, "<0.1 %"],
    [0.001, "0.1 %"],
    [0.05, "5 %"],
    [0.055, "5.5 %"],
    [0.1, "10 %"],
    [0.999, "100 %"],
    [0.999_01, ">99.9 %"],
    [1, "100 %"],
  ])("of %s is %s", (value, text) => expect(share(value)).toBe(text));

  test("never says none or all of what is neither", () => {
    fc.assert(
      fc.property(fc.integer({ min: 2, max: 10_000_000 }), (all) => {
        expect(share(1 / all)).not.toBe("0 %");
        if (all > 1_000) expect(share((all - 1) / all)).not.toBe("100 %");
      }),
    );
  });
});

test.each([
  [null, "–"],
  [0, "±0.0 points"],
  [0.0004, "±0.0 points"],
  [-0.0004, "±0.0 points"],
  [0.015, "+1.5 points"],
  [-1, "−100.0 points"],
])("points(%s) is %s", (value, text) => expect(points(value)).toBe(text));

describe("duration", () => {
  test.each([
    [null, "–"],
    [0, "0 ms"],
    [999, "999 ms"],
    [SECOND, "1.0 s"],
    [9_949, "9.9 s"],
    [10 * SECOND, "10 s"],
    [MINUTE, "1 min"],
    [MINUTE + SECOND, "1 min 1 s"],
    [10 * MINUTE + 59 * SECOND, "10 min"],
    [HOUR - 1, "59 min"],
    [HOUR, "1 h"],
    [HOUR + MINUTE, "1 h 1 min"],
    [DAY - 1, "23 h"],
    [DAY, "1 d"],
    [DAY + HOUR, "1 d 1 h"],
    [9 * DAY + 23 * HOUR + 59 * MINUTE, "9 d 23 h"],
    [365 * DAY, "365 d"],
  ])("of %s ms is %s", (ms, text) => expect(duration(ms)).toBe(text));

  test("from a minute on is at most what it was, and off by less than a tenth", () => {
    const sizes = new Map([
      ["d", DAY],
      ["h", HOUR],
      ["min", MINUTE],
      ["s", SECOND],
    ]);
    fc.assert(
      fc.property(fc.integer({ min: MINUTE, max: 400 * DAY }), (ms) => {
        const parts = [...duration(ms).matchAll(/(\d+) (\w+)/g)];
        const said = parts.reduce((all, [, n, unit]) => all + Number(n) * (sizes.get(unit ?? "") ?? 0), 0);
        expect(said).toBeLessThanOrEqual(ms);
        expect(ms - said).toBeLessThan(ms / 10);
      }),
    );
  });
});

test("times are of UTC, to the second", () => {
  expect(time(0)).toBe("Jan 1, 1970, 00:00:00");
  expect(time(Date.UTC(2026, 11, 31, 23, 59, 59, 999))).toBe("Dec 31, 2026, 23:59:59");
});

test("what is less than a second and a half ago was just now, and so is what is to come", () => {
  expect(ago(1_000, 2_499)).toBe("just now");
  expect(ago(1_000, 2_500)).toBe("1.5 s ago");
  expect(ago(1_000, 0)).toBe("just now");
});

test("days before today are days of UTC", () => {
  const midnight = Date.UTC(2026, 2, 1);
  expect(daysAgo(0, midnight)).toBe("2026-03-01");
  expect(daysAgo(0, midnight - 1)).toBe("2026-02-28");
  expect(daysAgo(1, midnight)).toBe("2026-02-28");
  expect(isoDay(new Date(midnight))).toBe("2026-03-01");
});

test("a shortened text is no longer than asked, and begins as it did", () => {
  fc.assert(
    fc.property(fc.string({ maxLength: 40 }), fc.integer({ min: 2, max: 30 }), (text, most) => {
      const shown = shorten(text, most);
      expect(shown.length).toBeLessThanOrEqual(Math.max(most, 2));
      if (shown !== text) expect(text.startsWith(shown.slice(0, -1))).toBe(true);
      if (text.length <= most) expect(shown).toBe(text);
    }),
  );
});

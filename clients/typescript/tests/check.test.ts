import { readdirSync, readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { check } from "../src/check.js";

const EXAMPLES = new URL("../../../schemas/examples/", import.meta.url);
/** After every example's time. */
const LATE = 253_402_300_799_999;

interface Reason {
  class: string;
  message: string;
  now_ms?: number;
}
const REASONS = JSON.parse(readFileSync(new URL("invalid/reasons.json", EXAMPLES), "utf8")) as Record<
  string,
  Reason
>;

/** What is in the bytes of a record and in no value of JavaScript: a frame, a compression, an encoding, a bad text. */
const OF_BYTES = [
  "avro-container",
  "byte-order-mark",
  "compressed-with-gzip",
  "compressed-with-lz4",
  "compressed-with-snappy",
  "compressed-with-zstd",
  "cut-off",
  "not-json",
  "not-utf-8",
  "python-repr",
  "schema-registry-frame-avro",
  "schema-registry-frame-json",
  "two-events",
  "utf-16",
];
/** What text of JSON cannot say, and a value can. */
const OF_VALUES: Record<string, unknown> = {
  empty: undefined,
  "time-is-nan": { ...example("valid/step-completed"), completed_at: Number.NaN },
};
/** Where the words differ from the server's, since here a value is seen and not its bytes. */
const IN_OTHER_WORDS: Record<string, string> = {};

function example(name: string): object {
  return JSON.parse(readFileSync(new URL(`${name}.json`, EXAMPLES), "utf8")) as object;
}

function names(folder: string): string[] {
  return readdirSync(new URL(`${folder}/`, EXAMPLES))
    .map((file) => file.replace(/\.json$/, ""))
    .filter((name) => name !== "reasons");
}

const VALID = example("valid/step-completed");

describe("the contract's examples", () => {
  test.each(names("valid"))("%s is right", (name) => {
    expect(check(example(`valid/${name}`), LATE)).toBeUndefined();
    expect(check(example(`valid/${name}`), LATE, "http")).toBeUndefined();
  });

  test.each(names("operator"))("%s is for operators alone", (name) => {
    expect(check(example(`operator/${name}`), LATE)?.class).toBe("not-allowed");
  });

  test.each(names("invalid").filter((name) => !OF_BYTES.includes(name)))(
    "%s is refused for its reason",
    (name) => {
      const reason = REASONS[name];
      const value = name in OF_VALUES ? OF_VALUES[name] : example(`invalid/${name}`);
      const refusal = check(value, reason?.now_ms ?? LATE);
      expect(refusal?.class).toBe(reason?.class);
      expect(refusal?.message).toContain(IN_OTHER_WORDS[name] ?? reason?.message);
    },
  );

  test.each(OF_BYTES)("%s is no text of JSON", (name) => {
    const bytes = readFileSync(new URL(`invalid/${name}.json`, EXAMPLES));
    const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
    expect(() => JSON.parse(decoder.decode(bytes)) as unknown).toThrow();
  });
});

describe("a first mistake is explained", () => {
  test.each<[string, object, string, string]>([
    [
      "a Date",
      { completed_at: new Date(1_764_000_000_000) },
      "invalid-event",
      "its getTime() is 1764000000000",
    ],
    [
      "an invalid Date",
      { completed_at: new Date(Number.NaN) },
      "invalid-event",
      "completed_at is an invalid Date",
    ],
    [
      "what performance.now() gives",
      { completed_at: 1_764_000_000_000.25 },
      "invalid-event",
      "would be 1764000000000",
    ],
    [
      "a bigint",
      { completed_at: 1_764_000_000_000n },
      "invalid-event",
      "would be 1764000000000 in milliseconds",
    ],
    ["seconds", { completed_at: 1_764_000_000 }, "too-early", "are these seconds instead of milliseconds?"],
    [
      "microseconds",
      { completed_at: 1_764_000_000_000_000 },
      "invalid-event",
      "would be 1764000000000 in milliseconds",
    ],
    [
      "toISOString()",
      { completed_at: "2026-11-24T09:00:00.000Z" },
      "invalid-event",
      "would be 1795510800000",
    ],
    [
      "toString()",
      { completed_at: "Tue Nov 24 2026 09:00:00 GMT+0000" },
      "invalid-event",
      "would be 1795510800000",
    ],
    [
      "a field of another type",
      { skipped_at: 1_764_000_000_000 },
      "invalid-event",
      "skipped_at: it is no field",
    ],
    ["a function", { metadata: { act: () => 1 } }, "invalid-event", "metadata holds what JSON has not"],
    [
      "a Map",
      { metadata: { held: new Map([["a", 1]]) } },
      "invalid-event",
      "metadata holds what JSON has not",
    ],
    ["not a number", { metadata: { share: Number.NaN } }, "invalid-event", "not finite"],
    ["half of a pair in a name", { metadata: { "\ud83d": 1 } }, "not-json", "half of a surrogate pair"],
  ])("%s", (_, given, rejection, told) => {
    const refusal = check({ ...VALID, ...given }, LATE);
    expect(refusal?.class).toBe(rejection);
    expect(refusal?.message).toContain(told);
  });

  test("what holds itself", () => {
    const metadata: Record<string, unknown> = {};
    metadata.self = metadata;
    expect(check({ ...VALID, metadata }, LATE)?.class).toBe("not-json");
  });

  test("a field that is undefined is not there, and a Date in metadata is its text", () => {
    expect(check({ ...VALID, metadata: undefined }, LATE)).toBeUndefined();
    expect(check({ ...VALID, metadata: { at: new Date(0) } }, LATE)).toBeUndefined();
  });

  test("characters are counted as the database does, not in halves of pairs", () => {
    expect(check({ ...VALID, step_id: "👩".repeat(64) }, LATE)).toBeUndefined();
    expect(check({ ...VALID, step_id: "👩".repeat(65) }, LATE)?.field).toBe("step_id");
  });

  test("200 objects in one another are read, and not one more", () => {
    const nested = (count: number): unknown => (count === 0 ? 1 : { a: nested(count - 1) });
    expect(check({ ...VALID, metadata: nested(199) }, LATE)).toBeUndefined();
    expect(check({ ...VALID, metadata: nested(200) }, LATE)?.class).toBe("not-json");
  });
});

describe("by HTTP", () => {
  test.each(names("operator"))("%s is for operators alone, whatever else is in it", (name) => {
    expect(check({ ...example(`operator/${name}`), event_id: 7 }, LATE, "http")?.class).toBe("not-allowed");
  });

  const {
    mcp_server_user_id: _,
    mcp_server_session_id: __,
    mcp_server_id: ___,
    ...bare
  } = VALID as never as Record<string, unknown>;

  test("ids of one's own stand for the platform's, and the server may be left out", () => {
    const event = { ...bare, distinct_id: "u-1", session_id: "s-1" };
    expect(check(event, LATE, "http")).toBeUndefined();
    expect(check(event, LATE)?.class).toBe("invalid-event");
  });

  test.each<[object, string, string]>([
    [
      { session_id: "s-1" },
      "mcp_server_user_id",
      "distinct_id, your own id, may stand for mcp_server_user_id",
    ],
    [{ session_id: "s-1", distinctId: "u-1" }, "mcp_server_user_id", "distinct_id is perhaps `distinctId`"],
    [
      { session_id: "s-1", distinct_id: "u-1", mcp_server_user_id: "u" },
      "distinct_id",
      "give one of the two",
    ],
    [{ session_id: "s-1", distinct_id: 7 }, "distinct_id", "Input should be a valid string"],
    [{ session_id: "s-1", distinct_id: "" }, "distinct_id", "at least 1 character"],
    [{ session_id: "s".repeat(201), distinct_id: "u" }, "session_id", "at most 200"],
    [{ session_id: "s\n", distinct_id: "u" }, "session_id", "not printable"],
    [{ session_id: "s", distinct_id: "\u200b" }, "distinct_id", "not printable"],
    [{ session_id: "s", distinct_id: "u\u00a0" }, "distinct_id", "not printable"],
  ])("%o is refused at %s", (given, field, told) => {
    const refusal = check({ ...bare, ...given }, LATE, "http");
    expect(refusal?.field).toBe(field);
    expect(refusal?.message).toContain(told);
  });
});

test("whatever it is given, it answers; and what is right is JSON that says the same", () => {
  fc.assert(
    fc.property(fc.anything({ withBigInt: true, withDate: true, withMap: true }), (metadata) => {
      const event = { ...VALID, metadata };
      const refusal = check(event, LATE);
      if (refusal === undefined) expect(check(JSON.parse(JSON.stringify(event)), LATE)).toBeUndefined();
      else expect(refusal.message).not.toBe("");
    }),
  );
  fc.assert(
    fc.property(fc.anything(), (value) => {
      expect(check(value, LATE)?.class).toBeTypeOf("string");
    }),
  );
});

import { describe, expect, test } from "vitest";
import { ProblemError, SendError, StepstreamError, UnreachableError } from "../src/errors.js";
import type { HttpEvent } from "../src/events.js";
import { stepCompleted } from "../src/events.js";
import { createHttpClient } from "../src/http.js";
import type { Answer, Asked } from "./server.js";
import { accepted, serving } from "./server.js";

const key = "a-key";

function events(count: number, metadata: Record<string, unknown> = {}): HttpEvent[] {
  return Array.from({ length: count }, (_, i) =>
    stepCompleted({ distinct_id: `u-${i}`, session_id: "s", walkthrough_id: "wt", step_id: "a", metadata }),
  );
}

async function thrown(act: Promise<unknown>): Promise<SendError<HttpEvent, { index: number }>> {
  try {
    await act;
  } catch (error) {
    if (error instanceof SendError) return error as SendError<HttpEvent, { index: number }>;
    throw error;
  }
  throw new Error("it was all sent");
}

test("what is wrong is refused here, and the rest is sent, each by its place", async () => {
  await using server = await serving(accepted);
  const [one, two, three] = events(3);
  const bad = { ...two, completed_at: 1_764_000_000 } as HttpEvent;
  const client = createHttpClient({ url: server.url, key });
  const verdicts = await client.send([one, bad, three] as HttpEvent[]);
  expect(verdicts.accepted).toBe(2);
  expect(verdicts.refused).toBe(1);
  expect(verdicts.results.map(({ index, status }) => [index, status])).toEqual([
    [0, "accepted"],
    [1, "refused"],
    [2, "accepted"],
  ]);
  expect(server.asked.map(({ path, items }) => [path, items])).toEqual([["/v1/events", [one, three]]]);
  expect(server.asked[0]?.headers.authorization).toBe("Bearer a-key");
});

test("one event, person or session needs no array", async () => {
  await using server = await serving(accepted);
  const [event] = events(1);
  const client = createHttpClient({ url: server.url, key });
  expect((await client.send(event as HttpEvent)).accepted).toBe(1);
  expect((await client.registerPeople({ distinct_id: "ada" })).accepted).toBe(1);
  expect((await client.registerSessions({ session_id: "s", distinct_id: "ada" })).accepted).toBe(1);
  expect(server.asked.map(({ items }) => items.length)).toEqual([1, 1, 1]);
  const { results } = await client.send("an event" as never);
  expect(results).toMatchObject([{ error: { message: expect.stringContaining("it is a string") } }]);
});

test.each([
  [401, "not accepted, because the key is none that is known: 401: No key: it is none. Give another one"],
  [403, "not accepted, because the key may not do this: 403: No key: it is none"],
  [413, "not accepted: 413: No key: it is none"],
  [503, "without an answer, perhaps accepted: 503: No key: it is none"],
])("what was not accepted for a status of %i is said so", async (status, told) => {
  await using server = await serving(() => ({ status, body: { title: "No key", detail: "it is none" } }));
  const client = createHttpClient({ url: server.url, key, retryForMs: 0 });
  expect((await thrown(client.send(events(1)))).message).toContain(`1 of 1 ${told}`);
});

test("what the server refuses keeps its place among all", async () => {
  await using server = await serving(({ items }) => ({
    status: 422,
    body: {
      results: items.map((_, index) => ({ index, status: "refused", error: { class: "unknown-step" } })),
    },
  }));
  const [one, two] = events(2);
  const { results } = await createHttpClient({ url: server.url, key }).send([
    { ...one, completed_at: Number.NaN } as HttpEvent,
    two as HttpEvent,
  ]);
  expect(results.map((r) => [r.index, r.status === "refused" && r.error.class])).toEqual([
    [0, "invalid-event"],
    [1, "unknown-step"],
  ]);
});

test("batches stay below the server's limits, compressed, in order", async () => {
  await using server = await serving(accepted);
  const many = events(400, { text: "é".repeat(1_500) });
  const verdicts = await createHttpClient({ url: server.url, key }).send(many);
  expect(verdicts.accepted).toBe(400);
  expect(server.asked.length).toBeGreaterThan(2);
  for (const { bytes, headers } of server.asked) {
    expect(bytes).toBeLessThanOrEqual(500_000);
    expect(headers["content-encoding"]).toBe("gzip");
    expect(Number(headers["content-length"])).toBeLessThan(bytes);
  }
  expect(server.asked.flatMap(({ items }) => items)).toEqual(many);
  expect(verdicts.results.map(({ index }) => index)).toEqual(many.map((_, i) => i));
});

test("where one batch is in the outbox, not all is in Kafka", async () => {
  const through = (way: string, asked: Asked): Answer => {
    const answer = accepted(asked);
    return answer && { ...answer, body: { ...(answer.body as object), through: way } };
  };
  await using server = await serving((asked, count) => through(count === 2 ? "outbox" : "kafka", asked));
  const client = createHttpClient({ url: server.url, key });
  expect((await client.send(events(1))).through).toBe("kafka");
  expect((await client.send(events(1_001))).through).toBe("outbox");
  expect((await client.send([])).through).toBeNull();
});

test("where something between takes less, a batch is cut in halves", async () => {
  await using server = await serving((asked) => (asked.items.length > 2 ? { status: 413 } : accepted(asked)));
  const verdicts = await createHttpClient({ url: server.url, key }).send(events(7));
  expect(verdicts.accepted).toBe(7);
  expect(verdicts.results.map(({ index }) => index)).toEqual([0, 1, 2, 3, 4, 5, 6]);
});

describe("what does not go through is sent again", () => {
  test.each<[string, (count: number) => { status: number; headers?: Record<string, string> } | null]>([
    ["a full server", () => ({ status: 429, headers: { "Retry-After": "0" } })],
    ["one that is away", () => ({ status: 503 })],
    ["a proxy without one", () => ({ status: 502 })],
    ["a connection that breaks", () => null],
  ])("%s", async (_, answer) => {
    await using server = await serving((asked, count) => (count < 3 ? answer(count) : accepted(asked)));
    const verdicts = await createHttpClient({ url: server.url, key }).send(events(1));
    expect(verdicts.accepted).toBe(1);
    expect(server.asked.map(({ items }) => items[0]?.event_id)).toEqual(
      Array(3).fill(server.asked[0]?.items[0]?.event_id),
    );
  });

  test("not before Retry-After says", async () => {
    let before = 0;
    let waited = 0;
    await using server = await serving((asked, count) => {
      if (count === 2) waited = performance.now() - before;
      before = performance.now();
      return count === 1 ? { status: 429, headers: { "Retry-After": "1" } } : accepted(asked);
    });
    await createHttpClient({ url: server.url, key }).send(events(1));
    expect(waited).toBeGreaterThanOrEqual(1_000);
  });

  test("not at all where Retry-After is later than the caller would wait", async () => {
    await using server = await serving(() => ({ status: 503, headers: { "Retry-After": "3600" } }));
    const error = await thrown(createHttpClient({ url: server.url, key }).send(events(2)));
    expect(server.asked).toHaveLength(1);
    expect(error.cause).toMatchObject({ status: 503, retryAfterMs: 3_600_000 });
    expect(error.unsettled.map(({ index }) => index)).toEqual([0, 1]);
  });
});

test("a problem of the whole is thrown at once, and says what it is", async () => {
  const body = { title: "Forbidden", detail: "this key may not write" };
  await using server = await serving(() => ({ status: 403, body }));
  const error = await thrown(createHttpClient({ url: server.url, key }).send(events(1)));
  expect(error.message).toContain("403: Forbidden: this key may not write");
  expect(error.cause).toBeInstanceOf(ProblemError);
  expect(server.asked).toHaveLength(1);
});

test("what was answered before it broke is known", async () => {
  await using server = await serving((asked, count) => (count === 1 ? accepted(asked) : { status: 401 }));
  const many = events(1_001);
  const error = await thrown(createHttpClient({ url: server.url, key }).send(many));
  expect(error.settled).toHaveLength(1_000);
  expect(error.unsettled).toEqual([{ index: 1_000, item: many[1_000] }]);
});

test("nobody there is told as such, with the address", async () => {
  const client = createHttpClient({ url: "http://127.0.0.1:9", key, retryForMs: 0 });
  const error = await thrown(client.send(events(1)));
  expect(error.cause).toBeInstanceOf(UnreachableError);
  expect(error.message).toContain("http://127.0.0.1:9 cannot be reached");
});

test("another server's answer, and a redirect, are told apart from Stepstream's", async () => {
  await using other = await serving(() => ({ status: 404, body: "not here" }));
  const wrong = await thrown(createHttpClient({ url: other.url, key }).send(events(1)));
  expect(wrong.message).toContain("is it the address of its analytics-api?");
  await using moved = await serving(() => ({
    status: 301,
    headers: { Location: "https://elsewhere.example/" },
  }));
  const redirected = await thrown(createHttpClient({ url: moved.url, key }).send(events(1)));
  expect(redirected.message).toContain("a redirect to https://elsewhere.example/; give that address as url");
});

test("a signal ends an attempt, and the waiting between two", async () => {
  for (const answer of [
    () => new Promise<null>(() => {}),
    () => ({ status: 503, headers: { "Retry-After": "20" } }),
  ]) {
    const controller = new AbortController();
    await using server = await serving(() => {
      controller.abort(new Error("no longer wanted"));
      return answer();
    });
    const error = await thrown(
      createHttpClient({ url: server.url, key }).send(events(1), { signal: controller.signal }),
    );
    expect(error.message).toContain("no longer wanted");
    expect(server.asked).toHaveLength(1);
  }
});

test("an attempt without an answer is given up", async () => {
  await using server = await serving((asked, count) =>
    count === 1 ? new Promise<null>(() => {}) : accepted(asked),
  );
  const verdicts = await createHttpClient({ url: server.url, key, timeoutMs: 100 }).send(events(1));
  expect(verdicts.accepted).toBe(1);
});

test("people and sessions go to their own routes", async () => {
  await using server = await serving(accepted);
  const client = createHttpClient({ url: `${server.url}/behind/a/proxy`, key });
  await client.registerPeople([{ distinct_id: "u-1" }]);
  await client.registerSessions([{ session_id: "s-1", distinct_id: "u-1" }]);
  expect(server.asked.map(({ path, items }) => [path, items])).toEqual([
    ["/behind/a/proxy/v1/people", [{ distinct_id: "u-1" }]],
    ["/behind/a/proxy/v1/sessions", [{ session_id: "s-1", distinct_id: "u-1" }]],
  ]);
  const { results } = await client.registerPeople([{} as never]);
  expect(results).toMatchObject([
    { status: "refused", error: { class: "invalid-person", field: "distinct_id" } },
  ]);
});

test.each([
  [{ url: "stepstream.example", key }, "url is"],
  [{ url: "ftp://stepstream.example", key }, "url is"],
  [{ url: "https://stepstream.example", key: "" }, "key is empty"],
  [{ url: "https://stepstream.example", key: undefined as never }, "key is empty"],
  [{ url: "https://stepstream.example", key: "two\nlines" }, "key is empty"],
])("%o is no client", (options, told) => {
  expect(() => createHttpClient(options)).toThrow(StepstreamError);
  expect(() => createHttpClient(options)).toThrow(told);
});

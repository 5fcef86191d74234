import { getEventListeners } from "node:events";
import { describe, expect, test, vi } from "vitest";
import type { StepstreamError } from "../src/errors.js";
import type { HttpEvent } from "../src/events.js";
import { stepCompleted } from "../src/events.js";
import { createHttpClient } from "../src/http.js";
import { Queue } from "../src/queue.js";
import type { AcceptedEvent, Verdicts } from "../src/verdicts.js";
import type { Asked } from "./server.js";
import { accepted, serving } from "./server.js";

const key = "a-key";
/** No second is waited for what comes by itself. */
const soon = { flushAfterMs: 1 };

function event(i = 0): HttpEvent {
  return stepCompleted({ distinct_id: `u-${i}`, session_id: "s", walkthrough_id: "wt", step_id: "a" });
}

function idsOf(asked: readonly Asked[]): unknown[] {
  return asked.flatMap(({ items }) => items.map(({ event_id }) => event_id));
}

describe("tracked events", () => {
  test("are sent by themselves, together, in order", async () => {
    await using server = await serving(accepted);
    const client = createHttpClient({ url: server.url, key, ...soon });
    const events = Array.from({ length: 20 }, (_, i) => event(i));
    for (const one of events) expect(client.track(one)).toBe(true);
    await vi.waitFor(() => expect(idsOf(server.asked)).toEqual(events.map(({ event_id }) => event_id)));
    expect(server.asked).toHaveLength(1);
    await client.close();
  });

  test("are as they were when they were tracked", async () => {
    await using server = await serving(accepted);
    const client = createHttpClient({ url: server.url, key });
    const one = event();
    client.track(one);
    one.metadata = { later: true };
    expect(await client.flush()).toEqual({ accepted: 1, refused: 0, failed: 0 });
    expect(server.asked[0]?.items[0]).not.toHaveProperty("metadata");
  });

  test("that are refused, here or there, are told with their event", async () => {
    await using server = await serving(({ items }) => ({
      status: 422,
      body: {
        results: items.map((_, index) => ({ index, status: "refused", error: { class: "unknown-step" } })),
      },
    }));
    const told: [string, HttpEvent][] = [];
    const onRefused = (refusal: { class: string }, one: HttpEvent): number => told.push([refusal.class, one]);
    const client = createHttpClient({ url: server.url, key, onRefused });
    const [bad, unknown] = [{ ...event(), completed_at: 5 } as HttpEvent, event()];
    expect(client.track(bad)).toBe(false);
    expect(client.track(unknown)).toBe(true);
    expect(await client.flush()).toEqual({ accepted: 0, refused: 2, failed: 0 });
    expect(told).toEqual([
      ["too-early", bad],
      ["unknown-step", unknown],
    ]);
  });

  test("wait while the server is away, and come in order once it is back", async () => {
    await using server = await serving((asked, count) => (count < 4 ? null : accepted(asked)));
    const client = createHttpClient({ url: server.url, key, retryForMs: 0 });
    const events = Array.from({ length: 3 }, (_, i) => event(i));
    for (const one of events) client.track(one);
    expect(await client.flush()).toEqual({ accepted: 3, refused: 0, failed: 0 });
    expect(idsOf(server.asked.slice(3))).toEqual(events.map(({ event_id }) => event_id));
  });

  test("that do not fit are given back", async () => {
    await using server = await serving(accepted);
    const lost: [string, readonly HttpEvent[]][] = [];
    const onError = (error: Error, left: readonly HttpEvent[]): number => lost.push([error.name, left]);
    const client = createHttpClient({ url: server.url, key, queueSize: 2, onError });
    const events = Array.from({ length: 3 }, (_, i) => event(i));
    expect(events.map((one) => client.track(one))).toEqual([true, true, false]);
    expect(lost).toEqual([["QueueFullError", [events[2]]]]);
    expect(await client.flush()).toEqual({ accepted: 2, refused: 0, failed: 1 });
  });

  test("that the server will never take are given back", async () => {
    await using server = await serving(() => ({ status: 401, body: { title: "no key" } }));
    const lost: [Error, readonly HttpEvent[]][] = [];
    const onError = (error: Error, events: readonly HttpEvent[]): number => lost.push([error, events]);
    const client = createHttpClient({ url: server.url, key, onError });
    const one = event();
    client.track(one);
    expect(await client.flush()).toEqual({ accepted: 0, refused: 0, failed: 1 });
    expect(lost.map(([error, events]) => [(error as StepstreamError).name, events])).toEqual([
      ["SendError", [one]],
    ]);
  });

  test("are given back when a closing is not to wait longer", async () => {
    await using server = await serving(() => null);
    const lost: unknown[] = [];
    const onError = (error: Error, events: readonly HttpEvent[]): number => lost.push([error.name, events]);
    const client = createHttpClient({ url: server.url, key, onError });
    const one = event();
    client.track(one);
    expect(await client.close({ signal: AbortSignal.timeout(50) })).toMatchObject({ failed: 1 });
    expect(lost).toEqual([["ClosedError", [one]]]);
    expect(client.track(event())).toBe(false);
    expect(lost).toHaveLength(2);
  });

  test("are sent when a block that uses the client ends", async () => {
    await using server = await serving(accepted);
    {
      await using client = createHttpClient({ url: server.url, key });
      client.track(event());
    }
    expect(idsOf(server.asked)).toHaveLength(1);
  });
});

test("a flush can be left, and the sending goes on", async () => {
  let answer: () => void = () => {};
  const asked = new Promise<void>((resolve) => {
    answer = resolve;
  });
  await using server = await serving(async (one) => {
    await asked;
    return accepted(one);
  });
  const client = createHttpClient({ url: server.url, key });
  client.track(event());
  await expect(client.flush({ signal: AbortSignal.timeout(20) })).rejects.toThrow();
  answer();
  expect(await client.flush()).toEqual({ accepted: 1, refused: 0, failed: 0 });
});

test("a flush leaves nothing behind on its signal", async () => {
  await using server = await serving(accepted);
  const client = createHttpClient({ url: server.url, key });
  const { signal } = new AbortController();
  client.track(event());
  await client.flush({ signal });
  expect(getEventListeners(signal, "abort")).toEqual([]);
  await client.close();
});

test("what is tracked in any moment of a sending's end is sent by the next flush", async () => {
  for (let moment = 0; moment < 20; moment += 1) {
    const sent: number[] = [];
    const send = (events: readonly number[]): Promise<Verdicts<AcceptedEvent>> => {
      sent.push(...events);
      return Promise.resolve({ accepted: events.length, refused: 0, results: [] });
    };
    const queue = new Queue<number>(send, () => undefined, {});
    queue.track(1);
    const first = queue.flush();
    for (let i = 0; i < moment; i += 1) await Promise.resolve();
    queue.track(2);
    await queue.flush();
    expect(sent, `in moment ${moment}`).toEqual([1, 2]);
    await first;
  }
});

test("with nobody who listens, what is lost is said on the console", () => {
  const warn = vi.spyOn(console, "warn").mockImplementation(() => {});
  const client = createHttpClient({ url: "http://127.0.0.1:9", key });
  client.track({ ...event(), completed_at: 5 } as HttpEvent);
  expect(warn.mock.calls).toEqual([[expect.stringContaining("an event is refused as too-early")]]);
  warn.mockRestore();
});

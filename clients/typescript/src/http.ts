/// <reference lib="esnext.disposable" preserve="true" />
import type { Prepared } from "./batches.js";
import { arrayOf, batchesOf, listOf } from "./batches.js";
import { check } from "./check.js";
import { ProblemError, SendError, StepstreamError } from "./errors.js";
import type { HttpEvent, Person } from "./events.js";
import { ofOwnId } from "./own-ids.js";
import type { QueueOptions, Tally } from "./queue.js";
import { Queue } from "./queue.js";
import type { Transport } from "./transport.js";
import { MAKES_A_KEY, post } from "./transport.js";
import type {
  AcceptedEvent,
  AcceptedPerson,
  AcceptedSession,
  EventVerdicts,
  Refusal,
  RefusalClass,
  Refused,
  Verdicts,
} from "./verdicts.js";
import { verdictsOf } from "./verdicts.js";

/** How to reach Stepstream, and who is told what `track` cannot tell. */
export interface HttpClientOptions extends QueueOptions<HttpEvent> {
  /** The address of analytics-api: `https://stepstream.example`. */
  url: string | URL;
  /** A key that may write: `stepstream keys create --organization ORG --may-write`. */
  key: string;
  /** An attempt without an answer is given up after so many milliseconds; 30,000. */
  timeoutMs?: number;
  /** For so many milliseconds what does not go through is repeated; 60,000. 0 is a single attempt. */
  retryForMs?: number;
  /** What asks instead of the global `fetch`: one with a proxy, say. */
  fetch?: typeof fetch;
}

/** For one call. */
export interface CallOptions {
  signal?: AbortSignal;
}

/** A person by an id of your own. */
export interface NewPerson {
  distinct_id: string;
}

/** A session by an id of your own, of somebody or of nobody yet. */
export type NewSession = {
  session_id: string;
  /** The server's slug or id; it may be left out where the key leaves exactly one. */
  server?: string;
  title?: string;
  /** Milliseconds since the epoch. */
  started_at?: number;
} & (Person | { mcp_server_user_id?: never; distinct_id?: never });

/** Sends by HTTP. */
export interface HttpClient {
  /**
   * Sends an event or several, and says of each what became of it. Taken is what Kafka has, or what is kept until Kafka is back.
   * What fails is repeated first; sending again is safe while an event keeps its `event_id`.
   *
   * @throws SendError where some have no verdict
   */
  send(events: HttpEvent | readonly HttpEvent[], options?: CallOptions): Promise<EventVerdicts>;
  /** Says which people there are, before events name them. Repeating it changes nothing. */
  registerPeople(
    people: NewPerson | readonly NewPerson[],
    options?: CallOptions,
  ): Promise<Verdicts<AcceptedPerson>>;
  /** Says which sessions there are, before events name them. Repeating it changes nothing. */
  registerSessions(
    sessions: NewSession | readonly NewSession[],
    options?: CallOptions,
  ): Promise<Verdicts<AcceptedSession>>;
  /** Takes an event to send soon, without waiting; false where it does not, and `onRefused` or `onError` is told. */
  track(event: HttpEvent): boolean;
  /** Waits until all that was tracked is answered for, and says what became of it since the last time. */
  flush(options?: CallOptions): Promise<Tally>;
  /** Takes no more, and sends what waits; once the signal says to stop, `onError` is given what is left. */
  close(options?: CallOptions): Promise<Tally>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** So many people, sessions or events go in one request. */
const MAX_ITEMS = 1_000;

/** Makes a client of Stepstream's HTTP routes. A key in a browser is everybody's: there, send to a server of yours. */
export function createHttpClient(options: HttpClientOptions): HttpClient {
  const transport = transportOf(options);
  const checked = (event: HttpEvent): Refusal | undefined => check(event, Date.now(), "http");
  const send: HttpClient["send"] = async (events, { signal } = {}) => {
    const ways = new Set<unknown>();
    const note = (answer: Answer<AcceptedEvent>): unknown => ways.add(answer.through);
    const verdicts = await submit(transport, "v1/events", events, checked, signal, note);
    const through = (["outbox", "kafka"] as const).find((way) => ways.has(way)) ?? null;
    return { ...verdicts, through };
  };
  const queue = new Queue(send, checked, options);
  return {
    send,
    registerPeople: (people, { signal } = {}) =>
      submit(transport, "v1/people", people, ofOwn("distinct_id", "invalid-person"), signal),
    registerSessions: (sessions, { signal } = {}) =>
      submit(transport, "v1/sessions", sessions, ofOwn("session_id", "invalid-session"), signal),
    track: (event) => queue.track(event),
    flush: ({ signal } = {}) => queue.flush(signal),
    close: ({ signal } = {}) => queue.close(signal),
    [Symbol.asyncDispose]: async () => {
      await queue.close();
    },
  };
}

function transportOf({ url, key, timeoutMs, retryForMs, fetch: given }: HttpClientOptions): Transport {
  if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol)) {
    const shown = String(url).startsWith("sst_") ? "an API key" : JSON.stringify(url);
    throw new StepstreamError(`url is ${shown}; give the address of analytics-api, https://...`);
  }
  if (typeof key !== "string" || !/^[\x21-\x7e]+$/.test(key)) {
    throw new StepstreamError(`key is empty or no key; ${MAKES_A_KEY}`);
  }
  const base = new URL(url);
  base.search = base.hash = "";
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return {
    url: base,
    key,
    timeoutMs: timeoutMs ?? 30_000,
    retryForMs: retryForMs ?? 60_000,
    fetch: given ?? ((input, init) => fetch(input, init)),
  };
}

function ofOwn(
  field: "distinct_id" | "session_id",
  rejection: RefusalClass,
): (item: unknown) => Refusal | undefined {
  return (item) => {
    const given =
      typeof item === "object" && item !== null ? (item as Record<string, unknown>)[field] : undefined;
    const text = given === undefined ? "Field required" : ofOwnId(given);
    return text === undefined ? undefined : { class: rejection, field, message: `${field}: ${text}` };
  };
}

interface Answer<Accepted> {
  results: (Accepted | Refused)[];
  through?: unknown;
}

/** Sends what is right in as few requests as there have to be, one after the other. */
async function submit<Item, Accepted extends { status: "accepted"; index: number }>(
  transport: Transport,
  path: string,
  given: Item | readonly Item[],
  problemOf: (item: Item) => Refusal | undefined,
  signal: AbortSignal | undefined,
  note: (answer: Answer<Accepted>) => void = () => {},
): Promise<Verdicts<Accepted>> {
  const items = listOf(given);
  const results = new Map<number, Accepted | Refused>();
  const prepared: Prepared[] = [];
  for (const [index, item] of items.entries()) {
    const error = problemOf(item);
    if (error) results.set(index, { index, status: "refused", error });
    else prepared.push({ index, text: JSON.stringify(item) });
  }
  try {
    for (const batch of batchesOf(prepared, MAX_ITEMS)) {
      for (const answer of await ask<Accepted>(transport, path, batch, signal)) {
        note(answer);
        for (const one of answer.results) results.set(one.index, one);
      }
    }
  } catch (cause) {
    const unsettled = items.flatMap((item, index) => (results.has(index) ? [] : [{ index, item }]));
    throw new SendError(cause, inOrder(results), unsettled);
  }
  return verdictsOf(inOrder(results));
}

function inOrder<T extends { index: number }>(results: ReadonlyMap<number, T>): T[] {
  return [...results.values()].sort((a, b) => a.index - b.index);
}

async function ask<Accepted extends { index: number }>(
  transport: Transport,
  path: string,
  batch: readonly Prepared[],
  signal: AbortSignal | undefined,
): Promise<Answer<Accepted>[]> {
  try {
    const answer = (await post(transport, path, arrayOf(batch), signal)) as Answer<Accepted>;
    const { results } = answer;
    if (results.length !== batch.length) {
      throw new ProblemError(`${batch.length} were sent, and ${results.length} were answered for`, 502);
    }
    return [{ ...answer, results: results.map((one) => ({ ...one, index: batch[one.index]?.index ?? -1 })) }];
  } catch (error) {
    // Something between here and there takes less.
    if (!(error instanceof ProblemError) || error.status !== 413 || batch.length === 1) throw error;
    const half = Math.ceil(batch.length / 2);
    return [
      ...(await ask<Accepted>(transport, path, batch.slice(0, half), signal)),
      ...(await ask<Accepted>(transport, path, batch.slice(half), signal)),
    ];
  }
}

import { ClosedError, isTransient, QueueFullError, SendError } from "./errors.js";
import { pause } from "./transport.js";
import type { AcceptedEvent, Refusal, Refused, Verdicts } from "./verdicts.js";

/** Who is told of what `track` cannot tell its caller. */
export interface QueueOptions<E> {
  /** An event is refused, here or by the server. Without it a line is written to the console. */
  onRefused?: (refusal: Refusal, event: E) => void;
  /** Events are given up: keep them if they matter. Without it a line is written to the console. */
  onError?: (error: Error, events: readonly E[]) => void;
  /** So many events wait at most; 10,000. */
  queueSize?: number;
  /** So long after the first one they are sent, in milliseconds; 200. */
  flushAfterMs?: number;
}

/** What became of the events that were tracked since the last `flush`. */
export interface Tally {
  accepted: number;
  refused: number;
  /** Given up; `onError` was told. */
  failed: number;
}

type Send<E> = (events: readonly E[], options: { signal?: AbortSignal }) => Promise<Verdicts<AcceptedEvent>>;

/** So many are sent at once. */
const MAX_SENT = 1_000;
/** So long is waited before what did not go through is sent once more, in milliseconds. */
const AGAIN_AFTER_MS = 1_000;

/** Events that wait to be sent, in order, one batch after the other. None goes without a word. */
export class Queue<E> {
  readonly #send: Send<E>;
  readonly #check: (event: E) => Refusal | undefined;
  readonly #options: QueueOptions<E>;
  readonly #given = new AbortController();
  #waiting: E[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #running: Promise<void> | undefined;
  #tally: Tally = { accepted: 0, refused: 0, failed: 0 };
  #closed: ClosedError | undefined;

  constructor(send: Send<E>, check: (event: E) => Refusal | undefined, options: QueueOptions<E>) {
    this.#send = send;
    this.#check = check;
    this.#options = options;
  }

  /** Takes an event to send soon; false where it does not, and `onRefused` or `onError` was told why. */
  track(event: E): boolean {
    const refusal = this.#check(event);
    if (refusal) {
      this.#refuse(refusal, event);
      return false;
    }
    const size = this.#options.queueSize ?? 10_000;
    const full = new QueueFullError(`${size} events wait already; this one is not sent`);
    const error = this.#closed ?? (this.#waiting.length >= size ? full : undefined);
    if (error) {
      this.#giveUp(error, [event]);
      return false;
    }
    // A copy: what the caller changes later is not sent.
    this.#waiting.push(JSON.parse(JSON.stringify(event)) as E);
    if (this.#waiting.length >= MAX_SENT) this.#start();
    else this.#timer ??= setTimeout(() => this.#start(), this.#options.flushAfterMs ?? 200);
    return true;
  }

  /** Waits until all that was tracked is answered for; the signal ends the waiting, not the sending. */
  async flush(signal?: AbortSignal): Promise<Tally> {
    this.#start();
    const ended = Promise.resolve(this.#running);
    if (signal) {
      signal.throwIfAborted();
      const { promise: left, leave } = leaving(signal);
      signal.addEventListener("abort", leave, { once: true });
      try {
        await Promise.race([ended, left]);
      } finally {
        signal.removeEventListener("abort", leave);
      }
    } else {
      await ended;
    }
    const tally = this.#tally;
    this.#tally = { accepted: 0, refused: 0, failed: 0 };
    return tally;
  }

  /** Takes no more, and sends what waits; once the signal says to stop, `onError` is given what is left. */
  async close(signal?: AbortSignal): Promise<Tally> {
    this.#closed = new ClosedError("the client is closed; this event is not sent");
    const stop = (): void =>
      this.#given.abort(new ClosedError("the client was closed before these were sent"));
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop, { once: true });
    try {
      return await this.flush();
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }

  #start(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#running ??= this.#run();
  }

  async #run(): Promise<void> {
    await Promise.resolve(); // `#running` is this run before it can end.
    const { signal } = this.#given;
    try {
      while (this.#waiting.length > 0 && !signal.aborted) {
        await this.#sendSome(this.#waiting.slice(0, MAX_SENT), signal);
      }
    } finally {
      // With nothing in between: what is tracked from now on begins a run of its own.
      this.#running = undefined;
    }
    const left = this.#waiting.splice(0);
    if (left.length > 0) this.#giveUp(signal.reason as Error, left);
  }

  async #sendSome(events: readonly E[], signal: AbortSignal): Promise<void> {
    let left: E[] = [];
    try {
      const { results } = await this.#send(events, { signal });
      this.#settle(events, results);
    } catch (error) {
      const unsettled =
        error instanceof SendError ? (error as SendError<E, AcceptedEvent | Refused>) : undefined;
      if (unsettled) this.#settle(events, unsettled.settled);
      left = unsettled ? unsettled.unsettled.map(({ item }) => item) : [...events];
      if (!isTransient(error) && !signal.aborted) {
        this.#giveUp(error as Error, left);
        left = [];
      }
    }
    this.#waiting.splice(0, events.length, ...left);
    if (left.length > 0) await pause(AGAIN_AFTER_MS, signal);
  }

  #settle(events: readonly E[], results: readonly (AcceptedEvent | Refused)[]): void {
    for (const result of results) {
      const event = events[result.index];
      if (result.status === "accepted") this.#tally.accepted += 1;
      else if (event !== undefined) this.#refuse(result.error, event);
    }
  }

  #refuse(refusal: Refusal, event: E): void {
    this.#tally.refused += 1;
    const { onRefused } = this.#options;
    if (onRefused) safely(() => onRefused(refusal, event));
    else say(`an event is refused as ${refusal.class}: ${refusal.message}`);
  }

  #giveUp(error: Error, events: readonly E[]): void {
    this.#tally.failed += events.length;
    const { onError } = this.#options;
    if (onError) safely(() => onError(error, events));
    else say(`${events.length} events are not sent: ${error.message}`);
  }
}

/** A promise that `leave` rejects with the signal's reason. */
function leaving(signal: AbortSignal): { promise: Promise<never>; leave: () => void } {
  let leave = (): void => {};
  const promise = new Promise<never>((_, reject) => {
    leave = () => reject(signal.reason as Error);
  });
  return { promise, leave };
}

/** What a callback throws is its own affair: it is reported as an uncaught error, and the queue goes on. */
function safely(act: () => void): void {
  try {
    act();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

function say(text: string): void {
  // biome-ignore lint/suspicious/noConsole: nobody listens, and nothing is to be lost without a word.
  console.warn(`stepstream: ${text}`);
}

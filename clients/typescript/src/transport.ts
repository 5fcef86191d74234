import pRetry, { AbortError } from "p-retry";
import { isTransient, ProblemError, UnreachableError } from "./errors.js";

/** How requests are made; times are in milliseconds. */
export interface Transport {
  url: URL;
  key: string;
  fetch: typeof fetch;
  /** An attempt without an answer is given up after so long. */
  timeoutMs: number;
  /** For so long attempts are repeated; 0 is a single one. */
  retryForMs: number;
}

/** What an operator does for whoever sends. */
export const MAKES_A_KEY = "`stepstream keys create --organization ORG --may-write` makes one";
/** What is shorter is sent as it is. */
const WORTH_COMPRESSING = 1_000;

/**
 * Posts a body of JSON and returns the one of the answer: repeated where the network, a full server (429) or one
 * that is away (5xx) is in the way, later each time, and no sooner than `Retry-After` says.
 *
 * @throws ProblemError, UnreachableError, or the signal's reason
 */
export async function post(
  transport: Transport,
  path: string,
  body: string,
  signal: AbortSignal | undefined,
): Promise<unknown> {
  signal?.throwIfAborted();
  const until = Date.now() + transport.retryForMs;
  let wait = 0;
  return await pRetry(
    async () => {
      await pause(wait, signal);
      try {
        return await attempt(transport, path, body, signal);
      } catch (error) {
        if (signal?.aborted) throw abortOf(signal.reason);
        throw error;
      }
    },
    {
      retries: Number.POSITIVE_INFINITY,
      minTimeout: 200,
      maxTimeout: 10_000,
      randomize: true,
      shouldRetry: ({ error }) => {
        wait = error instanceof ProblemError ? (error.retryAfterMs ?? 0) : 0;
        return isTransient(error) && Date.now() + wait < until;
      },
      ...(signal && { signal }),
    },
  );
}

/** Ends `pRetry` at once; it passes on what is inside. */
function abortOf(reason: unknown): AbortError {
  return new AbortError(reason instanceof Error ? reason : String(reason));
}

/** Waits, or until the signal says to stop. */
export function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(done, ms);
    function done(): void {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    }
    signal?.addEventListener("abort", done, { once: true });
    if (ms === 0 || signal?.aborted) done();
  });
}

async function attempt(
  { url, key, fetch: ask, timeoutMs }: Transport,
  path: string,
  body: string,
  signal: AbortSignal | undefined,
): Promise<unknown> {
  const compressed = body.length < WORTH_COMPRESSING ? undefined : await gzip(body);
  const timeout = AbortSignal.timeout(timeoutMs);
  const headers = {
    Authorization: `Bearer ${key}`,
    Accept: "application/json",
    "Content-Type": "application/json",
    ...(compressed && { "Content-Encoding": "gzip" }),
  };
  try {
    const response = await ask(new URL(path, url), {
      method: "POST",
      headers,
      body: compressed ?? body,
      redirect: "manual", // Followed, it would be asked for with GET, and perhaps elsewhere with the key.
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
    return await read(response, url);
  } catch (error) {
    if (error instanceof ProblemError) throw error;
    const why = timeout.aborted ? `no answer in ${timeoutMs} ms` : reasonOf(error);
    throw new UnreachableError(`${url.origin} cannot be reached: ${why}`, { cause: error });
  }
}

async function gzip(text: string): Promise<ArrayBuffer> {
  return await new Response(
    new Blob([text]).stream().pipeThrough(new CompressionStream("gzip")),
  ).arrayBuffer();
}

/** `fetch failed` says nothing; the cause does. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { cause } = error;
  const code =
    typeof cause === "object" && cause !== null && "code" in cause ? ` (${String(cause.code)})` : "";
  return cause instanceof Error && cause.message ? cause.message : `${error.message}${code}`;
}

/** The body where it is verdicts: all accepted, some refused, or all refused. */
async function read(response: Response, url: URL): Promise<unknown> {
  const text = await response.text();
  const body = parsed(text);
  if ([200, 207, 422].includes(response.status) && isRecord(body) && Array.isArray(body.results)) {
    return body;
  }
  throw new ProblemError(told(response, body, url), response.status, retryAfter(response.headers));
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return;
  }
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null;
}

function told(response: Response, body: unknown, url: URL): string {
  const { status } = response;
  if (response.type === "opaqueredirect" || (status >= 300 && status < 400)) {
    const target = response.headers.get("location");
    return `${url.origin} answers with a redirect${target ? ` to ${target}` : ""}; give that address as url`;
  }
  const problem = isRecord(body) ? [body.title, body.detail].filter((one) => typeof one === "string") : [];
  if (problem.length > 0) {
    const said = `${status}: ${problem.join(": ")}`;
    return status === 401 ? `${said}. Give another one: ${MAKES_A_KEY}` : said;
  }
  return `${status} from ${url.origin}, which is no answer of Stepstream; is it the address of its analytics-api?`;
}

/** Seconds, or a date. */
function retryAfter(headers: Headers): number | null {
  const given = headers.get("retry-after");
  if (given === null) return null;
  const ms = /^\d+$/.test(given) ? Number(given) * 1_000 : Date.parse(given) - Date.now();
  return Number.isFinite(ms) ? Math.max(0, ms) : null;
}

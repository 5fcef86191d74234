/** What goes wrong between here and Stepstream; refused events are no error, their verdicts say it. */
export class StepstreamError extends Error {
  override readonly name: string = "StepstreamError";
}

/** No answer: the network, a name, or a time-out. Sending again is safe. */
export class UnreachableError extends StepstreamError {
  override readonly name = "UnreachableError";
}

/** An answer that is no verdict: a problem of the whole request, as RFC 9457 has them. */
export class ProblemError extends StepstreamError {
  override readonly name = "ProblemError";

  constructor(
    message: string,
    /** The HTTP status. */
    readonly status: number,
    /** How long the answer asks to wait, in milliseconds; null where it does not say. */
    readonly retryAfterMs: number | null = null,
  ) {
    super(message);
  }
}

/** What was given to `send` and not all of it was answered; `cause` says why. Sending `unsettled` again is safe. */
export class SendError<Item, Result> extends StepstreamError {
  override readonly name = "SendError";

  constructor(
    cause: unknown,
    /** The verdicts that are there. */
    readonly settled: readonly Result[],
    /** What has no verdict, and perhaps arrived; not where a `ProblemError` says that nothing was accepted. */
    readonly unsettled: readonly { index: number; item: Item }[],
  ) {
    const all = settled.length + unsettled.length;
    super(`${unsettled.length} of ${all} ${whatBecame(cause)}: ${messageOf(cause)}`, { cause });
  }
}

/** `track` was given more than the queue holds. */
export class QueueFullError extends StepstreamError {
  override readonly name = "QueueFullError";
}

/** `track` was called after `close`, or `close` was told not to wait for what was left. */
export class ClosedError extends StepstreamError {
  override readonly name = "ClosedError";
}

/** What became of those without a verdict: an answer for the whole request says that none was taken. */
function whatBecame(cause: unknown): string {
  if (!(cause instanceof ProblemError) || isTransient(cause)) return "without an answer, perhaps accepted";
  if (cause.status === 401) return "not accepted, because the key is none that is known";
  if (cause.status === 403) return "not accepted, because the key may not do this";
  return "not accepted";
}

/** Whether the same may go well a little later. */
export function isTransient(error: unknown): boolean {
  if (error instanceof SendError) return isTransient(error.cause);
  if (error instanceof UnreachableError) return true;
  return (
    error instanceof ProblemError && (error.status === 408 || error.status === 429 || isServers(error.status))
  );
}

function isServers(status: number): boolean {
  return status >= 500 && status !== 501;
}

/** What a thrown value says. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : `${error}`;
}

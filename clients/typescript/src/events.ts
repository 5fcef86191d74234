import { v7 } from "uuid";
import type {
  ContractEvent,
  StepCompleted,
  StepShown,
  StepSkipped,
  WalkthroughStarted,
} from "./generated/events.js";

/** Who: the platform's id, or the id that you know the person by. */
export type Person =
  | { mcp_server_user_id: string; distinct_id?: never }
  | { distinct_id: string; mcp_server_user_id?: never };

/** In which session: the platform's id, or the one that you know it by. */
export type Session =
  | { mcp_server_session_id: string; session_id?: never }
  | { session_id: string; mcp_server_session_id?: never };

/** An event as HTTP takes it: your own ids will do, and the server may be left out where there is only one. */
export type ByHttp<E extends ContractEvent> = E extends ContractEvent
  ? Omit<E, "mcp_server_user_id" | "mcp_server_session_id" | "mcp_server_id"> &
      Person &
      Session & { mcp_server_id?: string }
  : never;

/** Any event that a producer sends by HTTP. */
export type HttpEvent = ByHttp<ContractEvent>;

type Without<E, K extends PropertyKey> = E extends unknown ? Omit<E, K> : never;
/** What a builder is given: the type is known, an id is made, and the time is now, unless it is given. */
type Given<E, Time extends string> = Without<E, "type" | "event_id" | Time> & { event_id?: string } & {
  [field in Time]?: Date | number;
};

/** A step was completed: now, or at `completed_at`. */
export function stepCompleted(given: Given<StepCompleted, "completed_at">): StepCompleted;
export function stepCompleted(given: Given<ByHttp<StepCompleted>, "completed_at">): ByHttp<StepCompleted>;
export function stepCompleted(given: object): unknown {
  return build("step-completed", "completed_at", given);
}

/** A walkthrough was opened: now, or at `started_at`. */
export function walkthroughStarted(given: Given<WalkthroughStarted, "started_at">): WalkthroughStarted;
export function walkthroughStarted(
  given: Given<ByHttp<WalkthroughStarted>, "started_at">,
): ByHttp<WalkthroughStarted>;
export function walkthroughStarted(given: object): unknown {
  return build("walkthrough-started", "started_at", given);
}

/** A step was put before somebody: now, or at `shown_at`. */
export function stepShown(given: Given<StepShown, "shown_at">): StepShown;
export function stepShown(given: Given<ByHttp<StepShown>, "shown_at">): ByHttp<StepShown>;
export function stepShown(given: object): unknown {
  return build("step-shown", "shown_at", given);
}

/** Somebody went on without doing a step: now, or at `skipped_at`. */
export function stepSkipped(given: Given<StepSkipped, "skipped_at">): StepSkipped;
export function stepSkipped(given: Given<ByHttp<StepSkipped>, "skipped_at">): ByHttp<StepSkipped>;
export function stepSkipped(given: object): unknown {
  return build("step-skipped", "skipped_at", given);
}

function build(type: ContractEvent["type"], field: string, given: object): unknown {
  const fields: Readonly<Record<string, unknown>> = { ...given };
  const at = fields[field] ?? Date.now();
  return {
    ...fields,
    type,
    event_id: fields.event_id ?? v7(),
    [field]: at instanceof Date ? at.getTime() : at,
  };
}

/** The classes under which Stepstream refuses; a newer server may have more. */
export type RefusalClass =
  | "empty-value"
  | "not-json"
  | "unknown-type"
  | "invalid-event"
  | "invalid-person"
  | "invalid-session"
  | "too-early"
  | "in-the-future"
  | "not-allowed"
  | "unknown-user"
  | "unknown-walkthrough"
  | "unknown-step"
  | "unknown-server"
  | "unknown-session"
  | "step-of-another-walkthrough"
  | "server-of-another-organization"
  | "session-of-another-server"
  | "session-of-another-user"
  | "reused-event-id"
  | "refused-by-database"
  | "type-not-allowed"
  | "server-not-allowed"
  | "too-large"
  | "ambiguous-server"
  | (string & {});

/** Why one item is refused: the field, where it is one, and what to mend. */
export interface Refusal {
  class: RefusalClass;
  field: string | null;
  message: string;
}

/** What was refused, by its place in what was given. */
export interface Refused {
  index: number;
  status: "refused";
  error: Refusal;
}

/** An event that was taken. */
export interface AcceptedEvent {
  index: number;
  status: "accepted";
  event_id: string;
}

/** A person who is known by this id from now on; `created` says whether nobody was before. */
export interface AcceptedPerson {
  index: number;
  status: "accepted";
  distinct_id: string;
  mcp_server_user_id: string;
  created: boolean;
}

/** A session that is known by this id from now on; `created` says whether it was not before. */
export interface AcceptedSession {
  index: number;
  status: "accepted";
  session_id: string;
  mcp_server_session_id: string;
  created: boolean;
}

/** One verdict for each item that was given, in its order. */
export interface Verdicts<Accepted> {
  accepted: number;
  refused: number;
  results: (Accepted | Refused)[];
}

/** Verdicts on events, and where the accepted ones are. */
export interface EventVerdicts extends Verdicts<AcceptedEvent> {
  /** All in Kafka; or some in Stepstream's outbox, from which they follow once Kafka is back; null where none is. */
  through: "kafka" | "outbox" | null;
}

/** Counts what each result says. */
export function verdictsOf<Accepted extends { status: "accepted" }>(
  results: (Accepted | Refused)[],
): Verdicts<Accepted> {
  const refused = results.filter((one) => one.status === "refused").length;
  return { accepted: results.length - refused, refused, results };
}

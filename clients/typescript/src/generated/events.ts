// Written by `make generate` from schemas/event.schema.json.

/**
 * Somebody completed a step of a walkthrough.
 *
 * The event with the smallest `(completed_at, event_id)` is the one that counts for a user and step.
 */
export interface StepCompleted {
  type: "step-completed";
  /**
   * A UUID, the same in every copy of the event; version 7 is best.
   */
  event_id: string;
  /**
   * Who; also the key of the Kafka record.
   */
  mcp_server_user_id: string;
  walkthrough_id: string;
  /**
   * The completed step; it belongs to the walkthrough.
   */
  step_id: string;
  /**
   * The MCP server that led the person here.
   */
  mcp_server_id: string;
  mcp_server_session_id: string;
  /**
   * Milliseconds since the epoch, written without fraction or exponent; from 2000-01-01 on, at most 24 hours ahead of the consumer's clock.
   */
  completed_at: number;
  /**
   * Free JSON, at most 8 KiB as compact UTF-8, without NUL characters.
   */
  metadata?: {
    [k: string]: unknown;
  } | null;
}

/**
 * Somebody opened a walkthrough for the first time.
 *
 * The event with the smallest `(started_at, event_id)` is the one that counts for a user and walkthrough.
 */
export interface WalkthroughStarted {
  type: "walkthrough-started";
  /**
   * A UUID, the same in every copy of the event; version 7 is best.
   */
  event_id: string;
  /**
   * Who; also the key of the Kafka record.
   */
  mcp_server_user_id: string;
  walkthrough_id: string;
  /**
   * The MCP server that led the person here.
   */
  mcp_server_id: string;
  mcp_server_session_id: string;
  /**
   * Milliseconds since the epoch, written without fraction or exponent; from 2000-01-01 on, at most 24 hours ahead of the consumer's clock.
   */
  started_at: number;
  /**
   * Free JSON, at most 8 KiB as compact UTF-8, without NUL characters.
   */
  metadata?: {
    [k: string]: unknown;
  } | null;
}

/**
 * Somebody went on without doing a step. It is no completion.
 *
 * The event with the smallest `(skipped_at, event_id)` is the one that counts for a user and step. Where the
 * step was completed as well, before or after, the completion counts.
 */
export interface StepSkipped {
  type: "step-skipped";
  /**
   * A UUID, the same in every copy of the event; version 7 is best.
   */
  event_id: string;
  /**
   * Who; also the key of the Kafka record.
   */
  mcp_server_user_id: string;
  walkthrough_id: string;
  /**
   * The skipped step; it belongs to the walkthrough.
   */
  step_id: string;
  /**
   * The MCP server that led the person here.
   */
  mcp_server_id: string;
  mcp_server_session_id: string;
  /**
   * Milliseconds since the epoch, written without fraction or exponent; from 2000-01-01 on, at most 24 hours ahead of the consumer's clock.
   */
  skipped_at: number;
  /**
   * Why, in the words of who skipped it.
   */
  reason?: string | null;
  /**
   * Free JSON, at most 8 KiB as compact UTF-8, without NUL characters.
   */
  metadata?: {
    [k: string]: unknown;
  } | null;
}

/**
 * A step was put before somebody.
 *
 * Of a user and step the first and the last time count: the events with the smallest and with the largest
 * `(shown_at, event_id)`.
 */
export interface StepShown {
  type: "step-shown";
  /**
   * A UUID, the same in every copy of the event; version 7 is best.
   */
  event_id: string;
  /**
   * Who; also the key of the Kafka record.
   */
  mcp_server_user_id: string;
  walkthrough_id: string;
  /**
   * The step that was shown; it belongs to the walkthrough.
   */
  step_id: string;
  /**
   * The MCP server that led the person here.
   */
  mcp_server_id: string;
  mcp_server_session_id: string;
  /**
   * Milliseconds since the epoch, written without fraction or exponent; from 2000-01-01 on, at most 24 hours ahead of the consumer's clock.
   */
  shown_at: number;
  /**
   * Which version of the step's content.
   */
  version?: string | null;
  /**
   * Free JSON, at most 8 KiB as compact UTF-8, without NUL characters. It is not kept.
   */
  metadata?: {
    [k: string]: unknown;
  } | null;
}

/** An event that a producer sends. */
export type ContractEvent = StepCompleted | WalkthroughStarted | StepSkipped | StepShown;

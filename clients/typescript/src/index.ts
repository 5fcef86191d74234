export type { Form } from "./check.js";
export { check } from "./check.js";
export {
  ClosedError,
  isTransient,
  ProblemError,
  QueueFullError,
  SendError,
  StepstreamError,
  UnreachableError,
} from "./errors.js";
export type { ByHttp, HttpEvent, Person, Session } from "./events.js";
export { stepCompleted, stepShown, stepSkipped, walkthroughStarted } from "./events.js";
export type {
  ContractEvent,
  StepCompleted,
  StepShown,
  StepSkipped,
  WalkthroughStarted,
} from "./generated/events.js";
export type { CallOptions, HttpClient, HttpClientOptions, NewPerson, NewSession } from "./http.js";
export { createHttpClient } from "./http.js";
export type { QueueOptions, Tally } from "./queue.js";
export type {
  AcceptedEvent,
  AcceptedPerson,
  AcceptedSession,
  EventVerdicts,
  Refusal,
  RefusalClass,
  Refused,
  Verdicts,
} from "./verdicts.js";

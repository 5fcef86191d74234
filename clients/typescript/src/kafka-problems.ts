import type { Kafka } from "kafkajs";
import { StepstreamError } from "./errors.js";

/** What one attempt may take. */
export const RETRY = { retries: 8, maxRetryTime: 5_000 };

/**
 * Looks whether a topic is there: kafkajs would ask for it again and again, with a line in the log each time.
 *
 * @throws StepstreamError where it is not
 */
export async function checkTopic(kafka: Kafka, topic: string): Promise<void> {
  const admin = kafka.admin({ retry: RETRY });
  try {
    await admin.connect();
    if ((await admin.listTopics()).includes(topic)) return;
  } finally {
    await admin.disconnect();
  }
  throw new StepstreamError(`there is no topic ${topic}, or you may not see it`);
}

/** What sending again does not mend. */
const NOT_MENDED = new Set([
  "TOPIC_AUTHORIZATION_FAILED",
  "CLUSTER_AUTHORIZATION_FAILED",
  "MESSAGE_TOO_LARGE",
  "RECORD_LIST_TOO_LARGE",
  "INVALID_TOPIC_EXCEPTION",
]);

/** Whether sending again does not mend it. */
export function isOurs(error: unknown): boolean {
  if (error instanceof StepstreamError) return true;
  if (typeof error !== "object" || error === null) return false;
  if ("type" in error && NOT_MENDED.has(String(error.type))) return true;
  if ("name" in error && error.name === "KafkaJSSASLAuthenticationError") return true;
  return "cause" in error && isOurs(error.cause);
}

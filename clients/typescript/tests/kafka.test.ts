import { readFileSync } from "node:fs";
import kafkajs from "kafkajs";
import { expect, test } from "vitest";
import { stepCompleted, stepShown, stepSkipped, walkthroughStarted } from "../src/events.js";
import { createKafkaProducer, toMessage } from "../src/kafka.js";

interface Vector {
  key: string;
  partitions: Record<string, number>;
}
const { vectors } = JSON.parse(
  readFileSync(new URL("../../../schemas/partition-vectors.json", import.meta.url), "utf8"),
) as { vectors: Vector[] };

const about = {
  mcp_server_user_id: "Владимир",
  walkthrough_id: "wt",
  mcp_server_id: "srv",
  mcp_server_session_id: "s",
};

test.each(vectors)("$key is in the partition that Kafka's own client puts it in", ({ key, partitions }) => {
  const partition = kafkajs.Partitioners.DefaultPartitioner();
  const { key: sent } = toMessage(
    stepCompleted({ ...about, mcp_server_user_id: key, step_id: "a" }),
    "/test",
  );
  for (const [size, expected] of Object.entries(partitions)) {
    const partitionMetadata = Array.from({ length: Number(size) }, (_, partitionId) => ({
      partitionId,
      leader: 1,
      partitionErrorCode: 0,
      replicas: [1],
      isr: [1],
    }));
    expect(partition({ topic: "t", partitionMetadata, message: { key: sent, value: "" } })).toBe(expected);
  }
});

test("a record has the person as its key, the event as its value, and says what it is", () => {
  const event = stepCompleted({ ...about, step_id: "a", completed_at: 1_764_000_000_123 });
  expect(toMessage(event, "/checkout")).toEqual({
    key: "Владимир",
    value: JSON.stringify(event),
    headers: {
      ce_specversion: "1.0",
      ce_id: event.event_id,
      ce_type: "step-completed",
      ce_source: "/checkout",
      ce_time: "2025-11-24T16:00:00.123Z",
      "content-type": "application/json",
    },
  });
});

test("every type has its time in the header", () => {
  const at = new Date(1_764_000_000_000);
  const times = [
    walkthroughStarted({ ...about, started_at: at }),
    stepShown({ ...about, step_id: "a", shown_at: at }),
    stepSkipped({ ...about, step_id: "a", skipped_at: at }),
  ].map((event) => toMessage(event, "/test").headers?.ce_time);
  expect(times).toEqual(Array(3).fill("2025-11-24T16:00:00.000Z"));
});

test("a producer without a source is none", () => {
  const kafka = new kafkajs.Kafka({ brokers: ["127.0.0.1:9"] });
  expect(() => createKafkaProducer({ kafka, source: "" })).toThrow("source is empty");
});

test("own ids, which HTTP alone takes, are refused with what to do", async () => {
  const kafka = new kafkajs.Kafka({ brokers: ["127.0.0.1:9"] });
  const producer = createKafkaProducer({ kafka, source: "/test" });
  const { mcp_server_user_id: _, mcp_server_session_id: __, ...rest } = about;
  const event = stepCompleted({ ...rest, distinct_id: "ada", session_id: "s-1", step_id: "a" });
  const { results } = await producer.send(event as never);
  expect(results).toMatchObject([{ status: "refused", error: { field: "mcp_server_user_id" } }]);
  const [refused] = results;
  const message = refused?.status === "refused" ? refused.error.message : "";
  expect(message).toContain(
    "distinct_id is for HTTP alone: registerPeople answers the mcp_server_user_id to give here",
  );
  expect(message).toContain(
    "session_id is for HTTP alone: registerSessions answers the mcp_server_session_id to give here",
  );
});

test("what is no event and no list of them is refused in words", async () => {
  const kafka = new kafkajs.Kafka({ brokers: ["127.0.0.1:9"] });
  const producer = createKafkaProducer({ kafka, source: "/test" });
  const { results } = await producer.send("an event" as never);
  expect(results).toMatchObject([{ error: { message: expect.stringContaining("it is a string") } }]);
});

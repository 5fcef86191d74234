// Sends the events of stdin, one a line, with the installed package: http | kafka | track-http | track-kafka. Prints what
// became of them as JSON; for tests.
import { readFileSync } from "node:fs";
import type { ContractEvent, HttpEvent, Refusal } from "@stepstream/client";
import { createHttpClient, SendError } from "@stepstream/client";
import { createKafkaProducer } from "@stepstream/client/kafka";
import { Kafka, logLevel } from "kafkajs";

const [, , how = ""] = process.argv;
const events = readFileSync(0, "utf8")
  .split("\n")
  .filter((line) => line !== "")
  .map((line) => JSON.parse(line) as ContractEvent & HttpEvent);
const refusals: Refusal[] = [];
const errors: string[] = [];
const told = {
  onRefused: (refusal: Refusal) => refusals.push(refusal),
  onError: (error: Error, left: readonly unknown[]) => errors.push(`${left.length}: ${error.message}`),
};
const client = how.endsWith("kafka")
  ? createKafkaProducer({
      ...told,
      kafka: new Kafka({ brokers: (process.env.STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS ?? "").split(","), logLevel: logLevel.NOTHING }),
      source: "/kit-typescript",
      topic: process.env.STEPSTREAM_TOPIC ?? "",
    })
  : createHttpClient({
      ...told,
      url: process.env.STEPSTREAM_URL ?? "",
      key: process.env.STEPSTREAM_KEY ?? "",
      retryForMs: Number(process.env.RETRY_FOR_MS ?? "60000"),
    });

try {
  if (how.startsWith("track")) {
    for (const event of events) client.track(event);
    console.log(JSON.stringify({ ...(await client.flush()), refusals, errors }));
  } else {
    console.log(JSON.stringify(await client.send(events)));
  }
} catch (error) {
  if (!(error instanceof SendError)) throw error;
  console.log(JSON.stringify({ error: error.message, unsettled: error.unsettled.length }));
}
await client.close();

// Sends batches of events, one after the other, until stdin ends, and prints the ids that were acknowledged, a batch a line;
// for tests. With `plain` kafkajs itself sends them, as its own documentation shows.
import { randomUUID } from "node:crypto";
import { stepCompleted } from "@stepstream/client";
import { createKafkaProducer, toMessage } from "@stepstream/client/kafka";
import kafkajs from "kafkajs";

const topic = process.env.STEPSTREAM_TOPIC ?? "";
const brokers = (process.env.STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS ?? "").split(",");
const kafka = new kafkajs.Kafka({ brokers, logLevel: kafkajs.logLevel.NOTHING, connectionTimeout: 1_000 });
const isPlain = process.argv[2] === "plain";
const producer = createKafkaProducer({ kafka, source: "/hammer", topic });
const plain = kafka.producer({ idempotent: true, maxInFlightRequests: 1 });
if (isPlain) await plain.connect();

let isOver = false;
process.stdin.resume().on("end", () => {
  isOver = true;
});
while (!isOver) {
  const events = Array.from({ length: 60 }, (_, i) =>
    stepCompleted({
      event_id: randomUUID(),
      mcp_server_user_id: `p${i}`,
      walkthrough_id: "wt_a",
      step_id: "a",
      mcp_server_id: "srv_1",
      mcp_server_session_id: `s_p${i}`,
    }),
  );
  try {
    if (isPlain) await plain.send({ topic, acks: -1, messages: events.map((event) => toMessage(event, "/hammer")) });
    else await producer.send(events);
    console.log(events.map(({ event_id }) => event_id).join(" "));
  } catch (error) {
    console.error(String(error));
  }
}
await producer.close();
await plain.disconnect();

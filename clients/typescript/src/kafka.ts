/// <reference lib="esnext.disposable" preserve="true" />
import type { Kafka, Message, Producer, ProducerConfig } from "kafkajs";
import kafkajs from "kafkajs";
import { batchesOf, listOf } from "./batches.js";
import { check } from "./check.js";
import { messageOf, SendError, StepstreamError, UnreachableError } from "./errors.js";
import type { ContractEvent } from "./generated/events.js";
import { checkTopic, isOurs, RETRY } from "./kafka-problems.js";
import type { QueueOptions, Tally } from "./queue.js";
import { Queue } from "./queue.js";
import type { AcceptedEvent, EventVerdicts, Refused } from "./verdicts.js";
import { verdictsOf } from "./verdicts.js";

/** The topic of the contract. */
export const TOPIC = "walkthrough.progress.v1";

/** Which Kafka, and as whom. */
export interface KafkaProducerOptions extends QueueOptions<ContractEvent> {
  /** A client of kafkajs: `new Kafka({ brokers, ssl, sasl })`. */
  kafka: Kafka;
  /** A short name of your service, `/checkout` say: what is refused is shown under it. */
  source: string;
  /** Where the operator has named the topic otherwise. */
  topic?: string;
  /** What kafkajs is told beside what this client sets; how often it retries, say. */
  producer?: Omit<
    ProducerConfig,
    "idempotent" | "createPartitioner" | "transactionalId" | "maxInFlightRequests"
  >;
  /** How kafkajs compresses: gzip without more, other codecs by plug-ins. */
  compression?: kafkajs.CompressionTypes;
}

/** Sends by Kafka. */
export interface KafkaProducer {
  /**
   * Sends an event or several, and says of each whether Kafka has acknowledged it. What the database does not know (people, steps)
   * is judged later: the dashboard's page *Refused events* has it, under this producer's source.
   *
   * @throws SendError where some are not acknowledged
   */
  send(events: ContractEvent | readonly ContractEvent[]): Promise<EventVerdicts>;
  /** Takes an event to send soon, without waiting; false where it does not, and `onRefused` or `onError` is told. */
  track(event: ContractEvent): boolean;
  /** Waits until all that was tracked is acknowledged or refused, and says what became of it since the last time. */
  flush(options?: { signal?: AbortSignal }): Promise<Tally>;
  /** Takes no more, sends what waits, and disconnects. */
  close(options?: { signal?: AbortSignal }): Promise<Tally>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** So many events go in one request. */
const MAX_ITEMS = 5_000;
/** So often what a partition has not acknowledged is sent. */
const ATTEMPTS = 5;

/** An event as a record of kafkajs, for a transaction of your own; hold it against `check` first. */
export function toMessage(event: ContractEvent, source: string): Message & { key: string; value: string } {
  return {
    key: event.mcp_server_user_id,
    value: JSON.stringify(event),
    headers: {
      ce_specversion: "1.0",
      ce_id: event.event_id,
      ce_type: event.type,
      ce_source: source,
      ce_time: new Date(timeOf(event)).toISOString(),
      "content-type": "application/json",
    },
  };
}

function timeOf(event: ContractEvent): number {
  switch (event.type) {
    case "step-completed":
      return event.completed_at;
    case "walkthrough-started":
      return event.started_at;
    case "step-shown":
      return event.shown_at;
    case "step-skipped":
      return event.skipped_at;
  }
}

/** Makes a producer: keyed by person, with Kafka's own partitioner, idempotent, acknowledged by all replicas. */
export function createKafkaProducer(options: KafkaProducerOptions): KafkaProducer {
  if (!options.source)
    throw new StepstreamError("source is empty; give a short name of your service, /checkout say");
  const sender = new Sender(options);
  const queue = new Queue<ContractEvent>(
    (events) => sender.send(events),
    (event) => check(event),
    options,
  );
  const close: KafkaProducer["close"] = async ({ signal } = {}) => {
    const tally = await queue.close(signal);
    await sender.disconnect();
    return tally;
  };
  return {
    send: (events) => sender.send(listOf(events)),
    track: (event) => queue.track(event),
    flush: ({ signal } = {}) => queue.flush(signal),
    close,
    [Symbol.asyncDispose]: async () => {
      await close();
    },
  };
}

interface Keyed {
  index: number;
  text: string;
  message: Message & { key: string };
}

/**
 * One request at a time, and after one that failed a producer with an id of its own: kafkajs numbers records anew from
 * where the failed ones began, so that Kafka would take other ones for copies of those, and leave them out.
 */
class Sender {
  readonly #options: KafkaProducerOptions;
  readonly #topic: string;
  /** To which partition each key went last. */
  readonly #partitions = new Map<string, number>();
  #producer: Promise<Producer> | undefined;
  #last: Promise<unknown> = Promise.resolve();

  constructor(options: KafkaProducerOptions) {
    this.#options = options;
    this.#topic = options.topic ?? TOPIC;
  }

  send(events: readonly ContractEvent[]): Promise<EventVerdicts> {
    const sent = this.#last.then(() => this.#send(events));
    this.#last = sent.catch(() => {});
    return sent;
  }

  async disconnect(): Promise<void> {
    await this.#last;
    await this.#renew();
  }

  async #send(events: readonly ContractEvent[]): Promise<EventVerdicts> {
    const results: (AcceptedEvent | Refused | undefined)[] = new Array(events.length).fill(undefined);
    const keyed: Keyed[] = [];
    for (const [index, event] of events.entries()) {
      const error = check(event);
      if (error) {
        results[index] = { index, status: "refused", error };
      } else {
        const message = toMessage(event, this.#options.source);
        keyed.push({ index, text: message.value, message });
      }
    }
    try {
      for (const batch of batchesOf(keyed, MAX_ITEMS) as Keyed[][]) {
        for (const index of await this.#acknowledged(batch)) {
          const event_id = events[index]?.event_id ?? "";
          results[index] = { index, status: "accepted", event_id };
        }
      }
    } catch (cause) {
      const settled = results.filter((one) => one !== undefined);
      const unsettled = events.flatMap((item, index) => (results[index] ? [] : [{ index, item }]));
      throw new SendError(cause, settled, unsettled);
    }
    const verdicts = verdictsOf(results.filter((one) => one !== undefined));
    return { ...verdicts, through: verdicts.accepted > 0 ? "kafka" : null };
  }

  /** Sends a batch until each of its partitions has answered: kafkajs leaves out those that change their leader. */
  async #acknowledged(batch: readonly Keyed[]): Promise<number[]> {
    let left = batch;
    for (let attempt = 0; attempt < ATTEMPTS && left.length > 0; attempt += 1) {
      const answered = await this.#produce(left.map(({ message }) => message));
      left = left.filter(({ message }) => !answered.has(this.#partitions.get(message.key) ?? -1));
    }
    if (left.length > 0) throw new UnreachableError(`Kafka has not acknowledged ${left.length} events`);
    return batch.map(({ index }) => index);
  }

  async #produce(messages: Message[]): Promise<Set<number>> {
    this.#partitions.clear();
    try {
      const producer = await this.#connected();
      const { compression } = this.#options;
      const answers = await producer.send({
        topic: this.#topic,
        acks: -1,
        messages,
        ...(compression !== undefined && { compression }),
      });
      return new Set(answers.filter(({ errorCode }) => errorCode === 0).map(({ partition }) => partition));
    } catch (cause) {
      await this.#renew();
      const why = messageOf(cause);
      throw isOurs(cause)
        ? new StepstreamError(`Kafka refuses: ${why}`, { cause })
        : new UnreachableError(`Kafka cannot be reached: ${why}`, { cause });
    }
  }

  #connected(): Promise<Producer> {
    this.#producer ??= this.#connect();
    return this.#producer;
  }

  async #connect(): Promise<Producer> {
    const made = this.#options.kafka.producer({
      allowAutoTopicCreation: false,
      retry: RETRY,
      ...this.#options.producer,
      idempotent: true,
      maxInFlightRequests: 1,
      createPartitioner: () => {
        const partition = kafkajs.Partitioners.DefaultPartitioner();
        return (given) => {
          const chosen = partition(given);
          if (typeof given.message.key === "string") this.#partitions.set(given.message.key, chosen);
          return chosen;
        };
      },
    });
    if (!this.#options.producer?.allowAutoTopicCreation) await checkTopic(this.#options.kafka, this.#topic);
    await made.connect();
    return made;
  }

  async #renew(): Promise<void> {
    const before = this.#producer;
    this.#producer = undefined;
    const made = await before?.catch(() => undefined);
    await made?.disconnect().catch(() => {});
  }
}

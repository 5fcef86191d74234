// Sends each FILE as an event with kafkajs, and says where it went: node clients/kafkajs.mjs FILE...
import { readFileSync } from 'node:fs'
import { Kafka, Partitioners } from 'kafkajs'

const servers = process.env.STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS ?? '127.0.0.1:9092'
const topic = process.env.STEPSTREAM_TOPIC ?? 'walkthrough.progress.v1'
const kafka = new Kafka({ clientId: 'kit', brokers: servers.split(',') })
// Its default partitioner is Kafka's murmur2 since 2.0.
const createPartitioner = Partitioners.DefaultPartitioner
const producer = kafka.producer({ idempotent: true, maxInFlightRequests: 1, createPartitioner })
for (const file of process.argv.slice(2)) {
  try {
    const value = readFileSync(file)
    const message = { key: JSON.parse(value).mcp_server_user_id, value, headers: { ce_source: '/kit' } }
    await producer.connect() // the first time alone
    const [sent] = await producer.send({ topic, acks: -1, messages: [message] })
    console.log(`${file}: partition ${sent.partition}, offset ${sent.baseOffset}`)
  } catch (error) {
    console.error(`${file}: not sent: ${error.message}`)
    process.exitCode = 1
  }
}
await producer.disconnect()

// Sends each FILE as an event with librdkafka, and says where it went: node clients/librdkafka.mjs FILE...
import { readFileSync } from 'node:fs'
import Kafka from 'node-rdkafka'

const servers = process.env.STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS ?? '127.0.0.1:9092'
const topic = process.env.STEPSTREAM_TOPIC ?? 'walkthrough.progress.v1'
// Idempotence brings acks=all. The partitioner, whose default is CRC32, is a setting of topics: among the others it is ignored.
const settings = { 'bootstrap.servers': servers, 'enable.idempotence': true, dr_cb: true }
const producer = new Kafka.Producer(settings, { partitioner: 'murmur2_random' })
producer.on('delivery-report', (error, sent) => said(sent.opaque, error, sent))
producer.setPollInterval(20)
producer.connect({}, (error) => {
  if (error) throw error
  for (const file of process.argv.slice(2)) {
    try {
      const value = readFileSync(file)
      const key = JSON.parse(value).mcp_server_user_id
      producer.produce(topic, null, value, key, null, file, [{ ce_source: '/kit' }])
    } catch (refused) {
      said(file, refused)
    }
  }
  producer.flush(30_000, () => producer.disconnect())
})

function said(file, error, sent) {
  if (error) process.exitCode = 1
  console.log(error ? `${file}: not sent: ${error.message}` : `${file}: partition ${sent.partition}, offset ${sent.offset}`)
}

// Sends the records of stdin with @platformatic/kafka: BOOTSTRAP TOPIC CODEC PARTITIONER plain|commit|abort.
import { randomUUID } from 'node:crypto'
import { Producer, compatibilityPartitioner, compressionsAlgorithms } from '@platformatic/kafka'
import { bootstrap, codec, end, fail, lacks, partitioner, records, topic } from './records.mjs'

if (!compressionsAlgorithms[codec].available) lacks(`${codec} needs a Node.js that has it (22.15 or newer)`)

const producer = new Producer({
  clientId: 'stepstream-clients',
  bootstrapBrokers: bootstrap.split(','),
  compression: codec,
  ...(partitioner === 'murmur2' && { partitioner: compatibilityPartitioner }),
  ...(end !== 'plain' && { transactionalId: randomUUID(), idempotent: true }),
})
const messages = records.map(({ key, value, headers }) => ({
  topic,
  value,
  ...(key && { key }),
  headers: new Map(headers.map(([name, data]) => [Buffer.from(name), data])),
}))

try {
  const sender = end === 'plain' ? producer : await producer.beginTransaction()
  await sender.send({ messages })
  if (end === 'commit') await sender.commit()
  if (end === 'abort') await sender.abort()
  await producer.close()
} catch (error) {
  fail(error)
}

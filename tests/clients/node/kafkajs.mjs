// Sends the records of stdin with kafkajs: BOOTSTRAP TOPIC CODEC PARTITIONER plain|commit|abort.
import { randomUUID } from 'node:crypto'
import { lz4Compress, lz4Decompress } from '@platformatic/wasm-utils'
import kafkajs from 'kafkajs'
import snappy from 'kafkajs-snappy'
import { ZstdCodec } from 'zstd-codec'
import { bootstrap, codec, end, fail, partitioner, records, topic } from './records.mjs'

const { CompressionCodecs, CompressionTypes, Kafka, Partitioners, logLevel } = kafkajs

// It brings gzip only. A codec is an object that compresses and decompresses.
CompressionCodecs[CompressionTypes.Snappy] = snappy
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: async ({ buffer }) => lz4Compress(buffer),
  decompress: async (buffer) => lz4Decompress(buffer),
})
const zstd = await new Promise((resolve) => ZstdCodec.run(resolve))
CompressionCodecs[CompressionTypes.ZSTD] = () => ({
  compress: async ({ buffer }) => Buffer.from(new zstd.Simple().compress(buffer)),
  decompress: async (buffer) => Buffer.from(new zstd.Simple().decompress(buffer)),
})

const compression = {
  none: CompressionTypes.None,
  gzip: CompressionTypes.GZIP,
  snappy: CompressionTypes.Snappy,
  lz4: CompressionTypes.LZ4,
  zstd: CompressionTypes.ZSTD,
}[codec]
const transactional =
  end === 'plain' ? {} : { transactionalId: randomUUID(), maxInFlightRequests: 1, idempotent: true }
const kafka = new Kafka({ brokers: bootstrap.split(','), logLevel: logLevel.NOTHING })
const producer = kafka.producer({
  ...(partitioner === 'murmur2' && { createPartitioner: Partitioners.DefaultPartitioner }),
  ...transactional,
})
const messages = records.map((one) => ({ ...one, headers: Object.fromEntries(one.headers) }))

try {
  await producer.connect()
  const sender = end === 'plain' ? producer : await producer.transaction()
  await sender.send({ topic, compression, acks: -1, messages })
  if (end === 'commit') await sender.commit()
  if (end === 'abort') await sender.abort()
  await producer.disconnect()
} catch (error) {
  fail(error)
}

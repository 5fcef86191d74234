// What both senders share: arguments, the records of stdin, and how to end.
import { readFileSync } from 'node:fs'

export const [bootstrap, topic, codec, partitioner, end] = process.argv.slice(2)

const bytes = (text) => Buffer.from(text, 'base64')

/** Key (Buffer or null), value (Buffer) and headers ([name as text, value as Buffer] each). */
export const records = readFileSync(0, 'utf8')
  .split('\n')
  .filter(Boolean)
  .map((line) => line.split('\t'))
  .map(([key, value, ...rest]) => ({
    key: key === '-' ? null : bytes(key),
    value: bytes(value),
    headers: rest.flatMap((name, i) => (i % 2 ? [] : [[bytes(name).toString(), bytes(rest[i + 1])]])),
  }))

/** The client has no such thing, and says so. */
export function lacks(what) {
  process.stderr.write(`${what}\n`)
  process.exit(3)
}

/** Every error below this one, the deepest first. */
const causes = (error) => [...[error.cause, ...(error.errors ?? [])].filter(Boolean).flatMap(causes), error]

/** One line is enough to say why a record was refused. */
export function fail(error) {
  const said = causes(error).map((one) => one.message)
  process.stderr.write(`${[...new Set(said)].join('; ').replaceAll('\n', ' ')}\n`)
  process.exit(1)
}

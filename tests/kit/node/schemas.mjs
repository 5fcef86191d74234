// Compiles every schema of a folder with Ajv in strict mode, without plug-ins, and says what each finds in JSON files:
// FOLDER FILE... prints {schema: {file: [{field, message}]}}.
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import Ajv from 'ajv/dist/2020.js'

const [folder, ...files] = process.argv.slice(2)
const read = (file) => JSON.parse(readFileSync(file, 'utf8'))

/** What an error is about: the field, where it is missing or too much its name; the event as a whole is "". */
const field = ({ instancePath, params }) =>
  instancePath.split('/')[1] ?? params.missingProperty ?? params.additionalProperty ?? ''

const names = ['event.schema.json', ...readdirSync(join(folder, 'types')).map((name) => join('types', name))]
// One instance, so that two schemas with the same `$id` are refused.
const ajv = new Ajv({ strict: true, allErrors: true })
const found = {}
for (const name of names) {
  const validate = ajv.compile(read(join(folder, name)))
  found[name] = {}
  for (const file of files) {
    validate(read(file))
    found[name][file] = (validate.errors ?? []).map((error) => ({ field: field(error), message: ajv.errorsText([error]) }))
  }
}
process.stdout.write(JSON.stringify(found))

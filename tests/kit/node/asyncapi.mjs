// Prints what AsyncAPI's own parser finds in a document: FILE prints [{severity, path, message}], and fails on errors.
import { readFileSync } from 'node:fs'
import { Parser } from '@asyncapi/parser'

const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[2], 'utf8'))
process.stdout.write(JSON.stringify(diagnostics.map(({ severity, path, message }) => ({ severity, path, message }))))
process.exitCode = document ? 0 : 1

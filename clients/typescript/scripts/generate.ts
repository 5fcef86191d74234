// Writes src/generated/ from the JSON Schema of the contract; with --check it fails where a file is stale.
import { readFile, writeFile } from "node:fs/promises";
import { argv, exit, stderr } from "node:process";
import type { AnySchemaObject } from "ajv";
import { Ajv2020 } from "ajv/dist/2020.js";
import standalone from "ajv/dist/standalone/index.js";
import type { JSONSchema } from "json-schema-to-typescript";
import { compile } from "json-schema-to-typescript";

type Definition = AnySchemaObject & {
  properties: Record<string, AnySchemaObject> & { type: { const: string } };
};

const HEAD = "// Written by `make generate` from schemas/event.schema.json.\n";
const SCHEMA = new URL("../../../schemas/event.schema.json", import.meta.url);
const FOLDER = new URL("../src/generated/", import.meta.url);
/** What only operators send: it is recognized, and a producer has no type for it. */
const OF_OPERATORS = ["user-erased", "step-corrected"];

const { $defs } = JSON.parse(await readFile(SCHEMA, "utf8")) as { $defs: Record<string, Definition> };
const definitions = Object.entries($defs);

async function types(): Promise<string> {
  const ofProducers = definitions.filter(([, one]) => !OF_OPERATORS.includes(one.properties.type.const));
  const texts = await Promise.all(
    ofProducers.map(([name, one]) =>
      compile(one as JSONSchema, name, {
        bannerComment: "",
        additionalProperties: false,
        printWidth: 110,
      } as object),
    ),
  );
  const names = ofProducers.map(([name]) => name).join(" | ");
  return `${HEAD}\n${texts.join("\n")}\n/** An event that a producer sends. */\nexport type ContractEvent = ${names};\n`;
}

/** What a validator needs of a schema; a part that several have is compiled once, under a name. */
function bare(part: AnySchemaObject): AnySchemaObject {
  const { description, title, default: whenAbsent, format, ...left } = part;
  return left;
}

/** Compiled ahead: no code is made from text where the package runs, which many places forbid. */
function validators(): string {
  const ajv = new Ajv2020({
    allErrors: true,
    inlineRefs: false,
    messages: false,
    code: { source: true, esm: true, lines: true },
  });
  const parts = new Map<string, string>();
  for (const [name, one] of definitions) {
    const properties: Record<string, AnySchemaObject> = {};
    for (const [field, property] of Object.entries(one.properties)) {
      const text = JSON.stringify(bare(property));
      const id = parts.get(text) ?? `Part${parts.size}`;
      if (!parts.has(text)) ajv.addSchema({ ...bare(property), $id: id });
      parts.set(text, id);
      properties[field] = { $ref: id };
    }
    ajv.addSchema({ ...bare(one), properties, $id: name });
  }
  const code = standalone.default(ajv, Object.fromEntries(definitions.map(([name]) => [name, name])));
  // Ajv names its helper as CommonJS does, also in a module.
  const ours = code.replaceAll('require("ajv/dist/runtime/ucs2length").default', "lengthOf");
  const [more] = ours.match(/require\("[^"]*"\)/) ?? [];
  if (more) throw new Error(`the compiled schema needs ${more}, which has to be brought along`);
  const byType = definitions.map(([name, one]) => `  ${JSON.stringify(one.properties.type.const)}: ${name},`);
  const fields = definitions.map(
    ([, one]) =>
      `  ${JSON.stringify(one.properties.type.const)}: ${JSON.stringify(Object.keys(one.properties))},`,
  );
  return [
    "// @ts-nocheck",
    `${HEAD}import { lengthOf } from "../text.js";`,
    ours.replace('"use strict";\n', ""),
    `/** The validator of each type of event. */\nexport const VALIDATORS: unknown = {\n${byType.join("\n")}\n};`,
    `/** The fields of each type of event. */\nexport const FIELDS = {\n${fields.join("\n")}\n};`,
    "",
  ].join("\n");
}

const generated = { "events.ts": await types(), "validators.ts": validators() };
for (const [name, text] of Object.entries(generated)) {
  const file = new URL(name, FOLDER);
  if (!argv.includes("--check")) await writeFile(file, text);
  else if ((await readFile(file, "utf8").catch(() => "")) !== text) {
    stderr.write(`src/generated/${name} is not what the schema says: run \`make generate\`\n`);
    exit(1);
  }
}

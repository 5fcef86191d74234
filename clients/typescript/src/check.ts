import { ofEarlyTime, ofMissing, ofTime, ofTimeOfAnotherType } from "./causes.js";
import type { Fields, Finding, Problem } from "./findings.js";
import { isTime, ofFindings } from "./findings.js";
import { FIELDS, VALIDATORS } from "./generated/validators.js";
import { flawsOf } from "./json.js";
import { ofOwnId } from "./own-ids.js";
import { alike, bytesOf } from "./text.js";
import type { Refusal, RefusalClass } from "./verdicts.js";

/** In which form an event is: the contract's own, or with what HTTP puts into it. */
export type Form = "contract" | "http";

/** Its `errors` are those of the last call. */
type Validator = ((value: unknown) => boolean) & { errors: Finding[] | null };

const VALIDATOR_OF = new Map<unknown, Validator>(Object.entries(VALIDATORS as Record<string, Validator>));
const FIELDS_OF: Readonly<Record<string, readonly string[]>> = FIELDS;
/** What decides about a person: only operators send it. */
const OF_OPERATORS = new Set<unknown>(["user-erased", "step-corrected"]);
const TYPES = [...VALIDATOR_OF.keys()].filter((type) => !OF_OPERATORS.has(type)).map(String);
const MAX_AHEAD_MS = 24 * 60 * 60 * 1000;
const MAX_METADATA_BYTES = 8 * 1024;
/** What HTTP takes for a field of the contract: the producer's own ids. */
const STANDS_FOR = { distinct_id: "mcp_server_user_id", session_id: "mcp_server_session_id" } as const;
/** What of the HTTP client answers the platform's id. */
const REGISTERING = {
  mcp_server_user_id: "registerPeople",
  mcp_server_session_id: "registerSessions",
} as const;
/** A value that is right, where the server fills in or translates the field. */
const FILLED_IN = "filled in";

/**
 * What is wrong with an event, before it is sent; undefined where nothing is. The recorder still judges it, since only
 * the database knows which people, steps and sessions there are.
 *
 * @param event whatever is meant to be an event
 * @param now milliseconds since the epoch; no event is more than 24 hours ahead of it
 * @param form `http` where `distinct_id`, `session_id` and a server that is left out are right
 */
export function check(
  event: unknown,
  now: number = Date.now(),
  form: Form = "contract",
): Refusal | undefined {
  const fields = isObject(event) ? present(event) : undefined;
  const unreadable = ofValue(event);
  if (unreadable) return unreadable;
  if (!fields)
    return refuse("invalid-event", null, `event: Input should be an object; ${ofAnotherValue(event)}`);
  const validator = VALIDATOR_OF.get(fields.type);
  if (!validator) return ofType(fields);
  if (form === "http" && OF_OPERATORS.has(fields.type)) return ofOperators(fields);
  const { problems, contract } = form === "http" ? ofHttp(fields) : { problems: [], contract: fields };
  validator(contract);
  const findings = validator.errors ?? [];
  problems.push(...ofFindings(findings, contract), ...ofMetadata(contract.metadata));
  if (problems.length > 0) return ofProblems(problems, fields, form);
  return ofTimes(contract, now) ?? ofOperators(contract);
}

function refuse(rejection: RefusalClass, field: string | null, message: string): Refusal {
  return { class: rejection, field, message };
}

function isObject(value: unknown): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !ArrayBuffer.isView(value);
}

/** What `JSON.stringify` writes: a field that is undefined is not there. */
function present(fields: Fields): Fields {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}

function ofValue(event: unknown): Refusal | undefined {
  if (event === undefined) {
    return refuse("empty-value", null, "the record has no value; an event is a JSON object");
  }
  const flaws = flawsOf(event);
  if (flaws.has("surrogate")) {
    const cause = "it holds half of a surrogate pair: a text was perhaps cut in the middle of a character";
    return refuse("not-json", null, `event: Invalid JSON; ${cause}`);
  }
  return flaws.has("depth")
    ? refuse(
        "not-json",
        null,
        "event: Invalid JSON; recursion: 200 objects and arrays in one another are the most",
      )
    : undefined;
}

function ofAnotherValue(event: unknown): string {
  if (Array.isArray(event)) return `it is an array of ${event.length}; each event is one object`;
  if (ArrayBuffer.isView(event)) return "it is bytes; give the object itself";
  if (typeof event === "string" && /^\s*[{[]/.test(event)) {
    return "it is a string that holds JSON: it was encoded twice, or give JSON.parse of it";
  }
  return `it is ${event === null ? "null" : `a ${typeof event}`}`;
}

function ofType(fields: Fields): Refusal {
  const type = fields.type;
  if (type === undefined) {
    const causes = ofMissing(fields, ["type"], new Set(Object.values(FIELDS_OF).flat()));
    const told = causes.length > 0 ? causes.join("; ") : `there are ${TYPES.join(", ")}`;
    return refuse("invalid-event", "type", `event: it has no \`type\`; ${told}`);
  }
  const close = typeof type === "string" ? TYPES.find((one) => alike(one, [type])) : undefined;
  const told = close ? `\`${close}\` is perhaps meant` : `there are ${TYPES.join(", ")}`;
  return refuse("unknown-type", "type", `event: its \`type\` is not one that this contract knows; ${told}`);
}

/** Holds what only HTTP takes against its rules, and puts something right in its place. */
function ofHttp(fields: Fields): { problems: Problem[]; contract: Fields } {
  const problems: Problem[] = [];
  const contract: Record<string, unknown> = { ...fields };
  for (const [own, of] of Object.entries(STANDS_FOR)) {
    const given = fields[own];
    if (given === undefined) continue;
    delete contract[own];
    contract[of] ??= FILLED_IN;
    const text = fields[of] === undefined ? ofOwnId(given) : `it stands for ${of}; give one of the two`;
    if (text) problems.push({ field: own, text });
  }
  contract.mcp_server_id ??= FILLED_IN;
  return { problems, contract };
}

function ofMetadata(metadata: unknown): Problem[] {
  if (!isObject(metadata)) return [];
  const flaws = flawsOf(metadata);
  const texts: string[] = [];
  if (flaws.has("value")) {
    texts.push("metadata holds what JSON has not: a function, symbol, bigint, Map, Set or Error");
  } else {
    const written: string | undefined = JSON.stringify(metadata);
    if (!written?.startsWith("{"))
      texts.push("metadata is a JSON object"); // A Date is a text.
    else if (bytesOf(written) > MAX_METADATA_BYTES)
      texts.push(`metadata is larger than ${MAX_METADATA_BYTES} bytes`);
  }
  if (flaws.has("nul")) texts.push("metadata holds a NUL character, which PostgreSQL cannot store");
  if (flaws.has("number"))
    texts.push("metadata holds a number that is not finite, or too large for a double");
  return texts.map((text) => ({ field: "metadata", text }));
}

function ofProblems(problems: readonly Problem[], fields: Fields, form: Form): Refusal {
  const told = problems.slice(0, 3).map(({ field, text }) => `${field}: ${text}`);
  if (problems.length > 3) told.push(`and ${problems.length - 3} more`);
  const missing = problems.filter(({ text }) => text === "Field required").map(({ field }) => field);
  // By HTTP a producer's own ids do as well.
  const own = form === "http" ? Object.entries(STANDS_FOR).filter(([, of]) => missing.includes(of)) : [];
  for (const [name, of] of own) told.push(`${name}, your own id, may stand for ${of}`);
  if (form === "contract") told.push(...ofOwnIds(fields, missing));
  const names = [...missing, ...own.map(([name]) => name)];
  const known = new Set(FIELDS_OF[String(fields.type)]);
  const others = new Set(
    Object.values(FIELDS_OF)
      .flat()
      .filter((name) => !known.has(name)),
  );
  told.push(...ofTimeOfAnotherType(fields, missing, others), ...ofMissing(fields, names, known));
  for (const { field } of problems) {
    const cause = isTime(field) ? ofTime(field, fields[field]) : undefined;
    if (cause) told.push(cause);
  }
  return refuse("invalid-event", problems[0]?.field ?? null, told.join("; "));
}

/** What to do about ids of the producer's own where the platform's are needed, as by Kafka. */
function ofOwnIds(fields: Fields, missing: readonly string[]): string[] {
  return Object.entries(STANDS_FOR)
    .filter(([own, of]) => missing.includes(of) && fields[own] !== undefined)
    .map(([own, of]) => `${own} is for HTTP alone: ${REGISTERING[of]} answers the ${of} to give here`);
}

function ofTimes(fields: Fields, now: number): Refusal | undefined {
  for (const [field, at] of Object.entries(fields)) {
    if (!isTime(field) || typeof at !== "number") continue;
    if (at < 946_684_800_000) return refuse("too-early", field, `${field}: ${ofEarlyTime(at)}`);
    if (at > now + MAX_AHEAD_MS) {
      const text = `${field}: ${at} is more than 24 hours ahead; it is in milliseconds`;
      return refuse("in-the-future", field, text);
    }
  }
  return;
}

function ofOperators(fields: Fields): Refusal | undefined {
  return OF_OPERATORS.has(fields.type)
    ? refuse(
        "not-allowed",
        "type",
        "only an operator decides about a person: `stepstream erase`, `stepstream completions`",
      )
    : undefined;
}

import { isTime } from "./findings.js";
import { alike } from "./text.js";

/** Times outside of these are not guessed at, in milliseconds: the beginning of 2000, and of 2100. */
const PLAUSIBLE_MS = [946_684_800_000, 4_102_444_800_000] as const;
/** Below the bound, a number of today is in units of so many milliseconds. */
const UNITS = [
  [1e11, 1000],
  [1e14, 1],
  [1e17, 1e-3],
  [1e20, 1e-6],
] as const;
/** An event that is wrapped is under one of these names. */
const WRAPPERS = ["payload", "data", "value", "event", "message", "body", "record", "after"];

/** What a time that is no whole number of milliseconds would be as one. */
export function ofTime(field: string, given: unknown): string | undefined {
  if (given instanceof Date) {
    const ms = given.getTime();
    return Number.isNaN(ms)
      ? `${field} is an invalid Date`
      : `${field} is a Date; its getTime() is ${ms}, in milliseconds`;
  }
  if (typeof given === "number" && !Number.isFinite(given)) {
    return `${field} is a number that JSON does not have`;
  }
  const ms = inMilliseconds(given);
  const wouldBe = ms === undefined ? "" : `would be ${ms} in milliseconds`;
  const { form, instead } = formOfNumber(given);
  const told = [form, wouldBe].filter(Boolean).join(" and ");
  return told === "" ? undefined : `${field} ${told}${instead}`;
}

/** How a number is written that is no whole one, and what to do about that. */
function formOfNumber(given: unknown): { form: string; instead: string } {
  const isText = typeof given === "string" && given.trim() !== "" && Number.isFinite(Number(given));
  if (isText) return { form: "is text", instead: ": send it without quotes" };
  const isBroken = typeof given === "number" && !Number.isInteger(given);
  return { form: isBroken ? "has a fraction" : "", instead: "" };
}

function inMilliseconds(given: unknown): number | undefined {
  if (typeof given === "bigint") return plausible(Number(given));
  if (typeof given === "string") {
    const asNumber = given.trim() === "" ? Number.NaN : Number(given);
    return Number.isNaN(asNumber) ? plausible(Date.parse(given)) : inMilliseconds(asNumber);
  }
  if (typeof given !== "number" || given <= 0) return;
  const unit = UNITS.find(([bound]) => given < bound);
  return unit && plausible(Math.trunc(unit[1] < 1 ? given / (1 / unit[1]) : given * unit[1]));
}

function plausible(ms: number): number | undefined {
  return ms >= PLAUSIBLE_MS[0] && ms < PLAUSIBLE_MS[1] ? ms : undefined;
}

/** What is wrong with a time before the year 2000, in milliseconds. */
export function ofEarlyTime(at: number): string {
  const day = new Date(at);
  if (Number.isNaN(day.getTime())) return "no time is before 2000-01-01";
  const told = `${at} milliseconds since the epoch is ${dayOf(at)}; no time is before 2000-01-01`;
  const isSeconds = plausible(at * 1000) !== undefined;
  return isSeconds
    ? `${told}: are these seconds instead of milliseconds? As seconds it is ${dayOf(at * 1000)}`
    : told;
}

function dayOf(ms: number): string {
  return new Date(ms).toISOString().replace(/T.*/, "");
}

/** Under the name of another type's time the time is, say `completed_at` for `skipped_at`. */
export function ofTimeOfAnotherType(
  found: Readonly<Record<string, unknown>>,
  missing: readonly string[],
  others: ReadonlySet<string>,
): string[] {
  const given = Object.keys(found).find((name) => isTime(name) && others.has(name));
  const wanted = missing.find(isTime);
  return given && wanted ? [`you sent \`${given}\`; it is \`${wanted}\` in this type`] : [];
}

/** Under which other names the missing fields are, or in what the event is wrapped. */
export function ofMissing(
  found: Readonly<Record<string, unknown>>,
  missing: readonly string[],
  known: ReadonlySet<string>,
): string[] {
  const strange = Object.keys(found).filter((name) => !known.has(name));
  const renamed = missing.flatMap((name) => {
    const given = alike(name, strange);
    return given === undefined ? [] : [`${name} is perhaps \`${given}\``];
  });
  const told = renamed.length > 0 ? [`names are other ones here: ${renamed.join(", ")}`] : [];
  if (renamed.length < missing.length) {
    const wrapper = WRAPPERS.find((name) => holdsOneOf(found[name], missing));
    if (wrapper) told.push(`the event is perhaps inside \`${wrapper}\`; send that alone`);
  }
  return told;
}

function holdsOneOf(inner: unknown, names: readonly string[]): boolean {
  return typeof inner === "object" && inner !== null && names.some((name) => name in inner);
}

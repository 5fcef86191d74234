/** Numbers, shares, times (UTC, as the days are) and durations as people read them. */

const number = new Intl.NumberFormat("en");
const dateTime = new Intl.DateTimeFormat("en", {
  year: "numeric",
  month: "short",
  day: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
  timeZone: "UTC",
});

export const count = (value: number): string => number.format(value);

export const many = (value: number, one: string, several = `${one}s`): string =>
  `${count(value)} ${value === 1 ? one : several}`;

export function share(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  const percent = value * 100;
  if (percent > 0 && percent < 0.1) return "<0.1 %";
  if (percent > 99.9 && percent < 100) return ">99.9 %";
  return `${percent < 10 && percent % 1 !== 0 ? percent.toFixed(1) : percent.toFixed(0)} %`;
}

function signOf(value: number): string {
  if (value === 0) return "±";
  return value > 0 ? "+" : "−";
}

/** A difference of two shares, in percentage points. */
export function points(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  const rounded = Math.round(value * 1000) / 10;
  return `${signOf(rounded)}${Math.abs(rounded).toFixed(1)} points`;
}

const UNITS: [number, string][] = [
  [86_400_000, "d"],
  [3_600_000, "h"],
  [60_000, "min"],
  [1_000, "s"],
];

/** Milliseconds in the two largest units that fit. */
export function duration(ms: number | null | undefined): string {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  for (const [i, [size, unit]] of UNITS.entries()) {
    if (ms < size) continue;
    const next = UNITS[i + 1];
    if (next === undefined) return `${(ms / size).toFixed(ms < 10_000 ? 1 : 0)} ${unit}`;
    const whole = Math.floor(ms / size);
    const rest = Math.floor((ms - whole * size) / next[0]);
    return rest && whole < 10 ? `${whole} ${unit} ${rest} ${next[1]}` : `${whole} ${unit}`;
  }
  return "–";
}

/** Of whom times are. */
export const sampled = (of: { exact: boolean; every: number; journeys: number }): string =>
  of.exact
    ? "Times are of every journey."
    : `Times are of every ${of.every}th person of ${count(of.journeys)}.`;

export const time = (ms: number): string => dateTime.format(new Date(ms));

export function ago(ms: number, now: number): string {
  const past = now - ms;
  return past < 1_500 ? "just now" : `${duration(past)} ago`;
}

export const isoDay = (at: Date): string => at.toISOString().slice(0, 10);

/** The UTC day so many days before today. */
export const daysAgo = (days: number, now = Date.now()): string => isoDay(new Date(now - days * 86_400_000));

export const OUTCOMES = {
  finished: "Finished",
  in_progress: "In progress",
  dropped: "Stopped",
  reached: "Reached the last step shown",
  went_on: "Went on",
} as const;

export type OutcomeName = keyof typeof OUTCOMES;
export const OUTCOME_NAMES = Object.keys(OUTCOMES) as OutcomeName[];

export const shorten = (text: string, most: number): string =>
  text.length <= most ? text : `${text.slice(0, Math.max(1, most - 1)).trimEnd()}…`;

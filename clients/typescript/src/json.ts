/** What keeps a value from being JSON text that Stepstream can keep. */
export type Flaw = "depth" | "surrogate" | "nul" | "number" | "value";

/** So many objects and arrays in one another are the most that are read. */
const MAX_DEPTH = 200;

/** Everything that is wrong with a value, its names and its parts; `JSON.stringify` would tell of little of it. */
export function flawsOf(value: unknown): Set<Flaw> {
  const flaws = new Set<Flaw>();
  look(value, 0, flaws);
  return flaws;
}

function look(value: unknown, depth: number, flaws: Set<Flaw>): void {
  switch (typeof value) {
    case "string":
      if (!value.isWellFormed()) flaws.add("surrogate");
      if (value.includes("\0")) flaws.add("nul");
      return;
    case "number":
      if (!Number.isFinite(value)) flaws.add("number");
      return;
    case "object":
      if (value !== null) lookInside(value, depth + 1, flaws);
      return;
    case "boolean":
    case "undefined":
      return;
    default:
      flaws.add("value");
  }
}

function lookInside(value: object, depth: number, flaws: Set<Flaw>): void {
  if (depth > MAX_DEPTH) {
    flaws.add("depth"); // Also what holds itself ends here.
  } else if ("toJSON" in value && typeof value.toJSON === "function") {
    look(value.toJSON(), depth, flaws);
  } else if (value instanceof Map || value instanceof Set || value instanceof Error) {
    flaws.add("value"); // As JSON they are `{}`.
  } else if (Array.isArray(value)) {
    for (const part of value) look(part, depth, flaws);
  } else {
    for (const [name, part] of Object.entries(value)) {
      look(name, depth, flaws);
      look(part, depth, flaws);
    }
  }
}

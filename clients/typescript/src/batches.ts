import { bytesOf } from "./text.js";

/** One of what was given, by its place there, and as JSON. */
export interface Prepared {
  index: number;
  text: string;
}

/** So many bytes are the most that a request or batch has; the server's limit is this one. */
export const MAX_BATCH_BYTES = 500_000;

/** Cuts into batches of so many and so large at most, in order. */
export function batchesOf(
  items: readonly Prepared[],
  maxItems: number,
  maxBytes: number = MAX_BATCH_BYTES,
): Prepared[][] {
  const batches: Prepared[][] = [];
  let room = 0;
  for (const item of items) {
    const size = bytesOf(item.text) + 1; // With the comma before it, or the bracket.
    const last = batches.at(-1);
    if (!last || last.length === maxItems || size > room) {
      batches.push([item]);
      room = maxBytes - 1 - size;
    } else {
      last.push(item);
      room -= size;
    }
  }
  return batches;
}

/** A batch as a JSON array. */
export function arrayOf(batch: readonly Prepared[]): string {
  return `[${batch.map(({ text }) => text).join(",")}]`;
}

/** What was given, which may be one or several, as a list. */
export function listOf<Item>(given: Item | readonly Item[]): readonly Item[] {
  return Array.isArray(given) ? (given as readonly Item[]) : [given as Item];
}

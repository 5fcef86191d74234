/** How many characters a text has, as JSON Schema counts them: code points. */
export function lengthOf(text: string): number {
  let count = 0;
  for (const _ of text) count += 1;
  return count;
}

const UTF_8 = new TextEncoder();

/** How many bytes a text has in UTF-8. */
export function bytesOf(text: string): number {
  return UTF_8.encode(text).length;
}

/** Of the given names the one that is another way to write the wanted one, or nearly the same. */
export function alike(wanted: string, given: readonly string[]): string | undefined {
  const ranked = given
    .filter((name) => /^[\w.\- ]{1,40}$/.test(name))
    .map((name) => ({ name, edits: distance(plain(wanted), plain(name)) }))
    .sort((a, b) => a.edits - b.edits);
  const [best] = ranked;
  return best && best.edits <= Math.min(2, wanted.length / 4) ? best.name : undefined;
}

function plain(name: string): string {
  return name.toLowerCase().replaceAll(/[^a-z0-9]/g, "");
}

/** How many characters have to be put in, taken out or replaced (Levenshtein). */
function distance(one: string, other: string): number {
  let row = Array.from({ length: other.length + 1 }, (_, i) => i);
  for (const [i, letter] of [...one].entries()) {
    const next = [i + 1];
    for (const [j, against] of [...other].entries()) {
      const replaced = (row[j] ?? 0) + (letter === against ? 0 : 1);
      next.push(Math.min(replaced, (row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1));
    }
    row = next;
  }
  return row[other.length] ?? 0;
}

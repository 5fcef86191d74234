import { lengthOf } from "./text.js";

/** Control and format characters, and white space that is no space. */
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u;

/** What is wrong with an id of the producer's own. */
export function ofOwnId(given: unknown): string | undefined {
  if (typeof given !== "string") return "Input should be a valid string";
  if (given === "") return "String should have at least 1 character";
  if (lengthOf(given) > 200) return "String should have at most 200 characters";
  return UNPRINTABLE.test(given) ? "it holds a character that is not printable" : undefined;
}

/** What Ajv says of a part; only what is read here. */
export interface Finding {
  instancePath: string;
  keyword: string;
  params: Readonly<Record<string, unknown>>;
}

/** What is wrong with a field, in words. */
export interface Problem {
  field: string;
  text: string;
}

/** An event whose fields have not been looked at. */
export type Fields = Readonly<Record<string, unknown>>;

/** One problem for each field, but for times before the year 2000, which are a class of their own. */
export function ofFindings(findings: readonly Finding[], fields: Fields): Problem[] {
  const told = new Map<string, string>();
  for (const finding of findings) {
    const field = fieldOf(finding);
    const text = textOf(finding, field, fields[field]);
    // What is of another kind breaks rules on texts as well.
    const isFirst = !told.has(field) || finding.keyword === "type";
    if (text !== undefined && isFirst) told.set(field, text);
  }
  return [...told].map(([field, text]) => ({ field, text }));
}

function fieldOf({ instancePath, params }: Finding): string {
  const inside = params.missingProperty ?? params.additionalProperty;
  return typeof inside === "string" ? inside : (instancePath.split("/")[1] ?? "");
}

function textOf(finding: Finding, field: string, given: unknown): string | undefined {
  const limit = String(finding.params.limit);
  switch (finding.keyword) {
    case "required":
      return "Field required";
    case "additionalProperties":
      return "it is no field of this type of event";
    case "minLength":
      return `String should have at least ${limit} character`;
    case "maxLength":
      return `String should have at most ${limit} characters`;
    case "maximum":
      return `Input should be less than or equal to ${limit}`;
    case "minimum":
      return;
    case "type":
      // Null is only tolerated: nobody is told to send it.
      return finding.params.type === "null" ? undefined : ofKind(finding, field, given);
    case "anyOf":
      return ofKind(finding, field, given);
    default:
      return field === "event_id"
        ? "it is no UUID, which is 32 hexadecimal digits with four hyphens"
        : "it holds a control character";
  }
}

function ofKind({ params }: Finding, field: string, given: unknown): string {
  if (field === "metadata") {
    const isText = typeof given === "string" && given.trimStart().startsWith("{");
    return isText
      ? "metadata is a string that holds JSON: it was encoded twice"
      : "metadata is a JSON object";
  }
  if (isTime(field)) return "Input should be a valid integer";
  const isNumber = typeof given === "number" && params.type === "string";
  return `Input should be a valid ${params.type}${isNumber ? "; ids are text, in quotes" : ""}`;
}

/** Whether a field holds a time. */
export function isTime(field: string): boolean {
  return field.endsWith("_at") || field === "covers_until";
}

/** Versions of a walkthrough: the choice of one, and its edits as marks in charts over time. */

import * as Plot from "@observablehq/plot";
import type { JSX } from "preact";
import type { Version } from "./api";
import { count, time } from "./format";
import type { View } from "./state";
import { writeView } from "./state";
import type { Change } from "./view";

/** What a version is called in a choice. */
export const nameOf = ({ number, since }: Version): string =>
  since === null ? `Version ${number}` : `Version ${number}, since ${time(since)}`;

/** The comparison of before and after the edit that made a version. */
export const beforeAndAfter = (number: number): Partial<View> => ({
  tab: "compare",
  compare: "versions",
  a: String(number - 1),
  b: String(number),
  versions: [],
});

interface ChoiceProps {
  view: View;
  versions: Version[];
  change: Change;
}

export function VersionChoice({ view, versions, change }: ChoiceProps): JSX.Element {
  const chosen = view.versions.join(",");
  const isListed = chosen === "" || versions.some((v) => String(v.number) === chosen);
  return (
    <label>
      Began with{" "}
      <select
        value={chosen}
        onChange={(e) => change({ versions: e.currentTarget.value.split(",").filter(Boolean).map(Number) })}
      >
        <option value="">all versions</option>
        {!isListed && <option value={chosen}>Versions {view.versions.join(", ")}</option>}
        {versions.map((v) => (
          <option key={v.number} value={String(v.number)}>
            {nameOf(v)}
          </option>
        ))}
      </select>
    </label>
  );
}

/** A version that an edit made, and when. */
export type Edit = Version & { since: number };

/** The edits between two moments. */
export const editsBetween = (versions: Version[], first: number, last: number): Edit[] =>
  versions.filter((v): v is Edit => v.since !== null && v.since >= first && v.since <= last);

/** A line for each edit, which says what it changed and leads to the comparison of before and after. */
export function editMarks(edits: Edit[], view: View): Plot.Markish[] {
  const x = (edit: Edit) => new Date(edit.since);
  const href = (edit: Edit) => writeView({ ...view, ...beforeAndAfter(edit.number) });
  const title = (edit: Edit) =>
    `Version ${edit.number}, ${time(edit.since)}\n${edit.says}\nCompare before and after`;
  return [
    Plot.ruleX(edits, { x, href, title, stroke: "currentColor", strokeOpacity: 0.5, strokeDasharray: "3 3" }),
    Plot.text(edits, { x, href, title, text: (edit: Edit) => `v${edit.number}`, frameAnchor: "top", dy: -8 }),
  ];
}

/** The same as a list, for whoever does not see or reach the lines. */
export function EditList({ edits, change }: { edits: Edit[]; change: Change }): JSX.Element | null {
  if (edits.length === 0) return null;
  return (
    <section aria-label="Edits">
      <h2 class="lead">Edits of the steps</h2>
      <ul class="edits">
        {edits.map((edit) => (
          <li key={edit.number}>
            <strong>Version {edit.number}</strong> since {time(edit.since)}, with which {count(edit.journeys)}{" "}
            began: {edit.says}{" "}
            <button type="button" class="quiet" onClick={() => change(beforeAndAfter(edit.number), true)}>
              Compare before and after
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}

/** Which people are listed: where they stand, what became of them, when they were last active. */

import type { JSX } from "preact";
import { entries, replaced, valuesOf } from "./figure";
import { daysAgo, OUTCOME_NAMES, OUTCOMES } from "./format";
import { Download } from "./parts";
import type { Query } from "./state";
import type { ViewProps } from "./view";

interface Props extends Omit<ViewProps, "tick" | "versions"> {
  path: string;
  query: Query;
}

/** Parameters that say where people are; a figure has one sort of them. */
export const PLACES = ["next_step", "position", "skipped", "step", "from_step", "ended_after"];

export function PeopleToolbar({ api, view, walkthrough, change, path, query }: Props): JSX.Element {
  const { figure } = view;
  const value = (name: string) => valuesOf(figure, name)[0] ?? "";
  const stand = (step: string) =>
    change({ label: "", figure: replaced(figure, PLACES, entries("next_step", [step])) });
  const end = (outcomes: string[]) =>
    change({ figure: replaced(figure, ["outcome"], entries("outcome", outcomes)) });
  const setDays = (from: string, to: string) => {
    const days = [...entries("active_from", [from]), ...entries("active_to", [to])];
    change({ figure: replaced(figure, ["active_from", "active_to"], days) });
  };
  return (
    <div class="toolbar">
      <label>
        Stand{" "}
        <select value={value("next_step")} onChange={(e) => stand(e.currentTarget.value)}>
          <option value="">anywhere</option>
          {walkthrough.steps.map((s, i) => (
            <option key={s.id} value={s.id}>
              before {i + 1}. {s.title}
            </option>
          ))}
        </select>
      </label>
      <label>
        Outcome{" "}
        <select
          value={valuesOf(figure, "outcome").join(",")}
          onChange={(e) => end(e.currentTarget.value.split(","))}
        >
          <option value="">any</option>
          <option value="dropped,in_progress">not finished</option>
          {OUTCOME_NAMES.map((o) => (
            <option key={o} value={o}>
              {OUTCOMES[o].toLowerCase()}
            </option>
          ))}
        </select>
      </label>
      <label>
        Last active (UTC day) from{" "}
        <input
          type="date"
          value={value("active_from")}
          onChange={(e) => setDays(e.currentTarget.value, value("active_to"))}
        />
      </label>
      <label>
        to{" "}
        <input
          type="date"
          value={value("active_to")}
          onChange={(e) => setDays(value("active_from"), e.currentTarget.value)}
        />
      </label>
      <button type="button" class="quiet" onClick={() => setDays(daysAgo(0), daysAgo(0))}>
        Today
      </button>
      <button type="button" class="quiet" onClick={() => setDays(daysAgo(1), daysAgo(1))}>
        Yesterday
      </button>
      {(figure.length > 0 || view.label) && (
        <button type="button" class="quiet" onClick={() => change({ figure: [], label: "" })}>
          Everybody
        </button>
      )}
      <Download api={api} path={path} query={query} />
    </div>
  );
}

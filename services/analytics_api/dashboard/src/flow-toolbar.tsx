/** What is above the Sankey: chart or table, how much of it, and what undoes that. */

import type { JSX } from "preact";
import type { Api } from "./api";
import { Download, Segments } from "./parts";
import type { Query, View } from "./state";
import type { Change } from "./view";

interface Props {
  api: Api;
  view: View;
  change: Change;
  clear: () => void;
  path: string;
  query: Query;
}

export function FlowToolbar({ api, view, change, clear, path, query }: Props): JSX.Element {
  return (
    <div class="toolbar">
      <Segments
        name="Shown as"
        options={[
          ["chart", "Chart"],
          ["table", "Table"],
        ]}
        value={view.table ? "table" : "chart"}
        onChange={(value) => change({ table: value === "table" })}
      />
      <label>
        Steps at each place{" "}
        <select
          value={view.detail}
          onChange={(e) => change({ detail: Number(e.currentTarget.value), unfolded: [] })}
        >
          {[3, 6, 12, 0].map((n) => (
            <option key={n} value={n}>
              {n === 0 ? "all" : `${n} largest`}
            </option>
          ))}
        </select>
      </label>
      <label>
        Places{" "}
        <select value={view.places} onChange={(e) => change({ places: Number(e.currentTarget.value) })}>
          {[4, 8, 16, 0].map((n) => (
            <option key={n} value={n}>
              {n === 0 ? "all" : `the first ${n}`}
            </option>
          ))}
        </select>
      </label>
      {view.unfolded.length > 0 && (
        <button type="button" class="quiet" onClick={() => change({ unfolded: [] })}>
          Fold small steps again
        </button>
      )}
      {view.pins.length > 0 && (
        <button type="button" class="quiet" onClick={clear}>
          Clear pins (Esc)
        </button>
      )}
      <Download api={api} path={path} query={query} />
    </div>
  );
}

/** After how many days journeys are judged. */

import type { JSX } from "preact";
import { many } from "./format";
import type { View } from "./state";
import type { Change } from "./view";

const DAYS = [1, 2, 3, 5, 7, 14, 30, 60, 90];

export function WithinChoice({ view, change }: { view: View; change: Change }): JSX.Element {
  const days = DAYS.includes(view.within) || !view.within ? DAYS : [...DAYS, view.within];
  return (
    <label>
      Judged after{" "}
      <select value={String(view.within)} onChange={(e) => change({ within: Number(e.currentTarget.value) })}>
        <option value="0">as proposed</option>
        {days.map((n) => (
          <option key={n} value={String(n)}>
            {many(n, "day")}
          </option>
        ))}
      </select>
    </label>
  );
}

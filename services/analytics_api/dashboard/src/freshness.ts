/** How fresh the figures are, in words. */

import type { Freshness } from "./api";
import { many } from "./format";
import type { Connection } from "./live";

export interface Badge {
  state: "stale" | "unknown" | "current" | "behind";
  text: string;
}

/** What to say of the figures; `connection` is null where no live stream is asked for. */
export function badgeOf(fresh: Freshness | null, connection: Connection | null): Badge {
  if (connection === "cut" || connection === "gone") {
    return { state: "stale", text: "Not connected: figures stand still" };
  }
  if (fresh === null) return { state: "unknown", text: "Looking…" };
  if (fresh.current === null) return { state: "unknown", text: "Freshness not known" };
  if (fresh.current) return { state: "current", text: "Exact now" };
  const waiting = Math.max(fresh.marks ?? 0, ...fresh.groups.map((group) => group.lag ?? 0));
  if (waiting === 0 && fresh.events_waiting) {
    return { state: "behind", text: `${many(fresh.events_waiting, "event")} held up in the database` };
  }
  return { state: "behind", text: `Counting: ${many(waiting, "event")} to go` };
}

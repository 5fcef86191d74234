/** What happened, one event after another. */

import type { JSX } from "preact";
import type { Event } from "./api";
import { duration, time } from "./format";

interface Props {
  events: Event[];
  /** Where a session begins, leads to it. */
  onSession?: (id: string) => void;
  withWalkthrough?: boolean;
}

export function Timeline({ events, onSession, withWalkthrough = false }: Props): JSX.Element {
  return (
    <ol class="timeline">
      {events.map((event, i) => {
        const session = event.mcp_server_session_id;
        const isNew = session !== events[i - 1]?.mcp_server_session_id;
        return (
          // biome-ignore lint/suspicious/noArrayIndexKey: an event has no id, and later ones come after it
          <li key={i} class={event.kind}>
            {i > 0 && <span class="gap">{duration(event.since_previous_ms)} later</span>}
            {isNew && onSession && (
              <span class="gap">
                <button type="button" class="link" onClick={() => onSession(session)}>
                  Session {session}
                </button>
              </span>
            )}
            <b>{textOf(event)}</b>
            <time dateTime={new Date(event.at).toISOString()}>{time(event.at)}</time>
            {event.reason && <i>“{event.reason}”</i>}
            {withWalkthrough && event.kind !== "started" && <i>{event.walkthrough}</i>}
          </li>
        );
      })}
    </ol>
  );
}

function textOf({ kind, step, step_id, walkthrough }: Event): string {
  const what = step ?? step_id ?? "";
  switch (kind) {
    case "started":
      return `Opened ${walkthrough}`;
    case "completed":
      return `Did ${what}`;
    case "skipped":
      return `Skipped ${what}`;
    case "shown":
      return `Was shown ${what}`;
  }
}

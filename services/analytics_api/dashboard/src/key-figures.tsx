/** The key figures of a walkthrough; what counts people leads to them. */

import type { JSX } from "preact";
import type { Summary } from "./api";
import { peopleBehind } from "./figure";
import { count, duration, many, share } from "./format";
import type { Change } from "./view";

export function KeyFigures({ answer, change }: { answer: Summary; change: Change }): JSX.Element {
  const people = (outcome: string, label: string) =>
    change(peopleBehind([["outcome", outcome]], label), true);
  const means = `Finished: ${answer.walkthrough.finished_means}.`;
  const isOwn = answer.walkthrough.finished_means !== "every step is completed or skipped";
  return (
    <>
      <ul class="figures" aria-label="Key figures">
        <li>
          <b>{count(answer.started)}</b>
          <span>started</span>
        </li>
        <li class="finished" title={`${means} ${answer.within_because}`}>
          <b>{share(answer.completion_rate_within)}</b>
          <span>{rateBasis(answer)}</span>
        </li>
        <li class="finished">
          <button type="button" title={means} onClick={() => people("finished", "finished")}>
            <b>{count(answer.finished)}</b>
            <span>finished by now</span>
          </button>
        </li>
        <li class="in_progress">
          <button type="button" onClick={() => people("in_progress", "are in progress")}>
            <b>{count(answer.in_progress)}</b>
            <span>in progress</span>
          </button>
        </li>
        <li class="dropped">
          <button type="button" onClick={() => people("dropped", "stopped")}>
            <b>{count(answer.dropped)}</b>
            <span>stopped</span>
          </button>
        </li>
        <li>
          <b>{duration(answer.median_to_finish_ms)}</b>
          <span>median of those who finished (9 in 10: {duration(answer.p90_to_finish_ms)})</span>
        </li>
        <li>
          <b>{answer.steps_per_session === null ? "–" : answer.steps_per_session.toFixed(1)}</b>
          <span>steps a session</span>
        </li>
        <li>
          <b>{share(answer.resume_rate)}</b>
          <span>came back in another session</span>
        </li>
      </ul>
      {isOwn && <p class="hint">{means}</p>}
    </>
  );
}

/** What the completion rate is of, in words. */
export function rateBasis({ within_days, had_time, finished_within }: Summary): string {
  const days = many(within_days, "day");
  if (!had_time) return `finished within ${days}: nobody began so long ago`;
  return `finished within ${days} (${count(finished_within)} of ${count(had_time)} who began so long ago)`;
}

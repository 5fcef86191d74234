/** What one person did, and the replay of a session. */

import type { JSX } from "preact";
import type { JourneyDetail, Session } from "./api";
import { walkthroughPath } from "./api";
import { useAsked } from "./data";
import { count, duration, many, OUTCOMES } from "./format";
import { Answered, Download } from "./parts";
import { Timeline } from "./timeline";
import type { ViewProps } from "./view";

export function JourneyView({ api, view, versions, tick, change }: ViewProps): JSX.Element {
  const path = walkthroughPath(view.walkthrough, "journeys", view.journey);
  const asked = useAsked<JourneyDetail>(path, tick, (signal) => api.get(path, {}, signal));
  return (
    <section aria-label="Journey">
      <button type="button" class="quiet" onClick={() => change({ journey: "" }, true)}>
        ← Back to the people
      </button>
      <Answered asked={asked}>
        {(answer) => (
          <>
            <h2 class="lead">{answer.journey.mcp_server_user_id}</h2>
            <p>
              <span class={`badge ${answer.journey.outcome}`}>{OUTCOMES[answer.journey.outcome]}</span>{" "}
              {many(answer.journey.steps_done, "step")} of {answer.walkthrough.steps.length}
              {answer.journey.steps_skipped > 0 && <> and {count(answer.journey.steps_skipped)} skipped</>} in{" "}
              {many(answer.sessions, "session")}, {duration(answer.journey.duration_ms)} from the beginning to
              the last step.
              {versions.length > 1 && <Steps of={answer.journey} />}
            </p>
            <Timeline events={answer.events} onSession={(session) => change({ session }, true)} />
            <div class="toolbar">
              <Download api={api} path={path} query={{}} />
            </div>
          </>
        )}
      </Answered>
    </section>
  );
}

/** Which steps were before the person. */
function Steps({ of }: { of: JourneyDetail["journey"] }): JSX.Element {
  const { version_began, version_ended } = of;
  return (
    <>
      {" "}
      It began with version {version_began} of the steps
      {version_ended !== version_began && <>, and was last active with version {version_ended}</>}.
    </>
  );
}

export function SessionView({ api, view, tick, change }: ViewProps): JSX.Element {
  const path = `sessions/${encodeURIComponent(view.session)}`;
  const asked = useAsked<Session>(path, tick, (signal) => api.get(path, {}, signal));
  return (
    <section aria-label="Session">
      <button type="button" class="quiet" onClick={() => change({ session: "" }, true)}>
        ← Back to the journey
      </button>
      <Answered
        asked={asked}
        isEmpty={(s) => s.events.length === 0}
        empty={<strong>Nothing happened in this session</strong>}
      >
        {(answer) => (
          <>
            <h2 class="lead">Session {answer.id}</h2>
            <p>
              On {answer.server}, {many(answer.events.length, "event")} in {duration(answer.duration_ms)}.
            </p>
            <Timeline events={answer.events} withWalkthrough />
            <div class="toolbar">
              <Download api={api} path={path} query={{}} />
            </div>
          </>
        )}
      </Answered>
    </section>
  );
}

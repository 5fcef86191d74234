/** Two servers, periods, versions or segments side by side, and which differences are more than chance. */

import type { JSX } from "preact";
import type { Api, Comparison, Sankey } from "./api";
import { walkthroughPath } from "./api";
import { ComparisonTable, Verdict } from "./comparison";
import { useAnswer } from "./data";
import { many } from "./format";
import { Answered, Download, Segments } from "./parts";
import { SankeyChart } from "./sankey";
import type { Side } from "./sides";
import { chosenFor, daysOf, optionsOf, sidesOf, writeDays } from "./sides";
import type { Query, View } from "./state";
import { paths, within } from "./state";
import type { Change, ViewProps } from "./view";
import { WithinChoice } from "./within";

export function CompareView({ api, view, walkthrough, versions, tick, change }: ViewProps): JSX.Element {
  const sides = sidesOf(view, walkthrough, versions);
  const options = optionsOf(view, walkthrough, versions);
  return (
    <section aria-label="Compare">
      <div class="toolbar">
        <Segments
          name="Compare"
          options={[
            ["servers", "Two servers"],
            ["periods", "Two periods"],
            ["days", "Chosen days"],
            ["versions", "Two versions"],
            ["segments", "Two segments"],
          ]}
          value={view.compare}
          onChange={(compare) => change({ compare, a: "", b: "" })}
        />
        {options.length > 1 &&
          (["a", "b"] as const).map((side) => (
            <label key={side}>
              <span class={`side ${side}`}>{side.toUpperCase()}</span>{" "}
              <select
                value={chosenFor(side, view, options)}
                onChange={(e) => change({ [side]: e.currentTarget.value })}
              >
                {options.map(([id, name]) => (
                  <option key={id} value={id}>
                    {name}
                  </option>
                ))}
              </select>
            </label>
          ))}
        {view.compare === "days" &&
          (["a", "b"] as const).map((side) => (
            <DaysOfSide key={side} side={side} view={view} change={change} />
          ))}
        <WithinChoice view={view} change={change} />
      </div>
      {sides === null ? (
        <Alone of={view.compare} change={change} />
      ) : (
        <Both api={api} view={view} tick={tick} {...sides} />
      )}
    </section>
  );
}

function DaysOfSide({ side, view, change }: { side: "a" | "b"; view: View; change: Change }): JSX.Element {
  const days = daysOf(view[side]);
  const input = (end: "from" | "to") => (
    <input
      type="date"
      aria-label={`${side.toUpperCase()} ${end}`}
      value={days[end]}
      max={end === "from" ? days.to || undefined : undefined}
      min={end === "to" ? days.from || undefined : undefined}
      onChange={(e) => change({ [side]: writeDays({ ...days, [end]: e.currentTarget.value }) })}
    />
  );
  return (
    <span class="days">
      <span class={`side ${side}`}>{side.toUpperCase()}</span> {input("from")} to {input("to")}
    </span>
  );
}

function Alone({ of, change }: { of: View["compare"]; change: Change }): JSX.Element {
  if (of === "segments") {
    return (
      <div class="empty">
        <strong>No segment is chosen</strong>
        <p>Each segment can be compared with the others from the list of what tells people apart.</p>
        <button type="button" onClick={() => change({ explain: "finish" })}>
          What tells apart who finishes
        </button>
      </div>
    );
  }
  return of === "versions" ? (
    <div class="empty">
      <strong>One version alone</strong>
      <p>The steps of this walkthrough were not edited since anybody came. Compare two periods.</p>
    </div>
  ) : (
    <div class="empty">
      <strong>One server alone</strong>
      <p>This walkthrough is on one server. Offer it on another one, or compare two periods.</p>
    </div>
  );
}

function Both({
  api,
  view,
  tick,
  a,
  b,
}: {
  api: Api;
  view: View;
  tick: number;
  a: Side;
  b: Side;
}): JSX.Element {
  const route = walkthroughPath(view.walkthrough, "compare");
  const path = paths(view);
  const query: Query = {
    start_at: path.start_at,
    end_at: path.end_at,
    exclude: path.exclude,
    server_a: a.query.server,
    from_a: a.query.from,
    to_a: a.query.to,
    server_b: b.query.server,
    from_b: b.query.from,
    to_b: b.query.to,
    version_a: a.query.version,
    version_b: b.query.version,
    segment_a: a.query.segment,
    segment_b: b.query.segment,
    ...within(view),
  };
  const asked = useAnswer<Comparison>(api, route, query, tick);
  return (
    <Answered
      asked={asked}
      isEmpty={(c) => c.journeys_a + c.journeys_b === 0}
      empty={
        <>
          <strong>Nobody here</strong>
          <p>Neither side has a journey. Choose other days or servers.</p>
        </>
      }
    >
      {(answer) => (
        <>
          <Verdict answer={answer} />
          <div class="two sankeys">
            {(
              [
                ["A", a],
                ["B", b],
              ] as const
            ).map(([letter, side]) => (
              <figure key={letter}>
                <figcaption>
                  <span class={`side ${letter.toLowerCase()}`}>{letter}</span> {side.name}
                </figcaption>
                <Small api={api} view={view} tick={tick} side={side} />
              </figure>
            ))}
          </div>
          <div class="toolbar">
            <Download api={api} path={route} query={query} />
          </div>
          <ComparisonTable answer={answer} />
          <p class="hint">
            {answer.within_because} The two flows show all journeys of each side as they stand now; what is
            compared is how each stood {many(answer.within_days, "day")} after it began. Shares are of the
            people at the step that a flow comes from; of a step “Done”, of those who reached it at any place.
            Chance: Fisher&apos;s exact test, with many people the chi-squared test; p is adjusted for the
            number of flows, or of steps, that were compared (Benjamini and Hochberg), and below 0.05 is more
            than chance. Each difference by itself is in its interval 19 times in 20 (Newcombe).
          </p>
        </>
      )}
    </Answered>
  );
}

// A small Sankey is looked at only.
const nothing = (): void => undefined;

function Small({ api, view, tick, side }: { api: Api; view: View; tick: number; side: Side }): JSX.Element {
  const path = walkthroughPath(view.walkthrough, "sankey");
  const query = {
    ...paths(view),
    from: undefined,
    to: undefined,
    ...side.query,
    nodes: view.detail || undefined,
    positions: view.places || undefined,
  };
  const asked = useAnswer<Sankey>(api, path, query, tick);
  return (
    <Answered asked={asked} isEmpty={(s) => s.journeys === 0} empty={<strong>Nobody here</strong>}>
      {(answer) => (
        <SankeyChart
          answer={answer}
          pinned={null}
          pins={new Set()}
          chosen=""
          label={`Flow of ${side.name}`}
          isCompact
          onChoose={nothing}
          onPin={nothing}
          onClear={nothing}
          onMenu={nothing}
        />
      )}
    </Answered>
  );
}

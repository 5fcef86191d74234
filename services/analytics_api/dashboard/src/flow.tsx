/** The view of the Sankey: the chart or its table, what is pinned, and the figures of what is chosen. */

import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Sankey } from "./api";
import { walkthroughPath } from "./api";
import { FlowByPart } from "./breakdown-figures";
import { useAnswer, useAsked } from "./data";
import { FlowPanel } from "./flow-panel";
import { FlowTable } from "./flow-table";
import { FlowToolbar } from "./flow-toolbar";
import { many } from "./format";
import { withTimes } from "./overlay";
import { Answered } from "./parts";
import { isPinned, toggled } from "./pins";
import { SankeyChart } from "./sankey";
import type { View } from "./state";
import { paths } from "./state";
import type { ViewProps } from "./view";

export function FlowView({ api, view, walkthrough, tick, change }: ViewProps): JSX.Element {
  const path = walkthroughPath(view.walkthrough, "sankey");
  const query = {
    ...paths(view),
    nodes: view.detail || undefined,
    positions: view.places || undefined,
    unfold: view.unfolded,
  };
  const asked = useAnswer<Sankey>(api, path, query, tick);
  const hasPins = view.pins.length > 0;
  const pinQuery = { ...paths(view), positions: view.places || undefined, through: view.pins };
  const pinned = useAsked<Sankey | null>(
    JSON.stringify([path, hasPins ? pinQuery : null]),
    tick,
    (signal) => (hasPins ? api.get(path, pinQuery, signal) : Promise.resolve(null)),
    false,
  );
  const [wantsTimes, setWantsTimes] = useState(false);
  const times = useAsked<Sankey | null>(
    JSON.stringify([path, wantsTimes ? { ...query, times: 1 } : null]),
    wantsTimes ? tick : 0,
    (signal) => (wantsTimes ? api.get(path, { ...query, times: "true" }, signal) : Promise.resolve(null)),
    false,
  );
  // Percentiles are read from the journeys: they are asked for when somebody looks at a flow.
  const shown = useMemo(
    () => (asked.data === null ? null : withTimes(asked.data, times.data)),
    [asked.data, times.data],
  );
  const [chosen, setChosen] = useState("");
  const panel = useRef<HTMLElement>(null);
  const clear = () => {
    setChosen("");
    if (hasPins) change({ pins: [] });
  };
  useEscape(clear);

  return (
    <section aria-label="Flow">
      <FlowToolbar api={api} view={view} change={change} clear={clear} path={path} query={query} />
      <Answered
        asked={{ ...asked, data: shown }}
        isEmpty={(answer) => answer.journeys === 0}
        empty={<Empty view={view} />}
      >
        {(answer) =>
          view.table ? (
            <FlowTable answer={answer} change={change} />
          ) : (
            <div class={`flow-and-panel ${chosen ? "with-panel" : ""}`}>
              <SankeyChart
                answer={answer}
                pinned={hasPins ? pinned.data : null}
                pins={new Set(answer.nodes.filter((n) => isPinned(n, view.pins)).map((n) => n.id))}
                chosen={chosen}
                label={`Flow of ${many(answer.journeys, "journey")} through ${answer.walkthrough.title}`}
                onChoose={setChosen}
                onPin={(node) => change({ pins: toggled(view.pins, node) })}
                onClear={clear}
                onPoint={() => setWantsTimes(true)}
                onMenu={() => window.setTimeout(() => panel.current?.querySelector("button")?.focus(), 30)}
              />
              {chosen && (
                <FlowPanel
                  of={chosen}
                  answer={answer}
                  view={view}
                  change={change}
                  close={() => setChosen("")}
                  at={panel}
                />
              )}
            </div>
          )
        }
      </Answered>
      {view.breakdown && <FlowByPart api={api} view={view} walkthrough={walkthrough} tick={tick} />}
      <p class="hint">
        Width is people. Green ends are finished; red ends stopped: they were not active for 7 days; grey ends
        were, and are still in progress. Click a step to pin the paths through it; the panel beside it leads
        to the people.
      </p>
    </section>
  );
}

/** Escape, wherever the focus is, unless somebody else has taken it. */
function useEscape(act: () => void): void {
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.key === "Escape" && !event.defaultPrevented) act();
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  });
}

function Empty({ view }: { view: View }): JSX.Element {
  const isNarrowed =
    view.period !== "all" ||
    view.servers.length > 0 ||
    view.segments.length > 0 ||
    view.startAt ||
    view.endAt;
  return (
    <>
      <strong>Nobody here</strong>
      <p>
        {isNarrowed
          ? "No journey is in these days, servers and steps. Widen the filters above."
          : "Nobody has begun this walkthrough yet. " +
            "As soon as somebody does, they appear here by themselves."}
      </p>
    </>
  );
}

/** By what figures are broken down, and the key figures of each part. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import type { Api, Breakdown, BreakdownPart, Summary, Walkthrough } from "./api";
import { walkthroughPath } from "./api";
import type { Answering } from "./data";
import { useAnswer, useAsked } from "./data";
import { count, duration, many, share } from "./format";
import { rateBasis } from "./key-figures";
import { Answered, Download, Table } from "./parts";
import type { Query, View } from "./state";
import { cohort, within } from "./state";
import type { Change } from "./view";
import { WithinChoice } from "./within";

export interface OfParts {
  api: Api;
  view: View;
  walkthrough: Walkthrough;
  tick: number;
}

const METADATA = "metadata.";
const DID = "did:";

/** What a breakdown is called. */
export function nameOfBreakdown(by: string, walkthrough: Walkthrough): string {
  if (by.startsWith(METADATA)) return by.slice(METADATA.length);
  if (by.startsWith(DID)) {
    const step = by.slice(DID.length);
    return `did ${walkthrough.steps.find((s) => s.id === step)?.title ?? step}`;
  }
  return { agent: "agent", agent_version: "agent version", server: "server", version: "version" }[by] ?? by;
}

/** The agents that a view is of: the versions of one can be told apart. */
const agentsOf = ({ segments }: View): string[] => segments.filter((text) => text.startsWith("agent:"));

type ChoiceProps = Omit<OfParts, "tick"> & { change: Change };

export function BreakdownChoice({ api, view, walkthrough, change }: ChoiceProps): JSX.Element {
  const [isOpen, setOpen] = useState(false);
  const path = walkthroughPath(view.walkthrough, "breakdown");
  const wanted = isOpen || view.breakdown.startsWith(METADATA);
  // Which metadata there are is read from the journeys: asked for when somebody looks.
  const asked = useAsked<Breakdown | null>(JSON.stringify([path, wanted]), 0, (signal) =>
    wanted ? api.get<Breakdown>(path, {}, signal) : Promise.resolve(null),
  );
  const kinds = [
    "agent",
    ...(agentsOf(view).length === 1 ? ["agent_version"] : []),
    ...(walkthrough.servers.length > 1 ? ["server"] : []),
    "version",
  ];
  const keys = (asked.data?.keys ?? []).map((key) => METADATA + key);
  const steps = walkthrough.steps.map(({ id }) => DID + id);
  const isListed = [...kinds, ...keys, ...steps, ""].includes(view.breakdown);
  const option = (by: string) => (
    <option key={by} value={by}>
      {nameOfBreakdown(by, walkthrough)}
    </option>
  );
  const open = () => setOpen(true);
  return (
    <label>
      Break down by{" "}
      <select
        value={view.breakdown}
        onFocus={open}
        onPointerDown={open}
        onChange={(e) => change({ breakdown: e.currentTarget.value })}
      >
        <option value="">nothing</option>
        {!isListed && option(view.breakdown)}
        {kinds.map(option)}
        {keys.length > 0 && <optgroup label="Metadata">{keys.map(option)}</optgroup>}
        <optgroup label="Who did a step">{steps.map(option)}</optgroup>
      </select>
    </label>
  );
}

/** What parts there are, each with a figure. */
export function useParts({ api, view, tick }: OfParts, of: Breakdown["of"], more: Query = {}) {
  const path = walkthroughPath(view.walkthrough, "breakdown");
  const query = { ...cohort(view), by: view.breakdown, of, ...more };
  return { path, query, asked: useAnswer<Breakdown>(api, path, query, tick) };
}

/** A part with its figure, of which the question says what it is. */
export type PartWith<T> = Omit<BreakdownPart, "answer"> & { answer: T };

export const partsWith = <T,>(answer: Breakdown): PartWith<T>[] => answer.parts as PartWith<T>[];

/** The view of the journeys of one part alone. */
export const onlyPart = (
  view: View,
  part: Pick<BreakdownPart, "server" | "version" | "segment">,
): Partial<View> => ({
  breakdown: "",
  servers: part.server.length > 0 ? part.server : view.servers,
  versions: part.version.length > 0 ? part.version : view.versions,
  segments: part.segment.length > 0 ? part.segment : view.segments,
});

/** The states of a breakdown; without parts it says why. */
export function InParts(props: {
  asked: Answering<Breakdown>;
  children: (answer: Breakdown) => JSX.Element;
}): JSX.Element {
  return (
    <Answered
      asked={props.asked}
      isEmpty={(answer) => answer.parts.length === 0}
      empty={
        <>
          <strong>No parts</strong>
          <p>No journey is in these days, servers and segments, or nothing is known of how they began.</p>
        </>
      }
    >
      {props.children}
    </Answered>
  );
}

/** The key figures of each part. */
export function PartsInShort(props: OfParts & { change: Change }): JSX.Element {
  const { api, view, walkthrough, change } = props;
  const { path, query, asked } = useParts(props, "summary", within(view));
  const name = nameOfBreakdown(view.breakdown, walkthrough);
  return (
    <section class="segment-list" aria-label={`By ${name}`}>
      <header class="toolbar">
        <h2>By {name}</h2>
        <WithinChoice view={view} change={change} />
        <Download api={api} path={path} query={query} />
        <button
          type="button"
          class="quiet"
          aria-label="Close breakdown"
          onClick={() => change({ breakdown: "" })}
        >
          ✕
        </button>
      </header>
      <InParts asked={asked}>
        {(answer) => (
          <>
            <Table
              caption={`Key figures by ${name}`}
              columns={[
                { title: name },
                { title: "Began", isNumber: true },
                { title: `Finished within ${many(answer.within_days ?? 0, "day")}`, isNumber: true },
                { title: "Finished by now", isNumber: true },
                { title: "In progress", isNumber: true },
                { title: "Stopped", isNumber: true },
                { title: "Median to finish", isNumber: true },
                { title: "Look closer" },
              ]}
              rows={partsWith<Summary>(answer).map((part) => ({
                key: part.value ?? "\0",
                cells: [
                  part.title,
                  count(part.journeys),
                  <span key="rate" title={rateBasis(part.answer)}>
                    {rateOf(part.answer)}
                  </span>,
                  count(part.answer.finished),
                  count(part.answer.in_progress),
                  count(part.answer.dropped),
                  duration(part.answer.median_to_finish_ms),
                  <button
                    key="only"
                    type="button"
                    class="link"
                    aria-label={`Only ${part.title}`}
                    onClick={() => change(onlyPart(view, part), true)}
                  >
                    Only these
                  </button>,
                ],
              }))}
            />
            <p class="hint">
              A difference between parts may be chance, and is no cause: “Segment” tests it.
              {answer.unknown > 0 &&
                ` ${many(answer.unknown, "journey")} in no part: they began with a step that was shown, which tells no metadata.`}
            </p>
          </>
        )}
      </InParts>
    </section>
  );
}

/** The share of those who have had the time, and of how many. */
export function rateOf({ completion_rate_within, finished_within, had_time }: Summary): string {
  if (!had_time) return "–";
  return `${share(completion_rate_within)} (${count(finished_within)} of ${count(had_time)})`;
}

/** Answers as the API gives them: journeys of a few steps, counted. */

import fc from "fast-check";
import type { Sankey, SankeyEnding, SankeyLink, SankeyNode } from "../src/api";

type Outcome = SankeyEnding["outcome"];

export interface Walk {
  steps: string[];
  outcome: Outcome;
  /** Those of the steps that were skipped. */
  skipped?: string[];
}

export const STEPS = ["a", "b", "c", "d"];

const outcomes: Outcome[] = ["finished", "in_progress", "dropped"];

export const walks: fc.Arbitrary<Walk[]> = fc.array(
  fc.record({
    steps: fc.uniqueArray(fc.constantFrom(...STEPS), { maxLength: STEPS.length }),
    outcome: fc.constantFrom(...outcomes),
    skipped: fc.subarray(STEPS, { maxLength: 2 }),
  }),
  { minLength: 1, maxLength: 30 },
);

export const hasSkipped = (walk: Walk, position: number): boolean =>
  walk.skipped?.includes(walk.steps[position] ?? "") ?? false;

const idAt = (position: number, step: string | undefined): string =>
  step === undefined ? "start" : `${position}:step:${step}`;

function nodeOf(walk: Walk, position: number): SankeyNode {
  const step = walk.steps[position];
  return {
    id: idAt(position, step),
    kind: step === undefined ? "start" : "step",
    position,
    step_id: step ?? null,
    title: step === undefined ? "Start" : `title of ${step}`,
    journeys: 0,
    share: null,
    ended: { finished: 0, in_progress: 0, dropped: 0, reached: 0, went_on: 0 },
  };
}

function linkOf(walk: Walk, position: number): SankeyLink {
  const from = walk.steps[position - 1];
  const to = walk.steps[position];
  return {
    position,
    from_step_id: from ?? null,
    to_step_id: to ?? null,
    source: idAt(position - 1, from),
    target: idAt(position, to),
    journeys: 0,
    share: null,
    share_of_node: null,
    mean_ms: null,
    timed_journeys: 0,
    active_journeys: 0,
    skipped: hasSkipped(walk, position),
  };
}

function endingOf(walk: Walk): SankeyEnding {
  const last = walk.steps.at(-1);
  return {
    steps_done: walk.steps.filter((_, at) => !hasSkipped(walk, at)).length,
    steps_skipped: walk.steps.filter((_, at) => hasSkipped(walk, at)).length,
    position: walk.steps.length - 1,
    step_id: last ?? null,
    outcome: walk.outcome,
    journeys: 0,
    node: idAt(walk.steps.length - 1, last),
    share: null,
    share_of_node: null,
  };
}

/** Counts journeys as the API does, with nothing folded. */
export function sankeyOf(all: Walk[]): Sankey {
  const nodes = new Map<string, SankeyNode>();
  const links = new Map<string, SankeyLink>();
  const endings = new Map<string, SankeyEnding>();
  const add = <T extends { journeys: number }>(to: Map<string, T>, key: string, made: T) => {
    const found = to.get(key) ?? made;
    found.journeys += 1;
    to.set(key, found);
    return found;
  };
  for (const walk of all) {
    for (let position = -1; position < walk.steps.length; position++) {
      const made = nodeOf(walk, position);
      const node = add(nodes, made.id, made);
      if (position === walk.steps.length - 1) node.ended[walk.outcome] += 1;
      if (position >= 0) {
        const link = linkOf(walk, position);
        add(links, `${link.source}→${link.target} ${link.skipped}`, link);
      }
    }
    const ending = endingOf(walk);
    add(endings, `${ending.node}→${ending.outcome} ${ending.steps_skipped}`, ending);
  }
  return {
    walkthrough: {
      id: "w",
      title: "W",
      type: null,
      status: null,
      steps: STEPS.map((id) => ({ id, title: `title of ${id}`, optional: false })),
      finished_means: "every step is completed or skipped",
      goal_step_ids: [],
      end_step_ids: [],
      servers: [],
    },
    journeys: all.length,
    outcomes: { finished: 0, in_progress: 0, dropped: 0, reached: 0, went_on: 0 },
    nodes: [...nodes.values()],
    links: [...links.values()],
    endings: [...endings.values()],
    read_from: "counts",
    freshness: {
      newest_event_at: null,
      groups: [],
      marks: 0,
      events_waiting: 0,
      looked_at: null,
      current: true,
    },
  };
}

/** Which segments tell apart who finishes, or who stops at a step: to narrow by one, or to compare it. */

import type { JSX } from "preact";
import type { Api, SegmentFigures, Segments, Walkthrough } from "./api";
import { walkthroughPath } from "./api";
import { betweenOf } from "./comparison";
import { useAnswer } from "./data";
import { count, points, share } from "./format";
import { Answered, Download, Table } from "./parts";
import { againstTheOthers, nameOfFound, onlyThese } from "./segments";
import type { View } from "./state";
import { cohort, within } from "./state";
import type { Change } from "./view";
import { WithinChoice } from "./within";

/** What makes the list explain who stops at a step, as the address has it. */
export const explainStep = (step: string): string => STEP + step;

interface Props {
  api: Api;
  view: View;
  walkthrough: Walkthrough;
  tick: number;
  change: Change;
}

const FINISH = "finish";
const STEP = "step:";

export function SegmentList({ api, view, walkthrough, tick, change }: Props): JSX.Element {
  const path = walkthroughPath(view.walkthrough, "segments");
  const step = view.explain.startsWith(STEP) ? view.explain.slice(STEP.length) : undefined;
  const query = { ...cohort(view), ...within(view), step };
  const asked = useAnswer<Segments>(api, path, query, tick);
  return (
    <section id="segments" class="segment-list" aria-label="Segments">
      <header class="toolbar">
        <h2>{step ? "Who stops here: what tells them apart" : "Who finishes: what tells them apart"}</h2>
        <label>
          Of{" "}
          <select value={view.explain} onChange={(e) => change({ explain: e.currentTarget.value })}>
            <option value={FINISH}>who finish</option>
            {walkthrough.steps.map(({ id, title }) => (
              <option key={id} value={explainStep(id)}>
                who stop before {title}
              </option>
            ))}
          </select>
        </label>
        <WithinChoice view={view} change={change} />
        <Download api={api} path={path} query={query} />
        <button
          type="button"
          class="quiet"
          aria-label="Close segments"
          onClick={() => change({ explain: "" })}
        >
          ✕
        </button>
      </header>
      <Answered
        asked={asked}
        isEmpty={(answer) => answer.segments.length === 0}
        empty={
          <>
            <strong>Nobody to tell apart</strong>
            <p>
              {step
                ? "Nobody came to this step who began long enough ago, or nothing is known of how they began."
                : "No journey in these days began long enough ago, or nothing is known of how they began."}
            </p>
          </>
        }
      >
        {(answer) => (
          <>
            <p class="compared">{answer.says}</p>
            <SegmentTable answer={answer} view={view} walkthrough={walkthrough} change={change} />
            {answer.left_out.length > 0 && (
              <p class="hint">Not listed: {answer.left_out.map(({ says }) => says).join("; ")}.</p>
            )}
          </>
        )}
      </Answered>
    </section>
  );
}

type TableProps = Pick<Props, "view" | "walkthrough" | "change"> & { answer: Segments };

function SegmentTable({ answer, view, walkthrough, change }: TableProps): JSX.Element {
  const what = answer.step_id ? "Stopped" : "Finished";
  return (
    <Table
      caption="Segments"
      columns={[
        { title: "Segment" },
        { title: what, isNumber: true },
        { title: `${what}, others`, isNumber: true },
        { title: "Difference", isNumber: true },
        { title: "Between (95 %)", isNumber: true },
        { title: "More than chance?" },
        { title: "Lost beyond the others' share", isNumber: true },
        { title: "Look closer" },
      ]}
      rows={answer.segments.map((of) => ({
        key: of.segment.join(" ") || of.value,
        isStrong: of.significant,
        cells: [
          nameOfFound(of, walkthrough),
          `${share(of.share)} (${count(of.those)} of ${count(of.journeys)})`,
          `${share(of.rest_share)} (${count(of.rest_those)} of ${count(of.rest_journeys)})`,
          points(of.difference),
          betweenOf(of),
          certaintyOf(of),
          of.excess === null ? "–" : count(Math.round(of.excess)),
          <Actions key="actions" of={of} view={view} walkthrough={walkthrough} change={change} />,
        ],
      }))}
    />
  );
}

/** Whether a difference is more than chance, or why that is not asked. */
export function certaintyOf({ p_value, significant, may_be_outcome, rest_journeys }: SegmentFigures): string {
  if (p_value === null) return rest_journeys === 0 ? "no others" : "too few";
  const p = p_value < 0.001 ? "p below 0.001" : `p = ${p_value.toFixed(3)}`;
  return `${significant ? "yes" : "no"}, ${p}${may_be_outcome ? "; may be an outcome" : ""}`;
}

type ActionProps = Pick<Props, "view" | "walkthrough" | "change"> & { of: SegmentFigures };

function Actions({ of, view, walkthrough, change }: ActionProps): JSX.Element | null {
  if (of.segment.length === 0) return null;
  const name = nameOfFound(of, walkthrough);
  return (
    <>
      <button
        type="button"
        class="link"
        aria-label={`Only ${name}`}
        onClick={() => change(onlyThese(view, of), true)}
      >
        Only these
      </button>{" "}
      {of.rest_journeys > 0 && (
        <button
          type="button"
          class="link"
          aria-label={`Compare ${name} with the others`}
          onClick={() => change(againstTheOthers(of), true)}
        >
          Compare
        </button>
      )}
    </>
  );
}

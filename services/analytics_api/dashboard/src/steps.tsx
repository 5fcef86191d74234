/** What became of each step: the funnel, where people stop, and how long steps take. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import type { Funnel, Steps, Version } from "./api";
import { walkthroughPath } from "./api";
import { StepsByPart } from "./breakdown-figures";
import { useAnswer } from "./data";
import { entries, peopleBehind } from "./figure";
import { count, duration, many, sampled, share, time } from "./format";
import { HistogramChart } from "./histogram";
import { Answered, Download, Table } from "./parts";
import { explainStep } from "./segment-list";
import { cohort } from "./state";
import { FunnelChart, TimeChart } from "./step-charts";
import type { ViewProps } from "./view";

type Step = Steps["steps"][number];
type ToWaiting = (step: Step, outcomes: string[]) => void;

export function StepsView({ api, view, walkthrough, versions, tick, change }: ViewProps): JSX.Element {
  const path = walkthroughPath(view.walkthrough, "steps");
  const query = cohort(view);
  const steps = useAnswer<Steps>(api, path, query, tick);
  const funnel = useAnswer<Funnel>(api, walkthroughPath(view.walkthrough, "funnel"), query, tick);
  const toWaiting: ToWaiting = ({ step_id, title }, outcomes) => {
    const figure = [...entries("next_step", [step_id]), ...entries("outcome", outcomes)];
    change(peopleBehind(figure, `stand before ${title}`), true);
  };
  return (
    <section aria-label="Steps">
      <Answered
        asked={steps}
        isEmpty={(answer) => answer.started === 0}
        empty={
          <>
            <strong>Nobody here</strong>
            <p>No journey began in these days on these servers.</p>
          </>
        }
      >
        {(answer) => (
          <>
            <Findings
              answer={answer}
              toWaiting={toWaiting}
              explain={({ step_id }) => change({ explain: explainStep(step_id) }, true)}
            />
            <div class="two">
              <figure>
                <figcaption>
                  How many get how far, in the order of the walkthrough
                  {funnel.data && orderText(funnel.data, versions)}
                </figcaption>
                <Answered asked={funnel}>{(f) => <FunnelChart funnel={f} />}</Answered>
              </figure>
              <figure>
                <figcaption>
                  Time before each step is done: half of the people (bar) and nine in ten (line)
                </figcaption>
                <TimeChart steps={answer} />
              </figure>
            </div>
            <TimesOfStep answer={answer} />
            <div class="toolbar">
              <Download api={api} path={path} query={query} />
            </div>
            <StepsTable answer={answer} toWaiting={toWaiting} />
            {view.breakdown && <StepsByPart api={api} view={view} walkthrough={walkthrough} tick={tick} />}
            <p class="hint">
              Reached: did or skipped the step, or stands before it, as it was shown last.{" "}
              {answer.assumed > 0 &&
                `Of ${many(answer.assumed, "person", "people")} it is not known what was shown: the first step that is left in today's order is assumed. `}
              Stopped: not active for 7 days. Time: since the step before, or since the start. Since shown:
              from when the step was shown, so without the time away before that. {sampled(answer.times)}
            </p>
          </>
        )}
      </Answered>
    </section>
  );
}

/** The step before which most people stopped for good; none if nobody did. */
export const worstOf = ({ steps, most_stop }: Pick<Steps, "steps" | "most_stop">): Step | undefined =>
  steps.find((s) => s.step_id === most_stop?.step_id);

/** Of fewer people a median says little. */
const ENOUGH = 30;

/** The step with the longest median time; of so many people that it says something, where there is one. */
export function slowestOf(steps: readonly Step[]): Step | undefined {
  const timed = steps.filter((s) => s.median_ms !== null);
  const enough = timed.filter((s) => s.timed >= ENOUGH);
  return (enough.length > 0 ? enough : timed).sort((a, b) => (b.median_ms ?? 0) - (a.median_ms ?? 0))[0];
}

/** So many steps are named, and the others counted. */
const NAMED = 3;

/** How far it can be told from chance that most people stop at a step: nothing where it can. */
export function chanceOfStops({ most_stop, steps }: Pick<Steps, "steps" | "most_stop">): string {
  if (!most_stop?.like_it) return "; so few have stopped that it may be chance";
  if (most_stop.like_it.length === 0) return "";
  const others = most_stop.like_it.flatMap((id) => steps.find((s) => s.step_id === id) ?? []);
  const named = others.slice(0, NAMED).map((s) => `${s.title} (${count(s.dropped_here)})`);
  const rest = others.length - named.length;
  return `; by chance it may as well be ${named.join(", ")}${rest > 0 ? ` and ${many(rest, "more step")}` : ""}`;
}

/** Since when the steps are in the order of a funnel, where people began before: their way was another. */
export function orderText(
  { order_since }: Pick<Funnel, "order_since">,
  versions: readonly Version[],
): string {
  const before = versions.filter((v) => order_since !== null && v.until !== null && v.until <= order_since);
  if (order_since === null || !before.some((v) => v.journeys > 0)) return "";
  return ` since ${time(order_since)}. Who began before had another order: “Began with” shows it.`;
}

interface FindingsProps {
  answer: Steps;
  toWaiting: ToWaiting;
  explain: (step: Step) => void;
}

function Findings({ answer, toWaiting, explain }: FindingsProps): JSX.Element {
  const worst = worstOf(answer);
  const slowest = slowestOf(answer.steps);
  return (
    <div class="findings">
      <p>
        <span>Most people stop before</span>
        {worst ? (
          <>
            <b>{worst.title}</b> {count(worst.dropped_here)} of{" "}
            {many(answer.most_stop?.dropped ?? 0, "person", "people")} who stopped,{" "}
            {share(worst.dropped_here / worst.reached)} of those who reached it{chanceOfStops(answer)}.{" "}
            <button type="button" class="link" onClick={() => toWaiting(worst, ["dropped", "in_progress"])}>
              Who stands there?
            </button>{" "}
            <button type="button" class="link" onClick={() => explain(worst)}>
              What tells them apart?
            </button>
          </>
        ) : (
          <b>nowhere: nobody has stopped for good</b>
        )}
      </p>
      <p>
        <span>The slowest step is</span>
        {slowest ? (
          <>
            <b>{slowest.title}</b> half of {many(slowest.timed, "person", "people")} needed more than{" "}
            {duration(slowest.median_ms)}, one in ten more than {duration(slowest.p90_ms)}
          </>
        ) : (
          <b>not known yet</b>
        )}
      </p>
    </div>
  );
}

/** How many took how long for one step: at first the slowest. */
function TimesOfStep({ answer }: { answer: Steps }): JSX.Element | null {
  const [chosen, setChosen] = useState("");
  const timed = answer.steps.filter((s) => s.timed > 0);
  const step = timed.find((s) => s.step_id === chosen) ?? slowestOf(timed);
  if (!step) return null;
  return (
    <figure>
      <figcaption>
        <label>
          How many people took how long before{" "}
          <select value={step.step_id} onChange={(e) => setChosen(e.currentTarget.value)}>
            {timed.map((s) => (
              <option key={s.step_id} value={s.step_id}>
                {s.place}. {s.title}
              </option>
            ))}
          </select>
        </label>{" "}
        was done: half within {duration(step.median_ms)} (line), nine in ten within {duration(step.p90_ms)}
        {step.median_active_ms !== null &&
          `; since it was shown, half within ${duration(step.median_active_ms)}`}
      </figcaption>
      <HistogramChart
        label={`How many people took how long before ${step.title}`}
        bins={step.histogram}
        bounds={answer.bounds_ms}
        median={step.median_ms}
        height={180}
      />
    </figure>
  );
}

function StepsTable({ answer, toWaiting }: { answer: Steps; toWaiting: ToWaiting }): JSX.Element {
  const worst = worstOf(answer);
  return (
    <Table
      caption="Steps"
      columns={[
        { title: "Step" },
        { title: "Reached", isNumber: true },
        { title: "Completed", isNumber: true },
        { title: "Skipped", isNumber: true },
        { title: "Completed of reached", isNumber: true },
        { title: "Stopped here", isNumber: true },
        { title: "In progress here", isNumber: true },
        { title: "Median time", isNumber: true },
        { title: "Mean time", isNumber: true },
        { title: "9 in 10 within", isNumber: true },
        { title: "Median since shown", isNumber: true },
      ]}
      rows={answer.steps.map((step) => {
        const waiting = (n: number, outcome: string, what: string) => (
          <People n={n} go={() => toWaiting(step, [outcome])} what={`${what} before ${step.title}`} />
        );
        return {
          key: step.step_id,
          isStrong: step === worst,
          cells: [
            `${step.place}. ${step.title}`,
            count(step.reached),
            count(step.completed),
            count(step.skipped),
            share(step.completion_rate),
            waiting(step.dropped_here, "dropped", "stopped"),
            waiting(step.in_progress_here, "in_progress", "are in progress"),
            duration(step.median_ms),
            duration(step.mean_ms),
            duration(step.p90_ms),
            duration(step.median_active_ms),
          ],
        };
      })}
    />
  );
}

function People({ n, go, what }: { n: number; go: () => void; what: string }): JSX.Element {
  if (!n) return <>0</>;
  return (
    <button type="button" class="link" onClick={go} aria-label={`${count(n)} people ${what}`}>
      {count(n)}
    </button>
  );
}

/** The most frequent whole paths, and the people who took each. */

import type { JSX } from "preact";
import type { FrequentPaths, PathFigures } from "./api";
import { walkthroughPath } from "./api";
import { useAnswer } from "./data";
import { peopleBehind, tookPath } from "./figure";
import { count, duration, many, OUTCOMES, sampled, share } from "./format";
import { Answered, Download, Table } from "./parts";
import { paths } from "./state";
import type { Change, ViewProps } from "./view";

const SHOWN = 20;
const MOST = 500;

export function PathsView({ api, view, walkthrough, tick, change }: ViewProps): JSX.Element {
  const path = walkthroughPath(view.walkthrough, "paths");
  const query = paths(view);
  const asked = useAnswer<FrequentPaths>(api, path, { ...query, limit: SHOWN }, tick);
  return (
    <section aria-label="Paths">
      <Answered
        asked={asked}
        isEmpty={(answer) => answer.journeys === 0}
        empty={
          <>
            <strong>Nobody here</strong>
            <p>No journey is in these days, servers and steps.</p>
          </>
        }
      >
        {(answer) => (
          <>
            <PathsTable answer={answer} change={change} />
            <div class="toolbar">
              <Download api={api} path={path} query={{ ...query, limit: MOST }} />
            </div>
            <p class="hint">
              {answer.other.paths > 0
                ? `${many(answer.other.paths, "other path")} of ${many(answer.other.journeys, "person", "people")} (${share(answer.other.share)}) ${answer.other.paths === 1 ? "is" : "are"} not shown. The CSV has the first ${MOST} paths. `
                : `These are all paths of ${walkthrough.title}. `}
              A path is the steps that somebody completed or skipped (dashed), in their order, and how it
              ended. Time: from the beginning to the last step. {sampled(answer.times)}
            </p>
          </>
        )}
      </Answered>
    </section>
  );
}

function PathsTable({ answer, change }: { answer: FrequentPaths; change: Change }): JSX.Element {
  const titles = new Map(answer.walkthrough.steps.map((step) => [step.id, step.title]));
  const most = answer.paths[0]?.journeys ?? 1;
  return (
    <Table
      caption="Paths, the most frequent first"
      label="paths"
      columns={[
        { title: "Path" },
        { title: "Ended" },
        { title: "People", isNumber: true },
        { title: "Of all", isNumber: true },
        { title: "Median time", isNumber: true },
        { title: "9 in 10 within", isNumber: true },
      ]}
      rows={answer.paths.map((path) => ({
        key: String(path.place),
        cells: [
          <Chips key="path" path={path} titles={titles} />,
          <span key="outcome" class={`badge ${path.outcome}`}>
            {OUTCOMES[path.outcome]}
          </span>,
          <button
            key="people"
            type="button"
            class="link"
            aria-label={`${many(path.journeys, "person", "people")} of path ${path.place}`}
            onClick={() => change(peopleBehind(tookPath(path), `took path ${path.place}`), true)}
          >
            {count(path.journeys)}
          </button>,
          <span key="share" class="share-bar">
            <i style={{ width: `${(60 * path.journeys) / most}px` }} />
            {share(path.share)}
          </span>,
          duration(path.median_ms),
          duration(path.p90_ms),
        ],
      }))}
    />
  );
}

function Chips({ path, titles }: { path: PathFigures; titles: ReadonlyMap<string, string> }): JSX.Element {
  if (path.step_ids.length === 0) return <i>nothing done</i>;
  return (
    <ol class="steps-of-path">
      {path.step_ids.map((step) => {
        const isSkip = path.skipped_step_ids.includes(step);
        return (
          <li key={step} class={isSkip ? "skipped" : ""}>
            {titles.get(step) ?? step}
            {isSkip && <span class="visually-hidden"> (skipped)</span>}
          </li>
        );
      })}
    </ol>
  );
}

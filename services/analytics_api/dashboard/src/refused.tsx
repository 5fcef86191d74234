/** What of the organization's events was refused: by source and class, with what to do about it. */

import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { Api, EventSource, RefusedClass, RefusedEvents } from "./api";
import type { Answering } from "./data";
import { useAsked } from "./data";
import { ago, count, many, share, time } from "./format";
import { Download, Table } from "./parts";

const PATH = "organization/refused";
const DAY_MS = 86_400_000;
const EVERY_MS = 60_000;

/** What was refused in the last 30 days: asked while `isShown`, and again every minute. */
export function useRefused(api: Api, isShown: boolean): Answering<RefusedEvents | null> {
  const [tick, setTick] = useState(0);
  useEffect(() => {
    if (!isShown) return;
    const timer = window.setInterval(() => setTick((n) => n + 1), EVERY_MS);
    return () => window.clearInterval(timer);
  }, [isShown]);
  return useAsked<RefusedEvents | null>(`refused ${api.key} ${isShown}`, tick, (signal) =>
    isShown ? api.get(PATH, {}, signal) : Promise.resolve(null),
  );
}

/** How many classes have an event that was refused within a day. */
export const refusedLately = (answer: RefusedEvents | null, now: number): number =>
  answer?.refused.filter((row) => row.last_at > now - DAY_MS).length ?? 0;

export function RefusedView({ api, answer }: { api: Api; answer: RefusedEvents }): JSX.Element {
  const hints = answer.sources.filter((source) => source.hints.length > 0);
  return (
    <section aria-label="Refused events">
      <h1 class="lead">Refused events</h1>
      {answer.refused.length === 0 ? (
        <div class="empty">
          <strong>Nothing was refused in the last 30 days</strong>
          <p>An event of your producers that cannot be recorded is shown here, with what to do about it.</p>
        </div>
      ) : (
        <>
          <p class="hint">
            Events of the last 30 days that name your servers or walkthroughs, or come from a source that
            sends yours alone, and could not be recorded. None of them is in any figure. They are kept as dead
            letters; an operator can send them again.
          </p>
          <Classes answer={answer} />
          {answer.classes_left_out > 0 && (
            <p class="hint">
              {many(answer.classes_left_out, "more class", "more classes")} refused before these are not
              shown.
            </p>
          )}
          <div class="toolbar">
            <Download api={api} path={PATH} query={{}} />
          </div>
        </>
      )}
      {hints.length > 0 && (
        <>
          <h2 class="lead">How producers choose partitions</h2>
          <p class="hint">These events are counted exactly, but those of a person may come out of order.</p>
          <div class="findings">
            {hints.map((source) => (
              <Hints key={source.source} source={source} />
            ))}
          </div>
        </>
      )}
    </section>
  );
}

function Classes({ answer }: { answer: RefusedEvents }): JSX.Element {
  const sources = new Map(answer.sources.map((source) => [source.source, source]));
  const now = Date.now();
  return (
    <Table
      caption="Refused events by source and class"
      columns={[
        { title: "Source" },
        { title: "Class, and what to do" },
        { title: "Events", isNumber: true },
        { title: "Last refused" },
        { title: "Last example" },
      ]}
      rows={answer.refused.map((row) => rowOf(row, sources.get(row.source), now))}
    />
  );
}

function rowOf(row: RefusedClass, totals: EventSource | undefined, now: number) {
  const source = <Source name={row.source} totals={totals} />;
  const when = <When row={row} now={now} />;
  const example = <Example row={row} />;
  const advice = (
    <div class="advice">
      <code>{row.rejection}</code>
      <p>
        <Prose text={row.advice} />
      </p>
    </div>
  );
  return { key: `${row.source} ${row.rejection}`, cells: [source, advice, count(row.events), when, example] };
}

function Source({ name, totals }: { name: string; totals: EventSource | undefined }): JSX.Element {
  return (
    <>
      <span class="source">{name}</span>
      {totals?.events != null && (
        <small>
          {count(totals.refused)} of {many(totals.events, "event")} refused ({share(totals.share)})
        </small>
      )}
    </>
  );
}

function When({ row, now }: { row: RefusedClass; now: number }): JSX.Element {
  return (
    <>
      <time title={time(row.last_at)}>{ago(row.last_at, now)}</time>
      <small>since {time(row.first_at)}</small>
    </>
  );
}

function Example({ row }: { row: RefusedClass }): JSX.Element {
  const { partition, offset, message, fields } = row.example;
  const names = Object.entries(fields);
  return (
    <div class="example">
      <p>{message}</p>
      <details>
        <summary>
          Partition {partition}, offset {offset}
        </summary>
        {names.length > 0 ? (
          <dl>
            {names.map(([name, kind]) => (
              <div key={name}>
                <dt>
                  <code>{name}</code>
                </dt>
                <dd>{kind}</dd>
              </div>
            ))}
          </dl>
        ) : (
          <p class="hint">It is no JSON object with fields.</p>
        )}
      </details>
    </div>
  );
}

function Hints({ source }: { source: EventSource }): JSX.Element {
  return (
    <div class="finding">
      <b class="source">{source.source}</b>
      <span>{many(source.looked_at ?? 0, "event")} looked at</span>
      <ul>
        {source.hints.map((hint) => (
          <li key={hint}>
            <Prose text={hint} />
          </li>
        ))}
      </ul>
    </div>
  );
}

/** A sentence in which names of fields are between backticks. */
function Prose({ text }: { text: string }): JSX.Element {
  // biome-ignore lint/suspicious/noArrayIndexKey: the parts of a sentence keep their places
  return <>{text.split("`").map((part, i) => (i % 2 ? <code key={i}>{part}</code> : part))}</>;
}

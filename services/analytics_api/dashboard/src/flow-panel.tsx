/** The figures of what is chosen in the Sankey, and what can be done with it. */

import type { JSX, RefObject } from "preact";
import type { Sankey, SankeyLink, SankeyNode } from "./api";
import { cameTo, didNotGoOnFrom, peopleBehind, took } from "./figure";
import { count, many, sampled, share } from "./format";
import { HistogramChart } from "./histogram";
import type { Drawing, DrawnLink, DrawnNode } from "./layout";
import { draw, targetOf, titleIn } from "./layout";
import { isPinned, toggled } from "./pins";
import type { Figure, View } from "./state";
import type { Change } from "./view";
import type { Row } from "./words";
import { activeRows, timeRows } from "./words";

interface Props {
  /** The id of a node or a flow. */
  of: string;
  answer: Sankey;
  view: View;
  change: Change;
  close: () => void;
  at: RefObject<HTMLElement | null>;
}

type PartProps = Props & { drawing: Drawing };

export function FlowPanel(props: Props): JSX.Element {
  const drawing = draw(props.answer, 900);
  const node = drawing.nodes.find((n) => n.id === props.of);
  const link = drawing.links.find((l) => l.id === props.of);
  const head = headOf(drawing, node ?? link);
  return (
    <aside class="panel" ref={props.at} aria-label={`About ${head}`}>
      <header>
        <h2>{head}</h2>
        <button type="button" class="quiet" aria-label="Close" onClick={props.close}>
          ✕
        </button>
      </header>
      {node?.node && <StepFigures {...props} drawing={drawing} drawn={node} node={node.node} />}
      {node && !node.node && <EndFigures {...props} drawn={node} />}
      {link && <LinkFigures {...props} drawing={drawing} drawn={link} head={head} />}
      {!node && !link && <p>What was chosen is not in this view.</p>}
    </aside>
  );
}

const afterSteps = (end: DrawnNode): string => `after ${many(end.column - 1, "step")}`;

function headOf(drawing: Drawing, item: DrawnNode | DrawnLink | undefined): string {
  if (!item) return "Nobody any more";
  if ("path" in item) return `${titleIn(drawing, item.source)} → ${targetOf(drawing, item)}`;
  if (item.kind === "start") return "Start";
  return item.node ? `${item.title}, place ${item.column}` : `${item.title}, ${afterSteps(item)}`;
}

function PeopleButton(props: { text: string; figure: Figure; label: string; change: Change }): JSX.Element {
  return (
    <button type="button" onClick={() => props.change(peopleBehind(props.figure, props.label), true)}>
      {props.text}
    </button>
  );
}

function StepFigures(props: PartProps & { drawn: DrawnNode; node: SankeyNode }): JSX.Element {
  const { drawing, drawn, node, change } = props;
  const dropped = node.ended.dropped ?? 0;
  const inProgress = node.ended.in_progress ?? 0;
  return (
    <>
      <p>
        <b>{many(drawn.journeys, "person", "people")}</b>, {share(node.share)} of all. {count(dropped)}{" "}
        stopped here, {count(inProgress)} are in progress here.
      </p>
      <Flows
        {...props}
        title="Came from"
        end="source"
        links={drawing.links.filter((l) => l.target === drawn.id)}
      />
      <Flows
        {...props}
        title="Went on to"
        end="target"
        links={drawing.links.filter((l) => l.source === drawn.id)}
      />
      <div class="actions">
        {node.kind !== "start" && (
          <button type="button" onClick={() => change({ pins: toggled(props.view.pins, drawn) })}>
            {isPinned(node, props.view.pins) ? "Unpin" : "Pin the paths through it"}
          </button>
        )}
        <PeopleButton
          text="People who came here"
          figure={cameTo(drawing, drawn)}
          label={`came to ${drawn.title}`}
          change={change}
        />
        {dropped + inProgress > 0 && (
          <PeopleButton
            text="People who did not go on"
            figure={didNotGoOnFrom(drawing, drawn)}
            label={`did not go on from ${drawn.title}`}
            change={change}
          />
        )}
        <PathActions {...props} />
      </div>
    </>
  );
}

function Flows(props: {
  title: string;
  drawing: Drawing;
  drawn: DrawnNode;
  links: DrawnLink[];
  /** Which end of the flows is named. */
  end: "source" | "target";
}): JSX.Element | null {
  if (props.links.length === 0) return null;
  const ranked = [...props.links].sort((a, b) => b.journeys - a.journeys);
  const [largest, rest] = [ranked.slice(0, 8), ranked.slice(8)];
  const left = rest.reduce((n, l) => n + l.journeys, 0);
  return (
    <>
      <h3>{props.title}</h3>
      <ul>
        {largest.map((l) => (
          <li key={l.id}>
            <span>
              {titleIn(props.drawing, l[props.end])}
              {l.link?.skipped && <i> {props.end === "target" ? "(skipped)" : "(and skipped this)"}</i>}
            </span>{" "}
            <b>{count(l.journeys)}</b> <i>{share(l.journeys / props.drawn.journeys)}</i>
          </li>
        ))}
        {rest.length > 0 && (
          <li>
            <span>{many(rest.length, "other")}</span> <b>{count(left)}</b>{" "}
            <i>{share(left / props.drawn.journeys)}</i>
          </li>
        )}
      </ul>
    </>
  );
}

/** What changes which part of the paths is shown. */
function PathActions({
  node,
  view,
  change,
  close,
}: Omit<Props, "of"> & { node: SankeyNode }): JSX.Element | null {
  const step = node.step_id;
  if (node.kind === "other") {
    return (
      <button type="button" onClick={() => change({ unfolded: [...view.unfolded, node.position] }, true)}>
        Show these {node.folded?.length ?? 0} steps
      </button>
    );
  }
  if (node.kind !== "step" || !step) return null;
  const hide = () => {
    close();
    change({ hidden: [...view.hidden, step], pins: [] }, true);
  };
  return (
    <>
      <button type="button" onClick={() => change({ startAt: step, pins: [] }, true)}>
        Start here
      </button>
      <button type="button" onClick={() => change({ endAt: step, pins: [] }, true)}>
        End here
      </button>
      <button type="button" onClick={hide}>
        Hide this step
      </button>
    </>
  );
}

function EndFigures(props: Props & { drawn: DrawnNode }): JSX.Element {
  const { drawn, answer, change } = props;
  return (
    <>
      <p>
        <b>{many(drawn.journeys, "person", "people")}</b>, {share(drawn.journeys / answer.journeys)} of all.
      </p>
      <div class="actions">
        <PeopleButton
          text="These people"
          figure={[
            ["ended_after", String(drawn.column - 1)],
            ["outcome", drawn.kind],
          ]}
          label={`${drawn.title.toLowerCase()} ${afterSteps(drawn)}`}
          change={change}
        />
      </div>
    </>
  );
}

function Rows({ title, rows }: { title: string; rows: Row[] }): JSX.Element | null {
  if (rows.length === 0) return null;
  return (
    <>
      <h3>{title}</h3>
      <dl>
        {rows.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
    </>
  );
}

/** How long a flow takes, and of whom that is. */
function LinkTimes({ link, times }: { link: SankeyLink; times: Sankey }): JSX.Element {
  const { histogram, median_ms } = link;
  return (
    <>
      <Rows title="Time from the step before" rows={timeRows(link)} />
      <Rows title="Since it was shown" rows={activeRows(link)} />
      {histogram && times.bounds_ms && (link.timed ?? 0) > 0 && (
        <HistogramChart
          label="How many took how long"
          bins={histogram}
          bounds={times.bounds_ms}
          median={median_ms ?? null}
          height={120}
        />
      )}
      {times.times && <p class="hint">{sampled(times.times)}</p>}
    </>
  );
}

function LinkFigures(props: PartProps & { drawn: DrawnLink; head: string }): JSX.Element {
  const { drawing, drawn, answer, change, head } = props;
  return (
    <>
      <p>
        <b>{many(drawn.journeys, "person", "people")}</b>, {share(drawn.journeys / answer.journeys)} of all
        and {share(drawn.link?.share_of_node ?? drawn.ending?.share_of_node)} of those at{" "}
        {titleIn(drawing, drawn.source)}.
      </p>
      {drawn.link && <LinkTimes link={drawn.link} times={answer} />}
      <div class="actions">
        <PeopleButton text="These people" figure={took(drawing, drawn)} label={head} change={change} />
      </div>
    </>
  );
}

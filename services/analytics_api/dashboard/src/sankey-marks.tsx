/** A node and a flow of the Sankey, and the tooltip of what is pointed at. */

import type { JSX } from "preact";
import type { Sankey } from "./api";
import { count, share, shorten } from "./format";
import type { Drawing, DrawnLink, DrawnNode } from "./layout";
import { targetOf, titleIn } from "./layout";
import { rowsOf } from "./words";

/** How something is drawn, and what is heard of it. */
interface MarkProps {
  /** The journeys of it that went through what is pinned; null while nothing is. */
  part: number | null;
  label: string;
  isFaint: boolean;
  isChosen: boolean;
  /** Whether the tab key leads to it. */
  isReached: boolean;
  onPoint: (event: MouseEvent) => void;
  onLeave: () => void;
  onFocus: () => void;
  onClick: () => void;
}

export function LinkMark(props: MarkProps & { link: DrawnLink }): JSX.Element {
  const { link, part } = props;
  const faint = props.isFaint ? "faint" : "";
  const chosen = props.isChosen ? "chosen" : "";
  const partWidth = part === null ? 0 : (link.width * part) / link.journeys;
  return (
    <g class={`flow ${link.outcome ?? (link.link?.skipped ? "skipped" : "on")} ${faint} ${chosen}`}>
      <path class="band" d={link.path} stroke-width={Math.max(1, link.width)} />
      {part !== null && (
        <path class="part" d={link.path} stroke-width={partWidth && Math.max(1, partWidth)} />
      )}
      <path
        class="hit"
        d={link.path}
        stroke-width={Math.max(10, link.width)}
        data-id={link.id}
        role="button"
        tabindex={props.isReached ? 0 : -1}
        aria-label={props.label}
        aria-pressed={props.isChosen}
        onMouseMove={props.onPoint}
        onMouseLeave={props.onLeave}
        onFocus={props.onFocus}
        onClick={props.onClick}
      />
    </g>
  );
}

interface NodeProps extends MarkProps {
  node: DrawnNode;
  /** From one column to the next. */
  room: number;
  isPinned: boolean;
  total: number;
}

export function NodeMark(props: NodeProps): JSX.Element {
  const { node } = props;
  const height = Math.max(2, node.y1 - node.y0);
  const faint = props.isFaint ? "faint" : "";
  const chosen = props.isChosen ? "chosen" : "";
  const pinned = props.isPinned ? "pinned" : "";
  return (
    <g
      class={`node ${node.kind} ${faint} ${chosen} ${pinned}`}
      data-id={node.id}
      role="button"
      tabindex={props.isReached ? 0 : -1}
      aria-label={props.label}
      aria-pressed={props.isPinned || props.isChosen}
      onMouseMove={props.onPoint}
      onMouseLeave={props.onLeave}
      onFocus={props.onFocus}
      onClick={props.onClick}
    >
      <rect
        class="area"
        x={node.x0 - 4}
        y={node.y0 - 4}
        width={Math.min(props.room - 8, 160)}
        height={Math.max(height + 8, 30)}
      />
      <rect class="bar" x={node.x0} y={node.y0} width={node.x1 - node.x0} height={height} rx={2} />
      <NodeText {...props} y={node.y0 + Math.min(height / 2, 16)} />
    </g>
  );
}

function NodeText({ node, room, part, isPinned, total, y }: NodeProps & { y: number }): JSX.Element {
  const letters = Math.floor((room - 24) / 7);
  const figures = part === null ? count(node.journeys) : `${count(part)} of ${count(node.journeys)}`;
  const isEnd = node.node === null;
  return (
    <text x={node.x1 + 6} y={y} dy={isEnd ? "0.35em" : "-0.15em"}>
      {isEnd ? (
        <>
          {shorten(node.title, letters - 6)} <tspan class="figure">{figures}</tspan>
        </>
      ) : (
        <>
          <tspan>
            {isPinned ? "● " : ""}
            {shorten(node.title, letters)}
          </tspan>
          <tspan class="figure" x={node.x1 + 6} dy="1.25em">
            {figures} · {share(node.journeys / total)}
          </tspan>
        </>
      )}
    </text>
  );
}

interface TipProps {
  drawing: Drawing;
  item: DrawnNode | DrawnLink;
  at: { x: number; y: number };
  room: number;
  answer: Sankey;
  part: number | null;
}

export function Tip({ drawing, item, at, room, answer, part }: TipProps): JSX.Element {
  const head = "path" in item ? `${titleIn(drawing, item.source)} → ${targetOf(drawing, item)}` : item.title;
  const rows = rowsOf(drawing, item, answer);
  if (part !== null) rows.push(["Through what is pinned", count(part)]);
  const place = { left: `${Math.min(at.x + 14, Math.max(0, room - 290))}px`, top: `${at.y + 14}px` };
  return (
    <div class="tip" style={place} aria-hidden="true">
      <strong>{head}</strong>
      <dl>
        {rows.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
    </div>
  );
}

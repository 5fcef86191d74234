/** The Sankey: drawn, pointed at, walked through with the keyboard, and read aloud. */

import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Sankey } from "./api";
import { count, duration, many, OUTCOMES, share, shorten } from "./format";
import { draw, within } from "./layout";
import type { DrawnLink, DrawnNode, Drawing } from "./layout";

export interface Chosen {
  node?: DrawnNode;
  link?: DrawnLink;
}

interface Props {
  answer: Sankey;
  /** The journeys through what is pinned, or null. */
  pinned: Sankey | null;
  pins: ReadonlySet<string>;
  chosen: string;
  label: string;
  isCompact?: boolean;
  onChoose: (id: string) => void;
  onPin: (node: DrawnNode) => void;
  onClear: () => void;
  onMenu: () => void;
}

export function useWidth(): [(element: HTMLElement | null) => void, number] {
  const [width, setWidth] = useState(900);
  const seen = useRef<ResizeObserver | null>(null);
  const at = (element: HTMLElement | null) => {
    seen.current?.disconnect();
    if (!element) return;
    seen.current = new ResizeObserver(([entry]) => entry && setWidth(Math.floor(entry.contentRect.width)));
    seen.current.observe(element);
  };
  return [useMemo(() => at, []), width];
}

/** What a flow or a node is, in words. */
export function inWords(drawing: Drawing, item: DrawnNode | DrawnLink, answer: Sankey): string {
  const title = (id: string) => drawing.nodes.find((node) => node.id === id)?.title ?? id;
  if ("path" in item) {
    if (item.ending) {
      return (
        `${OUTCOMES[item.ending.outcome]} after ${title(item.source)}: ${many(item.journeys, "person", "people")}, ` +
        `${share(item.ending.share_of_node)} of those there`
      );
    }
    return (
      `From ${title(item.source)} to ${title(item.target)}: ${many(item.journeys, "person", "people")}, ` +
      `${share(item.link?.share_of_node)} of those there, mean time ${duration(item.link?.mean_ms)}`
    );
  }
  if (!item.node) {
    return `${item.title}: ${many(item.journeys, "person", "people")}, ${share(item.journeys / answer.journeys)} of all`;
  }
  const place = item.kind === "start" ? "" : `, place ${item.column}`;
  return (
    `${item.title}${place}: ${many(item.journeys, "person", "people")}, ${share(item.node.share)} of all, ` +
    `${count(item.node.ended.dropped ?? 0)} stopped here`
  );
}

export function SankeyChart(props: Props): JSX.Element {
  const { answer, pinned, pins, chosen } = props;
  const [measure, room] = useWidth();
  const drawing = useMemo(() => draw(answer, room, props.isCompact), [answer, room, props.isCompact]);
  const byId = useMemo(
    () => new Map<string, DrawnNode | DrawnLink>([...drawing.nodes, ...drawing.links].map((x) => [x.id, x])),
    [drawing],
  );
  const part = useMemo(() => (pinned ? within(answer, pinned) : null), [answer, pinned]);
  const [pointed, setPointed] = useState("");
  const [tip, setTip] = useState<{ x: number; y: number } | null>(null);
  const [walked, setWalked] = useState("start");
  const [heard, setHeard] = useState("");
  const box = useRef<HTMLDivElement>(null);
  const svg = useRef<SVGSVGElement>(null);

  const focus = byId.has(walked) ? walked : (drawing.nodes[0]?.id ?? "");
  const lit = useMemo(() => neighbours(drawing, pointed), [drawing, pointed]);

  const walkTo = (id: string | undefined) => {
    if (!id) return;
    setWalked(id);
    const element = svg.current?.querySelector<SVGElement>(`[data-id="${CSS.escape(id)}"]`);
    element?.focus();
  };

  const onKeyDown = (event: KeyboardEvent) => {
    const here = byId.get(focus);
    if (!here) return;
    const target = nextOf(drawing, here, event.key);
    if (target) walkTo(target);
    else if (event.key === "Enter" || event.key === " ") {
      props.onChoose(here.id);
      if (!("path" in here) && here.node && here.kind !== "start") props.onPin(here);
    } else if (event.key === "ContextMenu" || event.key === "m" || (event.key === "F10" && event.shiftKey)) {
      props.onChoose(here.id);
      props.onMenu();
    } else if (event.key === "Escape") props.onClear();
    else return;
    event.preventDefault();
  };

  const point = (id: string) => (event: MouseEvent) => {
    setPointed(id);
    const frame = box.current?.getBoundingClientRect();
    if (frame) setTip({ x: event.clientX - frame.left, y: event.clientY - frame.top });
  };
  const leave = () => {
    setPointed("");
    setTip(null);
  };

  useEffect(() => {
    const item = byId.get(chosen);
    const pinWords =
      pins.size && part ? ` ${count(pinned?.journeys ?? 0)} people went through what is pinned.` : "";
    setHeard(item ? `${inWords(drawing, item, answer)}.${pinWords}` : "");
  }, [chosen, pins, part]);

  const shown = byId.get(pointed);
  const faint = (id: string) => pointed !== "" && !lit.has(id);
  const scale = (item: DrawnLink) => (part ? (item.width * (part.get(item.id) ?? 0)) / item.journeys : 0);

  return (
    <div
      class="sankey"
      ref={(element) => {
        box.current = element;
        measure(element);
      }}
    >
      <div class="sankey-scroll">
        <svg
          ref={svg}
          width={drawing.width}
          height={drawing.height}
          role="group"
          aria-label={`${props.label}. Arrow keys walk along the flows, Enter pins, M opens the actions, Escape clears.`}
          class={part ? "has-pins" : ""}
          onKeyDown={onKeyDown}
          onMouseLeave={leave}
        >
          <g class="links">
            {drawing.links.map((link) => (
              <g
                key={link.id}
                class={`flow ${link.outcome ?? "on"} ${faint(link.id) ? "faint" : ""} ${chosen === link.id ? "chosen" : ""}`}
              >
                <path class="band" d={link.path} stroke-width={Math.max(1, link.width)} />
                {part && (
                  <path class="part" d={link.path} stroke-width={scale(link) && Math.max(1, scale(link))} />
                )}
                <path
                  class="hit"
                  d={link.path}
                  stroke-width={Math.max(10, link.width)}
                  data-id={link.id}
                  role="button"
                  tabindex={focus === link.id ? 0 : -1}
                  aria-label={inWords(drawing, link, answer)}
                  aria-pressed={chosen === link.id}
                  onMouseMove={point(link.id)}
                  onMouseLeave={leave}
                  onFocus={() => setWalked(link.id)}
                  onClick={() => props.onChoose(link.id)}
                />
              </g>
            ))}
          </g>
          <g class="nodes">
            {drawing.nodes.map((node) => (
              <NodeMark
                key={node.id}
                node={node}
                room={drawing.columnGap}
                part={part?.get(node.id) ?? null}
                label={inWords(drawing, node, answer)}
                isFaint={faint(node.id)}
                isChosen={chosen === node.id}
                isPinned={pins.has(node.id)}
                isReached={focus === node.id}
                total={answer.journeys}
                onPoint={point(node.id)}
                onLeave={leave}
                onFocus={() => setWalked(node.id)}
                onClick={() => {
                  props.onChoose(node.id);
                  if (node.node && node.kind !== "start") props.onPin(node);
                }}
              />
            ))}
          </g>
        </svg>
      </div>
      <p class="visually-hidden" role="status">
        {heard}
      </p>
      {shown && tip && (
        <Tip
          drawing={drawing}
          item={shown}
          at={tip}
          room={room}
          answer={answer}
          part={part?.get(shown.id) ?? null}
        />
      )}
    </div>
  );
}

interface MarkProps {
  node: DrawnNode;
  room: number;
  part: number | null;
  label: string;
  isFaint: boolean;
  isChosen: boolean;
  isPinned: boolean;
  isReached: boolean;
  total: number;
  onPoint: (event: MouseEvent) => void;
  onLeave: () => void;
  onFocus: () => void;
  onClick: () => void;
}

function NodeMark(props: MarkProps): JSX.Element {
  const { node } = props;
  const height = Math.max(2, node.y1 - node.y0);
  const isSink = node.node === null;
  const letters = Math.floor((props.room - 24) / 7);
  const y = node.y0 + Math.min(height / 2, 16);
  const figures =
    props.part === null ? count(node.journeys) : `${count(props.part)} of ${count(node.journeys)}`;
  return (
    <g
      class={`node ${node.kind} ${props.isFaint ? "faint" : ""} ${props.isChosen ? "chosen" : ""} ${props.isPinned ? "pinned" : ""}`}
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
      <text x={node.x1 + 6} y={y} dy={isSink ? "0.35em" : "-0.15em"}>
        {isSink ? (
          <>
            {shorten(node.title, letters - 6)} <tspan class="figure">{figures}</tspan>
          </>
        ) : (
          <>
            <tspan>
              {props.isPinned ? "● " : ""}
              {shorten(node.title, letters)}
            </tspan>
            <tspan class="figure" x={node.x1 + 6} dy="1.25em">
              {figures} · {share(node.journeys / props.total)}
            </tspan>
          </>
        )}
      </text>
    </g>
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

function Tip({ drawing, item, at, room, answer, part }: TipProps): JSX.Element {
  const title = (id: string) => drawing.nodes.find((node) => node.id === id)?.title ?? id;
  const rows: [string, string][] = [
    ["People", count(item.journeys)],
    ["Share of all", share(item.journeys / answer.journeys)],
  ];
  let head: string;
  if ("path" in item) {
    const source = drawing.nodes.find((node) => node.id === item.source);
    head = `${title(item.source)} → ${title(item.target)}`;
    rows.push([
      `Of those at ${shorten(title(item.source), 24)}`,
      share(source ? item.journeys / source.journeys : null),
    ]);
    if (item.link) rows.push(["Mean time", duration(item.link.mean_ms)]);
  } else {
    head = item.title;
    if (item.node) {
      const ended = item.node.ended;
      rows.push([
        "Stopped here",
        `${count(ended.dropped ?? 0)} (${share((ended.dropped ?? 0) / item.journeys)})`,
      ]);
      if (ended.in_progress) rows.push(["In progress here", count(ended.in_progress)]);
      if (ended.finished) rows.push(["Finished here", count(ended.finished)]);
      const mean = meanInto(drawing, item);
      if (mean !== null) rows.push(["Mean time before it", duration(mean)]);
      for (const folded of (item.node.folded ?? []).slice(0, 6))
        rows.push([folded.title, count(folded.journeys)]);
    }
  }
  if (part !== null) rows.push(["Through what is pinned", count(part)]);
  return (
    <div
      class="tip"
      style={{ left: `${Math.min(at.x + 14, Math.max(0, room - 290))}px`, top: `${at.y + 14}px` }}
      aria-hidden="true"
    >
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

/** Mean time before a step at its position, over all flows into it. */
export function meanInto(drawing: Drawing, node: DrawnNode): number | null {
  let sum = 0,
    timed = 0;
  for (const { link } of drawing.links.filter((l) => l.target === node.id)) {
    if (link && link.mean_ms !== null) {
      sum += link.mean_ms * link.timed_journeys;
      timed += link.timed_journeys;
    }
  }
  return timed ? sum / timed : null;
}

function neighbours(drawing: Drawing, id: string): Set<string> {
  const lit = new Set([id]);
  for (const link of drawing.links) {
    if (link.id === id || link.source === id || link.target === id) {
      lit.add(link.id).add(link.source).add(link.target);
    }
  }
  return lit;
}

/** Where an arrow key leads: up and down among siblings, left and right along the largest flow. */
function nextOf(drawing: Drawing, here: DrawnNode | DrawnLink, key: string): string | undefined {
  const largest = (links: DrawnLink[]) =>
    links.reduce<DrawnLink | undefined>(
      (best, link) => (!best || link.journeys > best.journeys ? link : best),
      undefined,
    )?.id;
  const step = (all: { id: string }[], by: number) => {
    const at = all.findIndex((x) => x.id === here.id);
    return all[Math.max(0, Math.min(all.length - 1, at + by))]?.id;
  };
  const isLink = "path" in here;
  switch (key) {
    case "ArrowUp":
    case "ArrowDown": {
      const by = key === "ArrowUp" ? -1 : 1;
      if (isLink)
        return step(drawing.links.filter((l) => l.source === here.source).sort(byTarget(drawing)), by);
      return step(
        drawing.nodes.filter((n) => n.column === here.column).sort((a, b) => a.y0 - b.y0),
        by,
      );
    }
    case "ArrowRight":
      return isLink ? here.target : largest(drawing.links.filter((l) => l.source === here.id));
    case "ArrowLeft":
      return isLink ? here.source : largest(drawing.links.filter((l) => l.target === here.id));
    case "Home":
      return drawing.nodes[0]?.id;
    default:
      return undefined;
  }
}

function byTarget(drawing: Drawing): (a: DrawnLink, b: DrawnLink) => number {
  const y = new Map(drawing.nodes.map((node) => [node.id, node.y0]));
  return (a, b) => (y.get(a.target) ?? 0) - (y.get(b.target) ?? 0);
}

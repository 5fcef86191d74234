/** The Sankey: drawn, pointed at, walked through with the keyboard, and read aloud. */

import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Sankey } from "./api";
import { count } from "./format";
import type { DrawnLink, DrawnNode } from "./layout";
import { draw } from "./layout";
import { within } from "./overlay";
import { LinkMark, NodeMark, Tip } from "./sankey-marks";
import { neighbours, nextOf } from "./walk";
import { useWidth } from "./width";
import { inWords } from "./words";

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
  /** Something is pointed at, or reached by a key. */
  onPoint?: () => void;
}

const KEYS = "Arrow keys walk along the flows, Enter pins, M opens the actions, Escape clears.";

const isMenuKey = ({ key, shiftKey }: KeyboardEvent): boolean =>
  key === "ContextMenu" || key === "m" || (key === "F10" && shiftKey);

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

  const walkTo = (id: string) => {
    setWalked(id);
    svg.current?.querySelector<SVGElement>(`[data-id="${CSS.escape(id)}"]`)?.focus();
  };

  const clickNode = (node: DrawnNode) => {
    props.onChoose(node.id);
    if (node.node && node.kind !== "start") props.onPin(node);
  };

  const onKeyDown = (event: KeyboardEvent) => {
    const here = byId.get(focus);
    if (!here) return;
    const target = nextOf(drawing, here, event.key);
    if (target) {
      walkTo(target);
    } else if (event.key === "Enter" || event.key === " ") {
      if ("path" in here) props.onChoose(here.id);
      else clickNode(here);
    } else if (isMenuKey(event)) {
      props.onChoose(here.id);
      props.onMenu();
    } else if (event.key === "Escape") {
      props.onClear();
    } else {
      return;
    }
    event.preventDefault();
  };

  const leave = () => {
    setPointed("");
    setTip(null);
  };

  // biome-ignore lint/correctness/useExhaustiveDependencies: not read again whenever a figure changes
  useEffect(() => {
    const item = byId.get(chosen);
    const through =
      pins.size && part ? ` ${count(pinned?.journeys ?? 0)} people went through what is pinned.` : "";
    setHeard(item ? `${inWords(drawing, item, answer)}.${through}` : "");
  }, [chosen, pins, part]);

  const shown = byId.get(pointed);
  const markOf = (item: DrawnNode | DrawnLink) => ({
    label: inWords(drawing, item, answer),
    isFaint: pointed !== "" && !lit.has(item.id),
    isChosen: chosen === item.id,
    isReached: focus === item.id,
    onPoint: (event: MouseEvent) => {
      props.onPoint?.();
      setPointed(item.id);
      const frame = box.current?.getBoundingClientRect();
      if (frame) setTip({ x: event.clientX - frame.left, y: event.clientY - frame.top });
    },
    onLeave: leave,
    onFocus: () => {
      props.onPoint?.();
      setWalked(item.id);
    },
  });

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
          aria-label={`${props.label}. ${KEYS}`}
          class={part ? "has-pins" : ""}
          onKeyDown={onKeyDown}
          onMouseLeave={leave}
        >
          <g class="links">
            {drawing.links.map((link) => (
              <LinkMark
                key={link.id}
                {...markOf(link)}
                link={link}
                part={part ? (part.get(link.id) ?? 0) : null}
                onClick={() => props.onChoose(link.id)}
              />
            ))}
          </g>
          <g class="nodes">
            {drawing.nodes.map((node) => (
              <NodeMark
                key={node.id}
                {...markOf(node)}
                node={node}
                room={drawing.columnGap}
                part={part?.get(node.id) ?? null}
                isPinned={pins.has(node.id)}
                total={answer.journeys}
                onClick={() => clickNode(node)}
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

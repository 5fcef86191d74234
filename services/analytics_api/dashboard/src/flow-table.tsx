/** The flows of the Sankey as a table. */

import type { JSX } from "preact";
import type { Sankey } from "./api";
import { endedSo, peopleBehind } from "./figure";
import { count, duration, OUTCOMES, share } from "./format";
import { endingsAt, flowId } from "./layout";
import { Table } from "./parts";
import type { Figure } from "./state";
import type { Change } from "./view";

interface Row {
  key: string;
  position: number;
  from: string | undefined;
  to: string | undefined;
  journeys: number;
  share: number | null;
  ofNode: number | null;
  mean: number | null;
  active: number | null;
  isEnd: boolean;
  /** The people who ended so; null where a row leads to nobody. */
  figure: Figure | null;
}

function rowsOf(answer: Sankey): Row[] {
  const titles = new Map(answer.nodes.map((node) => [node.id, node.title]));
  const steps = answer.links.map((link) => ({
    key: flowId(link.source, link.target, link.skipped),
    position: link.position,
    from: titles.get(link.source),
    to: `${titles.get(link.target)}${link.skipped ? " (skipped)" : ""}`,
    journeys: link.journeys,
    share: link.share,
    ofNode: link.share_of_node,
    mean: link.mean_ms,
    active: link.mean_active_ms ?? null,
    isEnd: false,
    figure: null,
  }));
  const ends = endingsAt(answer).map((end) => ({
    key: `${end.node}→${end.outcome}`,
    position: end.position + 1,
    from: titles.get(end.node),
    to: OUTCOMES[end.outcome],
    journeys: end.journeys,
    share: end.share,
    ofNode: end.share_of_node,
    mean: null,
    active: null,
    isEnd: true,
    figure: endedSo(end),
  }));
  return [...steps, ...ends].sort(
    (a, b) => a.position - b.position || Number(a.isEnd) - Number(b.isEnd) || b.journeys - a.journeys,
  );
}

export function FlowTable({ answer, change }: { answer: Sankey; change: Change }): JSX.Element {
  return (
    <Table
      caption={`Flows of ${answer.walkthrough.title}`}
      columns={[
        { title: "From" },
        { title: "To" },
        { title: "Place", isNumber: true },
        { title: "People", isNumber: true },
        { title: "Of all", isNumber: true },
        { title: "Of those there", isNumber: true },
        { title: "Mean time", isNumber: true },
        { title: "Mean since shown", isNumber: true },
      ]}
      rows={rowsOf(answer).map((row) => ({
        key: row.key,
        cells: [
          row.from,
          row.to,
          count(row.position + (row.isEnd ? 0 : 1)),
          peopleOf(row, change),
          share(row.share),
          share(row.ofNode),
          duration(row.mean),
          duration(row.active),
        ],
      }))}
    />
  );
}

function peopleOf({ figure, from, to, journeys }: Row, change: Change): JSX.Element | string {
  if (figure === null) return count(journeys);
  return (
    <button
      type="button"
      class="link"
      onClick={() => change(peopleBehind(figure, `${to} after ${from}`), true)}
    >
      {count(journeys)}
    </button>
  );
}

/** What differs between two sides, and whether that is more than chance. */

import type { JSX } from "preact";
import type { Comparison } from "./api";
import { count, duration, many, points, share } from "./format";
import { Table } from "./parts";

function pText(p: number | null): string {
  if (p === null) return "–";
  return p < 0.001 ? "below 0.001" : p.toFixed(3);
}

export function Verdict({ answer, a, b }: { answer: Comparison; a: string; b: string }): JSX.Element {
  const { share_a, share_b } = answer.completion;
  return (
    <div class="findings">
      <p>
        <span>Completion</span>
        <b>
          {share(share_a)} on A ({a}), {share(share_b)} on B ({b})
        </b>
        {verdictOf(answer)}
      </p>
    </div>
  );
}

/** Whether B did better or worse, and whether that may be chance. */
export function verdictOf({ completion, journeys_a, journeys_b }: Comparison): string {
  const { difference, significant, p_value } = completion;
  if (difference === null) return "one side has nobody";
  if (difference === 0) return "the same";
  const by = `${difference < 0 ? "worse" : "better"} by ${points(difference).replace(/^[+−]/, "")}`;
  const chance = significant ? "more than chance" : "that may be chance";
  const of = `${many(journeys_a, "journey")} and ${many(journeys_b, "journey")}`;
  return `B did ${by}: ${chance} (p = ${pText(p_value)}), of ${of}`;
}

export function ComparisonTable({ answer }: { answer: Comparison }): JSX.Element {
  return (
    <Table
      caption="Differences"
      columns={[
        { title: "From" },
        { title: "To" },
        { title: "Place", isNumber: true },
        { title: "A", isNumber: true },
        { title: "B", isNumber: true },
        { title: "Difference", isNumber: true },
        { title: "More than chance?" },
        { title: "Mean time A", isNumber: true },
        { title: "Mean time B", isNumber: true },
      ]}
      rows={rowsOf(answer)}
    />
  );
}

/** Those that are more than chance first. */
function rowsOf(answer: Comparison) {
  const all = [
    ...answer.links.map((l) => ({ ...l, from: l.from_title, to: l.to_title, place: l.position + 1 })),
    ...answer.drops.map((d) => ({
      ...d,
      from: d.title,
      to: "Stopped",
      place: d.position + 1,
      mean_ms_a: null,
      mean_ms_b: null,
    })),
  ];
  return all
    .sort(
      (x, y) =>
        Number(y.significant) - Number(x.significant) ||
        (x.p_value ?? 2) - (y.p_value ?? 2) ||
        x.place - y.place,
    )
    .map((row) => ({
      key: `${row.place} ${row.from} ${row.to}`,
      isStrong: row.significant,
      cells: [
        row.from,
        row.to,
        count(row.place),
        `${share(row.share_a)} (${count(row.in_a)} of ${count(row.of_a)})`,
        `${share(row.share_b)} (${count(row.in_b)} of ${count(row.of_b)})`,
        points(row.difference),
        row.p_adjusted === null
          ? "one side has nobody"
          : `${row.significant ? "yes" : "no"}, p = ${pText(row.p_adjusted)}`,
        duration(row.mean_ms_a),
        duration(row.mean_ms_b),
      ],
    }));
}

/** What differs between two sides, and whether that is more than chance. */

import type { JSX } from "preact";
import type { Comparison } from "./api";
import { count, duration, points, share } from "./format";
import { Table } from "./parts";

type Difference = Comparison["completion"];
type Finding = Comparison["findings"][number];

function pText(p: number): string {
  return p < 0.001 ? "below 0.001" : p.toFixed(3);
}

function nameOf({ kind, title }: Finding): string {
  if (kind === "step") return `Step “${title ?? ""}”`;
  return kind === "completion" ? "Completion" : "In all";
}

/** What is compared, and what it comes to: the sentences of the answer. */
export function Verdict({ answer }: { answer: Comparison }): JSX.Element {
  return (
    <>
      <p class="compared">{answer.says}</p>
      <div class="findings">
        {answer.findings.map((finding) => (
          <p
            key={`${finding.kind} ${finding.step_id ?? ""}`}
            class={finding.significant ? "significant" : ""}
          >
            <span>{nameOf(finding)}</span>
            {finding.says}
          </p>
        ))}
      </div>
      {answer.unknown.length > 0 && (
        <div class="finding">
          Not compared
          <ul>
            {answer.unknown.map((why) => (
              <li key={why}>{why}</li>
            ))}
          </ul>
        </div>
      )}
    </>
  );
}

/** Whether a difference is more than chance, or why that is not asked. */
export function chanceOf({ of_a, of_b, p_adjusted, significant }: Difference): string {
  if (!of_a || !of_b) return "one side has nobody";
  if (p_adjusted === null) return "not compared: added since";
  return `${significant ? "yes" : "no"}, p = ${pText(p_adjusted)}`;
}

/** Between which differences the true one lies. */
export function betweenOf({
  difference_low,
  difference_high,
}: Pick<Difference, "difference_low" | "difference_high">): string {
  if (difference_low === null || difference_high === null) return "–";
  const [low, high] = [points(difference_low), points(difference_high)];
  return `${low.replace(" points", "")} to ${high}`;
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
        { title: "Between (95 %)", isNumber: true },
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
  const without = { mean_ms_a: null, mean_ms_b: null };
  const all = [
    ...answer.steps.map((s) => ({ ...s, ...without, from: s.title, to: "Done", place: null })),
    ...answer.links.map((l) => ({
      ...l,
      from: l.from_title,
      to: `${l.to_title}${l.skipped ? " (skipped)" : ""}`,
      place: l.position + 1,
    })),
    ...answer.drops.map((d) => ({
      ...d,
      ...without,
      from: d.title,
      to: "Not gone on",
      place: d.position + 1,
    })),
  ];
  return all
    .sort(
      (x, y) =>
        Number(y.significant) - Number(x.significant) ||
        (x.p_value ?? 2) - (y.p_value ?? 2) ||
        (x.place ?? 0) - (y.place ?? 0),
    )
    .map((row) => ({
      key: `${row.place ?? "any"} ${row.from} ${row.to}`,
      isStrong: row.significant,
      cells: [
        row.from,
        row.to,
        row.place === null ? "any" : count(row.place),
        `${share(row.share_a)} (${count(row.in_a)} of ${count(row.of_a)})`,
        `${share(row.share_b)} (${count(row.in_b)} of ${count(row.of_b)})`,
        points(row.difference),
        betweenOf(row),
        chanceOf(row),
        duration(row.mean_ms_a),
        duration(row.mean_ms_b),
      ],
    }));
}

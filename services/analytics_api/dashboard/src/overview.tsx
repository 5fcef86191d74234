/** All walkthroughs of the organization, by server too. */

import type { JSX } from "preact";
import type { Overview } from "./api";
import { count, share } from "./format";
import { Table } from "./parts";

interface Props {
  overview: Overview;
  open: (walkthrough: string, server?: string) => void;
}

export function OverviewTable({ overview, open }: Props): JSX.Element {
  return (
    <section aria-label="Overview">
      <h1 class="lead">Walkthroughs of {overview.organization.name}</h1>
      {overview.walkthroughs.length === 0 ? (
        <div class="empty">
          <strong>No walkthroughs yet</strong>
          <p>
            Import one: <code>stepstream import walkthrough.json --server SLUG</code>
          </p>
        </div>
      ) : (
        <Table
          caption="Walkthroughs"
          columns={[
            { title: "Walkthrough" },
            { title: "Started", isNumber: true },
            { title: "Finished", isNumber: true },
            { title: "Completion rate", isNumber: true },
            { title: "In progress", isNumber: true },
            { title: "Stopped", isNumber: true },
            { title: "Average progress", isNumber: true },
            { title: "Last active" },
          ]}
          rows={overview.walkthroughs.flatMap((w) => [
            walkthroughRow(w, open),
            ...(w.servers.length > 1 ? w.servers : []).map((s) => serverRow(w.walkthrough_id, s, open)),
          ])}
        />
      )}
    </section>
  );
}

type Row = Overview["walkthroughs"][number]["servers"][number];

function walkthroughRow(row: Overview["walkthroughs"][number], open: Props["open"]) {
  const name = <Open title={row.title} go={() => open(row.walkthrough_id)} />;
  return { key: row.walkthrough_id, isStrong: true, cells: [name, ...figures(row)] };
}

function serverRow(walkthrough: string, row: Row, open: Props["open"]) {
  const title = row.server ?? row.mcp_server_id;
  const name = <Open title={title} isIndented go={() => open(walkthrough, row.mcp_server_id ?? undefined)} />;
  return { key: `${walkthrough} ${row.mcp_server_id}`, cells: [name, ...figures(row)] };
}

function Open(props: { title: string | null; isIndented?: boolean; go: () => void }): JSX.Element {
  return (
    <button type="button" class={props.isIndented ? "link indent" : "link"} onClick={props.go}>
      {props.title}
    </button>
  );
}

const figures = (row: Row): string[] => [
  count(row.started),
  count(row.finished),
  share(row.completion_rate),
  count(row.in_progress),
  count(row.dropped),
  share(row.average_progress),
  row.last_active_on ?? "–",
];

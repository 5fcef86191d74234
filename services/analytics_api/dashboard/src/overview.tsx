/** All walkthroughs of the organization, by server too. */

import type { JSX } from "preact";
import type { Overview } from "./api";
import { count, share } from "./format";
import { Table } from "./parts";

export function OverviewTable(props: {
  overview: Overview;
  open: (walkthrough: string, server?: string) => void;
}): JSX.Element {
  const { overview, open } = props;
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
            {
              key: w.walkthrough_id,
              isStrong: true,
              cells: [
                <button type="button" class="link" onClick={() => open(w.walkthrough_id)}>
                  {w.title}
                </button>,
                ...figures(w),
              ],
            },
            ...(w.servers.length > 1 ? w.servers : []).map((s) => ({
              key: `${w.walkthrough_id} ${s.mcp_server_id}`,
              cells: [
                <button
                  type="button"
                  class="link indent"
                  onClick={() => open(w.walkthrough_id, s.mcp_server_id ?? undefined)}
                >
                  {s.server ?? s.mcp_server_id}
                </button>,
                ...figures(s),
              ],
            })),
          ])}
        />
      )}
    </section>
  );
}

type Row = Overview["walkthroughs"][number]["servers"][number];

const figures = (row: Row): string[] => [
  count(row.started),
  count(row.finished),
  share(row.completion_rate),
  count(row.in_progress),
  count(row.dropped),
  share(row.average_progress),
  row.last_active_on ?? "–",
];

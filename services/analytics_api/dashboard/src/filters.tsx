/** Which journeys are shown: days, servers, and the part of the paths. */

import type { JSX } from "preact";
import type { Api } from "./api";
import { BreakdownChoice } from "./breakdown";
import { Segments } from "./parts";
import { nameOfSegment } from "./segments";
import type { View } from "./state";
import { PERIODS } from "./state";
import { VersionChoice } from "./versions";
import type { Change, ViewProps } from "./view";

const PERIOD_NAMES = {
  "7": "7 days",
  "30": "30 days",
  "90": "3 months",
  all: "All time",
  custom: "Days…",
} as const;

type Props = Pick<ViewProps, "view" | "walkthrough" | "versions" | "change">;

export function Filters({ api, view, walkthrough, versions, change }: Props & { api: Api }): JSX.Element {
  const title = (id: string) => walkthrough.steps.find((s) => s.id === id)?.title ?? id;
  return (
    <div class="filters" role="group" aria-label="Filters">
      <Segments
        name="Period in which journeys began"
        options={PERIODS.map((p) => [p, PERIOD_NAMES[p]] as const)}
        value={view.period}
        onChange={(period) => change({ period })}
      />
      {view.period === "custom" && <Days view={view} change={change} />}
      {walkthrough.servers.length > 1 && <Servers view={view} walkthrough={walkthrough} change={change} />}
      {(versions.length > 1 || view.versions.length > 0) && (
        <VersionChoice view={view} versions={versions} change={change} />
      )}
      <button
        type="button"
        aria-expanded={view.explain !== ""}
        aria-controls="segments"
        onClick={() => change({ explain: view.explain ? "" : "finish" })}
      >
        Segment
      </button>
      <BreakdownChoice api={api} view={view} walkthrough={walkthrough} change={change} />
      {view.segments.map((segment) => (
        <Chip
          key={segment}
          text={nameOfSegment([segment], walkthrough)}
          remove={() => change({ segments: view.segments.filter((s) => s !== segment) })}
        />
      ))}
      {view.startAt && (
        <Chip text={`Starts at ${title(view.startAt)}`} remove={() => change({ startAt: "" })} />
      )}
      {view.endAt && <Chip text={`Ends at ${title(view.endAt)}`} remove={() => change({ endAt: "" })} />}
      {view.hidden.map((step) => (
        <Chip
          key={step}
          text={`Without ${title(step)}`}
          remove={() => change({ hidden: view.hidden.filter((s) => s !== step) })}
        />
      ))}
    </div>
  );
}

function Days({ view, change }: { view: View; change: Change }): JSX.Element {
  return (
    <>
      <label>
        from{" "}
        <input
          type="date"
          value={view.from}
          max={view.to || undefined}
          onChange={(e) => change({ from: e.currentTarget.value })}
        />
      </label>
      <label>
        to{" "}
        <input
          type="date"
          value={view.to}
          min={view.from || undefined}
          onChange={(e) => change({ to: e.currentTarget.value })}
        />
      </label>
    </>
  );
}

function Servers({ view, walkthrough, change }: Omit<Props, "versions">): JSX.Element {
  const toggled = (id: string) =>
    view.servers.includes(id) ? view.servers.filter((other) => other !== id) : [...view.servers, id];
  return (
    <div class="segments" role="group" aria-label="Servers">
      <button type="button" aria-pressed={view.servers.length === 0} onClick={() => change({ servers: [] })}>
        All servers
      </button>
      {walkthrough.servers.map(({ id, name }) => (
        <button
          type="button"
          key={id}
          aria-pressed={view.servers.includes(id)}
          onClick={() => change({ servers: toggled(id) })}
        >
          {name}
        </button>
      ))}
    </div>
  );
}

function Chip({ text, remove }: { text: string; remove: () => void }): JSX.Element {
  return (
    <button type="button" class="chip" onClick={remove} aria-label={`${text}: remove`}>
      {text} <span aria-hidden="true">✕</span>
    </button>
  );
}

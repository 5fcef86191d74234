/** Small parts that several views share. */

import type { ComponentChildren, JSX } from "preact";
import { useState } from "preact/hooks";
import type { Api, ApiError } from "./api";
import type { Answering } from "./data";
import type { Query } from "./state";

/** The states of an answer: loading, error, empty, or what is there. */
export function Answered<T>(props: {
  asked: Answering<T>;
  isEmpty?: (data: T) => boolean;
  empty?: ComponentChildren;
  children: (data: T) => ComponentChildren;
}): JSX.Element {
  const { data, error, loading, again } = props.asked;
  if (error && data === null) return <Problem error={error} again={again} />;
  if (data === null) {
    return (
      <div class="loading" role="status">
        <span class="visually-hidden">Loading</span>
        <i />
        <i />
        <i />
      </div>
    );
  }
  return (
    <div class={loading ? "reloading" : ""} aria-busy={loading}>
      {error && <Problem error={error} again={again} isStale />}
      {props.isEmpty?.(data) ? <div class="empty">{props.empty}</div> : props.children(data)}
    </div>
  );
}

export function Problem(props: { error: ApiError; again: () => void; isStale?: boolean }): JSX.Element {
  return (
    <div class="problem" role="alert">
      <strong>{props.error.title}</strong>
      <p>
        {props.error.message}
        {props.isStale ? ". What is shown below is from before." : ""}
      </p>
      <button type="button" onClick={props.again}>
        Ask again
      </button>
    </div>
  );
}

export function Download(props: { api: Api; path: string; query: Query }): JSX.Element {
  const [problem, setProblem] = useState("");
  return (
    <button
      type="button"
      class="quiet"
      onClick={() =>
        props.api.download(props.path, props.query).then(
          () => setProblem(""),
          (e: Error) => setProblem(e.message),
        )
      }
    >
      {problem ? `CSV: ${problem}` : "Download CSV"}
    </button>
  );
}

export function Segments<T extends string>(props: {
  name: string;
  options: readonly (readonly [T, string])[];
  value: T;
  onChange: (value: T) => void;
}): JSX.Element {
  return (
    <div class="segments" role="group" aria-label={props.name}>
      {props.options.map(([value, label]) => (
        <button
          type="button"
          key={value}
          aria-pressed={props.value === value}
          onClick={() => props.onChange(value)}
        >
          {label}
        </button>
      ))}
    </div>
  );
}

export function Table(props: {
  caption: string;
  /** What the region of the table is called, if not as its caption. */
  label?: string;
  columns: readonly { title: string; isNumber?: boolean }[];
  rows: readonly { key: string; cells: ComponentChildren[]; isStrong?: boolean }[];
}): JSX.Element {
  const [, ...others] = props.columns;
  const classOf = (column: { isNumber?: boolean }) => (column.isNumber ? "number" : "");
  return (
    <div
      class="table-scroll"
      // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls has to be reached by keyboard
      tabIndex={0}
      role="region"
      aria-label={`Table: ${props.label ?? props.caption}`}
    >
      <table>
        <caption class="visually-hidden">{props.caption}</caption>
        <thead>
          <tr>
            {props.columns.map((column) => (
              <th key={column.title} scope="col" class={classOf(column)}>
                {column.title}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {props.rows.map((row) => (
            <tr key={row.key} class={row.isStrong ? "strong" : ""}>
              <th scope="row">{row.cells[0]}</th>
              {others.map((column, i) => (
                <td key={column.title} class={classOf(column)}>
                  {row.cells[i + 1]}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

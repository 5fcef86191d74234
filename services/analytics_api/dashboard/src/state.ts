/** What the page shows, kept in its address: whoever gets the link sees the same. */

import { daysAgo } from "./format";

export const TABS = ["flow", "paths", "steps", "trends", "compare", "people"] as const;
export type Tab = (typeof TABS)[number];
/** What is shown of the organization while no walkthrough is. */
export const PAGES = ["walkthroughs", "refused"] as const;
export type Page = (typeof PAGES)[number];
export const PERIODS = ["7", "30", "90", "all", "custom"] as const;
export type Period = (typeof PERIODS)[number];
export const COMPARED = ["servers", "periods", "days", "versions", "segments"] as const;

/** The people behind a figure: parameters of the journeys route, in their order. */
export type Entry = [name: string, value: string];
export type Figure = Entry[];

export interface View {
  walkthrough: string;
  page: Page;
  tab: Tab;
  servers: string[];
  versions: number[];
  /** What has to hold for journeys, as the API's `segment` says it. */
  segments: string[];
  /** What segments are to explain: `finish`, or `step:` and where people stop; empty: they are not shown. */
  explain: string;
  /** By what figures are broken down, as the API's `by` says it; empty: not at all. */
  breakdown: string;
  period: Period;
  from: string;
  to: string;
  startAt: string;
  endAt: string;
  hidden: string[];
  detail: number;
  places: number;
  unfolded: number[];
  pins: string[];
  table: boolean;
  by: "day" | "week";
  /** After how many days journeys are judged; 0: as the server proposes. */
  within: number;
  compare: (typeof COMPARED)[number];
  a: string;
  b: string;
  figure: Figure;
  label: string;
  journey: string;
  session: string;
}

export const NOTHING: View = {
  walkthrough: "",
  page: "walkthroughs",
  tab: "flow",
  servers: [],
  versions: [],
  segments: [],
  explain: "",
  breakdown: "",
  period: "all",
  from: "",
  to: "",
  startAt: "",
  endAt: "",
  hidden: [],
  detail: 6,
  places: 16,
  unfolded: [],
  pins: [],
  table: false,
  by: "day",
  within: 0,
  compare: "servers",
  a: "",
  b: "",
  figure: [],
  label: "",
  journey: "",
  session: "",
};

export const isDay = (text: string): boolean =>
  /^\d{4}-\d\d-\d\d$/.test(text) && !Number.isNaN(Date.parse(text));

function oneOf<T extends string>(all: readonly T[], value: string | null, otherwise: T): T {
  return all.includes(value as T) ? (value as T) : otherwise;
}

/** Reads an address; what makes no sense is left out. */
export function readView(search: string): View {
  const given = new URLSearchParams(search);
  const text = (name: string) => given.get(name) ?? "";
  const detail = Number(given.get("detail") ?? NOTHING.detail);
  const places = Number(given.get("places") ?? NOTHING.places);
  const within = Number(given.get("within") ?? NOTHING.within);
  const from = text("from");
  const to = text("to");
  return {
    walkthrough: text("w"),
    page: oneOf(PAGES, given.get("page"), NOTHING.page),
    tab: oneOf(TABS, given.get("tab"), NOTHING.tab),
    servers: given.getAll("server"),
    versions: given
      .getAll("version")
      .map(Number)
      .filter((n) => Number.isInteger(n) && n >= 1 && n <= 1_000_000),
    segments: given.getAll("segment"),
    explain: text("explain"),
    breakdown: text("breakdown"),
    period: oneOf(PERIODS, given.get("period"), NOTHING.period),
    from: isDay(from) ? from : "",
    to: isDay(to) ? to : "",
    startAt: text("start"),
    endAt: text("end"),
    hidden: given.getAll("hide"),
    detail: Number.isInteger(detail) && detail >= 0 && detail <= 200 ? detail : NOTHING.detail,
    places: Number.isInteger(places) && places >= 0 && places <= 200 ? places : NOTHING.places,
    unfolded: given
      .getAll("open")
      .map(Number)
      .filter((n) => Number.isInteger(n) && n >= 0),
    pins: given.getAll("pin").filter((pin) => /^\d{1,4}:./.test(pin)),
    table: given.get("table") === "1",
    by: oneOf(["day", "week"] as const, given.get("by"), NOTHING.by),
    within: Number.isInteger(within) && within >= 0 && within <= 366 ? within : NOTHING.within,
    compare: oneOf(COMPARED, given.get("compare"), NOTHING.compare),
    a: text("a"),
    b: text("b"),
    figure: [...new URLSearchParams(text("people"))],
    label: text("of"),
    journey: text("journey"),
    session: text("session"),
  };
}

/** Writes the query of an address: only what differs from the beginning; without that, nothing. */
export function writeView(view: View): string {
  const out = new URLSearchParams();
  const put = (name: string, value: string, otherwise = "") => {
    if (value !== otherwise) out.append(name, value);
  };
  put("w", view.walkthrough);
  put("page", view.page, NOTHING.page);
  put("tab", view.tab, NOTHING.tab);
  for (const server of view.servers) out.append("server", server);
  for (const version of view.versions) out.append("version", String(version));
  for (const segment of view.segments) out.append("segment", segment);
  put("explain", view.explain);
  put("breakdown", view.breakdown);
  put("period", view.period, NOTHING.period);
  if (view.period === "custom") {
    put("from", view.from);
    put("to", view.to);
  }
  put("start", view.startAt);
  put("end", view.endAt);
  for (const step of view.hidden) out.append("hide", step);
  put("detail", String(view.detail), String(NOTHING.detail));
  put("places", String(view.places), String(NOTHING.places));
  for (const position of view.unfolded) out.append("open", String(position));
  for (const pin of view.pins) out.append("pin", pin);
  put("table", view.table ? "1" : "");
  put("by", view.by, NOTHING.by);
  put("within", String(view.within), String(NOTHING.within));
  put("compare", view.compare, NOTHING.compare);
  put("a", view.a);
  put("b", view.b);
  put("people", new URLSearchParams(view.figure).toString());
  put("of", view.label);
  put("journey", view.journey);
  put("session", view.session);
  const text = out.toString();
  return text ? `?${text}` : "";
}

export type Query = Record<string, string | number | (string | number)[] | undefined>;

function days(view: View): Query {
  if (view.period === "all") return {};
  if (view.period === "custom") return { from: view.from || undefined, to: view.to || undefined };
  return { from: daysAgo(Number(view.period) - 1) };
}

/** Which journeys, but for their days: servers, versions and segment. */
export const group = (view: View): Query => ({
  server: view.servers,
  version: view.versions.length > 0 ? view.versions : undefined,
  segment: view.segments.length > 0 ? view.segments : undefined,
});

/** Which journeys: servers, versions, segment and days. */
export const cohort = (view: View): Query => ({
  ...group(view),
  ...days(view),
});

/** After how many days journeys are judged. */
export const within = (view: View): Query => ({ within_days: view.within || undefined });

/** Which journeys, and which part of them. */
export function paths(view: View): Query {
  return {
    ...cohort(view),
    start_at: view.startAt || undefined,
    end_at: view.endAt || undefined,
    exclude: view.hidden,
  };
}

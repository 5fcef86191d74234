/** Asks the API; types come from its OpenAPI document. */

import type { components } from "./openapi";
import type { Query } from "./state";

type Schemas = components["schemas"];
export type Sankey = Schemas["Sankey"];
export type SankeyNode = Schemas["SankeyNode"];
export type SankeyLink = Schemas["SankeyLink"];
export type SankeyEnding = Schemas["SankeyEnding"];
export type FrequentPaths = Schemas["FrequentPaths"];
export type PathFigures = Schemas["PathFigures"];
export type Funnel = Schemas["Funnel"];
export type Steps = Schemas["Steps"];
export type Trends = Schemas["Trends"];
export type Summary = Schemas["Summary"];
export type TimeToFinish = Schemas["TimeToFinish"];
export type Comparison = Schemas["Comparison"];
export type Journeys = Schemas["Journeys"];
export type JourneyDetail = Schemas["JourneyDetail"];
export type Session = Schemas["Session"];
export type Overview = Schemas["Overview"];
export type Walkthrough = Schemas["Walkthrough"];
export type Segments = Schemas["Segments"];
export type Breakdown = Schemas["Breakdown"];
export type BreakdownPart = Schemas["BreakdownPart"];
export type SegmentFigures = Schemas["SegmentFigures"];
export type Versions = Schemas["WalkthroughVersions"];
export type Version = Schemas["WalkthroughVersion"];
export type Freshness = Schemas["Freshness"];
export type Event = Schemas["Event"];
export type RefusedEvents = Schemas["RefusedEvents"];
export type RefusedClass = Schemas["RefusedClass"];
export type EventSource = Schemas["EventSource"];

export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly title: string,
    detail: string,
  ) {
    super(detail);
  }
}

export function url(path: string, query: Query = {}): string {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined) params.append(name, String(one));
    }
  }
  const text = params.toString();
  return `/v1/${path}${text ? `?${text}` : ""}`;
}

/** The path of a walkthrough, or of something of it. */
export const walkthroughPath = (id: string, ...parts: string[]): string =>
  ["walkthroughs", ...[id, ...parts].map(encodeURIComponent)].join("/");

const KEY = "stepstream.key";

/** The key: given in the address behind `#key=`, which is never sent and is taken out, or by hand. */
export function readKey(): string {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given) {
    history.replaceState(null, "", location.pathname + location.search);
    keepKey(given, false);
    return given;
  }
  return sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "";
}

export function keepKey(key: string, onThisComputer: boolean): void {
  sessionStorage.setItem(KEY, key);
  if (onThisComputer) localStorage.setItem(KEY, key);
}

export function forgetKey(): void {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
}

export class Api {
  /** How long answers take lately, in milliseconds: what is asked again by itself waits longer than that. */
  took = 0;

  constructor(readonly key: string) {}

  async get<T>(path: string, query: Query = {}, signal?: AbortSignal): Promise<T> {
    const began = performance.now();
    const response = await this.ask(url(path, query), { signal: signal ?? null });
    const answer = (await response.json()) as T;
    this.took = Math.max(this.took * 0.8, performance.now() - began);
    return answer;
  }

  /** The table behind an answer, saved as a file: nothing, where it breaks off. */
  async download(path: string, query: Query = {}): Promise<void> {
    const response = await this.ask(url(path, query), { headers: { Accept: "text/csv" } });
    const table = await response.blob().catch(() => {
      throw new ApiError(0, "Broken off", "it broke off before its end; try again");
    });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(table);
    link.download = `${path.replaceAll("/", "-")}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  async ask(address: string, options: RequestInit = {}): Promise<Response> {
    let response: Response;
    try {
      response = await fetch(address, {
        ...options,
        headers: { ...(options.headers as Record<string, string>), Authorization: `Bearer ${this.key}` },
      });
    } catch (error) {
      if (error instanceof DOMException && error.name === "AbortError") throw error;
      throw new ApiError(0, "Not connected", "the server does not answer; this page asks again by itself");
    }
    if (!response.ok) {
      const problem = (await response.json().catch(() => ({}))) as { title?: string; detail?: string };
      throw new ApiError(
        response.status,
        problem.title ?? response.statusText,
        problem.detail ?? `the server answered ${response.status}`,
      );
    }
    return response;
  }
}

/** What was asked of the API, and how that stands. */

import { useEffect, useState } from "preact/hooks";
import type { Api } from "./api";
import { ApiError } from "./api";
import type { Query } from "./state";

export interface Asked<T> {
  /** The last answer to this question; stays while it is asked again. */
  data: T | null;
  error: ApiError | null;
  loading: boolean;
}

/** With what asks the same again. */
export type Answering<T> = Asked<T> & { again: () => void };

/** What a question is about: its path, without how it is narrowed. */
const subjectOf = (question: string): string =>
  question.startsWith("[") ? String((JSON.parse(question) as unknown[])[0]) : question;

/** Whether the answer to one question may be shown until that to the next one is there. */
export const staysFor = (next: string, before: string, keep: boolean): boolean =>
  before === next || (keep && subjectOf(before) === subjectOf(next));

/** Asks when the question changes, and again at each tick. What is shown stays until the answer is there, as
 * long as it is about the same thing; with `keep` false, only while the question is the same. */
export function useAsked<T>(
  question: string,
  tick: number,
  ask: (signal: AbortSignal) => Promise<T>,
  keep = true,
): Answering<T> {
  const [asked, setAsked] = useState<Asked<T> & { question: string }>({
    question,
    data: null,
    error: null,
    loading: true,
  });
  const [times, setTimes] = useState(0);
  // biome-ignore lint/correctness/useExhaustiveDependencies: the question stands for `ask`
  useEffect(() => {
    const ending = new AbortController();
    let retry: number | undefined;
    setAsked((before) => ({
      question,
      data: staysFor(question, before.question, keep) ? before.data : null,
      error: null,
      loading: true,
    }));
    ask(ending.signal).then(
      (data) => {
        if (!ending.signal.aborted) setAsked({ question, data, error: null, loading: false });
      },
      (error: unknown) => {
        if (ending.signal.aborted) return;
        const problem = error instanceof ApiError ? error : new ApiError(0, "Error", String(error));
        setAsked((before) => ({ ...before, error: problem, loading: false }));
        if (problem.status === 0 || problem.status === 503) {
          retry = window.setTimeout(() => setTimes((n) => n + 1), 3_000);
        }
      },
    );
    return () => {
      ending.abort();
      window.clearTimeout(retry);
    };
  }, [question, tick, times]);
  const isOurs = asked.question === question;
  return {
    data: staysFor(question, asked.question, keep) ? asked.data : null,
    error: isOurs ? asked.error : null,
    loading: isOurs ? asked.loading : true,
    again: () => setTimes((n) => n + 1),
  };
}

/** What a route answers to a query. */
export function useAnswer<T>(api: Api, path: string, query: Query, tick: number): Answering<T> {
  return useAsked<T>(JSON.stringify([path, query]), tick, (signal) => api.get(path, query, signal));
}

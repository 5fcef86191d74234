/** What was asked of the API, and how that stands. */

import { useEffect, useState } from "preact/hooks";
import { ApiError } from "./api";

export interface Asked<T> {
  /** The last answer to this question; stays while it is asked again. */
  data: T | null;
  error: ApiError | null;
  loading: boolean;
}

/** What a question is about: its path, without how it is narrowed. */
const subjectOf = (question: string): string =>
  question.startsWith("[") ? String((JSON.parse(question) as unknown[])[0]) : question;

/** Asks when the question changes, and again at each tick. What is shown stays until the answer is there, as long
 * as it is about the same thing; with `keep` false, only while the question is the same. */
export function useAsked<T>(
  question: string,
  tick: number,
  ask: (signal: AbortSignal) => Promise<T>,
  keep = true,
): Asked<T> & { again: () => void } {
  const [asked, setAsked] = useState<Asked<T> & { question: string }>({
    question,
    data: null,
    error: null,
    loading: true,
  });
  const [times, setTimes] = useState(0);
  const stays = (before: string) =>
    before === question || (keep && subjectOf(before) === subjectOf(question));
  useEffect(() => {
    const ending = new AbortController();
    let retry: number | undefined;
    setAsked((before) => ({
      question,
      data: stays(before.question) ? before.data : null,
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
    data: stays(asked.question) ? asked.data : null,
    error: isOurs ? asked.error : null,
    loading: isOurs ? asked.loading : true,
    again: () => setTimes((n) => n + 1),
  };
}

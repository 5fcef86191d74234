/** The live stream of a walkthrough: a number that grows when figures change, how fresh they are, and whether
 * the stream is there at all. */

import { EventSource } from "eventsource";
import { useEffect, useRef, useState } from "preact/hooks";
import type { Api, Freshness } from "./api";
import { url, walkthroughPath } from "./api";

/** Between two reloads of figures, however fast they change; where they take long, five times that. */
const CALM_MS = 1_500;

export type Connection = "connecting" | "live" | "cut" | "gone";

export interface Live {
  tick: number;
  freshness: Freshness | null;
  connection: Connection;
}

export function useLive(api: Api, walkthrough: string): Live {
  const [tick, setTick] = useState(0);
  const [freshness, setFreshness] = useState<Freshness | null>(null);
  const [connection, setConnection] = useState<Connection>("connecting");
  const waiting = useRef<number | undefined>(undefined);

  useEffect(() => {
    setFreshness(null);
    setConnection("connecting");
    if (!walkthrough) return;
    let seen: string | null = null;
    const stream = new EventSource(url(walkthroughPath(walkthrough, "live")), {
      fetch: (input, init) =>
        fetch(input, { ...init, headers: { ...init.headers, Authorization: `Bearer ${api.key}` } }),
    });
    const hear = (event: MessageEvent<string>) => {
      setConnection("live");
      setFreshness(JSON.parse(event.data) as Freshness);
    };
    stream.addEventListener("open", () => setConnection("live"));
    stream.addEventListener("error", () =>
      setConnection(stream.readyState === stream.CLOSED ? "gone" : "cut"),
    );
    stream.addEventListener("freshness", hear);
    stream.addEventListener("changed", (event) => {
      hear(event);
      // The first one says what there is, which the page has asked for by itself.
      if (seen !== null && waiting.current === undefined) {
        waiting.current = window.setTimeout(
          () => {
            waiting.current = undefined;
            setTick((n) => n + 1);
          },
          Math.max(CALM_MS, 5 * api.took),
        );
      }
      seen = event.lastEventId;
    });
    stream.addEventListener("gone", () => {
      setConnection("gone");
      stream.close();
    });
    return () => {
      stream.close();
      window.clearTimeout(waiting.current);
      waiting.current = undefined;
    };
  }, [api, walkthrough]);

  return { tick, freshness, connection };
}

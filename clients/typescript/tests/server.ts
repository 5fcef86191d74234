import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";
import { gunzipSync } from "node:zlib";

/** A request as it came. */
export interface Asked {
  path: string;
  headers: Record<string, unknown>;
  items: Record<string, unknown>[];
  bytes: number;
}
/** An answer; null is a connection that breaks. */
export type Answer = { status: number; body?: unknown; headers?: Record<string, string> } | null;

/** A server that answers as the real one does only on a bad day: full, away, breaking off. */
export async function serving(answer: (asked: Asked, count: number) => Answer | Promise<Answer>): Promise<{
  url: string;
  asked: Asked[];
  [Symbol.asyncDispose](): Promise<void>;
}> {
  const asked: Asked[] = [];
  const server = createServer(async (request, response) => {
    const sent = await buffer(request);
    const text = request.headers["content-encoding"] === "gzip" ? gunzipSync(sent) : sent;
    const items = JSON.parse(text.toString()) as Record<string, unknown>[];
    const one = { path: request.url ?? "", headers: request.headers, items, bytes: text.length };
    asked.push(one);
    const answered = await answer(one, asked.length);
    if (answered === null) {
      request.socket.destroy();
      return;
    }
    response.writeHead(answered.status, { "Content-Type": "application/json", ...answered.headers });
    response.end(JSON.stringify(answered.body ?? {}));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** All accepted, as the server says it. */
export function accepted({ items }: Asked): Answer {
  const results = items.map(({ event_id }, index) => ({ index, status: "accepted", event_id }));
  return { status: 200, body: { accepted: items.length, refused: 0, through: "kafka", results } };
}

// The TypeScript SDK. Arguments: its version (1 or 2), and `newest` or `sessions`, which is all that version 1 knows.
import { leadAll } from "./walk.mjs";

const [version, mode] = process.argv.slice(2);
const { Client, StreamableHTTPClientTransport } =
  version === "2" ? await import("@modelcontextprotocol/client") : await first();
const options = { newest: { mode: { pin: "2026-07-28" } }, sessions: { mode: "legacy" } }[mode];

async function first() {
  if (mode !== "sessions") throw new Error("version 1 has sessions only");
  const [client, transport] = await Promise.all([
    import("@modelcontextprotocol/sdk/client/index.js"),
    import("@modelcontextprotocol/sdk/client/streamableHttp.js"),
  ]);
  return { ...client, ...transport };
}

await leadAll(async ({ url, headers }) => {
  const client = new Client({ name: "agent", version: "1" }, { versionNegotiation: options });
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
  const call = async (name, values) =>
    (await client.callTool({ name, arguments: values })).structuredContent;
  return { call, close: () => client.close() };
});
process.exit(0);

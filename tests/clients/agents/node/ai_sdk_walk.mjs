// The AI SDK. Argument: `newest` or `sessions`; stdin and stdout as in walk.mjs.
import { createMCPClient } from "@ai-sdk/mcp";
import { leadAll } from "./walk.mjs";

const protocolVersionDiscovery = { newest: true, sessions: false }[process.argv[2]];

await leadAll(async ({ url, headers }) => {
  const client = await createMCPClient({
    transport: { type: "http", url, headers },
    protocolVersionDiscovery,
  });
  const tools = await client.tools();
  const call = async (name, values) =>
    (await tools[name].execute(values, { toolCallId: "1", messages: [] })).structuredContent;
  return { call, close: () => client.close() };
});
process.exit(0);

// The TypeScript SDK. Arguments: package (of version 1 or 2), address of the server, and the id of a client that is
// registered already, or "-".
import { signIn } from "./sign_in.mjs";

const [version, url, id] = process.argv.slice(2);
const { Client, StreamableHTTPClientTransport, UnauthorizedError } =
  version === "2" ? await import("@modelcontextprotocol/client") : await first();

async function first() {
  const sdk = "@modelcontextprotocol/sdk/client";
  const [client, transport, auth] = await Promise.all(
    ["index", "streamableHttp", "auth"].map((name) => import(`${sdk}/${name}.js`)),
  );
  return { ...client, ...transport, ...auth };
}

const { provider, back, end } = await signIn(id);
const transport = () => new StreamableHTTPClientTransport(new URL(url), { authProvider: provider });
const client = () => new Client({ name: "agent", version: "1" });
const before = transport();
await client()
  .connect(before)
  .then(
    () => Promise.reject(new Error("nobody had to sign in")),
    (error) => {
      if (!(error instanceof UnauthorizedError)) throw error;
    },
  );
const parameters = await back;
await before.finishAuth(version === "2" ? parameters : parameters.get("code"));
end();

const agent = client();
await agent.connect(transport());
const result = await agent.callTool({ name: "start_walkthrough", arguments: {} });
console.log(`answer ${JSON.stringify(result.structuredContent)}`);
await agent.close();
process.exit(0);

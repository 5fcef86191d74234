// The TypeScript SDK. Arguments: package (of version 1 or 2), address of the server, and the id of a client that is
// registered already, or "-".
import { createServer } from "node:http";

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

let returned;
const back = new Promise((resolve) => (returned = resolve));
const listener = createServer((request, response) => {
  returned(new URL(request.url, "http://127.0.0.1").searchParams);
  response.end("signed in");
});
await new Promise((resolve) => listener.listen(0, "127.0.0.1", resolve));
const redirectUrl = `http://127.0.0.1:${listener.address().port}/callback`;

const kept = { client: id === "-" ? undefined : { client_id: id } };
const provider = {
  redirectUrl,
  clientMetadata: {
    client_name: "agent",
    redirect_uris: [redirectUrl],
    token_endpoint_auth_method: "none",
  },
  clientInformation: () => kept.client,
  saveClientInformation: (client) => (kept.client = client),
  tokens: () => kept.tokens,
  saveTokens: (tokens) => (kept.tokens = tokens),
  codeVerifier: () => kept.verifier,
  saveCodeVerifier: (verifier) => (kept.verifier = verifier),
  redirectToAuthorization: (address) => console.log(`browse ${address}`),
};

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
listener.close();

const agent = client();
await agent.connect(transport());
const result = await agent.callTool({ name: "start_walkthrough", arguments: {} });
console.log(`answer ${JSON.stringify(result.structuredContent)}`);
await agent.close();
process.exit(0);

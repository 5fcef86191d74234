// The AI SDK. Arguments: address of the server, and the id of a client that is registered already, or "-".
import { UnauthorizedError, auth, createMCPClient } from "@ai-sdk/mcp";
import { signIn } from "./sign_in.mjs";

const [url, id] = process.argv.slice(2);
const { provider, back, end } = await signIn(id);
const connect = () => createMCPClient({ transport: { type: "http", url, authProvider: provider } });

await connect().then(
  () => Promise.reject(new Error("nobody had to sign in")),
  (error) => {
    if (!(error instanceof UnauthorizedError)) throw error;
  },
);
const parameters = await back;
await auth(provider, {
  serverUrl: url,
  authorizationCode: parameters.get("code"),
  callbackState: parameters.get("state") ?? undefined,
  callbackIssuer: parameters.get("iss") ?? undefined,
});
end();

const agent = await connect();
const tools = await agent.tools();
const result = await tools.start_walkthrough.execute({}, { toolCallId: "1", messages: [] });
console.log(`answer ${JSON.stringify(result.structuredContent)}`);
await agent.close();
process.exit(0);

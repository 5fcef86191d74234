// How programs in JavaScript sign in: what they keep, and where the issuer sends their person back to.
import { createServer } from "node:http";

// `provider` for the client whose id is given, or "-"; `back` resolves to the parameters of the way back, and `end()`
// stops listening.
export async function signIn(id) {
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
  return { provider, back, end: () => listener.close() };
}

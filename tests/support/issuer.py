"""An authorization server of the tests' own."""

import base64
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa


class Issuer:
    """An authorization server: metadata, keys, and tokens as a test wants them.

    Clients register at it, and it signs in at once whoever is sent there. A test may write `url` in another
    way; the metadata names it so.
    """

    def __init__(self) -> None:
        self.keys = {"one": rsa.generate_private_key(65537, 2048)}
        self.keys_at = "/keys"
        self.left_behind: dict[str, Any] = {}
        self.fetched: list[str] = []
        self.clients: dict[str, Any] = {}
        self.codes: dict[str, dict[str, str]] = {}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.fetched.append(self.path)
                path, _, query = self.path.partition("?")
                if path == "/authorize":
                    self.send_response(302)
                    self.send_header("location", issuer.authorize(dict(parse_qsl(query))))
                    self.send_header("content-length", "0")
                    self.end_headers()
                else:
                    answers = issuer.documents()
                    self.answer(200 if path in answers else 404, answers.get(path, {}))

            def do_POST(self) -> None:
                issuer.fetched.append(self.path)
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                if self.path == "/register":
                    self.answer(201, issuer.register(json.loads(body)))
                else:
                    self.answer(*issuer.exchange(dict(parse_qsl(body))))

            def answer(self, status: int, content: Any) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server.server_port}"
        self.url = self.origin
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def documents(self) -> dict[str, Any]:
        """What is to be had by path; the metadata is where RFC 8414 wants it."""
        path = self.url.removeprefix(self.origin).rstrip("/")
        metadata = {
            "issuer": self.url,
            "jwks_uri": f"{self.origin}{self.keys_at}",
            "registration_endpoint": f"{self.origin}/register",
            "authorization_endpoint": f"{self.origin}/authorize",
            "token_endpoint": f"{self.origin}/token",
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none"],
        }
        return {
            f"/.well-known/oauth-authorization-server{path}": metadata,
            self.keys_at: {"keys": [self.public(kid) for kid in self.keys]},
        } | self.left_behind

    def move_keys(self, path: str, left_behind: dict[str, Any]) -> None:
        """Publishes the keys at another path; what is left behind is by path, too."""
        self.keys_at, self.left_behind = path, left_behind

    def register(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Takes a new client (RFC 7591)."""
        client = wanted | {"client_id": f"client-{len(self.clients)}", "token_endpoint_auth_method": "none"}
        self.clients[client["client_id"]] = client
        return client

    def authorize(self, asked: dict[str, str]) -> str:
        """Where somebody who was asked, and agreed, is sent."""
        assert asked["redirect_uri"] in self.clients[asked["client_id"]]["redirect_uris"]
        assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
        code = f"code-{len(self.codes)}"
        self.codes[code] = asked
        back = {"code": code, "state": asked["state"], "iss": self.url}
        return f"{asked['redirect_uri']}?{urlencode(back)}"

    def exchange(self, given: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """A token for a code, for whoever knows the verifier (RFC 7636), at the resource that was asked for."""
        asked = self.codes.pop(given.get("code", ""), {})
        digest = hashlib.sha256(given.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        same = all(asked.get(name) == given.get(name) for name in ("client_id", "redirect_uri", "resource"))
        if not same or asked["code_challenge"] != challenge:
            return 400, {"error": "invalid_grant"}
        token = self.token(given["resource"], client_id=given["client_id"])
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": 300}

    def public(self, kid: str) -> dict[str, Any]:
        key = jwt.algorithms.RSAAlgorithm.to_jwk(self.keys[kid].public_key(), as_dict=True)
        return key | {"kid": kid, "alg": "RS256", "use": "sig"}

    def token(self, audience: str, subject: str = "sub-1", kid: str = "one", **other: Any) -> str:
        claims = {"iss": self.url, "sub": subject, "aud": audience, "exp": int(time.time()) + 300} | other
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, self.keys[kid], algorithm="RS256", headers={"kid": kid})

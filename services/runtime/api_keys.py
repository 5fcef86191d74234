"""API keys as text: `sst_ID_SECRET`. The id finds the key, the secret's hash is what is kept of the rest."""

import hashlib
import secrets
from typing import Final

_PREFIX: Final = "sst"
_ID_BYTES = 6
_SECRET_BYTES = 32


def new_key() -> tuple[str, str]:
    """The id and the secret of a new key."""
    return secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES)


def text_of(identifier: str, secret: str) -> str:
    """What the holder of a key keeps."""
    return f"{_PREFIX}_{identifier}_{secret}"


def parts_of(text: str) -> tuple[str, str] | None:
    """The id and the secret in a key's text; None where it is no key."""
    prefix, _, rest = text.partition("_")
    identifier, _, secret = rest.partition("_")
    return (identifier, secret) if prefix == _PREFIX and identifier and secret else None


def hash_of(secret: str) -> bytes:
    """What is kept of a secret: with 256 random bits there is nothing to guess, so one round is enough."""
    return hashlib.sha256(secret.encode()).digest()

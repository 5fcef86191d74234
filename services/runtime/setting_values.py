"""What the value of a setting has to look like; an error says how it should, and never what a secret is."""

import errno
import os
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pydantic import AnyHttpUrl, SecretStr, ValidationError

from services.runtime.sources import MAX_SOURCE, NO_SOURCE, OTHERS

#: Before the name of each variable.
PREFIX = "STEPSTREAM_"
#: Parameters of a database's URL that name files for TLS, and those of others' certificates.
_TLS_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_CERTIFICATES = ("sslrootcert", "sslcrl")
#: A scope of OAuth; a comma, which may be in one, separates parts of settings.
_SCOPE = re.compile(r"[!#-+\--\[\]-~]+")
#: An origin of a page on the web.
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def parts_at_commas(text: str) -> list[str]:
    """The parts of a text, which commas separate."""
    return [part.strip() for part in text.split(",") if part.strip()]


def split_at_commas(value: object) -> object:
    """The parts of a text, which commas separate; anything else as it is."""
    return parts_at_commas(value) if isinstance(value, str) else value


def in_capitals(value: object) -> object:
    """A text in capitals; anything else as it is."""
    return value.upper() if isinstance(value, str) else value


def scopes(text: str) -> str:
    """Scopes of OAuth (RFC 6749, section 3.3), separated by spaces, or empty."""
    for scope in text.split():
        if not _SCOPE.fullmatch(scope):
            raise ValueError(f"`{scope}` is no scope: printable ASCII without quotes, commas and backslashes")
    return text


def scopes_by_server(text: str) -> str:
    """Slugs of servers, each with scopes behind a `=`, separated by commas, or empty."""
    for part in parts_at_commas(text):
        slug, equals, named = part.partition("=")
        if not slug.strip() or not equals:
            raise ValueError(f"`{part}` is not slug=scopes; several are separated by commas")
        scopes(named)
    return text


def host_and_port(addresses: list[str]) -> list[str]:
    """Addresses as `host:port`."""
    if any("@" in address for address in addresses):  # a password may be before it
        raise ValueError(
            f"an address is host:port, without a user: that is {PREFIX}KAFKA_USERNAME, with "
            f"{PREFIX}KAFKA_PASSWORD or {PREFIX}KAFKA_PASSWORD_FILE"
        )
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not _is_port(port):
            raise ValueError(f"`{address}` is not host:port; several are separated by commas")
    return addresses


def origins(text: str) -> str:
    """Origins of pages, as browsers write them (RFC 6454), separated by commas, or empty."""
    if "@" in text:  # a password may be before it
        raise ValueError("an origin is https://example.com, without a user")
    for origin in parts_at_commas(text):
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"`{origin}` is no origin, as in https://example.com: small letters, nothing behind host and "
                "port; several are separated by commas"
            )
    return text


def sources(text: str) -> str:
    """Values of the header ce_source, separated by commas, or empty."""
    for source in parts_at_commas(text):
        if source in {NO_SOURCE, OTHERS} or not source.isprintable() or len(source) > MAX_SOURCE:
            raise ValueError(
                f"`{source[:MAX_SOURCE]}` is no value of the header ce_source that names one producer: it "
                f"has at most {MAX_SOURCE} printable characters"
            )
    return text


def _is_clear(url: str) -> bool:
    """Whether no part of a URL is taken for another: of a password, what follows a `/` is a path."""
    try:
        parts = urlsplit(url)
        parse_qsl(parts.query, strict_parsing=bool(parts.query))
    except ValueError:  # which would tell what it cannot read
        return False
    hosts = parts.netloc.rpartition("@")[2].split(",")
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts]
    is_whole = "@" not in parts.path and not parts.fragment and parts.netloc.count("@") < 2
    return is_whole and all(map(_is_port, filter(None, ports)))


def _is_port(text: str) -> bool:
    return text.isdigit() and len(text) <= 5 and int(text) < 65_536


def postgres_url(url: SecretStr) -> SecretStr:
    """A database's URL, whose files for TLS can be read."""
    text = url.get_secret_value()
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("it starts with postgresql://, as in postgresql://user:password@host:5432/name")
    if not _is_clear(text):
        raise ValueError(
            "it is not as postgresql://user:password@host:5432/name. In a user, a password or a name, "
            "@ / ? # % [ ] are written as %40 %2F %3F %23 %25 %5B %5D; or leave the password out of it, and "
            f"set {PREFIX}DATABASE_PASSWORD or {PREFIX}DATABASE_PASSWORD_FILE"
        )
    if problem := next(tls_file_problems(text), None):
        raise ValueError(problem)
    return url


def tls_file_problems(url: str) -> Iterator[str]:
    """What is wrong with the files for TLS that a database's URL names; the client would not say which."""
    for name, file in parse_qsl(urlsplit(url).query):
        if name not in _TLS_FILES:
            continue
        if not os.access(file, os.R_OK):
            yield f"the file {file} ({name}) is not there, or may not be read"
        elif name in _CERTIFICATES:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
            except OSError:
                yield f"the file {file} ({name}) holds no certificate or list of them in PEM"


def optional_postgres_url(url: SecretStr) -> SecretStr:
    """As `postgres_url`, or empty."""
    return postgres_url(url) if url.get_secret_value() else url


def readable_file(path: str) -> str:
    """The path of a file that can be read, or empty."""
    if path and not os.access(path, os.R_OK):
        raise ValueError(f"the file {path} is not there, or may not be read")
    return path


def secret_file(path: str) -> str:
    """The path of a file that holds a secret, or empty."""
    if not path:
        return path
    if "/" not in path and not os.access(path, os.R_OK):  # the secret itself may stand there
        raise ValueError("there is no such file in this folder, or it may not be read: give the path of one")
    if not Path(readable_file(path)).is_file():
        raise ValueError(f"{path} is no file")
    try:
        read_secret(path)
    except OSError as error:
        raise ValueError(f"the file {path} {error.strerror}") from None
    return path


def read_secret(path: str) -> str:
    """What a file of a secret holds; its line end is no part of it.

    Raises:
        OSError: it cannot be read, or holds no password, as one that is just being written.
    """
    try:
        content = Path(path).read_text("utf-8").strip()
    except UnicodeDecodeError:  # which would tell what it cannot read
        raise OSError(errno.EINVAL, "is no text in UTF-8", path) from None
    if not content:
        raise OSError(errno.ENODATA, "is empty", path)
    return content


def shown_url(url: str) -> str:
    """As `http_url`, without a user."""
    if "@" in http_url(url):
        raise ValueError("it holds a user or a password, which everybody would be shown")
    return url


def http_url(url: str) -> str:
    """A URL of HTTP without a query."""
    if not re.fullmatch(r"https?://[^/?#]+[^?#]*", url):
        raise ValueError("it starts with http:// or https:// and has no query, as in https://mcp.example.com")
    try:
        AnyHttpUrl(url)
    except ValidationError as error:
        why = error.errors(include_url=False)[0]["msg"].partition(", ")[2]
        raise ValueError(f"it is no URL: {why}") from None
    return url

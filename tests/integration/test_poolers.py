"""A pooler between a service and PostgreSQL is refused: sessions are not whole behind it."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from services.runtime.database import connected
from services.runtime.errors import ConfigurationError
from tests.support.world import World

pytestmark = pytest.mark.integration


@contextlib.asynccontextmanager
async def forgetful(host: str, port: int) -> AsyncIterator[int]:
    """What passes on who signs in where, and no setting, as a pooler that is told to ignore these."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack(">i", await reader.readexactly(4))
        words = (await reader.readexactly(length - 4))[4:].split(b"\0")
        kept = [
            w
            for name, value in zip(words[::2], words[1::2], strict=False)
            for w in (name, value)
            if name in {b"user", b"database"}
        ]
        body = struct.pack(">i", 3 << 16) + b"".join(w + b"\0" for w in kept) + b"\0"
        there, back = await asyncio.open_connection(host, port)
        back.write(struct.pack(">i", len(body) + 4) + body)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(pour(reader, back))
                both.create_task(pour(there, writer))
        finally:
            writer.close()
            back.close()

    async def pour(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                to.write(data)
            to.write_eof()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


async def test_a_pooler_that_drops_settings_is_refused_with_what_to_do(world: World) -> None:
    dsn = world.settings.dsn
    there = world.settings.database_url.get_secret_value().rsplit("@", 1)[1].partition("/")[0]
    host, _, port = there.partition(":")
    async with forgetful(host, int(port)) as pooler:
        url = SecretStr(dsn.replace(there, f"127.0.0.1:{pooler}") + "?sslmode=disable")
        settings = world.settings.model_copy(update={"database_url": url})
        with pytest.raises(ConfigurationError, match=r"default_transaction_isolation.*PostgreSQL itself"):
            async with connected(settings):
                pass
    async with connected(world.settings) as db:
        assert await db.fetchval("select 1") == 1

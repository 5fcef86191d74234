"""A TCP proxy in front of a real server, so that one test can cut or freeze what others go on using."""

import asyncio
import contextlib
import itertools
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """Passes bytes on, until it is told to refuse, to freeze, to be slow, or to cut."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._host, self._port = host, port
        #: The ports that new connections lead to, one after the other, instead of that one.
        self.turns: Iterator[int] | None = None
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._to_server, self._to_client = asyncio.Event(), asyncio.Event()
        self.thaw()
        #: Before each piece that is passed on, in seconds.
        self.delay: Callable[[], float] = lambda: 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    def lead_to(self, host: str, port: int) -> None:
        """New connections go there."""
        self._host, self._port = host, port

    async def listen(self) -> None:
        """Answers, at the same port each time."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Cuts what there is; new connections are refused until `listen`."""
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Ends all connections without a word."""
        for writer in self._writers:
            writer.transport.abort()

    def reset(self) -> None:
        """As `cut`, but in TCP's rude way, which is an error for the other side and no end of a stream."""
        for writer in self._writers:
            at_once = struct.pack("ii", 1, 0)
            with contextlib.suppress(OSError):  # it is closed already
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self.cut()

    def freeze(self, *, to_server: bool = True, to_client: bool = True) -> None:
        """Connections stay open, new ones are taken, and nothing goes through, in both directions or in one."""
        if to_server:
            self._to_server.clear()
        if to_client:
            self._to_client.clear()

    def thaw(self) -> None:
        self._to_server.set()
        self._to_client.set()

    def aim(self, port: int) -> None:
        """New connections lead to another port of the same host."""
        self._port = port

    async def close(self) -> None:
        await self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._to_server.wait()
            if self._tls is not None and not await self._begin_tls(reader, writer):
                writer.transport.abort()
                return
            try:
                port = next(self.turns) if self.turns is not None else self._port
                their_reader, their_writer = await asyncio.open_connection(self._host, port)
            except OSError:
                writer.transport.abort()
                return
            self._writers.add(their_writer)
            ways = ((reader, their_writer, self._to_server), (their_reader, writer, self._to_client))
            for source, target, flows in ways:
                task = asyncio.create_task(self._pass_on(source, target, flows))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _begin_tls(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """PostgreSQL's way into TLS (its protocol, section "SSL Session Encryption"); nobody gets in without."""
        assert self._tls is not None
        if await reader.readexactly(8) != (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big"):
            return False
        writer.write(b"S")
        await writer.drain()
        try:
            await writer.start_tls(self._tls)
        except ssl.SSLError:
            return False
        return True

    async def _pass_on(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, flows: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                await flows.wait()
                if pause := self.delay():
                    await asyncio.sleep(pause)
                target.write(data)
                await target.drain()
        target.transport.abort()


@contextlib.asynccontextmanager
async def round_robin(*ports: int) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy in front of several processes, which have a new connection each in turn, and its URL."""
    proxy = Proxy("127.0.0.1", ports[0])
    proxy.turns = itertools.cycle(ports)
    await proxy.listen()
    try:
        yield proxy, f"http://127.0.0.1:{proxy.port}"
    finally:
        await proxy.close()


@contextlib.asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy before the server of a URL, and the URL that leads through it."""
    parts = urlsplit(url)
    proxy = Proxy(parts.hostname or "127.0.0.1", parts.port or 5432)
    await proxy.listen()
    user = parts.netloc.rpartition("@")[0]
    try:
        yield proxy, urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}"))
    finally:
        await proxy.close()

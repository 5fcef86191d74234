"""Connections of slow, silent and greedy clients are closed; those of streams and of everybody else are not."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from services.runtime.connections import Connections, Limits
from services.runtime.http_layers import Paced, Shared
from services.runtime.http_protocol import TimedProtocol
from services.runtime.process import server_config
from services.runtime.telemetry import HTTP_CLOSED
from tests.support.world import _QuietServer, eventually

SERVICE = "test"
LONG, SHORT = 60.0, 0.1
PATIENT = Limits({"head": LONG, "body": LONG, "idle": LONG}, LONG, total=100, of_address=None)
ASKS = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
HALF = b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: "


def impatient(part: str) -> Limits:
    return replace(PATIENT, seconds=PATIENT.seconds | {part: SHORT})


class Site:
    """What is served: `/` answers, `/body` reads, `/stream` streams until `over`, `/much` answers 32 MiB.

    `/wait` waits for its client to go away.
    """

    def __init__(self) -> None:
        self.port = 0
        self.over = asyncio.Event()
        self.ended: list[str] = []
        self.server: uvicorn.Server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b"well"
        if scope["path"] == "/body":
            while (await receive()).get("more_body"):
                pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/stream":
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            await self.over.wait()
        if scope["path"] == "/wait":
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            while (await receive())["type"] != "http.disconnect":
                pass
        if scope["path"] == "/much":
            for _ in range(512):
                await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
        await send({"type": "http.response.body", "body": body})
        self.ended.append(scope["path"])

    async def client(self, *parts: bytes, address: str = "127.0.0.1") -> "Client":
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0))
        client = Client(reader, writer)
        for part in parts:
            writer.write(part)
            await writer.drain()
        return client


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def all(self) -> bytes:
        """What comes until the server closes."""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(30):
                return await self.reader.read()
        return b""

    @property
    def address(self) -> tuple[str, int]:
        return self.writer.get_extra_info("sockname")[:2]  # type: ignore[no-any-return]

    async def answer(self) -> bytes:
        return await self.reader.readuntil(b"well\r\n0\r\n\r\n")


@contextlib.asynccontextmanager
async def served(limits: Limits, app: Any = None) -> AsyncIterator[Site]:
    site = Site()
    connections = Connections(SERVICE, limits, lambda host: host == "127.0.0.9")
    config = server_config(app(site) if app else site, connections, lifespan="off")
    config.port, config.timeout_graceful_shutdown = 0, 1
    site.server = _QuietServer(config)
    task = asyncio.create_task(site.server.serve())

    async def started() -> bool:
        return site.server.started

    await eventually(started, "it is served", every=0.005)
    site.port = site.server.servers[0].sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        site.over.set()
        site.server.should_exit = True
        await task
        assert connections.count() == 0
        assert not connections._waiting


def closed(reason: str) -> float:
    return HTTP_CLOSED.labels(SERVICE, reason)._value.get()


async def test_who_sends_half_a_head_is_told_so_and_closed() -> None:
    before = closed("head")
    async with served(impatient("head")) as site:
        client = await site.client(HALF)
        answer = await client.all()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"x-content-type-options: nosniff" in answer
    assert closed("head") == before + 1


async def test_who_sends_a_head_byte_by_byte_has_no_longer() -> None:
    async with served(impatient("head")) as site:
        client = await site.client(HALF)
        with contextlib.suppress(ConnectionError):
            while not client.reader.at_eof():
                client.writer.write(b"a")
                await client.writer.drain()
                await asyncio.wait({asyncio.create_task(client.reader.read(1))}, timeout=0.01)


async def test_who_sends_nothing_at_all_is_closed() -> None:
    async with served(impatient("head")) as site:
        assert await (await site.client()).all() == b""


async def test_a_second_head_has_its_own_time() -> None:
    async with served(impatient("head")) as site:
        client = await site.client(ASKS)
        await client.answer()
        client.writer.write(HALF)
        assert (await client.all()).startswith(b"HTTP/1.1 408 ")


async def test_a_head_without_end_is_refused() -> None:
    async with served(PATIENT) as site:
        client = await site.client(HALF)
        with contextlib.suppress(ConnectionError):
            for _ in range(5):
                client.writer.write(b"a" * 20_000)
                await client.writer.drain()
                await asyncio.sleep(0)
        answer = await client.all()
        assert not answer or answer.startswith(b"HTTP/1.1 431 ")
    assert closed("head-size") >= 1


async def test_who_sends_half_a_body_is_closed() -> None:
    async with served(impatient("body")) as site:
        half = b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nfive."
        assert (await (await site.client(half)).all()).startswith(b"HTTP/1.1 408 ")


async def test_who_asks_for_nothing_more_is_closed_also_when_it_sends_empty_lines() -> None:
    async with served(impatient("idle")) as site:
        client = await site.client(ASKS)
        await client.answer()
        client.writer.write(b"\r\n")
        assert await client.all() == b""


async def test_a_stream_lasts_as_long_as_it_likes_and_makes_no_room() -> None:
    limits = Limits({"head": SHORT, "body": SHORT, "idle": SHORT}, SHORT, total=2, of_address=1)
    async with served(limits) as site:
        stream = await site.client(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n", address="127.0.0.2")
        await stream.reader.readuntil(b"begun")
        second = await site.client(ASKS, address="127.0.0.2")
        assert (await second.all()).startswith(b"HTTP/1.1 503 "), "there is no room beside it"
        for _ in range(2):  # the others' time is up twice
            assert (await (await site.client(HALF)).all()).startswith(b"HTTP/1.1 408 ")
        site.over.set()
        assert (await stream.answer()).endswith(b"well\r\n0\r\n\r\n")


async def test_who_never_reads_its_answer_is_closed_and_the_answer_given_up() -> None:
    before = closed("write")
    async with served(replace(PATIENT, write_seconds=SHORT)) as site:
        client = await site.client(b"GET /much HTTP/1.1\r\nhost: x\r\n\r\n")
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]

        async def given_up() -> bool:
            return site.ended == ["/much"] and not site.server.server_state.connections

        await eventually(given_up, "the answer is given up")
    assert closed("write") == before + 1


async def test_who_reads_slowly_gets_everything() -> None:
    async with served(replace(PATIENT, write_seconds=SHORT)) as site:
        client = await site.client(b"GET /much HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        many = 0
        while part := await client.reader.read(2**21):
            many += len(part)
            await asyncio.sleep(0.002)
        assert many > 512 * 65_536


async def test_silent_connections_make_room_for_others() -> None:
    before = closed("full")
    async with served(replace(PATIENT, total=10)) as site:
        other = await site.client(ASKS, address="127.0.0.2")
        await other.answer()
        silent = [await site.client(HALF) for _ in range(30)]
        assert await silent[0].all() == b"", "the one that waits longest goes first"
        newcomer = await site.client(ASKS, address="127.0.0.3")
        await newcomer.answer()
        other.writer.write(ASKS)
        await other.answer()
    assert closed("full") >= before + 21


async def test_who_reads_nothing_makes_room_for_others() -> None:
    before = closed("full")
    async with served(replace(PATIENT, total=3)) as site:
        asks = b"GET /much HTTP/1.1\r\nhost: x\r\n\r\n"
        greedy = [await site.client(asks, address=f"127.0.0.{n}") for n in (2, 2, 3)]
        for client in greedy:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]

        async def all_wait() -> bool:
            return [c.flow.write_paused for c in site.server.server_state.connections] == [True] * 3  # type: ignore[union-attr]

        await eventually(all_wait, "nobody reads", every=0.005)
        await (await site.client(ASKS, address="127.0.0.4")).answer()
        open_ = sorted(c.address for c in site.server.server_state.connections)  # type: ignore[union-attr]
        assert open_ == ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
        for client in greedy:
            client.writer.transport.abort()
    assert closed("full") == before + 1


async def test_where_nobody_waits_an_address_with_most_makes_room_for_one_with_fewer() -> None:
    async with served(replace(PATIENT, total=3)) as site:

        async def stream(address: str) -> Client:
            client = await site.client(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n", address=address)
            with contextlib.suppress(asyncio.IncompleteReadError):
                await client.reader.readuntil(b"begun")
            return client

        proxy = await stream("127.0.0.9")
        older, newer = await stream("127.0.0.2"), await stream("127.0.0.2")
        third = await stream("127.0.0.3")
        assert await newer.all() == b"\r\n", "the newest of who has most goes"
        refused = await site.client(ASKS, address="127.0.0.2")
        assert (await refused.all()).startswith(b"HTTP/1.1 503 "), "it has as many as everybody"
        assert len(site.server.server_state.connections) == 3
        for client in (proxy, older, third):
            client.writer.transport.abort()


async def test_where_each_address_has_one_stream_the_idlest_makes_room_for_a_newcomer() -> None:
    async with served(replace(impatient("idle"), total=3)) as site:

        async def stream(address: str) -> Client:
            client = await site.client(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n", address=address)
            await client.reader.readuntil(b"begun")
            return client

        proxy, oldest, other = [await stream(f"127.0.0.{n}") for n in (9, 2, 3)]

        async def lets_a_newcomer_in() -> bool:  # at first nobody is idle for long enough
            newcomer = await site.client(ASKS, address="127.0.0.4")
            return b" 200 " in await newcomer.reader.readline()

        await eventually(lets_a_newcomer_in, "a newcomer gets in", every=0.02)
        assert await oldest.all() == b"\r\n", "the idlest goes"
        assert {proxy.address, other.address} <= {c.client for c in site.server.server_state.connections}  # type: ignore[union-attr]
        for client in (proxy, other):
            client.writer.transport.abort()


async def test_an_address_has_a_bound_unless_it_is_a_proxy_s() -> None:
    async with served(replace(PATIENT, of_address=3)) as site:
        silent = [await site.client(HALF) for _ in range(4)]
        assert await silent[0].all() == b""
        for address in ("127.0.0.9", "127.0.0.2"):
            many = [await site.client(ASKS, address=address) for _ in range(3)]
            for client in many:
                await client.answer()
        many = [await site.client(HALF, address="127.0.0.9") for _ in range(9)]
        many[0].writer.write(b"\r\n\r\n")
        await many[0].answer()


async def test_behind_a_proxy_the_requests_of_each_client_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asks(path: str, client: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {client}\r\n\r\n".encode()

    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.9")
    async with served(PATIENT, lambda site: Shared(site, SERVICE, 2)) as site:
        greedy = [await site.client(asks("/stream", f"2001:db8::{n}"), address="127.0.0.9") for n in (1, 2)]
        for client in greedy:
            await client.reader.readuntil(b"begun")
        third = await site.client(asks("/", "2001:db8::3"), address="127.0.0.9")
        assert (await third.reader.readline()).startswith(b"HTTP/1.1 429 ")
        await (await site.client(asks("/", "2001:db9::1"), address="127.0.0.9")).answer()


async def test_what_is_no_http_is_refused() -> None:
    async with served(PATIENT) as site:
        answer = await (await site.client(b"\x16\x03\x01\x02\x00\x01\r\n\r\n")).all()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"x-content-type-options: nosniff" in answer


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        (b"GET / HTTP/1.1", b"host: a\r\nhost: b\r\n", b"400"),
        (b"GET / HTTP/1.1", b"host: a\r\nx: y\r\nHost: a\r\n", b"400"),
        (b"GET / HTTP/1.1", b"x: y\r\n", b"400"),
        (b"GET / HTTP/1.0", b"host: a\r\nhost: b\r\n", b"400"),
        (b"GET / HTTP/1.0", b"", b"200"),
        (b"GET / HTTP/1.1", b"host: a\r\nconnection: close\r\n", b"200"),
    ],
)
async def test_a_request_names_one_host(request_line: bytes, headers: bytes, status: bytes) -> None:
    async with served(PATIENT) as site:
        answer = await (await site.client(request_line + b"\r\n" + headers + b"\r\n")).all()
        assert answer.split(b" ", 2)[1] == status
        assert site.ended == (["/"] if status == b"200" else []), "what is refused reaches nobody"


async def test_pipelined_requests_are_answered_in_turn() -> None:
    async with served(PATIENT) as site:
        client = await site.client(ASKS * 3)
        for _ in range(3):
            await client.answer()


async def test_who_goes_away_ends_what_is_answered_though_another_request_waits_behind_it() -> None:
    async with served(PATIENT) as site:
        client = await site.client(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
        await client.reader.readuntil(b"begun")
        (connection,) = site.server.server_state.connections
        assert isinstance(connection, TimedProtocol)
        client.writer.write(ASKS)

        async def waits_behind() -> bool:
            return bool(connection.pipeline)

        await eventually(waits_behind, "the second request came", every=0.005)
        connection.end()

        async def over() -> bool:
            return site.ended == ["/wait"]

        await eventually(over, "the first is told that its client is gone", 10)


async def test_who_sends_ever_more_requests_ahead_is_closed() -> None:
    before = closed("ahead")
    async with served(PATIENT) as site:
        client = await site.client(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n" + ASKS * 10)
        await client.reader.readuntil(b"begun")
        assert not site.ended
        greedy = await site.client(ASKS * 1_000)
        await greedy.all()
        assert len(site.ended) <= 11
        site.over.set()
        for _ in range(11):
            await client.answer()
    assert closed("ahead") == before + 1


@pytest.mark.parametrize(
    ("before", "part"),
    [(b"0\r\n", b"a: b\r\n" * 3_000), (b"0\r\n", b"a" * 20_000), (b"5;", b"a" * 20_000)],
    ids=["many headers", "a long header", "an extension"],
)
async def test_what_surrounds_a_body_has_an_end(before: bytes, part: bytes) -> None:
    many = closed("head-size")
    async with served(PATIENT) as site:
        head = b"POST /body HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"
        client = await site.client(head + before)
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                client.writer.write(part)
                await client.writer.drain()
                await asyncio.sleep(0)
        answer = await client.all()
        assert not answer or answer.startswith(b"HTTP/1.1 431 ")
    assert closed("head-size") == many + 1


async def test_a_large_body_in_small_chunks_is_read_and_headers_behind_it_are_dropped() -> None:
    async with served(PATIENT) as site:
        scopes: list[Scope] = []
        answer = site.server.config.loaded_app

        async def seen(scope: Scope, receive: Receive, send: Send) -> None:
            await answer(scope, receive, send)
            scopes.append(scope)

        site.server.config.loaded_app = seen
        head = b"POST /body HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        client = await site.client(head, b"1\r\na\r\n" * 50_000, b"0\r\nx-late: 1\r\n\r\n")
        await client.answer()

        async def over() -> bool:
            return bool(scopes)

        await eventually(over, "the request is over")
        assert [name for name, _ in scopes[0]["headers"]] == [b"host", b"transfer-encoding"]


async def test_an_upgrade_that_is_not_offered_is_a_request_like_others() -> None:
    async with served(PATIENT) as site:
        asks = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        await (await site.client(asks)).answer()


async def test_two_refusals_go_out_in_a_round_and_what_is_answered_well_waits_for_none() -> None:
    sent: list[str] = []
    blocked = asyncio.Event()

    async def answer(scope: Scope, _: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": int(scope["path"]), "headers": []})

    async def ask(status: str) -> None:
        async def send(_: Message) -> None:
            sent.append(status)
            if status != "200":
                await blocked.wait()  # the client never reads it

        scope: Scope = {"type": "http", "path": status}
        await app(scope, None, send)  # type: ignore[arg-type]

    app = Paced(answer)
    tasks = [asyncio.create_task(ask(status)) for status in ("401", "404") * 10 + ("200",)]
    for rounds in range(1, 5):
        await asyncio.sleep(0)
        assert sent.count("200") == 1
        assert len(sent) <= 1 + 2 * rounds

    async def all_sent() -> bool:
        return len(sent) == len(tasks)

    await eventually(all_sent, "who reads nothing keeps no place")
    blocked.set()
    await asyncio.gather(*tasks)

"""Whatever goes wrong in the Python client, each event gets an answer, and nothing is sent after the end."""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from stepstream_client import (
    AsyncHttpProducer,
    AsyncProducer,
    BufferFull,
    HttpProducer,
    InvalidEvent,
    NotAcknowledged,
    Producer,
    ProducerClosed,
    Session,
    StepCompleted,
)
from tests.support.world import PATIENCE

PLATFORM = {"mcp_server_user_id": "u", "mcp_server_id": "srv", "mcp_server_session_id": "s"}


def done(**more: Any) -> StepCompleted:
    return StepCompleted(walkthrough_id="wt", step_id="a", **PLATFORM, **more)


class Api:
    """An API on a bad day: says byte for byte what it is told to, or nothing at all."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: list[bytes] = []
        self.asked = 0
        self.was_asked = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"(?i)content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                self.asked += 1
                self.was_asked.set()
                if self.answers:
                    writer.write(self.answers.pop(0))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def api(*answers: bytes) -> AsyncIterator[Api]:
    made = Api()
    made.answers = [*answers]
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()


def answer(body: bytes, *headers: str) -> bytes:
    head = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def verdicts(*results: dict[str, Any]) -> bytes:
    return answer(json.dumps({"through": "kafka", "results": results}).encode())


async def test_an_answer_that_cannot_be_read_is_asked_for_again() -> None:
    broken = answer(b"no gzip", "Content-Encoding: gzip")
    async with asyncio.timeout(PATIENCE), api(broken, verdicts({"index": 0, "status": "accepted"})) as at:
        async with AsyncHttpProducer(at.url, "key") as producer:
            event = done()
            assert (await producer.send(event)).event_id == event.event_id
        assert at.asked == 2


async def test_an_answer_that_makes_no_sense_settles_each_event() -> None:
    nonsense = verdicts({"index": {}, "status": "accepted"})
    async with asyncio.timeout(PATIENCE), api(nonsense) as at:
        producer = AsyncHttpProducer(at.url, "key")
        events = [done(), done()]
        found = await producer.send_many(events)
        await producer.close()
    assert [one.event_id for one in found if isinstance(one, NotAcknowledged)] == [e.event_id for e in events]
    assert "TypeError" in str(found[0])


async def test_what_goes_wrong_while_kafka_is_tried_again_settles_the_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problems = [KafkaConnectionError(), ZeroDivisionError("of a bug")]

    async def connected(_: AsyncProducer) -> None:
        raise problems.pop(0)

    monkeypatch.setattr(AsyncProducer, "_connected", connected)
    producer = AsyncProducer("127.0.0.1:9", source="/test", timeout=PATIENCE * 2)
    async with asyncio.timeout(PATIENCE):
        event = done()
        with pytest.raises(NotAcknowledged, match="ZeroDivisionError of a bug") as caught:
            await producer.send(event)
        await producer.close()
    assert caught.value.event_id == event.event_id


async def test_what_was_told_as_not_acknowledged_is_not_sent_after_the_end() -> None:
    wrong: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
    async with asyncio.timeout(PATIENCE), api() as at:
        producer = AsyncHttpProducer(at.url, "key", connections=1)
        outs = [producer.enqueue(done(metadata={"much": "x" * 8_000})) for _ in range(150)]
        await at.was_asked.wait()
        before = producer._posts.copy()
        await producer.close(within=0)
        assert [type(out.exception()) for out in outs] == [NotAcknowledged] * 150
        assert all(post.done() for post in before)
        running = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]
        assert not [name for name in running if name.startswith("AsyncHttpProducer")]
        assert at.asked == 1
    assert wrong == []


class _Held(threading.BoundedSemaphore):
    """Room that is there only once it is let go."""

    def __init__(self) -> None:
        super().__init__(1)
        self.wanted, self.let_go = threading.Event(), threading.Event()

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        self.wanted.set()
        assert self.let_go.wait(PATIENCE)
        return super().acquire(blocking, timeout)


def test_a_thread_that_waits_for_room_is_told_that_the_producer_was_closed() -> None:
    producer = HttpProducer("http://127.0.0.1:9", "key")
    producer._room = room = _Held()
    with ThreadPoolExecutor(1) as threads:
        out = threads.submit(producer.send, done())
        assert room.wanted.wait(PATIENCE)
        producer.close(within=0)
        room.let_go.set()
        with pytest.raises(ProducerClosed):
            out.result(PATIENCE)
    assert room._value == 1, "it left the room"  # type: ignore[attr-defined]


async def test_who_registers_while_the_producer_is_closed_is_told() -> None:
    async with asyncio.timeout(PATIENCE), api() as at:
        producer = HttpProducer(at.url, "key")
        asking = asyncio.create_task(asyncio.to_thread(producer.register_people, ["u-1"]))
        await at.was_asked.wait()
        await asyncio.to_thread(producer.close, 0)
        with pytest.raises(ProducerClosed):
            await asking


async def test_enqueue_takes_an_event_at_once_and_its_future_or_the_failure_says_what_became_of_it() -> None:
    first, second, third = done(), done(), done()
    async with (
        asyncio.timeout(PATIENCE),
        api(verdicts(*({"index": n, "status": "accepted"} for n in range(3)))) as at,
    ):
        async with AsyncHttpProducer(at.url, "key", max_buffered=3) as producer:
            out = producer.enqueue(first)
            with pytest.raises(InvalidEvent):
                producer.enqueue(b"no json")
            sent = [out, producer.enqueue(second), await producer.begin(third)]
            with pytest.raises(BufferFull, match="3 events are on their way: `begin` waits for room"):
                producer.enqueue(done())
            assert [(await one).event_id for one in sent] == [e.event_id for e in (first, second, third)]
        with pytest.raises(ProducerClosed):
            producer.enqueue(done())
        assert at.asked == 1


async def test_events_begin_in_the_order_in_which_they_are_given_however_that_is_done() -> None:
    given: list[str] = []

    class Noting(AsyncHttpProducer):
        async def _hand_over(self, event: Any, out: Any) -> None:
            given.append(event.event_id)
            await super()._hand_over(event, out)

    events = [done() for _ in range(4)]
    accepted = verdicts(*({"index": n, "status": "accepted"} for n in range(4)))
    async with asyncio.timeout(PATIENCE), api(accepted) as at, Noting(at.url, "key") as producer:
        outs = [producer.enqueue(events[0]), producer.enqueue(events[1]), await producer.begin(events[2])]
        await producer.send(events[3])
        assert all(out.done() for out in outs)
    assert given == [event.event_id for event in events]


async def test_one_may_be_given_where_several_may() -> None:
    person = {
        "status": "accepted",
        "index": 0,
        "distinct_id": "customer 18",
        "mcp_server_user_id": "u",
        "created": True,
    }
    session = {
        "status": "accepted",
        "index": 0,
        "session_id": "s",
        "mcp_server_session_id": "m",
        "created": True,
    }
    answers = [verdicts(one) for one in (person, session, {"index": 0, "status": "accepted"})] * 2
    async with asyncio.timeout(PATIENCE), api(*answers) as at:
        async with AsyncHttpProducer(at.url, "key") as producer:
            assert len(await producer.register_people("customer 18")) == 1
            assert len(await producer.register_sessions(Session("s"))) == 1
            assert len(await producer.send_many(done().as_dict())) == 1
        with HttpProducer(at.url, "key") as blocking:
            assert len(await asyncio.to_thread(blocking.register_people, "customer 18")) == 1
            assert len(await asyncio.to_thread(blocking.register_sessions, Session("s"))) == 1
            assert len(await asyncio.to_thread(blocking.send_many, done())) == 1
            with pytest.raises(InvalidEvent, match="this takes one event; `send_many` takes several"):
                blocking.send([done()])  # type: ignore[arg-type]
        assert at.asked == 6


@pytest.mark.parametrize("given", [{"distinct_id": "u"}, [{"distinct_id": "u"}], b"u", ["u", 7], 7])
async def test_people_that_are_no_ids_are_refused_before_anybody_is_made(given: Any) -> None:
    async with api() as at, AsyncHttpProducer(at.url, "key") as producer:
        with pytest.raises(TypeError, match=r'give ids, as in register_people\(\["customer 18"\]\)'):
            await producer.register_people(given)
        with pytest.raises(TypeError, match="give sessions, as in register_sessions"):
            await producer.register_sessions(given)
        assert at.asked == 0


@pytest.mark.parametrize(
    ("url", "key", "told"),
    [
        ("http://x", "", "key: it is empty; `stepstream keys create"),
        ("http://x", None, "key: it is None; `stepstream keys create"),
        ("http://x", 17, "key: it is no text"),
        ("http://x", "sst_secret\n", "key: it has a space, a line's end or a character that no key has"),
        ("http://x", "sst_secrét", "key: it has a space, a line's end"),
        ("127.0.0.1:8085", "sst_secret", "url: '127.0.0.1:8085' is no address"),
        ("stepstream.example", "sst_secret", "give that of analytics-api"),
        ("ftp://x", "sst_secret", "is no address"),
        ("sst_secret", "http://x", "url: an API key is no address"),
        ("http://", "sst_secret", "is no address"),
        ("", "sst_secret", "url: '' is no address"),
        (None, "sst_secret", "url: None is no address"),
    ],
)
def test_a_mistake_in_address_or_key_is_told_at_once_and_never_shows_the_key(
    url: Any, key: Any, told: str
) -> None:
    making = [lambda: HttpProducer(url, key), lambda: AsyncHttpProducer(url, key)]
    if url is not None and key is not None:
        making.append(lambda: Producer("127.0.0.1:9", source="/x", http_url=url, http_key=key))
    for make in making:
        with pytest.raises(ValueError, match=re.escape(told)) as caught:
            make()
        assert "secr" not in str(caught.value)


async def test_what_asking_again_does_not_mend_is_asked_once_and_says_which_address_is_asked() -> None:
    elsewhere = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    async with asyncio.timeout(PATIENCE), api(elsewhere, answer(b"{}")) as at:
        async with AsyncHttpProducer(at.url, "key") as producer:
            for told in ("HTTP 404 Not Found; is ", "HTTP 200 without verdicts; is "):
                with pytest.raises(NotAcknowledged, match=f"{told}{at.url} the address of analytics-api"):
                    await producer.send(done())
        assert at.asked == 2
    async with AsyncHttpProducer("http://127.0.0.1:1", "key", timeout=0.1) as producer:
        with pytest.raises(NotAcknowledged, match=r"is http://127\.0\.0\.1:1 the address of analytics-api"):
            await producer.send(done())

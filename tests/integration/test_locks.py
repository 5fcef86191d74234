"""Rows that somebody else has locked: what waits for them waits alone, and nothing of it is lost."""

import asyncio
import contextlib
import json
import os
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import httpx2
import pytest
from aiokafka import ConsumerRecord
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult

from services.analytics_api import store as store_of_api
from services.completion_recorder import erasure, transaction, write
from services.completion_recorder import waiting as events_that_wait
from services.completion_recorder.judge import Refused, read
from services.completion_recorder.load_counts import Load
from services.completion_recorder.resuming import Resumer
from services.completion_recorder.sending import DeadLetterSender
from services.completion_recorder.transaction import Recorded
from services.consumers.stored_positions import lock_free_positions
from services.operations import erase
from services.runtime.database import Pool, connected
from services.runtime.errors import StepstreamError
from services.runtime.kafka import DEAD_LETTER_MAX_BYTES, next_offsets
from services.runtime.producer import Producer, producer
from services.sankey_aggregator import counting
from services.walkthrough_mcp import catalog
from services.walkthrough_mcp import store as store_of_mcp
from services.walkthrough_mcp.exchange import Export, export_walkthrough, import_walkthrough
from tests.integration.test_erase import erased
from tests.support.agents import agent
from tests.support.world import (
    AGGREGATOR,
    OPERATOR,
    PATIENCE,
    RECORDER,
    Message,
    Service,
    World,
    as_role,
    completed,
    eventually,
    metric,
    moment,
    started,
)

pytestmark = pytest.mark.integration
#: What no transaction of a service takes by far, in seconds.
_MOMENT_SECONDS = 8.0

PEOPLE = ["ann", "bob", "cat", "dan"]


@contextlib.asynccontextmanager
async def locked(world: World, *statements: str) -> AsyncIterator[int]:
    """Somebody's transaction, in which these statements ran, stays open while the block lasts: their process."""
    async with world.connection() as other:
        transaction = other.transaction()
        await transaction.start()
        for statement in statements:
            await other.execute(statement)
        try:
            yield other.get_server_pid()
        finally:
            await transaction.rollback()


async def prepare(world: World) -> Pool:
    """Ann and Bob on one server and walkthrough, Cat and Dan on others."""
    await world.offer()
    await world.offer("wt_b", "xyz", "srv_2")
    await world.people(["ann", "bob"])
    await world.people(["cat", "dan"], "srv_2")
    return await world.recorder_pool()


def event_of(person: str, step: str, at: int) -> dict[str, Any]:
    if person in {"ann", "bob"}:
        return completed(person, step, at)
    return completed(
        person, {"a": "x", "b": "y", "c": "z"}[step], at, walkthrough_id="wt_b", mcp_server_id="srv_2"
    )


async def hand(
    world: World, pool: Pool, events: Sequence[dict[str, Any]], first: int = 0, partition: int = 0
) -> Recorded:
    """Hands events to the recorder as the records of a partition from offset `first` on."""
    topic = world.settings.topic
    messages = [Message.of(event) for event in events]
    records = [
        ConsumerRecord(topic, partition, first + i, 7, 0, m.key, m.value, None, 0, 0, m.headers)
        for i, m in enumerate(messages)
    ]
    accepted, refused = read(records, 10**13)
    return await transaction.record(
        pool, Load(world.settings.topic, next_offsets(records), accepted, refused)
    )


async def resume(pool: Pool) -> tuple[int, list[Refused]]:
    """How many events that waited are recorded now, and which are refused."""
    done, refused = 0, []
    async for resumed in events_that_wait.resuming(pool, 100):
        done += resumed.done
        refused += resumed.refused.values()
        async with events_that_wait.claim_refused(pool, resumed.refused) as told:
            told.update(dict.fromkeys(told, True))
    return done, refused


async def waiting(world: World) -> int:
    return int(await world.db.fetchval("select count(*) from waiting_events"))


def of_whom(completions: dict[tuple[str, str], Any]) -> dict[str, int]:
    people = [user for user, _ in completions]
    return {person: people.count(person) for person in people}


LOCKS = {
    "a user": ("select from mcp_server_user where id = 'ann' for update", {"ann"}),
    "a session": ("select from mcp_server_session where mcp_server_session_id = 's_ann' for update", {"ann"}),
    "a server": ("select from mcp_servers where id = 'srv_1' for update", {"ann", "bob"}),
    "a walkthrough": ("select from walkthroughs where id = 'wt_a' for update", {"ann", "bob"}),
    "a user who is being deleted": ("delete from mcp_server_user where id = 'ann'", {"ann"}),
    "a server that is being deleted": ("delete from mcp_servers where id = 'srv_1'", {"ann", "bob"}),
}


@pytest.mark.parametrize("what", LOCKS)
async def test_what_waits_for_a_lock_waits_alone_and_counts_when_it_goes(world: World, what: str) -> None:
    pool = await prepare(world)
    statement, held_up = LOCKS[what]
    events = [event_of(person, step, i) for person in PEOPLE for i, step in enumerate("abc")]
    async with locked(world, statement):
        recorded = await hand(world, pool, events)
        assert recorded[:4] == ([], 0, 3 * len(held_up), 0)
        assert of_whom(await world.completions()) == dict.fromkeys(set(PEOPLE) - held_up, 3)
        assert await world.recorded() == len(events)
        # What is read again meanwhile does not wait twice, and a look finds nothing to do.
        await hand(world, pool, events)
        assert await waiting(world) == 3 * len(held_up)
        assert await resume(pool) == (0, [])
    assert await world.db.fetchval("select count(*) from sankey_dirty") == 0
    assert await resume(pool) == (3 * len(held_up), [])
    assert of_whom(await world.completions()) == dict.fromkeys(PEOPLE, 3)
    assert await waiting(world) == 0
    # The aggregator has passed their offsets: marks tell it.
    marks = await world.db.fetch("select distinct mcp_server_user_id from sankey_dirty")
    assert {m[0] for m in marks} == held_up


async def test_an_event_that_waits_for_two_locks_holds_up_none_that_waited_for_one_of_them(
    world: World,
) -> None:
    pool = await prepare(world)
    async with locked(world, "select from walkthrough_steps where id = 'a' for update"):
        async with locked(world, "select from mcp_server_user where id = 'ann' for update"):
            await hand(world, pool, [completed("ann", step, i) for i, step in enumerate("abcde")])
            assert await waiting(world) == 5
        assert await resume(pool) == (4, [])
        assert set(await world.completions()) == {("ann", step) for step in "bcde"}
        assert await world.db.fetchval("select waits_for from waiting_events") == "walkthrough_steps a"
    assert await resume(pool) == (1, [])


async def test_an_operator_who_freezes_while_steps_are_moved_holds_up_no_event(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor other operators for long: PostgreSQL ends that connection, and nothing is changed."""
    pool = await prepare(world)
    plan_move, plans = catalog.plan_move, []

    async def plan_and_freeze(db: Any, step: str, place: int) -> catalog.StepMove:
        plans.append(await plan_move(db, step, place))
        if len(plans) == 2:  # the walkthrough is locked
            await hand(world, pool, [event_of("ann", "a", 1), event_of("bob", "b", 2)])
            assert await waiting(world) == 0
            await world.ended(db)
        return plans[-1]

    monkeypatch.setattr(catalog, "plan_move", plan_and_freeze)
    monkeypatch.setattr(catalog, "TRANSACTION_SECONDS", 1)
    with pytest.raises(StepstreamError):
        async with connected(world.settings_of(OPERATOR)) as db:
            await catalog.move_step(db, "c", 1)
    assert of_whom(await world.completions()) == {"ann": 1, "bob": 1}
    first = "select id from walkthrough_steps where walkthrough_id = 'wt_a' order by display_order limit 1"
    assert await world.db.fetchval(first) == "a"


async def test_an_import_under_way_holds_up_no_event_of_its_walkthrough(world: World) -> None:
    pool = await prepare(world)
    export = Export.model_validate(await export_walkthrough(world.db, "wt_a"))
    export.walkthrough.title, export.steps[0].title = "new", "new"
    async with world.connection() as other, other.transaction():
        await import_walkthrough(other, export, "srv_1")
        await hand(world, pool, [event_of("ann", "a", 1), event_of("bob", "b", 2)])
        assert await waiting(world) == 0
    assert of_whom(await world.completions()) == {"ann": 1, "bob": 1}


async def test_a_locked_step_holds_up_that_step_alone(world: World) -> None:
    pool = await prepare(world)
    async with locked(world, "select from walkthrough_steps where id = 'b' for update"):
        assert (await hand(world, pool, [completed("ann", step, 1) for step in "abc"])).waiting == 1
    await resume(pool)
    assert set(await world.completions()) == {("ann", step) for step in "abc"}


async def test_a_locked_completion_or_start_holds_up_what_would_change_it_alone(world: World) -> None:
    pool = await prepare(world)
    await hand(world, pool, [completed("ann", "a", 50), completed("bob", "a", 50), started("ann", 50)])
    lock_all = [
        "select from walkthrough_step_completions where mcp_server_user_id = 'ann' for update",
        "update walkthrough_starts set started_at = 60",
    ]
    async with locked(world, *lock_all):
        more = [completed("ann", "a", 40), completed("ann", "b", 60), completed("bob", "a", 40)]
        recorded = await hand(world, pool, [*more, started("ann", 40)], first=3)
        assert recorded.waiting == 2
        assert {k: at for k, (at, _) in (await world.completions()).items()} == {
            ("ann", "a"): moment(50),
            ("ann", "b"): moment(60),
            ("bob", "a"): moment(40),
        }
    await resume(pool)
    assert (await world.completions())["ann", "a"][0] == moment(40)
    assert await world.db.fetchval("select started_at from walkthrough_starts") == moment(40)


async def test_rows_that_somebody_is_writing_hold_up_few_and_lose_nothing(world: World) -> None:
    """Nobody sees rows that are not committed yet: they are found by trying."""
    pool = await prepare(world)
    people = [f"p{i:03}" for i in range(300)]
    await world.people(people)
    events = [completed(p, "a", i) for i, p in enumerate(people)]
    theirs = (
        "insert into walkthrough_step_completions select 'theirs_' || id, id, 'wt_a', 'a', 'srv_1', 's_' || id, 0"
        " from mcp_server_user where id in ('p007', 'p150', 'p299')"
    )
    async with locked(world, theirs):
        recorded = await hand(world, pool, events)
        assert 3 <= recorded.waiting < 100
        assert len(await world.completions()) == len(people) - recorded.waiting
    while await waiting(world):
        await resume(pool)
    assert len(await world.completions()) == len(people)


async def test_many_rows_that_somebody_is_writing_hold_up_none_of_the_others_for_ever(world: World) -> None:
    """More than one look finds: who is beside them is not beside them the next time."""
    pool = await prepare(world)
    people = [f"p{i:03}" for i in range(400)]
    await world.people(people)
    theirs = (
        "insert into walkthrough_step_completions select 'theirs_' || id, id, 'wt_a', 'a', 'srv_1', 's_' || id, 0"
        " from mcp_server_user where id like 'p%3' or id like 'p%7'"
    )
    async with locked(world, theirs):
        await hand(world, pool, [completed(person, "a", i) for i, person in enumerate(people)])

        async def the_others_are_there() -> bool:
            await resume(pool)
            return await waiting(world) == 80

        await eventually(the_others_are_there, "all others are recorded", every=0)
        assert len(await world.completions()) == 320


async def test_whoever_is_erased_while_locked_counts_no_more_and_goes_with_the_lock(world: World) -> None:
    pool = await prepare(world)
    await hand(world, pool, [completed("ann", "a", 1), completed("bob", "a", 1)])
    async with locked(world, "select from mcp_server_user where id = 'ann' for update"):
        await hand(world, pool, [completed("ann", "b", 2)], first=2)
        recorded = await hand(world, pool, [completed("ann", "c", 3), erased("ann"), erased("bob")], first=3)
        assert recorded[:4] == ([], 1, 1, 0)
        assert set(await world.completions()) == {("ann", "a")}
    while await waiting(world):
        await resume(pool)
    assert await world.completions() == {}
    assert await world.db.fetch("select id from mcp_server_user where id in ('ann', 'bob')") == []


async def test_erasures_of_many_who_are_locked_hold_up_nobody(world: World) -> None:
    """What a foreign key takes is enough: each of them would be waited for."""
    pool = await prepare(world)
    people = [f"p{i:03}" for i in range(200)]
    await world.people(people)
    events = [erased(person) for person in [*people, "bob"]]
    async with locked(world, "select from mcp_server_user where id like 'p%' for key share"):
        assert (await hand(world, pool, events)).waiting == len(people)
        waits_for = await world.db.fetch("select waits_for from waiting_events")
        assert {row[0] for row in waits_for} == {f"mcp_server_user {person}" for person in people}
        assert await world.db.fetchval("select count(*) from mcp_server_user where id = 'bob'") == 0
    assert await resume(pool) == (len(people), [])


async def test_erasures_that_wait_for_what_is_kept_of_somebody_take_turns(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than are tried at once: those who are behind them are not behind them for ever."""
    monkeypatch.setattr(erasure, "_PROBES", 2)
    monkeypatch.setattr(write, "PATIENCE", "5ms")
    pool = await prepare(world)
    people = [f"p{i:02}" for i in range(20)]
    await world.people(people)
    async with locked(
        world,
        "select from mcp_server_session where mcp_server_session_id < 's_p10' and mcp_server_session_id > 's_p' for update",
    ):
        await hand(world, pool, [erased(person) for person in people])

        async def the_others_are_gone() -> bool:
            await resume(pool)
            return await waiting(world) == 10

        await eventually(the_others_are_gone, "whom nobody has locked is gone", every=0)
    await resume(pool)
    assert await waiting(world) == 0
    assert await world.db.fetchval("select count(*) from mcp_server_user where id like 'p%'") == 0


async def test_whoever_is_erased_by_an_operator_leaves_nothing_that_waits(world: World) -> None:
    pool = await prepare(world)
    async with locked(world, "select from walkthrough_steps where id = 'a' for update"):
        await hand(world, pool, [completed("ann", "a", 1), completed("bob", "a", 1)])
        assert json.loads((await world.invoke("erase", "ann", "-o", "json")).stdout)["removed"][
            "waiting_events"
        ]
        done = await world.invoke("erase", "ann", "--execute")
        assert done.returncode == 0, done.stderr
        assert await waiting(world) == 1
    await resume(pool)
    assert set(await world.completions()) == {("bob", "a")}


async def test_an_operator_who_erases_somebody_locked_is_told_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await prepare(world)
    monkeypatch.setitem(erase._LOCK, "lock_timeout", "100ms")
    async with locked(world, "select from mcp_server_user where id = 'ann' for update"):
        refused = await world.invoke("erase", "ann", "--execute")
    assert (refused.returncode, "somebody else has locked" in refused.stderr) == (1, True)
    assert (await world.invoke("erase", "ann", "--execute")).returncode == 0


@pytest.mark.parametrize(
    ("service", "table"), [(RECORDER, "walkthrough_step_completions"), (AGGREGATOR, "sankey_freshness")]
)
async def test_a_consumer_that_hangs_in_its_transaction_lets_its_locks_go(
    world: World, service: str, table: str
) -> None:
    """Or one whose machine is gone: without a bound PostgreSQL would wait for it for hours."""
    pool = await prepare(world)
    hanging = await world.start(service, stuck_seconds=2).ready()
    if service == AGGREGATOR:
        await hand(world, pool, [completed("ann", "a", 1)])

    async def waits() -> bool:
        query = (
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and application_name = $1 and wait_event_type = 'Lock'"
        )
        return bool(await world.db.fetchval(query, f"stepstream {service}"))

    async with locked(world, f"lock table {table} in access exclusive mode"):
        if service == RECORDER:
            await world.produce([completed("ann", "a", 1)])
        else:
            await world.db.execute(
                "insert into sankey_dirty (mcp_server_user_id, walkthrough_id) values ('ann', 'wt_a')"
            )
        await eventually(waits, "it is in its transaction", every=0.002)
        os.kill(hanging.process.pid, signal.SIGSTOP)

    async def another_goes_on() -> bool:
        with contextlib.suppress(asyncpg.LockNotAvailableError):
            if service == RECORDER:
                for partition in range(3):
                    await hand(world, pool, [completed("bob", "b", 1)], partition=partition)
            else:
                follow = counting.recount_from_events(await world.aggregator_pool(), {("ann", "wt_a")})
                await asyncio.wait_for(follow, PATIENCE)
            return True
        return False

    await eventually(another_goes_on, "another goes on", 30)


@pytest.mark.parametrize("settings", [store_of_mcp.SERVER_SETTINGS, store_of_api.server_settings(30)])
async def test_an_answer_that_hangs_in_its_transaction_lets_its_locks_go(
    world: World, settings: dict[str, str]
) -> None:
    """Erasures and deletions would wait for a person whose agent's call hangs; migrations for a read."""
    async with connected(world.settings, server_settings=settings) as connection:
        bound = await connection.fetchval(
            "select setting::int from pg_settings where name = 'transaction_timeout'"
        )
    assert 0 < bound <= 90_000


async def wait_for(world: World, count: int) -> None:
    async def there() -> bool:
        return await waiting(world) == count

    await eventually(there, f"{count} events wait")


async def test_a_forgotten_lock_on_one_person_stops_nobody_else(world: World) -> None:
    """With the real services: what waits shows everywhere, and is counted when the lock goes."""
    await prepare(world)
    recorder, _ = world.start_both()
    api = await world.start_api()
    odd = [("h", b"\xff\xfe"), ("", b""), ("h", b"2")]
    async with locked(
        world,
        "select from mcp_server_user where id = 'ann' for update",
        "select from mcp_server_session where mcp_server_session_id = 's_bob' for update",
    ) as locker:
        events = [event_of(person, step, i) for person in PEOPLE for i, step in enumerate("abc")]
        await world.produce([Message(b"k", json.dumps(e).encode(), odd) for e in events])
        await wait_for(world, 6)
        await world.drained()
        assert of_whom(await world.completions()) == {"cat": 3, "dan": 3}
        await world.assert_exact()

        async def told() -> bool:
            return (await api.get("walkthroughs/wt_a/sankey"))["freshness"]["events_waiting"] == 6

        await eventually(told, "the API says that events wait")
        assert (await api.get("walkthroughs/wt_a/sankey"))["freshness"]["current"] is False
        status = json.loads((await world.invoke("status", "-o", "json")).stdout)
        assert status["events_waiting"]["events"] == 6
        assert set(status["events_waiting"]["rows"]) == {"mcp_server_user ann", "mcp_server_session s_bob"}
        assert status["events_waiting"]["locked_by"][0]["pid"] == locker
        assert any("6 events wait for what somebody else has locked" in p for p in status["problems"])
        verified = await world.invoke("verify", "-o", "json")
        assert (verified.returncode, json.loads(verified.stdout)["events_waiting"]) == (0, 6)

        async def measured() -> bool:
            return await metric(recorder, "stepstream_events_waiting") == 6

        await eventually(measured, "the metric says that events wait")
    await wait_for(world, 0)
    await world.drained()
    assert of_whom(await world.completions()) == dict.fromkeys(PEOPLE, 3)
    await world.assert_exact()


async def test_a_transaction_that_stays_open_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It locks nothing, and keeps vacuum from what is changed; one that has read nothing keeps nothing."""
    other = await asyncpg.connect(as_role(world.settings.dsn, OPERATOR, world.base))
    try:
        await other.execute("begin isolation level repeatable read; select count(*) from sankey_endings")
        for seconds, is_named in ((900, False), (0, True)):
            monkeypatch.setattr("services.operations.status.OLD_SNAPSHOT_SECONDS", seconds)
            done = await world.invoke("status", "-o", "json")
            seen = json.loads(done.stdout)
            pids = [row["pid"] for row in seen["old_snapshots"]]
            assert pids == ([other.get_server_pid()] if is_named else [])
            told = f"pg_terminate_backend({other.get_server_pid()})" in " ".join(seen["problems"])
            assert told is is_named
        await other.execute("rollback; begin")
        assert json.loads((await world.invoke("status", "-o", "json")).stdout)["old_snapshots"] == []
    finally:
        await other.close()


async def test_how_long_the_oldest_transaction_has_been_open_is_a_line_of_status(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one that has read nothing, and was prepared; of other roles there is at least one."""
    monkeypatch.setattr("services.operator_cli.status._LONG_SECONDS", 0)

    async def told() -> tuple[dict[str, Any], str]:
        seen = json.loads((await world.invoke("status", "-o", "json")).stdout)["transactions"]
        page = (await world.invoke("status")).stdout
        return seen, next((line for line in page.splitlines() if line.startswith("oldest transaction")), "")

    mine = await asyncpg.connect(as_role(world.settings.dsn, OPERATOR, world.base))
    try:
        await mine.execute("begin")
        seen, line = await told()
        assert seen["oldest_seconds"] > 0
        assert seen["not_told"] == 0
        assert " open for " in line
    finally:
        await mine.close()
    monkeypatch.setattr("services.operator_cli.status._LONG_SECONDS", 60)
    async with world.connection() as other:
        await other.execute("begin")
        seen, line = await told()
        assert seen == {"oldest_seconds": 0, "not_told": 1}
        assert "1 transaction of roles of which PostgreSQL does not tell since when" in line
    assert await told() == ({"oldest_seconds": 0, "not_told": 0}, "")
    async with forgotten(world, "lock table dead_letters_handled in share mode"):
        seen, _ = await told()
        assert seen["oldest_seconds"] > 0


async def test_how_long_the_oldest_transaction_has_been_open_is_a_metric(world: World) -> None:
    """Whoever has it, and although the aggregator's role is not told since when others have theirs."""
    age = "stepstream_oldest_transaction_seconds"
    # The aggregator's connections are of a moment; a transaction of another test's database is none of ours.
    aggregator = await world.start(AGGREGATOR).ready()

    async def is_seen() -> bool:
        return await metric(aggregator, age) > _MOMENT_SECONDS

    async def is_forgotten() -> bool:
        return await metric(aggregator, age) < _MOMENT_SECONDS

    async with world.connection() as other:
        await other.execute("begin isolation level repeatable read; select count(*) from sankey_endings")
        may_see = "select xact_start from pg_stat_activity where pid = $1"
        mine = await asyncpg.connect(as_role(world.settings.dsn, AGGREGATOR, world.base))
        try:
            assert await mine.fetchval(may_see, other.get_server_pid()) is None
        finally:
            await mine.close()
        await eventually(is_seen, "the metric shows it")
        await other.execute("rollback")
        await eventually(is_forgotten, "the metric shows none")
    async with forgotten(world, "lock table dead_letters_handled in share mode"):
        await eventually(is_seen, "the metric shows one that was prepared")
    await eventually(is_forgotten, "the metric shows none")


@contextlib.asynccontextmanager
async def forgotten(world: World, *statements: str) -> AsyncIterator[str]:
    """A transaction that was prepared, and belongs to no process, while the block lasts: its name.

    Names are the whole server's, which tests share.
    """
    name = f"it's {uuid.uuid4()}"
    quoted = "'" + name.replace("'", "''") + "'"
    if await world.db.fetchval("show max_prepared_transactions") == "0":
        pytest.skip("this PostgreSQL prepares no transactions")
    async with world.connection() as other:
        await other.execute("begin")
        for statement in statements:
            await other.execute(statement)
        await other.execute(f"prepare transaction {quoted}")
    try:
        yield name
    finally:
        await world.db.execute(f"rollback prepared {quoted}")


async def test_a_prepared_transaction_stops_nobody_else_and_is_named(world: World) -> None:
    """It has locked a person, counts and a table: what needs them waits alone, until it ends."""
    await prepare(world)
    recorder, aggregator = world.start_both()
    await world.produce([event_of(p, "a", 1) for p in PEOPLE])
    await world.drained()
    async with forgotten(
        world,
        "select from mcp_server_user where id = 'ann' for update",
        "select from sankey_endings where walkthrough_id = 'wt_b' for update",
        "lock table dead_letters_handled in share mode",
    ) as name:
        await world.produce([event_of(p, "b", 2) for p in PEOPLE])
        await wait_for(world, 1)

        async def counts_wait() -> bool:
            waiting = "select count(*) from sankey_dirty where waits_for is not null"
            return bool(await world.db.fetchval(waiting) == 2)

        await eventually(counts_wait, "the counts of the other walkthrough wait")
        assert of_whom(await world.completions()) == {"ann": 1, "bob": 2, "cat": 2, "dan": 2}
        status = json.loads((await world.invoke("status", "-o", "json")).stdout)
        for what in ("events_waiting", "journeys_waiting"):
            locker = status[what]["locked_by"][0]
            assert (locker["pid"], locker["prepared"]) == (None, name)
        told = " ".join(status["problems"])
        quoted = name.replace("'", "''")
        assert told.count(f"; locked by the prepared transaction '{quoted}'") == 2
        assert f"`rollback prepared '{quoted}'` ends it" in told

        async def table_is_named() -> bool:
            status = json.loads((await world.invoke("status", "-o", "json")).stdout)
            return [(t["name"], t["prepared"]) for t in status["tables_locked"]] == [
                ("dead_letters_handled", name)
            ]

        await eventually(table_is_named, "status names the table that it has locked")
        for service in (recorder, aggregator):
            for path in ("live", "ready"):
                url = f"http://127.0.0.1:{service.port}/health/{path}"
                assert (await asyncio.to_thread(httpx2.get, url)).status_code == 200
    await wait_for(world, 0)
    await world.drained()
    assert of_whom(await world.completions()) == dict.fromkeys(PEOPLE, 2)
    await world.assert_exact()


async def test_a_position_that_a_prepared_transaction_has_locked_is_named_with_it(world: World) -> None:
    pool = await prepare(world)
    world.start(RECORDER)
    await world.produce([event_of(p, "a", 1) for p in PEOPLE])

    async def is_there() -> bool:
        return bool(await world.db.fetchval("select count(*) from recorded_offsets where reads_from > 0"))

    await eventually(is_there, "positions are written")
    async with forgotten(world, "select from recorded_offsets for update") as name, pool.acquire() as db:
        locked_ones = await lock_free_positions(db, RECORDER, world.settings.topic, [0, 1, 2])
        assert locked_ones
        assert all(f"by the prepared transaction '{name}'" in told for told in locked_ones.values())


async def test_completions_that_are_locked_whole_leave_the_figures_readable(world: World) -> None:
    """As by `vacuum full`, `cluster`, `reindex` and `alter table`: who needs no completion is answered."""
    await prepare(world)
    recorder, aggregator = world.start_both()
    await world.produce([event_of(p, "a", 1) for p in PEOPLE])
    await world.drained()
    api = await world.start_api()
    async with locked(world, "lock table walkthrough_step_completions in access exclusive mode") as pid:
        await world.produce([event_of(p, "b", 2) for p in PEOPLE])
        codes = [(await api.ask(path)).status_code for path in ("walkthroughs/wt_a/sankey", "sessions/s_ann")]
        assert codes == [200, 503]

        async def is_named() -> bool:
            status = json.loads((await world.invoke("status", "-o", "json")).stdout)
            told = "walkthrough_step_completions is locked whole (AccessExclusiveLock"
            return [(t["name"], t["pid"]) for t in status["tables_locked"]] == [
                ("walkthrough_step_completions", pid)
            ] and any(told in p and f"by process {pid}" in p for p in status["problems"])

        await eventually(is_named, "status names the table and who has it")
        for service in (recorder, aggregator):
            url = f"http://127.0.0.1:{service.port}/health/live"
            assert (await asyncio.to_thread(httpx2.get, url)).status_code == 200
    await world.drained()
    assert await world.db.fetchval("select count(*) from waiting_events") == 0
    assert of_whom(await world.completions()) == dict.fromkeys(PEOPLE, 2)
    await world.assert_exact()


async def test_what_waits_is_told_of_to_whom_it_concerns(world: World) -> None:
    """A lock in one walkthrough leaves the answers about another current, and is no other organization's to see."""
    await prepare(world)
    await world.db.execute(
        "with neighbours as ("
        "insert into organization (id, name, created_at) values ('other', 'other', now()) returning id),"
        " servers as (update mcp_servers set organization_id = 'other' where id = 'srv_2')"
        " update walkthroughs set organization_id = 'other' where id = 'wt_b'"
    )
    world.start_both()
    api = await world.start_api()
    keys = {"org": api.key, "other": await world.make_key("other")}

    async def fresh(organization: str, *paths: str) -> list[tuple[bool | None, int]]:
        answers = [(await api.ask(path, key=keys[organization])).json()["freshness"] for path in paths]
        return [(answer["current"], answer["events_waiting"]) for answer in answers]

    def told(of_org: tuple[bool, int], of_other: tuple[bool, int]) -> Callable[[], Awaitable[bool]]:
        async def is_told() -> bool:
            return (
                await fresh("org", "walkthroughs/wt_a/sankey", "organization", "sessions/s_bob")
                == [of_org] * 3
                and await fresh("other", "walkthroughs/wt_b/sankey", "organization", "organization/refused")
                == [of_other] * 3
            )

        return is_told

    await world.produce([completed("ann", "a", 1), event_of("cat", "a", 1)])
    await world.drained()
    async with locked(world, "select from mcp_server_user where id = 'ann' for update"):
        await world.produce([completed("ann", "b", 2)])
        await eventually(told((False, 1), (True, 0)), "it is told to its organization alone")
        await world.produce([erased("ann")])

        async def erasure_waits_alone() -> bool:
            rows = await world.db.fetch("select walkthrough_id from waiting_events")
            return [row["walkthrough_id"] for row in rows] == [None]

        await eventually(erasure_waits_alone, "what waited of a person is forgotten, and the erasure waits")
        await eventually(told((False, 1), (True, 0)), "the erasure of a person is told to theirs")
    await eventually(told((True, 0), (True, 0)), "nothing waits")


async def test_what_is_gone_with_the_lock_becomes_dead_letters_byte_for_byte(world: World) -> None:
    await prepare(world)
    world.start(RECORDER)
    odd = [("h", b"\xff\xfe"), ("", b""), ("h", b"2")]
    value = json.dumps(completed("ann", "a", 1)).encode()
    async with world.connection() as other, other.transaction():
        await other.execute("delete from mcp_server_user where id = 'ann'")
        await world.produce([Message(b"\xff key", value, odd), completed("bob", "a", 1)])
        await wait_for(world, 1)
    await wait_for(world, 0)
    (letter,) = await world.dead_letters()
    assert (letter.key, letter.value) == (b"\xff key", value)
    assert list(letter.headers[:3]) == odd
    told = dict(letter.headers[3:])
    assert told["stepstream-error-class"] == b"unknown-user"
    assert told["stepstream-topic"] == world.settings.topic.encode()
    assert set(await world.completions()) == {("bob", "a")}


@contextlib.asynccontextmanager
async def looking(world: World) -> AsyncIterator[tuple[Resumer, Producer]]:
    """A recorder that only looks at what waits, and its producer."""
    topic = world.settings.dead_letter_topic
    async with producer(world.settings, topic, max_request_size=DEAD_LETTER_MAX_BYTES) as letters:
        sender = DeadLetterSender(world.settings, letters, asyncio.sleep)
        yield Resumer(world.settings, await world.recorder_pool(), sender), letters


async def refused_ones(world: World, events: Sequence[dict[str, Any]]) -> None:
    """These events wait, and nothing that they refer to is there any more."""
    pool = await prepare(world)
    async with world.connection() as other, other.transaction():
        await other.execute("delete from mcp_server_user")
        assert (await hand(world, pool, events)).waiting == len(events)


async def test_two_recorders_send_what_waited_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await refused_ones(world, [completed("ann", step, 1) for step in "abc"])
    sending, go_on = asyncio.Event(), asyncio.Event()
    async with looking(world) as (one, letters), looking(world) as (two, _):
        start = letters.start

        async def slowly() -> Any:
            sending.set()
            await go_on.wait()
            return await start()

        monkeypatch.setattr(letters, "start", slowly)
        first = asyncio.create_task(one.resume())
        await sending.wait()
        assert await two.resume() == 0
        go_on.set()
        assert await first == 3
    assert len(await world.dead_letters()) == 3
    assert await waiting(world) == 0


async def test_what_is_too_large_for_a_dead_letter_is_one_that_is_cut(world: World) -> None:
    events = [completed("ann", step, 1, more="x" * 2_100_000 if step == "b" else "") for step in "abc"]
    await refused_ones(world, events)
    async with looking(world) as (recorder, _):
        assert await recorder.resume() == 3
    assert await waiting(world) == 0
    letters = {dict(x.headers)["stepstream-offset"]: x for x in await world.dead_letters()}
    assert len(letters) == 3
    assert {number for number, x in letters.items() if "stepstream-cut" in dict(x.headers)} == {b"1"}
    value = json.dumps(events[1]).encode()
    cut = letters[b"1"]
    assert cut.value
    assert value.startswith(cut.value)
    assert dict(cut.headers)["stepstream-cut-value-bytes"] == str(len(value)).encode()


async def test_large_events_wait_and_are_looked_at_a_few_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once they are more than a statement, or the memory, holds."""
    monkeypatch.setattr(events_that_wait, "_PORTION_BYTES", 250_000)
    pool = await prepare(world)
    async with locked(world, "select from mcp_server_user where id = 'ann' for update"):
        await hand(world, pool, [completed("ann", step, 1, more="x" * 100_000) for step in "abcde"])
    written = "select count(*) from waiting_events group by xmin, cmin order by min(id)"
    assert [row[0] for row in await world.db.fetch(written)] == [3, 2]
    # The first tells that the lock has gone.
    assert [resumed.done async for resumed in events_that_wait.resuming(pool, 100)] == [1, 3, 1]
    assert of_whom(await world.completions()) == {"ann": 5}


async def dies(service: Service) -> None:
    async def dead() -> bool:
        return service.process.poll() is not None

    await eventually(dead, "it dies")


@pytest.mark.parametrize("point", ["waiting.in-transaction", "waiting.dead-letters-sent"])
async def test_killed_while_it_records_what_waited_and_started_again(world: World, point: str) -> None:
    await prepare(world)
    lock = (
        ["select from mcp_server_user where id = 'ann' for update"]
        if point == "waiting.in-transaction"
        else ["delete from mcp_server_user where id = 'ann'"]
    )
    doomed = world.start(RECORDER, crash_at=f"{point}:1", session_timeout_seconds=2)
    async with world.connection() as other, other.transaction():
        for statement in lock:
            await other.execute(statement)
        await world.produce([event_of(p, "a", 1) for p in PEOPLE])
        await wait_for(world, 1)
    await dies(doomed)
    assert await waiting(world) == 1
    world.start_both(session_timeout_seconds=2)
    await wait_for(world, 0)
    await world.drained()
    letters = await world.dead_letters()
    kept = set(PEOPLE) if point == "waiting.in-transaction" else set(PEOPLE) - {"ann"}
    assert of_whom(await world.completions()) == dict.fromkeys(kept, 1)
    assert {json.loads(letter.value or b"")["mcp_server_user_id"] for letter in letters} == set(PEOPLE) - kept
    await world.assert_exact()


# --- counts and positions ---------------------------------------------------------------------------------

LOCKED_COUNTS = {
    "a journey": ("select from sankey_journeys where mcp_server_user_id = 'ann' for update", {"ann"}),
    "a cell": ("update sankey_transitions set journeys = 9 where walkthrough_id = 'wt_a'", {"ann", "bob"}),
    "an ending": ("select from sankey_endings where walkthrough_id = 'wt_a' for update", {"ann", "bob"}),
    "a freshness": ("select from sankey_freshness where walkthrough_id = 'wt_a' for update", {"ann", "bob"}),
    "a cell that somebody is inserting": (
        "insert into sankey_transitions select walkthrough_id, mcp_server_id, began_on, 1, 'b', 'a', 1, 1, 1"
        " from sankey_transitions where walkthrough_id = 'wt_a'",
        {"ann", "bob"},
    ),
}


async def prepare_counted(world: World) -> Pool:
    """A step of Ann, Bob, Cat and Dan is counted, and the one before is recorded."""
    pool = await prepare(world)
    aggregator = await world.aggregator_pool()
    everybody = {(p, "wt_a" if p in {"ann", "bob"} else "wt_b") for p in PEOPLE}
    await hand(world, pool, [event_of(p, "a", 1) for p in PEOPLE])
    await counting.recount_from_events(aggregator, everybody)
    await hand(world, pool, [event_of(p, "b", 0) for p in PEOPLE], first=4)
    return aggregator


async def count_all(aggregator: Pool, locked: dict[str, str] | None = None) -> set[str]:
    """Counts the journeys of everybody; whose wait."""
    journeys = {(p, "wt_a" if p in {"ann", "bob"} else "wt_b") for p in PEOPLE}
    recounted = await counting.recount_from_events(aggregator, journeys, locked=locked)
    return {user for user, _ in recounted.waiting}


async def count_what_waited(aggregator: Pool) -> int:
    return sum([resumed.done async for resumed in counting.recount_from_waiting(aggregator, 100)])


async def marks(world: World) -> list[str]:
    rows = await world.db.fetch("select mcp_server_user_id from sankey_dirty where waits_for is not null")
    return sorted(row[0] for row in rows)


@pytest.mark.parametrize("what", LOCKED_COUNTS)
async def test_locked_counts_wait_alone_and_are_exact_when_the_lock_goes(world: World, what: str) -> None:
    aggregator = await prepare_counted(world)
    statement, held_up = LOCKED_COUNTS[what]
    async with locked(world, statement):
        assert await count_all(aggregator) == held_up
        counted = await world.db.fetch(
            "select mcp_server_user_id from sankey_journeys where cardinality(step_ids) = 2"
        )
        assert {row[0] for row in counted} == set(PEOPLE) - held_up
        # What comes meanwhile is tried part by part, and does not wait twice; a look finds nothing to do.
        assert await count_all(aggregator, {}) == held_up
        assert await count_what_waited(aggregator) == 0
        assert await marks(world) == sorted(held_up)
        # A mark that somebody has locked is no mark to rely on.
        async with locked(world, "select from sankey_dirty where mcp_server_user_id = 'ann' for update"):
            assert await count_all(aggregator, {}) == held_up
        assert await marks(world) == sorted([*held_up, "ann"])
    assert await count_what_waited(aggregator) == len(held_up) + 1
    assert await marks(world) == []
    await world.assert_exact()


async def test_a_table_that_is_locked_whole_is_waited_for(world: World) -> None:
    """As in the swap of a rebuild: nothing is set aside."""
    aggregator = await prepare_counted(world)
    async with locked(world, "lock table sankey_journeys in exclusive mode"):
        counting_all = asyncio.create_task(count_all(aggregator, {}))

        async def waits() -> bool:
            query = (
                "select count(*) from pg_locks where relation = 'sankey_journeys'::regclass and not granted"
            )
            return bool(await world.db.fetchval(query))

        await eventually(waits, "it waits")
    assert await counting_all == set()
    await world.assert_exact()


@pytest.mark.parametrize("table", ["sankey_journeys", "sankey_transitions"])
async def test_an_aggregator_behind_a_table_that_is_locked_whole_is_not_stuck(
    world: World, table: str
) -> None:
    """It tries again for as long as the table is locked: beyond what a batch may take, too."""
    await prepare(world)
    world.start(RECORDER)
    aggregator = await world.start(AGGREGATOR, stuck_seconds=7).ready()
    async with locked(world, f"lock table {table} in access exclusive mode"):
        await world.produce([event_of(p, "a", 1) for p in PEOPLE])

        async def has_tried() -> bool:
            assert aggregator.process.poll() is None, aggregator.log.read_text()
            return await metric(aggregator, "stepstream_retries_total") >= 2

        await eventually(has_tried, "it tries again")
        url = f"http://127.0.0.1:{aggregator.port}/health/live"
        assert (await asyncio.to_thread(httpx2.get, url)).status_code == 200
    await world.drained()
    assert await world.db.fetchval("select count(*) from sankey_dirty where waits_for is not null") == 0
    await world.assert_exact()


async def test_locked_counts_of_a_walkthrough_leave_others_current(world: World) -> None:
    """With the real services: what waits shows everywhere, also where it dies while it works that off."""
    await prepare(world)
    world.start(RECORDER)
    doomed = world.start(AGGREGATOR, crash_at="waiting.counts-in-transaction:1", session_timeout_seconds=2)
    await world.produce([event_of(p, "a", 1) for p in PEOPLE])
    await world.drained()
    api = await world.start_api()
    counts = "select from sankey_transitions where walkthrough_id = 'wt_a' for update"
    async with locked(world, counts) as locker:
        await world.produce([event_of(p, "b", 0) for p in PEOPLE])

        async def told() -> bool:
            fresh = [(await api.get(f"walkthroughs/{w}/sankey"))["freshness"] for w in ("wt_a", "wt_b")]
            return [(f["current"], f["marks"]) for f in fresh] == [(False, 2), (True, 0)]

        await eventually(told, "the API says which is current")
        status = json.loads((await world.invoke("status", "-o", "json")).stdout)
        assert status["journeys_waiting"]["journeys"] == 2
        assert status["journeys_waiting"]["rows"] == ["sankey_transitions wt_a"]
        # The aggregator itself comes behind, where the look falls into a transaction of its own.
        assert status["journeys_waiting"]["locked_by"][0]["pid"] == locker
        assert any("2 journeys wait to be counted" in p for p in status["problems"])

        async def measured() -> bool:
            return await metric(doomed, "stepstream_journeys_waiting") == 2

        await eventually(measured, "the metric says that journeys wait")
        verified = await world.invoke("verify", "--wait", "1s", "-o", "json")
        assert (verified.returncode, json.loads(verified.stdout)["journeys_waiting"]) == (3, 2)
        assert "2 of the journeys wait for counts that somebody else has locked" in verified.stderr
    await dies(doomed)
    assert await marks(world) == ["ann", "bob"]
    world.start(AGGREGATOR, session_timeout_seconds=2)
    await world.drained()
    await world.assert_exact()


@pytest.mark.parametrize("table", ["recorded_offsets", "counted_offsets"])
async def test_a_locked_position_stops_its_partition_alone(world: World, table: str) -> None:
    """While it goes on, and when it starts."""
    await prepare(world)
    people = [f"p{i}" for i in range(12)]
    await world.people(people)
    # So small that the recorder writes several transactions at once.
    recorder, aggregator = world.start_both(batch_max_records=2)
    await world.produce([completed(p, "a", 1) for p in people])
    await world.drained()
    at = {(r.key or b"").decode(): r.partition for r in await world.events()}
    held_up = {p for p in people if at[p] == at["p0"]}
    assert 0 < len(held_up) < len(people)
    service = recorder if table == "recorded_offsets" else aggregator
    async with locked(world, f"select from {table} where partition = {at['p0']} for update") as pid:
        for step in "bc":
            await world.produce([completed(p, step, 2) for p in people])

            async def others_go_on(step: str = step) -> bool:
                rows = await world.db.fetch(
                    "select mcp_server_user_id from sankey_journeys where step_ids @> array[$1::text]", step
                )
                return {row[0] for row in rows} == set(people) - held_up

            await eventually(others_go_on, "the other partitions go on")
            if step == "b":
                url = f"http://127.0.0.1:{service.port}/health/ready"
                ready = (await asyncio.to_thread(httpx2.get, url)).text
                assert f"the row of partition {at['p0']} in {table} is locked by process {pid}" in ready
                status = json.loads((await world.invoke("status", "-o", "json")).stdout)
                assert [(r["partition"], r["pid"]) for r in status["positions_locked"]] == [(at["p0"], pid)]
                assert any(f"in {table} is locked by process {pid}" in p for p in status["problems"])
                assert await metric(service, "stepstream_partitions_held") == 1
                await asyncio.to_thread(service.terminate)
                service = world.start(service.name)
    await world.drained()
    await world.assert_exact()


async def test_status_says_who_has_locked_shards_of_the_outbox(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    async with locked(world, "select from outbox_shards where shard < 5 for update") as pid:
        status = json.loads((await world.invoke("status", "-o", "json")).stdout)
        assert [(row["shards"], row["pid"]) for row in status["shards_locked"]] == [(5, pid)]
        assert any(f"5 shards of the outbox are locked by process {pid}" in p for p in status["problems"])
    assert json.loads((await world.invoke("status", "-o", "json")).stdout)["shards_locked"] == []


# --- the MCP layer ----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls wait for as long as a slow machine takes for the others."""
    monkeypatch.setattr(store_of_mcp, "_PATIENCE_SECONDS", 80.0)


async def test_calls_of_a_locked_person_hold_up_nobody_else_and_few_of_them_wait(world: World) -> None:
    await world.offer()
    service = await world.start_mcp(mcp_database_pool_size=3)
    base = f"http://127.0.0.1:{service.port}/mcp/srv_1"
    async with agent(f"{base}/ann") as ann, agent(f"{base}/bob") as bob:
        for who in (ann, bob):
            await who.start()
        async with locked(world, "select from mcp_server_user where distinct_id = 'ann' for update"):
            calls = [asyncio.create_task(ann.raw("get_next_step", current_step_id="a")) for _ in range(40)]

            async def the_rest_is_answered() -> bool:
                return sum(call.done() for call in calls) == 40 - 1 - store_of_mcp.WAITING

            await eventually(the_rest_is_answered, "all but a few are answered")
            for step in "abcde":
                await bob.next(current_step_id=step)
            assert sum(call.done() for call in calls) == 40 - 1 - store_of_mcp.WAITING
        done = await asyncio.gather(*calls, return_exceptions=True)
        refused = [call for call in done if isinstance(call, BaseException)]
        assert {error.error.data["reason"] for error in refused if isinstance(error, MCPError)} == {"busy"}
        outcomes = Counter(
            c.structured_content["outcome"]
            for c in done
            if isinstance(c, CallToolResult) and c.structured_content
        )
        assert outcomes == {"advanced": 1, "repeated": store_of_mcp.WAITING}
        assert (await ann.next(current_step_id="b"))["step"]["id"] == "c"


async def test_a_call_that_waited_for_long_meets_a_lock_of_a_moment(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its patience went into waiting for a connection: that is no reason to turn it away."""
    await world.offer()
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann") as ann:
        await ann.start()
        async with world.connection() as other:
            lock = other.transaction()
            await lock.start()
            await other.execute("select from mcp_server_user where distinct_id = 'ann' for update")
            refused, real = asyncio.Event(), store_of_mcp._until_there

            async def tries(*arguments: Any) -> store_of_mcp.Done:
                try:
                    return await real(*arguments)
                except asyncpg.LockNotAvailableError:
                    if not refused.is_set():
                        refused.set()
                        await lock.rollback()
                    raise

            monkeypatch.setattr(store_of_mcp, "_until_there", tries)
            monkeypatch.setattr(store_of_mcp, "_PATIENCE_SECONDS", 0.0)
            assert (await ann.next(current_step_id="a"))["outcome"] == "advanced"
            assert refused.is_set()


async def test_a_table_of_servers_that_is_locked_for_a_while_turns_no_agent_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `alter table`, or by vacuum that makes the file shorter."""
    await world.offer()
    service = await world.start_mcp()
    met, real = asyncio.Event(), store_of_mcp._read_server

    async def reads(*arguments: Any) -> Any:
        try:
            return await real(*arguments)
        except asyncpg.LockNotAvailableError:
            met.set()
            raise

    monkeypatch.setattr(store_of_mcp, "_read_server", reads)
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann") as ann:
        async with locked(world, "lock table mcp_servers in access exclusive mode"):
            call = asyncio.create_task(ann.start())
            await asyncio.wait_for(met.wait(), 20)
            assert not call.done()
        assert (await call)["outcome"] == "started"


async def test_a_locked_walkthrough_holds_up_no_call_in_another(world: World) -> None:
    await world.offer()
    await world.offer("wt_b", "xyz", "srv_2")
    service = await world.start_mcp(mcp_database_pool_size=2)
    base = f"http://127.0.0.1:{service.port}/mcp"
    async with contextlib.AsyncExitStack() as stack:
        many = [await stack.enter_async_context(agent(f"{base}/srv_1/p{i}")) for i in range(6)]
        other = await stack.enter_async_context(agent(f"{base}/srv_2/cat"))
        async with locked(world, "select from walkthroughs where id = 'wt_a' for update"):
            calls = [asyncio.create_task(one.start()) for one in many]
            await other.start()
            for step in "xyz":
                await other.next(current_step_id=step)
            assert not any(call.done() for call in calls)
        assert {a["outcome"] for a in await asyncio.gather(*calls)} == {"started"}


async def test_people_whom_somebody_is_inserting_hold_up_no_call_of_others(world: World) -> None:
    """Nobody sees these rows yet, so each try waits a moment, on a connection that others need."""
    await world.offer()
    service = await world.start_mcp(mcp_database_pool_size=1)
    base = f"http://127.0.0.1:{service.port}/mcp/srv_1"
    theirs = "insert into mcp_server_user (id, distinct_id) select 'x' || n, 'p' || n from generate_series(0, 39) n"
    async with contextlib.AsyncExitStack() as stack:
        many = [await stack.enter_async_context(agent(f"{base}/p{i}")) for i in range(40)]
        bob = await stack.enter_async_context(agent(f"{base}/bob"))
        async with locked(world, theirs):
            calls = [asyncio.create_task(one.start()) for one in many]
            await bob.start()
            for step in "abcde":
                await bob.next(current_step_id=step)
            assert not any(call.done() for call in calls)
        assert {a["outcome"] for a in await asyncio.gather(*calls)} == {"started"}


async def test_a_server_does_not_offer_what_another_organization_has(world: World) -> None:
    """No completion of it would count."""
    await world.offer()
    await world.offer("wt_of_b", "xyz", "srv_1")
    await world.db.execute("insert into organization (id, name, created_at) values ('org_b', 'b', now())")
    await world.db.execute("update walkthroughs set organization_id = 'org_b' where id = 'wt_of_b'")
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann") as ann:
        assert (await ann.start())["step"]["id"] == "a"
        assert (await ann.start(name="wt_of_b"))["outcome"] == "unknown-name"


async def test_who_locks_what_is_counted_by_source_holds_up_no_event(world: World) -> None:
    """Counts are hints: they come when the lock goes, and events do not wait for them."""
    await world.offer()
    await world.people(["ann"])
    bad = Message(b"x", b"no event", [("ce_source", b"/shop")])
    await world.produce([bad])
    world.start_both()
    await world.drained()
    other = await asyncpg.connect(world.settings.dsn)
    try:
        async with other.transaction():
            await other.execute("select from refused_events for update")
            await other.execute("select from event_sources for update")
            await world.produce([bad, completed("ann", "a", 1), bad])
            await world.drained()
            assert len(await world.dead_letters()) == 3
            assert await world.db.fetchval("select sum(events) from refused_events") == 1
    finally:
        await other.close()

    async def counted() -> bool:
        return bool(await world.db.fetchval("select sum(events) = 3 from refused_events"))

    await eventually(counted, "what waited for the lock is counted")
    await world.assert_exact()

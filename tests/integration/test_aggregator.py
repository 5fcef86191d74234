"""The aggregator's transaction against a real PostgreSQL: exact, locked, and constant in round trips."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import pytest
from aiokafka import ConsumerRecord

from services.runtime.database import Pool, connected
from services.runtime.kafka import Record
from services.runtime.retrying import retrying
from services.sankey_aggregator import counting, handlers
from services.sankey_aggregator.handlers import Aggregator
from tests.support.world import AGGREGATOR, World, completed, moment

pytestmark = pytest.mark.integration

DAY = 86_400_000


async def drain(pool: Pool) -> None:
    while (await counting.recount_from_marks(pool, 1000))[0]:
        pass


async def test_a_journey_is_counted_under_the_server_and_day_where_it_began(world: World) -> None:
    await world.offer()
    await world.offer(server="srv_2")
    await world.people(["ann"])
    await world.insert(
        completed("ann", "b", DAY + 7, mcp_server_id="srv_2"),
        completed("ann", "a", 5),
        completed("ann", "c", 3 * DAY),
    )
    pool = await world.aggregator_pool()
    assert (await counting.recount_from_events(pool, [("ann", "wt_a")])).changed == 1
    rows = await world.db.fetch("select * from sankey_transitions order by position")
    assert [
        (
            r["mcp_server_id"],
            str(r["began_on"]),
            r["position"],
            r["from_step_id"],
            r["to_step_id"],
            r["elapsed_ms"],
        )
        for r in rows
    ] == [
        ("srv_1", "2000-01-01", 0, None, "a", 0),
        ("srv_1", "2000-01-01", 1, "a", "b", DAY + 2),
        ("srv_1", "2000-01-01", 2, "b", "c", 2 * DAY - 7),
    ]
    (ending,) = await world.db.fetch("select * from sankey_endings")
    assert (ending["steps_done"], ending["step_id"], str(ending["last_active_on"])) == (3, "c", "2000-01-04")


async def test_a_second_look_changes_and_writes_nothing(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    await world.insert(completed("ann", "a", 1), completed("ann", "b", 2))
    pool = await world.aggregator_pool()
    assert (await counting.recount_from_events(pool, [("ann", "wt_a")])).changed == 1
    everything = (
        "select (select array_agg(t.*::text || t.xmin) from sankey_transitions t),"
        " (select array_agg(e.*::text || e.xmin) from sankey_endings e)"
    )
    before = await world.db.fetchrow(everything)
    assert (await counting.recount_from_events(pool, [("ann", "wt_a")])).changed == 0
    assert await world.db.fetchrow(everything) == before


async def test_a_plan_that_was_made_for_small_tables_is_not_kept_when_they_grow(world: World) -> None:
    """It reads all completions for each journey, until the tables are analysed again."""
    people = [f"p{n}" for n in range(1_000)]
    await world.offer()
    await world.people(people)
    await world.db.execute("alter table walkthrough_step_completions set (autovacuum_enabled = off)")
    await world.db.execute("vacuum analyze walkthrough_step_completions")
    pool = await world.aggregator_pool()
    async with pool.acquire() as connection:

        async def follow(some: list[str]) -> None:
            async with connection.transaction():
                await counting.recount_within(connection, [(person, "wt_a") for person in some])

        async def read_whole() -> int:
            await connection.execute("select pg_stat_force_next_flush()")
            return await world.db.fetchval(
                "select seq_tup_read from pg_stat_user_tables where relname = 'walkthrough_step_completions'"
            )

        for person in people[:10]:
            await follow([person])
        await world.insert(*(completed(person, "a", 1) for person in people))
        before = await read_whole()
        await follow(people)
        assert await read_whole() - before < 10 * len(people)


async def test_a_journey_without_completions_leaves_no_row(world: World) -> None:
    pool = await world.aggregator_pool()
    assert (await counting.recount_from_events(pool, [("nobody", "nothing"), ("who", "wt_a")])).changed == 0
    assert await world.db.fetchval("select count(*) from sankey_journeys") == 0


async def test_cells_that_come_to_zero_are_gone(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    pool = await world.aggregator_pool()
    for i, step in enumerate("abcde"):
        await world.insert(completed("ann", step, i * DAY))
        await drain(pool)
    assert await world.db.fetchval("select count(*) from sankey_endings") == 1
    assert await world.db.fetchval("select count(*) from sankey_transitions") == 5
    await world.db.execute("delete from walkthrough_step_completions")
    await drain(pool)
    for table in ("sankey_endings", "sankey_transitions", "sankey_journeys"):
        assert await world.db.fetchval(f"select count(*) from {table}") == 0


class Counting:
    """Counts the statements that pass over a pool's connections."""

    def __init__(self) -> None:
        self.statements = 0

    def __call__(self, query: Any) -> None:
        self.statements += 1


@pytest.mark.parametrize("changed", [True, False])
async def test_round_trips_do_not_grow_with_the_batch(world: World, changed: bool) -> None:
    await world.offer()
    people = [f"p{i:04}" for i in range(900)]
    await world.people(people)
    chance = random.Random(5)
    await world.insert(
        *(completed(p, s, chance.randrange(5 * DAY)) for p in people for s in chance.sample("abcde", 3)),
    )
    pool = await world.aggregator_pool()
    journeys = [(p, "wt_a") for p in people]
    # The client asks once what types the statements have.
    first = 3 if changed else len(journeys)
    await counting.recount_from_events(pool, journeys[:first])
    if changed:
        journeys = journeys[first:]
    counts = []
    for size in (2, 20, 800):
        batch, journeys = journeys[:size], journeys[size:]
        if not changed:
            journeys += batch
        async with pool.acquire() as connection:
            logger = Counting()
            connection.add_query_logger(logger)
            async with connection.transaction():
                await counting.recount_within(connection, batch)
            connection.remove_query_logger(logger)
        counts.append(logger.statements)
    assert max(counts) <= (8 if changed else 4)
    assert counts[1] == counts[2]


async def test_many_instances_on_the_same_journeys_neither_deadlock_nor_count_twice(world: World) -> None:
    """Badly keyed events and marks lead several instances to the same journeys at once."""
    await world.offer()
    people = [f"p{i:02}" for i in range(60)]
    await world.people(people)
    pools = [await world.aggregator_pool() for _ in range(4)]
    chance = random.Random(8)
    stop = asyncio.Event()

    async def change() -> None:
        async with connected(world.settings) as db:
            for _ in range(120):
                person, step = chance.choice(people), chance.choice("abcde")
                kind = chance.random()
                if kind < 0.2:
                    await db.execute(
                        "delete from walkthrough_step_completions where mcp_server_user_id = $1 and step_id = $2",
                        person,
                        step,
                    )
                else:
                    await db.execute(
                        "insert into walkthrough_step_completions values ($1, $2, 'wt_a', $3, 'srv_1', $4, $5, null)"
                        " on conflict (mcp_server_user_id, step_id) do update set completed_at = excluded.completed_at",
                        completed(person, step, 0)["event_id"],
                        person,
                        step,
                        f"s_{person}",
                        chance.randrange(3 * DAY),
                    )
                await asyncio.sleep(0)
        stop.set()

    async def instance(pool: Pool) -> None:
        while not stop.is_set():
            batch = chance.sample(people, 40)
            await counting.recount_from_events(pool, [(p, "wt_a") for p in batch])
            await counting.recount_from_marks(pool, 25)

    async with asyncio.timeout(60):
        await asyncio.gather(change(), *(instance(pool) for pool in pools))
    await drain(pools[0])
    assert await world.transitions() == await world.walked()
    deadlocks = await world.db.fetchval(
        "select deadlocks from pg_stat_database where datname = current_database()"
    )
    assert deadlocks == 0
    await world.assert_exact()


async def test_the_wait_for_a_lock_sees_what_its_holder_committed(world: World) -> None:
    """The read is a statement of its own, after the lock: its snapshot includes the other's result."""
    await world.offer()
    await world.people(["ann"])
    pool = await world.aggregator_pool()
    await world.insert(completed("ann", "a", 1))
    async with pool.acquire() as first, pool.acquire() as second:
        transaction = first.transaction()
        await transaction.start()
        assert await counting.recount_within(first, [("ann", "wt_a")]) == 1

        async def other() -> int:
            async with second.transaction():
                return await counting.recount_within(second, [("ann", "wt_a")])

        waiting = asyncio.create_task(other())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await transaction.commit()
        assert await waiting == 0
    assert await world.transitions() == {(0, None, "a"): 1}


# --- changes that no event tells of ----------------------------------------------------------------------


@pytest.fixture
async def counted(world: World) -> tuple[World, Pool]:
    """Three people over two servers and walkthroughs, counted."""
    await world.offer()
    await world.offer("wt_b", "vwxyz", "srv_2")
    await world.people(["ann", "bob", "cy"])
    await world.people(["dee"], "srv_2")
    on_b = {"walkthrough_id": "wt_b", "mcp_server_id": "srv_2"}
    await world.insert(
        *(completed(p, s, i) for p in ("ann", "bob", "cy") for i, s in enumerate("abcd")),
        *(completed(p, s, i, **on_b) for p in ("ann", "dee") for i, s in enumerate("vwx")),
    )
    pool = await world.aggregator_pool()
    await drain(pool)
    assert sum((await world.transitions()).values()) == 18
    return world, pool


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ("delete from walkthrough_steps where id = 'b'", 15),
        ("delete from mcp_server_user where id = 'ann'", 11),
        ("delete from mcp_server_session where mcp_server_session_id = 's_ann'", 11),
        ("delete from mcp_servers where id = 'srv_2'", 12),
        ("delete from walkthroughs where id = 'wt_b'", 12),
        ("delete from organization", 0),
        ("delete from walkthrough_step_completions where completed_at % 10 = 2", 13),
        ("truncate walkthrough_step_completions", 0),
        ("update walkthrough_step_completions set completed_at = 99 where step_id = 'a'", 18),
        ("update walkthrough_step_completions set mcp_server_id = 'srv_2' where step_id = 'a'", 18),
        ("update walkthrough_step_completions set mcp_server_user_id = 'dee' where id in"
         " (select id from walkthrough_step_completions where mcp_server_user_id = 'cy')", 18),
    ],
)  # fmt: skip
async def test_a_change_past_the_recorder_is_followed(
    counted: tuple[World, Pool], change: str, left: int
) -> None:
    world, pool = counted
    await world.db.execute(change)
    await drain(pool)
    assert await world.transitions() == await world.walked()
    assert sum((await world.transitions()).values()) == left
    await world.assert_exact()


async def test_a_mark_is_left_by_whoever_may_change_completions(counted: tuple[World, Pool]) -> None:
    """Also by a role that knows nothing of our tables, and with another search path."""
    world, pool = counted
    await world.db.execute(
        "do $$ begin if not exists (select from pg_roles where rolname = 'platform_role') then"
        " create role platform_role; end if; exception when duplicate_object then null; end $$;"
        "grant delete, select on walkthrough_step_completions to platform_role"
    )
    async with connected(world.settings) as db:
        await db.execute("set search_path = pg_catalog; set role platform_role")
        await db.execute("delete from public.walkthrough_step_completions where step_id = 'a'")
        await db.execute("reset role; drop owned by platform_role")
    await drain(pool)
    assert sum((await world.transitions()).values()) == 15
    await world.assert_exact()


async def test_marks_whose_transaction_fails_stay(counted: tuple[World, Pool]) -> None:
    world, pool = counted
    await world.db.execute("delete from walkthrough_steps where id = 'b'")
    marks = await world.db.fetchval("select count(*) from sankey_dirty")
    assert marks
    await world.db.execute("alter table sankey_endings rename to elsewhere")
    with pytest.raises(asyncpg.UndefinedTableError):
        await counting.recount_from_marks(pool, 100)
    assert await world.db.fetchval("select count(*) from sankey_dirty") == marks
    await world.db.execute("alter table elsewhere rename to sankey_endings")
    await drain(pool)
    await world.assert_exact()


async def test_how_rows_become_a_journey_costs_no_call_of_a_function(world: World) -> None:
    """PostgreSQL inlines it: a call for each journey would hide the rows from the planner."""
    lines = await world.db.fetch("explain " + counting.SQL["read_changed"], ["p1"], ["wt_a"])
    plan = "\n".join(line[0] for line in lines)
    assert "walkthrough_step_completions" in plan
    assert "sankey_journey_from_rows" not in plan


class _Holding:
    """A shell that remembers which partitions are left."""

    def __init__(self) -> None:
        self.left: list[int] = []

    def advance_over(self, records: Sequence[Record]) -> None:
        return None

    async def recheck(self, records: Sequence[Record]) -> None:
        pass

    async def commit(self, records: Sequence[Record], advance: Any) -> None:
        pass

    def leave(self, partition: int, why: str, may_go_on: Callable[[], Awaitable[bool]]) -> bool:
        self.left.append(partition)
        return True


async def test_a_column_whose_type_somebody_changes_ends_no_service(world: World) -> None:
    """PostgreSQL refuses statements that were prepared before; in a transaction asyncpg does not prepare them anew."""
    await world.offer()
    await world.people(["u"])
    await world.insert(completed("u", "a", 1))
    pool = await world.aggregator_pool()
    tries, noted = 0, []

    async def pause(_: float) -> None:
        """Takes no time."""

    for number, kind in enumerate(("text", "varchar(80)", "text")):
        await world.db.execute(f"alter table sankey_journeys alter column mcp_server_id type {kind}")
        await world.db.execute(
            "update walkthrough_step_completions set completed_at = completed_at + $1", number * DAY
        )
        async for attempt in retrying(AGGREGATOR, pause):
            with attempt:
                tries += 1
                await drain(pool)
        noted.append(await world.db.fetchval("select completed_at[1] from sankey_journeys"))
    assert noted == [moment(1), moment(1) + DAY, moment(1) + 3 * DAY]
    assert tries == 5, "each change of a type was met once"


async def test_a_partition_that_the_recorder_does_not_judge_is_left_when_it_judges_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the aggregator would wait for a recorder that stands still everywhere."""
    monkeypatch.setattr(handlers, "_STANDS_STILL", 10**6)
    monkeypatch.setattr(handlers, "_STANDS_ALONE", 0)
    topic, partitions, waits = world.settings.topic, _Holding(), 0
    told = "insert into recorded_offsets (topic, partition, next_offset) values ($1, $2, 0)"
    await world.db.executemany(told, [(topic, 0), (topic, 1)])

    async def pause(_: float) -> None:
        nonlocal waits
        waits += 1
        assert not partitions.left
        if waits == 3:
            await world.db.execute("update recorded_offsets set next_offset = 5 where partition = 1")

    aggregator = Aggregator(world.settings, await world.aggregator_pool(), pause)
    await aggregator.handle([ConsumerRecord(topic, 0, 7, 0, 0, None, b"", None, 0, 0, ())], partitions)
    assert (partitions.left, waits) == ([0], 3)

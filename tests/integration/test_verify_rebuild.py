"""Verify and rebuild: what differs is found, also under traffic, and put right beside a running aggregator."""

import asyncio
import contextlib
import functools
import getpass
import json
import random
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from services.runtime.errors import MismatchError, StepstreamError
from services.sankey_aggregator import counting, survey
from services.sankey_aggregator import rebuild as rebuilding
from services.sankey_aggregator.rebuild import Rebuilt, rebuild
from services.sankey_aggregator.verify import verify
from tests.support.truth import differences
from tests.support.world import (
    AGGREGATOR,
    OPERATOR,
    PATIENCE,
    RECORDER,
    Message,
    World,
    completed,
    eventually,
    moment,
    started,
)

pytestmark = pytest.mark.integration

DAY = 86_400_000
STEPS = "abcde"

#: Each way in which the Sankey tables can be wrong, as somebody with psql, half a restore or a bug would do it.
CORRUPTIONS = {
    "counts too high": "update sankey_transitions set journeys = journeys + 3 where position = 1",
    "counts below zero": "update sankey_transitions set journeys = -journeys where position = 2",
    "cells gone": "delete from sankey_transitions where to_step_id = 'b'",
    "times wrong": "update sankey_transitions set elapsed_ms = elapsed_ms * 2 + 7",
    "timed journeys wrong": "update sankey_transitions set timed_journeys = timed_journeys - 1",
    "cells of nothing": "insert into sankey_transitions values"
    " ('wt_gone', 'srv_gone', '1999-01-01', 0, null, 'x', 5, 100, 5),"
    " ('wt_a', 'srv_1', '1999-01-01', 77, 'a', 'b', 0, 100, 5)",
    "no transitions": "truncate sankey_transitions",
    "days of endings moved": "update sankey_endings set last_active_on = last_active_on + 9",
    "endings twice": "update sankey_endings set journeys = journeys * 2",
    "no endings": "truncate sankey_endings",
    "journeys gone": "delete from sankey_journeys where mcp_server_user_id < 'p05'",
    "journeys of nobody": "insert into sankey_journeys values ('nobody', 'wt_a', 'srv_1', '{a,b}', '{5,6}', 4)",
    "steps reversed": "update sankey_journeys set step_ids ="
    " array(select s from unnest(step_ids) with ordinality as u(s, n) order by n desc)",
    "other steps": "update sankey_journeys set step_ids = array_fill('q'::text, array[cardinality(step_ids)])",
    "times of journeys": "update sankey_journeys set completed_at ="
    " array(select t + 90000000 from unnest(completed_at) with ordinality as u(t, n) order by n)",
    "other servers": "update sankey_journeys set mcp_server_id = 'srv_2'",
    "starts forgotten": "update sankey_journeys set started_at = null where cardinality(step_ids) > 0",
    "everything gone": "truncate sankey_journeys, sankey_transitions, sankey_endings",
    "only journeys gone": "truncate sankey_journeys",
}


@asynccontextmanager
async def traffic(world: World, people: list[str], seed: int) -> AsyncIterator[None]:
    """Completions, starts and deletions without end, until the block ends."""
    chance = random.Random(seed)

    async def flow() -> None:
        async with world.connection() as db, world.producing() as producer:
            while True:
                events: list[dict[str, Any]] = [
                    completed(chance.choice(people), chance.choice(STEPS), chance.randrange(3 * DAY))
                    for _ in range(40)
                ]
                events += [started(chance.choice(people), chance.randrange(DAY)) for _ in range(4)]
                for message in map(Message.of, events):
                    await producer.send_and_wait(world.settings.topic, message.value, key=message.key)
                await asyncio.sleep(0.1)
                await db.executemany(
                    "delete from walkthrough_step_completions where mcp_server_user_id = $1 and step_id = $2",
                    [(chance.choice(people), chance.choice(STEPS)) for _ in range(15)],
                )

    task = asyncio.create_task(flow())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_truth_that_tests_go_by_sees_every_corruption(counted: World) -> None:
    """Else a test that ends with it could not fail."""
    await counted.db.execute(
        "insert into walkthrough_starts values ('one', 'ann', 'wt_a', 'srv_1', 's_ann', $1, null)", moment(0)
    )
    await counted.drain_marks()
    await counted.assert_exact()
    for name, statement in CORRUPTIONS.items():
        transaction = counted.db.transaction()
        await transaction.start()
        await counted.db.execute(statement.replace("p05", "cat"))
        assert await differences(counted.db), name
        await transaction.rollback()


async def test_corrupted_in_every_way_and_rebuilt_under_traffic(world: World) -> None:
    """Verify is clean before, a rebuild sees each corruption, and verify is clean after, while events flow."""
    await world.offer()
    await world.offer(server="srv_2")
    people = [f"p{i:02}" for i in range(40)]
    await world.people(people)
    # Traffic mends by itself what it touches, so some people are done before it begins.
    done = [f"q{i:02}" for i in range(20)]
    await world.people(done)
    await world.produce(completed(p, s, i) for p in done for i, s in enumerate("abc"))
    world.start_both(poll_max_records=100)
    await world.drained()

    async def are_counted() -> bool:
        return bool(await world.db.fetchval("select count(*) > 9 from sankey_transitions where position = 2"))

    async with traffic(world, people, 1):
        await eventually(are_counted, "journeys of three steps are counted")
        clean = await world.invoke("verify", "--wait", "10m")
        assert clean.returncode == 0, clean.stdout + clean.stderr
        for name, statement in CORRUPTIONS.items():
            await do(world, statement)
            if name in {"counts too high", "other steps", "everything gone"}:
                seen = await world.invoke("verify", "--wait", "10m")
                assert seen.returncode == 3, name
            built = await world.invoke("rebuild", "--execute", "-o", "json")
            assert built.returncode == 0, built.stderr
            assert json.loads(built.stdout)["differing"] > 0, name
            after = await world.invoke("verify", "--wait", "10m")
            assert after.returncode == 0, (name, after.stdout, after.stderr)
    await world.drained()
    await world.assert_exact()
    assert not await leftovers(world)


@pytest.mark.parametrize("command", [verify, functools.partial(rebuild, execute=True)])
async def test_a_survey_that_is_frozen_lets_its_snapshot_go(
    world: World, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    monkeypatch.setattr(survey, "_SILENCE_SECONDS", 1)

    async def is_gone() -> bool:
        async with world.connection() as db:
            return not await db.fetchval(
                "select count(*) from pg_stat_activity where datname = current_database()"
                " and state = 'idle in transaction'"
            )

    def freeze(*_: int) -> None:
        """Keeps the whole event loop until the session has ended."""
        thread = threading.Thread(target=lambda: asyncio.run(eventually(is_gone, "the session has ended")))
        thread.start()
        thread.join()

    with pytest.raises(StepstreamError, match="PostgreSQL"):
        await command(world.settings, progress=freeze)


@pytest.mark.parametrize("command", [verify, functools.partial(rebuild, execute=True)])
async def test_a_survey_that_takes_too_long_lets_its_snapshot_go(
    world: World, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    monkeypatch.setattr(survey, "_SURVEY_SECONDS", 0.001)
    with pytest.raises(StepstreamError, match="PostgreSQL"):
        await command(world.settings)


async def test_a_swap_that_is_frozen_between_two_messages_of_the_protocol_lets_the_counts_go(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL does not take such a session for idle."""
    await world.offer()
    await world.people(["ann"])
    await world.insert(completed("ann", "a", 1))
    monkeypatch.setattr(rebuilding, "_SWAP_SECONDS", 1)

    async def freeze(db: Any) -> None:
        await db.prepare("select")
        await world.ended(db)

    monkeypatch.setattr(rebuilding.counting, "add_filled_deltas", freeze)
    with pytest.raises(StepstreamError):
        await rebuild(world.settings_of(OPERATOR), execute=True)
    assert await world.db.fetchval("select count(*) from sankey_journeys") == 0


async def do(world: World, statement: str) -> None:
    """Carries a statement out, though the aggregator holds rows that it wants."""
    while True:
        with contextlib.suppress(asyncpg.DeadlockDetectedError):
            await world.db.execute(statement)
            return


async def leftovers(world: World) -> list[str]:
    rows = await world.db.fetch("select relname from pg_class where relname like 'differing%'")
    return [r["relname"] for r in rows]


async def test_everything_wrong_at_once_and_nobody_running(world: World) -> None:
    """Without an aggregator too: what it has not passed yet is counted, and passed again without effect."""
    await world.offer()
    people = [f"p{i:02}" for i in range(30)]
    await world.people(people)
    chance = random.Random(2)
    events = [completed(p, s, chance.randrange(2 * DAY)) for p in people for s in chance.sample(STEPS, 3)]
    await world.produce([*events, *(started(p, 5) for p in people[:9])])
    recorder = world.start(RECORDER)

    async def recorded() -> bool:
        return await world.recorded() == len(events) + 9

    await eventually(recorded, "all is recorded")
    for name in ("cells of nothing", "journeys of nobody"):
        await world.db.execute(CORRUPTIONS[name])
    built = await world.invoke("rebuild", "--execute")
    assert built.returncode == 0, built.stderr
    await world.assert_exact()
    again = await world.invoke("rebuild", "--execute")
    assert "nothing to do" in again.stderr
    recorder.terminate()
    world.start_both()
    await world.drained()
    await world.assert_exact()


async def test_without_execute_it_shows_and_changes_nothing(counted: World) -> None:
    await counted.db.execute("update sankey_transitions set journeys = journeys + 1 where to_step_id = 'c'")
    before = await counted.transitions()
    plan = await counted.invoke("rebuild")
    assert plan.returncode == 0
    assert "2: b > c" in plan.stdout
    assert "nothing was changed" in plan.stderr
    assert await counted.transitions() == before


async def test_killed_in_the_middle_it_leaves_nothing_behind(counted: World) -> None:
    await counted.db.execute("update sankey_transitions set journeys = journeys + 1")
    before = await counted.transitions()
    async with counted.connection() as holder:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("lock table sankey_endings in access exclusive mode")  # the survey waits for it
        process = subprocess.Popen(  # noqa: ASYNC220 - it is not waited for
            [sys.executable, "-m", "services.operator_cli", "rebuild", "--execute"], env=counted.environment()
        )

        async def surveying() -> bool:
            return bool(await leftovers(counted))

        await eventually(surveying, "the survey has its tables")
        process.kill()
        process.wait()
        await transaction.rollback()

    async def gone() -> bool:
        return not await leftovers(counted)

    await eventually(gone, "the tables of the survey are gone")
    assert await counted.transitions() == before
    assert (await counted.invoke("rebuild", "--execute")).returncode == 0
    await counted.assert_exact()


async def test_what_is_counted_between_survey_and_swap_stays(counted: World) -> None:
    """The swap is held up until the aggregator has counted journeys that the survey found differing."""
    pool = await counted.aggregator_pool()
    await counted.db.execute("update sankey_journeys set step_ids = '{q,r,s}' where walkthrough_id = 'wt_a'")
    await counted.db.execute("update sankey_endings set journeys = journeys + 5")

    async def count() -> None:
        await counted.insert(completed("ann", "e", 9), completed("bob", "d", 3 * DAY))
        while (await counting.recount_from_marks(pool, 1))[0]:
            pass

    found = await between(counted, count)
    assert found.counted_meanwhile == 2
    while (await counting.recount_from_marks(pool, 1000))[0]:
        pass
    await counted.assert_exact()


async def test_of_two_at_once_one_works_and_the_other_is_told_who(counted: World) -> None:
    """Both would add what they found missing, and it would be there twice."""
    await counted.db.execute("update sankey_transitions set journeys = journeys + 1")
    await counted.db.execute("delete from sankey_endings")
    async with counted.connection() as holder:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("lock table sankey_journeys in access exclusive mode")
        first = asyncio.create_task(asyncio.to_thread(counted.command, "rebuild", "--execute"))

        async def surveying() -> bool:
            return bool(await leftovers(counted))

        await eventually(surveying, "the first one has begun")
        second = asyncio.create_task(counted.invoke("rebuild", "--execute"))
        # Without the lock it waits for the first one's table.
        done, _ = await asyncio.wait({second}, timeout=PATIENCE)
        await transaction.rollback()
    assert (await first).returncode == 0, (await first).stderr
    refused = await second
    await counted.assert_exact()
    assert done
    assert refused.returncode == 4
    assert f"{getpass.getuser()}@{socket.gethostname()} rebuilds the counts" in refused.stderr
    assert "as stepstream_operator" in refused.stderr
    assert (await counted.invoke("rebuild")).returncode == 0, "a plan disturbs nobody"
    assert (await counted.invoke("rebuild", "--execute")).returncode == 0, "the lock is gone"


async def between(world: World, work: Callable[[], Awaitable[None]]) -> Rebuilt:
    """A rebuild with some work done between each comparison and its swap."""
    real = rebuilding._swap

    async def late(db: Any, found: Any) -> None:
        await work()
        await real(db, found)

    rebuilding._swap = late
    try:
        return await rebuilding.rebuild(world.settings_of(OPERATOR), execute=True)
    finally:
        rebuilding._swap = real


async def test_cells_that_somebody_changes_between_comparison_and_swap_are_put_right(counted: World) -> None:
    """By hand, or with a version before this one, whose rebuild knows no lock."""
    await counted.db.execute("update sankey_transitions set journeys = journeys + 1")
    undone = False

    async def undo() -> None:
        nonlocal undone
        if not undone:
            await counted.db.execute("update sankey_transitions set journeys = journeys - 1")
            await counted.db.execute("delete from sankey_endings where walkthrough_id = 'wt_b'")
            undone = True

    found = await between(counted, undo)
    assert found.changed_meanwhile > 0
    await counted.assert_exact()


@pytest.mark.parametrize(
    "change",
    [
        "update sankey_journeys set step_ids = array_fill('q'::text, array[cardinality(step_ids)])"
        " where mcp_server_user_id = 'bob'",
        "delete from sankey_journeys where mcp_server_user_id = 'bob'",
    ],
)
async def test_journeys_that_somebody_changes_between_comparison_and_swap_are_put_right(
    counted: World, change: str
) -> None:
    """Counts are then not made to fit what is wrong."""
    await counted.db.execute("update sankey_transitions set journeys = journeys + 1")
    await counted.db.execute(
        "update sankey_journeys set step_ids = '{r,s,t}' where mcp_server_user_id in ('bob', 'cat')"
    )
    changes = iter([change])

    async def change_once() -> None:
        if statement := next(changes, None):
            await counted.db.execute(statement)

    await between(counted, change_once)
    await counted.assert_exact()


async def test_who_freezes_in_the_swap_holds_the_aggregator_up_for_a_bounded_time(
    counted: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process, say: PostgreSQL ends its connection, and nothing is changed."""
    await counted.db.execute("update sankey_transitions set journeys = journeys + 1")
    before = await counted.transitions()

    async def freeze(db: Any) -> None:
        pid = db.get_server_pid()

        async def gone() -> bool:
            alive = await counted.db.fetchval("select count(*) from pg_stat_activity where pid = $1", pid)
            return bool(alive == 0)

        await eventually(gone, "its connection is ended")
        await db.execute("select 1")

    monkeypatch.setattr(rebuilding.counting, "add_filled_deltas", freeze)
    monkeypatch.setattr(rebuilding, "_SILENCE_SECONDS", 1)
    with pytest.raises(StepstreamError):
        await rebuilding.rebuild(counted.settings_of(OPERATOR), execute=True)
    assert await counted.transitions() == before


async def test_it_gives_up_behind_a_lock_that_somebody_forgot(
    counted: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it waits, the aggregator waits behind it."""
    await counted.db.execute("update sankey_transitions set journeys = journeys + 1")
    monkeypatch.setattr(rebuilding, "_LOCK_SECONDS", 0.1)
    settings = counted.settings_of(OPERATOR)
    async with counted.connection() as other, other.transaction():
        await other.execute("select from sankey_journeys limit 1 for update")
        with pytest.raises(StepstreamError, match="somebody else has locked"):
            await asyncio.wait_for(rebuilding.rebuild(settings, execute=True), PATIENCE)
    await rebuilding.rebuild(settings, execute=True)
    await counted.assert_exact()


async def test_who_changes_the_counts_all_the_time_is_not_called_rebuilt(counted: World) -> None:
    await counted.db.execute("update sankey_transitions set journeys = journeys + 1")

    async def change() -> None:
        await counted.db.execute("update sankey_transitions set journeys = journeys + 1")

    with pytest.raises(MismatchError, match="somebody else changes"):
        await between(counted, change)
    assert (await counted.invoke("rebuild", "--execute")).returncode == 0
    await counted.assert_exact()


# --- what verify says ------------------------------------------------------------------------------------


@pytest.fixture
async def counted(world: World) -> World:
    """Some people over two servers and walkthroughs, counted, and no service running."""
    await world.offer()
    await world.offer("wt_b", "vwxyz", "srv_2")
    await world.people(["ann", "bob", "cat"])
    await world.people(["dee"], server="srv_2")
    await world.insert(
        *(completed(p, s, i) for p in ("ann", "bob", "cat") for i, s in enumerate("abc")),
        *(
            completed("dee", s, DAY + i, walkthrough_id="wt_b", mcp_server_id="srv_2")
            for i, s in enumerate("vwx")
        ),
    )
    await world.drain_marks()
    return world


async def test_verify_names_each_differing_cell_and_exits_3(counted: World) -> None:
    await counted.assert_exact()
    await counted.db.execute("update sankey_transitions set journeys = journeys + 1 where to_step_id = 'c'")
    await counted.db.execute("delete from sankey_endings where step_id = 'x'")
    await counted.db.execute(
        "update sankey_journeys set step_ids = '{q,x,y}' where mcp_server_user_id = 'dee'"
    )
    verdict = counted.command("verify")
    assert verdict.returncode == 3
    assert "rebuild --execute" in verdict.stderr
    assert "2: b > c" in verdict.stdout
    as_json = await counted.invoke("verify", "-o", "json")
    assert as_json.returncode == 3
    found = json.loads(as_json.stdout)
    assert [
        (t["position"], t["to_step_id"], t["expected_journeys"], t["counted_journeys"])
        for t in found["transitions"]
    ] == [(2, "c", 3, 4)]
    assert [(e["steps_done"], e["step_id"], e["counted_journeys"]) for e in found["endings"]] == [(3, "x", 0)]
    assert [j["mcp_server_user_id"] for j in found["journeys"]] == ["dee"]
    assert found["differing"] == 3


async def test_verify_says_that_the_aggregator_is_behind(world: World) -> None:
    """Counts are right for what was counted; what waits is no corruption, and is not said to be one."""
    await world.offer()
    await world.people(["ann"])
    await world.produce([completed("ann", "a", 1)])
    world.start(RECORDER)

    async def recorded() -> bool:
        return await world.recorded() == 1

    await eventually(recorded, "it is recorded")
    behind = await world.invoke("verify")
    assert behind.returncode == 3
    assert "none is running: start it" in behind.stderr
    assert "by hand" not in behind.stderr
    world.start(AGGREGATOR)
    await world.drained()
    assert (await world.invoke("verify")).returncode == 0


async def test_verify_waits_for_what_is_on_its_way(world: World) -> None:
    """The aggregator starts while verify waits for it."""
    await world.offer()
    await world.people([f"p{i}" for i in range(50)])
    await world.produce([completed(f"p{i}", "a", i) for i in range(50)])
    aggregator = world.start(AGGREGATOR)
    await aggregator.ready()
    await world.db.execute("begin; lock table sankey_journeys in share mode")  # it has to wait
    world.start(RECORDER)

    async def recorded() -> bool:
        return await world.recorded() == 50

    await eventually(recorded, "all is recorded")
    waiting = asyncio.create_task(world.invoke("verify", "--wait", "10m"))

    async def looks() -> bool:
        return bool(await leftovers(world))

    await eventually(looks, "verify has begun")
    assert not waiting.done()
    await world.db.execute("rollback")
    verdict = await waiting
    assert verdict.returncode == 0, verdict.stderr


async def test_verify_guesses_why(counted: World) -> None:
    await counted.db.execute("alter table walkthrough_step_completions disable trigger sankey_deleted")
    await counted.db.execute("delete from walkthrough_step_completions where mcp_server_user_id = 'ann'")
    off = await counted.invoke("verify", "--wait", "1s")
    assert off.returncode == 3
    assert "sankey_deleted on walkthrough_step_completions" in off.stderr
    await counted.db.execute(
        "create function idle() returns trigger language plpgsql as $$ begin return null; end $$;"
        "create or replace trigger sankey_deleted after delete on walkthrough_step_completions"
        " referencing old table as old_rows for each statement execute function idle();"
        "alter table walkthrough_step_completions enable trigger sankey_deleted"
    )
    replaced = await counted.invoke("verify", "--wait", "1s")
    assert "replaced (sankey_deleted on walkthrough_step_completions)" in replaced.stderr
    await counted.db.execute(
        "create or replace trigger sankey_deleted after delete on walkthrough_step_completions"
        " referencing old table as old_rows for each statement execute function sankey_mark_deleted()"
    )
    hand = await counted.invoke("verify", "--wait", "1s")
    assert "by hand or restored alone, marks were removed, or rows came in with triggers off" in hand.stderr
    assert (await counted.invoke("rebuild", "--execute")).returncode == 0
    assert (await counted.invoke("verify")).returncode == 0


async def test_a_sample_sees_what_is_wrong_with_its_share_and_all_counts(counted: World) -> None:
    assert (await counted.invoke("verify", "--sample", "50")).returncode == 0
    await counted.db.execute("update sankey_endings set journeys = journeys + 1")
    assert (await counted.invoke("verify", "--sample", "0.001")).returncode == 3
    await counted.invoke("rebuild", "--execute")
    await counted.db.execute(
        "update sankey_journeys set mcp_server_id = 'srv_2' where walkthrough_id = 'wt_a'"
    )
    shares = [
        json.loads((await counted.invoke("verify", "--sample", s, "-o", "json")).stdout) for s in ("1", "100")
    ]
    assert len(shares[0]["journeys"]) < len(shares[1]["journeys"]) == 3

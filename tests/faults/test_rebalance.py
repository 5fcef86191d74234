"""Partitions move while a batch is slow: it is waited for within its bound, then rolled back."""

import asyncio
import contextlib
import random
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.faults.test_database_away import role
from tests.support.world import RECORDER, Service, World, completed, eventually, metric

pytestmark = pytest.mark.integration

PEOPLE = [f"p{i:02}" for i in range(60)]
READ_AGAIN = "stepstream_events_read_again_total"


@contextlib.asynccontextmanager
async def audited(world: World) -> AsyncIterator[tuple[str, str]]:
    """Two users of the database, one for each instance: the database notes who wrote of which partition.

    While the table `slow` holds a row, a transaction of the recorder takes so many seconds.
    """
    await world.offer()
    await world.people(PEOPLE)
    await world.db.execute(
        "create table audit (partition integer, who text);"
        "create function note() returns trigger language plpgsql as $$ begin"
        " if new.next_offset > coalesce(old.next_offset, 0) then"
        " insert into audit values (new.partition, current_user); end if; return new; end $$;"
        "create trigger note after insert or update on recorded_offsets for each row execute function note();"
        "create table slow (seconds float8); grant all on audit, slow to public;"
        "create function be_slow() returns trigger language plpgsql as $$ begin"
        " perform pg_sleep(seconds) from slow; return null; end $$;"
        "create trigger be_slow after insert on walkthrough_step_completions for each statement"
        " execute function be_slow()"
    )
    first, second = role(world), role(world)
    second.name += "_2"
    async with first as (_, url), second as (_, other):
        yield url, other


async def asleep(world: World) -> None:
    async def sleeps() -> bool:
        return bool(
            await world.db.fetchval(
                "select true from pg_stat_activity"
                " where datname = current_database() and wait_event = 'PgSleep' limit 1"
            )
        )

    await eventually(sleeps, "a batch is slow", every=0.02)


def traffic(count: int = 600) -> list[dict[str, Any]]:
    chance = random.Random(1)
    return [completed(chance.choice(PEOPLE), chance.choice("abcde"), n) for n in range(count)]


def partitions(service: Service) -> set[int]:
    """What it has, by its own last word."""
    said = re.findall(r"has partitions \[([^]]*)\]", service.log.read_text())
    return {int(p) for p in said[-1].split(",") if p.strip()} if said else set()


async def shared_out(first: Service, second: Service) -> None:
    async def both() -> bool:
        mine, theirs = partitions(first), partitions(second)
        return bool(mine and theirs) and mine | theirs == {0, 1, 2} and not mine & theirs

    await eventually(both, "both have partitions", every=0.02)


async def recorded_all(world: World, count: int) -> None:
    async def all_() -> bool:
        return await world.recorded() == count

    await eventually(all_, "all is recorded")


async def test_a_batch_too_slow_for_the_bound_is_rolled_back_and_written_by_the_new_owner(
    world: World,
) -> None:
    async with audited(world) as (url, other):
        first = await world.start(RECORDER, database_url=url, revoke_wait_seconds=1).ready()
        await world.db.execute("insert into slow values (300)")
        await world.produce(traffic())
        await asleep(world)
        await world.db.execute("delete from slow")
        began = time.monotonic()
        second = world.start(RECORDER, database_url=other, revoke_wait_seconds=1)
        await shared_out(first, second)
        assert time.monotonic() - began < 30
        assert "rolls back a batch" in first.log.read_text()
        await recorded_all(world, 600)
        owner = dict.fromkeys(partitions(first), "first") | dict.fromkeys(partitions(second), "second")
        names = {"first": url.split("//")[1].split(":")[0], "second": other.split("//")[1].split(":")[0]}
        wrote = {(r["partition"], r["who"]) for r in await world.db.fetch("select * from audit")}
        assert wrote == {(p, names[who]) for p, who in owner.items()}
        assert await metric(first, "stepstream_batches_rolled_back_total") == 1
        assert await metric(first, READ_AGAIN) + await metric(second, READ_AGAIN) == 0
        assert first.terminate() == 0
        assert second.terminate() == 0


async def test_a_batch_within_the_bound_is_waited_for_and_nothing_is_read_again(world: World) -> None:
    async with audited(world) as (url, other):
        first = await world.start(RECORDER, database_url=url).ready()
        await world.db.execute("insert into slow values (4)")
        await world.produce(traffic())
        await asleep(world)
        second = world.start(RECORDER, database_url=other)
        await shared_out(first, second)
        await world.db.execute("delete from slow")
        await recorded_all(world, 600)
        assert "rolls back" not in first.log.read_text()
        await asyncio.gather(first.ready(), second.ready())
        assert await metric(first, READ_AGAIN) + await metric(second, READ_AGAIN) == 0
        assert first.terminate() == 0
        assert second.terminate() == 0

"""The database is away in every way it can be: it is waited for, in the group, and nothing is lost.

A proxy stands before the real PostgreSQL where other tests must not notice.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from services.runtime import database
from services.runtime.database_errors import DATABASE_ERRORS
from tests.support.proxy import proxied
from tests.support.world import (
    AGGREGATOR,
    PATIENCE,
    RECORDER,
    RELAY,
    ROLES,
    Service,
    World,
    completed,
    eventually,
    members,
    metric,
)

pytestmark = pytest.mark.integration

PEOPLE = [f"p{i:02}" for i in range(60)]


async def prepare(world: World) -> None:
    await world.offer()
    await world.people(PEOPLE)


def traffic(seed: int, count: int = 400) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [
        completed(chance.choice(PEOPLE), chance.choice("abcde"), chance.randrange(10**6))
        for _ in range(count)
    ]


async def ready(services: Sequence[Service]) -> None:
    for service in services:
        await service.ready()


async def tried_again(services: Sequence[Service], times: int = 2) -> None:
    for service in services:

        async def tried(service: Service = service) -> bool:
            return await metric(service, "stepstream_retries_total") >= times

        await eventually(tried, f"{service.name} tries again")


async def all_is_well(world: World, services: Sequence[Service]) -> None:
    await world.drained()
    assert await world.transitions() == await world.walked()
    assert await world.dead_letters() == []
    await world.assert_exact()
    assert [service.terminate() for service in services] == [0] * len(services)


@pytest.mark.parametrize("how", ["refused", "hanging", "cut again and again"])
async def test_it_is_waited_for_in_the_group_with_partitions_paused(world: World, how: str) -> None:
    await prepare(world)
    async with proxied(world.settings.dsn) as (proxy, url):
        # Short where it has to pass. Who gets no answer for so long at the start ends, on a busy machine, too.
        services = world.start_both(database_url=url, database_timeout_seconds=4 if how == "hanging" else 30)
        await ready(services)
        await world.produce(traffic(1))
        await world.drained()
        inside = {service.name: await members(world, service.name) for service in services}

        if how == "refused":
            await proxy.refuse()
        elif how == "hanging":
            proxy.freeze()
        await world.produce(traffic(2))
        if how == "cut again and again":
            for _ in range(10):
                proxy.cut()
                await asyncio.sleep(0.05)
        else:
            await tried_again(services)
            # Longer than the session: who stopped its heartbeats would be out of the group by now.
            await asyncio.sleep(world.settings.session_timeout_seconds + 1)
            for service in services:
                assert await metric(service, "stepstream_paused") == 1
                assert await members(world, service.name) == inside[service.name]
        await proxy.listen() if how == "refused" else proxy.thaw()
        await all_is_well(world, services)


#: SQLSTATEs that pass by themselves, as a trigger raises them.
PASSING = {
    "serialization failure": "40001",
    "deadlock": "40P01",
    "lock not available": "55P03",
    "statement cancelled": "57014",
    "read-only": "25006",
    "too many connections": "53300",
    "disk full": "53100",
    "out of memory": "53200",
    "I/O error": "58030",
    "shutting down": "57P01",
    "starting up": "57P03",
}


async def test_every_error_that_passes_is_waited_out(world: World) -> None:
    """PostgreSQL raises each in the middle of a transaction of each consumer; the one after succeeds."""
    await prepare(world)
    await world.db.execute(
        "create table troubles (id integer generated always as identity (increment by 2), place text, code text);"
        "create sequence raised_recorder; create sequence raised_aggregator; grant all on troubles to public;"
        "grant all on sequence raised_recorder, raised_aggregator to public;"
        "create function trouble() returns trigger language plpgsql as $$ declare t record; n bigint; begin"
        " n := nextval('raised_' || tg_argv[0]);"  # a sequence keeps what a rolled back transaction counted
        " select * into t from troubles where place = tg_argv[0] and id = n;"
        " if found then raise exception 'trouble %', t.code using errcode = t.code; end if;"
        " return null; end $$;"
        "create trigger trouble after insert on walkthrough_step_completions for each statement"
        " execute function trouble('recorder');"
        "create trigger trouble after insert on sankey_journeys for each statement"
        " execute function trouble('aggregator')"
    )
    for place in ("recorder", "aggregator"):
        await world.db.execute("alter table troubles alter column id restart with 1")
        await world.db.executemany(
            "insert into troubles (place, code) values ($1, $2)",
            [(place, code) for code in PASSING.values()],
        )
    services = world.start_both(poll_max_records=10)
    await ready(services)
    await world.produce(traffic(3, 250))
    # A lock is not waited out: what is locked is set aside, and the rest goes on.
    await tried_again(services, len(PASSING) - 1)
    await all_is_well(world, services)


async def test_after_a_failover_the_connections_to_the_old_primary_are_given_up(world: World) -> None:
    """They stay open and read-only; only new ones find the server that can write."""
    await prepare(world)
    services = world.start_both()
    await ready(services)
    admin = await asyncpg.connect(world.base)
    name = await world.db.fetchval("select current_database()")
    await admin.execute(f"alter database {name} set default_transaction_read_only = on")
    await admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and application_name <> ''",
        name,
    )
    await world.produce(traffic(4))
    await tried_again(services)
    assert "ReadOnlySQLTransactionError" in services[0].log.read_text()
    await admin.execute(f"alter database {name} reset default_transaction_read_only")
    await admin.close()
    await all_is_well(world, services)


async def test_of_two_hosts_it_takes_the_one_that_can_write(world: World) -> None:
    await prepare(world)
    head, _, tail = world.settings.dsn.rpartition("@")
    url = f"{head}@127.0.0.1:1,{tail}?target_session_attrs=read-write"
    services = world.start_both(database_url=url)
    await ready(services)
    await world.produce(traffic(9))
    await all_is_well(world, services)
    nowhere = world.command("verify", database_url=f"{head}@127.0.0.1:1,127.0.0.1:2/db?connect_timeout=1")
    assert nowhere.returncode == 1
    assert "PostgreSQL at 127.0.0.1:1,127.0.0.1:2/db" in nowhere.stderr


async def test_without_a_free_connection_it_is_waited_for(world: World) -> None:
    await prepare(world)
    async with role(world) as (name, url):
        services = world.start_both(database_url=url)
        await ready(services)
        await world.db.execute(f"alter role {name} connection limit 0")
        await cut_off(world, name)
        await world.produce(traffic(5))
        await tried_again(services)
        assert "TooManyConnectionsError" in services[0].log.read_text()
        await world.db.execute(f"alter role {name} connection limit -1")
        await all_is_well(world, services)


async def test_a_held_lock_is_waited_for(world: World) -> None:
    await prepare(world)
    services = world.start_both()
    await ready(services)
    other = await asyncpg.connect(world.settings.dsn)
    for table in ("mcp_server_user", "sankey_transitions"):
        async with other.transaction():
            await other.execute(f"lock table {table} in access exclusive mode")
            await world.produce(traffic(6, 200))
            await asyncio.sleep(1.5)  # past the recorder's lock timeout
    await other.close()
    assert "LockNotAvailableError" in services[0].log.read_text()
    await all_is_well(world, services)


class role:  # noqa: N801 - reads as a block
    """A user of the database's own, with the rights of the services."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.name = "r_" + world.settings.topic[2:]

    async def __aenter__(self) -> tuple[str, str]:
        await self.world.db.execute(
            f"create role {self.name} login password 'secret' in role {', '.join(ROLES.values())}"
        )
        head, _, tail = self.world.settings.dsn.partition("://")
        return self.name, f"{head}://{self.name}:secret@{tail.rpartition('@')[2]}"

    async def __aexit__(self, *_: object) -> None:
        for service in self.world.services:
            if service.process.poll() is None:
                service.kill()
        await cut_off(self.world, self.name)
        await self.world.db.execute(f"drop owned by {self.name}; drop role {self.name}")


async def cut_off(world: World, name: str) -> None:
    await world.db.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = $1", name)


#: What nobody waits for: the change, and what the last words name.
WRONG = {
    "a table is gone": ("alter table recorded_offsets rename to elsewhere", "recorded_offsets"),
    "a column is gone": ("alter table recorded_offsets rename next_offset to elsewhere", "next_offset"),
    "a right is gone": (
        "revoke all on recorded_offsets from stepstream_recorder, stepstream_aggregator, stepstream_api,"
        " stepstream_operator",
        "recorded_offsets",
    ),
    "the user may not sign in": ("alter role {role} nologin", "STEPSTREAM_DATABASE_URL"),
}


@pytest.mark.parametrize("service", [RECORDER, AGGREGATOR])
@pytest.mark.parametrize("wrong", WRONG)
async def test_what_does_not_pass_stops_it_and_says_what_to_do(
    world: World, service: str, wrong: str
) -> None:
    await prepare(world)
    change, told = WRONG[wrong]
    async with role(world) as (name, url):
        if service == AGGREGATOR:
            world.start(RECORDER)
        victim = await world.start(service, database_url=url, database_refused_seconds=1).ready()
        await world.db.execute(change.format(role=name))
        await cut_off(world, name)
        await world.produce(traffic(7, 50))

        async def over() -> bool:
            return victim.process.poll() is not None

        await eventually(over, f"{service} ends")
        said = victim.log.read_text()
        assert victim.process.returncode == 1
        assert told in said
        assert "PostgreSQL: " in said
        assert "Traceback" not in said
        assert "secret" not in said


@pytest.mark.parametrize("service", [RECORDER, AGGREGATOR, RELAY])
async def test_what_is_wrong_from_the_beginning_is_said_at_once(world: World, service: str) -> None:
    async with role(world) as (name, url):
        await world.db.execute(f"alter role {name} nologin")
        for wrong in (url, url.rpartition("/")[0] + "/there_is_none"):
            refused = world.command("run", service, "--port", "0", database_url=wrong)
            assert refused.returncode == 1
            assert "STEPSTREAM_DATABASE_URL" in refused.stderr
            assert "Traceback" not in refused.stderr
            assert "secret" not in refused.stderr
            await world.db.execute(f"alter role {name} login")


@pytest.mark.parametrize("how", ["refused", "hanging"])
async def test_sigterm_ends_who_waits_for_it(world: World, how: str) -> None:
    await prepare(world)
    async with proxied(world.settings.dsn) as (proxy, url):
        # Longer than the drain may take: the statement under way is given up then.
        services = world.start_both(database_url=url, database_timeout_seconds=60, drain_timeout_seconds=2)
        await ready(services)
        if how == "refused":
            await proxy.refuse()
        else:
            proxy.freeze()
        await world.produce(traffic(8, 100))
        if how == "refused":
            await tried_again(services)
        else:
            await asyncio.sleep(1)
        ended = [asyncio.to_thread(service.terminate) for service in services]
        assert await asyncio.gather(*ended) == [0, 0]


async def test_a_statement_that_is_given_up_holds_its_connection_for_a_bounded_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server says neither an answer nor that it has given up; a statement may take very long otherwise."""
    monkeypatch.setattr(database, "_GIVE_UP_SECONDS", 0.2)
    async with proxied(world.settings.dsn) as (proxy, url):
        settings = world.settings.model_copy(update={"database_url": SecretStr(url)})
        pool = await database.open_pool(settings, command_timeout=600)

        silent = asyncio.Event()

        async def write() -> None:
            async with pool.acquire() as connection, connection.transaction():
                proxy.freeze()
                silent.set()
                await connection.fetch("select 1")

        writing = asyncio.create_task(write())

        await silent.wait()
        writing.cancel()
        done, _ = await asyncio.wait({writing}, timeout=PATIENCE)
        assert done
        assert writing.cancelled() or isinstance(writing.exception(), DATABASE_ERRORS)
        await database.close_pool(pool)


async def test_a_connection_that_is_left_for_another_server_is_let_go_though_nobody_answers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_GIVE_UP_SECONDS", 0.2)
    async with proxied(world.settings.dsn) as (proxy, url):
        settings = world.settings.model_copy(update={"database_url": SecretStr(url)})
        pool = await database.open_pool(settings, command_timeout=600)

        async def leave() -> None:
            async with pool.acquire():
                proxy.freeze()
                await pool.expire_connections()

        leaving = asyncio.create_task(leave())
        done, _ = await asyncio.wait({leaving}, timeout=PATIENCE)
        assert done
        assert leaving.exception() is None
        await database.close_pool(pool)

"""The API on a standby: the same answers, never called current, and live all the same."""

import asyncio
import os
import pwd
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from services.devstack.postgres import BIN, start_postgres
from services.devstack.processes import free_port
from tests.integration.test_analytics_live import WT, begin, listening
from tests.support.world import World, completed, eventually, moment

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        os.environ.get("STEPSTREAM_TEST_STACK", "embedded") != "embedded",
        reason="a server in a container lets nobody outside replicate",
    ),
]


def copy_server(url: str, data: Path, slot: str) -> None:
    """A copy of the server that goes on as its standby.

    The slot keeps what the standby still needs: else the primary throws it away at a checkpoint, and every test
    that drops its database asks for one.
    """
    copy: list[str | Path] = [
        BIN / "pg_basebackup",
        "-d",
        url,
        "-D",
        data,
        "-c",
        "fast",
        "--no-sync",
        "-R",
        "-C",
        "-S",
        slot,
    ]
    subprocess.run(copy, check=True, capture_output=True)
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        subprocess.run(["chown", "-R", f"{nobody.pw_uid}:{nobody.pw_gid}", data], check=True)


@pytest.fixture
async def standby(world: World, short_tmp: Path) -> AsyncIterator[str]:
    """A standby of the server of the world; its URL for the database of the world."""
    port = free_port()
    slot = f"standby_{port}"
    await asyncio.to_thread(copy_server, world.base, short_tmp / "data", slot)
    server = start_postgres(short_tmp, port)
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/{world.settings.dsn.rsplit('/', 1)[1]}"
    finally:
        # The API is still connected.
        server.stop(0)
        primary = await asyncpg.connect(world.base)

        async def dropped() -> bool:
            with suppress(asyncpg.ObjectInUseError):
                await primary.execute("select pg_drop_replication_slot($1)", slot)
                return True
            return False

        await eventually(dropped, "the slot of the standby is free")
        await primary.close()


async def test_a_standby_answers_is_never_called_current_and_is_live(world: World, standby: str) -> None:
    primary = await begin(world)

    async def connected() -> "asyncpg.Connection[asyncpg.Record] | None":
        try:
            return await asyncpg.connect(standby)
        except (OSError, asyncpg.CannotConnectNowError):
            return None

    db = await eventually(connected, "the standby takes connections")

    async def caught_up() -> bool:
        return bool(await db.fetchval("select count(*) from api_keys") == 2)

    api = await world.start_api(api_database_url=standby)
    await eventually(caught_up, "the standby has the keys")

    async def looked() -> bool:
        return (await api.get(f"{WT}/sankey"))["freshness"]["looked_at"] is not None

    await eventually(looked, "the groups were looked at")
    assert await api.get(f"{WT}/journeys") | {"freshness": 0} == (
        await primary.get(f"{WT}/journeys") | {"freshness": 0}
    )
    async with listening(api) as heard:
        await heard.next("changed")
        await db.execute("select pg_wal_replay_pause()")
        await world.insert(completed("bob", "a", 2000))
        await world.drain_marks()
        assert (await primary.get(f"{WT}/sankey"))["journeys"] == 2
        behind = await api.get(f"{WT}/sankey")
        assert behind["journeys"] == 1
        assert behind["freshness"]["current"] is None
        assert "replica" in behind["freshness"]["problem"]
        assert [g["lag"] for g in behind["freshness"]["groups"]] == [0, 0]
        await db.execute("select pg_wal_replay_resume()")
        assert (await heard.next("changed"))["newest_event_at"] == moment(2000)
    assert (await api.get(f"{WT}/sankey"))["journeys"] == 2
    await db.close()

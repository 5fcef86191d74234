"""PostgreSQL fails over, comes back from a dump, is copied, is full, is slow, or is held by somebody."""

import asyncio
import contextlib
import random
import signal
import time
from typing import Any

import asyncpg

from services.runtime.database_errors import DATABASE_ERRORS
from tests.nemesis import tools
from tests.nemesis.deployment import (
    CONSUMERS,
    EVERYBODY,
    PEOPLE,
    SLOW_FSYNC,
    SMALL_DATABASE,
    STANDBY,
    WALKTHROUGHS,
)
from tests.nemesis.faults.base import Fault
from tests.support.world import AGGREGATOR, Service

PRIMARY = frozenset({"the primary"})


class PromoteStandby(Fault):
    """The primary is gone, and an asynchronous standby takes its place without the last commits."""

    name = "promote-standby"
    what = "an asynchronous standby is promoted, the last seconds of commits are missing"
    needs = frozenset({STANDBY})
    touches = PRIMARY
    forgets = True
    lasts = (0.5, 1.0)

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        return {"lost_seconds": round(chance.uniform(1.5, 3.0), 1)}

    async def inject(self) -> None:
        replication, standby = self.deployment.replication, self.deployment.standby
        assert replication is not None
        assert standby is not None
        await replication.refuse()
        self.note("the standby gets nothing any more")
        await self.meanwhile(self.choices["lost_seconds"])
        await self.before_the_end()
        await asyncio.to_thread(self.deployment.primary.kill)
        self.note("the primary is gone")
        await asyncio.sleep(0.3)
        db = await asyncpg.connect(standby.url())
        await db.execute("select pg_promote()")
        await db.close()
        await self.deployment.use(standby, self.deployment.database)
        self.note("the standby is promoted")

    async def meanwhile(self, seconds: float) -> None:
        """While what is committed will be lost."""
        await asyncio.sleep(seconds)

    async def before_the_end(self) -> None:
        """Just before the primary is gone."""


class PromoteWhileAggregatorIsBehind(PromoteStandby):
    name = "promote-standby-aggregator-behind"
    what = "the same while the aggregator is some seconds behind"
    lasts = (0.5, 1.5)

    async def inject(self) -> None:
        self.deployment.send(AGGREGATOR, signal.SIGSTOP)
        await asyncio.sleep(1.0)
        await super().inject()

    async def heal(self) -> None:
        self.deployment.send(AGGREGATOR, signal.SIGCONT)


class PromoteThenQuiet(PromoteStandby):
    name = "promote-standby-then-quiet"
    what = "the same, and then nobody writes any more"

    async def before_the_end(self) -> None:
        await self.workload.quieten()
        self.note("nobody writes any more")
        recorded, since = -1, time.monotonic()
        while time.monotonic() < since + 4:
            before = recorded
            recorded = await self.deployment.world.recorded()
            if recorded == before:
                break
            await asyncio.sleep(0.4)


class PromoteAfterErasure(PromoteStandby):
    name = "promote-standby-erased-person"
    what = "the same, and a person is erased within the lost seconds"

    async def meanwhile(self, seconds: float) -> None:
        began = time.monotonic()
        done = await self.deployment.sql(
            "select mcp_server_user_id as user, count(*) from walkthrough_step_completions"
            " where mcp_server_user_id = any($1) group by 1 order by 2 desc, 1 limit 1",
            sorted(self.workload.crowd.kept),
        )
        user = done[0]["user"] if done else min(PEOPLE)
        self.history.erasing.add(user)
        said = await self.deployment.world.invoke("erase", user, "--execute")
        if said.returncode == 0:
            self.history.erase(user)
        self.note(f"{user} is erased" if said.returncode == 0 else f"erase {user}: {said.stderr[-200:]}")
        await asyncio.sleep(max(0.5, seconds - (time.monotonic() - began)))


class RestoreDump(Fault):
    """The database comes back as it was some seconds ago, and services are restarted against it."""

    name = "restore-dump"
    what = "a dump is made under load and restored later; services are restarted against it"
    touches = PRIMARY
    forgets = True
    lasts = (0.5, 1.0)

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        return {"seconds_ago": round(chance.uniform(1.5, 3.0), 1)}

    async def inject(self) -> None:
        deployment, file = self.deployment, self.deployment.folder / "dump"
        await asyncio.to_thread(deployment.primary.dump, deployment.database, file)
        self.note("dumped")
        await asyncio.sleep(self.choices["seconds_ago"])
        await deployment.end(*EVERYBODY)
        await deployment.copy_database("restored", file)
        await deployment.use(deployment.primary, "restored")
        file.unlink()
        deployment.release(*EVERYBODY)
        self.note("restored, and services are started against it")


class SecondDatabase(Fault):
    """A copy of the database, whose recorder and aggregator join the groups of the real one."""

    name = "second-database"
    what = "a copy of the database whose recorder and aggregator join the same groups for some seconds"
    touches = PRIMARY | {"groups"}
    lasts = (3.0, 5.0)
    _guests: list[Service]

    async def inject(self) -> None:
        deployment, file = self.deployment, self.deployment.folder / "dump"
        await asyncio.to_thread(deployment.primary.dump, deployment.database, file)
        await deployment.copy_database("guest", file)
        file.unlink()
        self._guests = [deployment.start_another(name, "guest") for name in CONSUMERS]
        for guest in self._guests:
            with contextlib.suppress(AssertionError, TimeoutError):  # it may refuse to join
                await asyncio.wait_for(guest.ready(), 8)
        self.note("a second recorder and aggregator, with a database of their own, are in the groups")

    async def heal(self) -> None:
        for guest in self._guests:
            if guest.process.poll() is None:
                guest.process.send_signal(signal.SIGTERM)
        for guest in self._guests:
            code = await asyncio.to_thread(guest.process.wait, 30)
            self.note(f"the second {guest.name} has ended with {code}")


class DatabaseIsFull(Fault):
    """No byte more fits on the disk of PostgreSQL."""

    name = "database-disk-full"
    what = "the disk under PostgreSQL is full"
    needs = frozenset({SMALL_DATABASE})
    touches = PRIMARY

    @classmethod
    def require(cls) -> None:
        tools.mounting()

    async def inject(self) -> None:
        disk = self.deployment.disks[SMALL_DATABASE]
        # What WAL there is already would last for long: it is used up, too.
        await asyncio.to_thread(disk.fill)
        with contextlib.suppress(*DATABASE_ERRORS):
            await asyncio.wait_for(self._use_up(), 4)
        await asyncio.to_thread(disk.fill)

    async def _use_up(self) -> None:
        db = await asyncpg.connect(self.deployment.primary.url(), timeout=3)
        try:
            while True:
                await db.execute(
                    "select pg_switch_wal(), pg_logical_emit_message(true, 'x', repeat('x', 10000))"
                )
                await asyncio.sleep(0.02)
        finally:
            db.terminate()

    async def heal(self) -> None:
        self.deployment.disks[SMALL_DATABASE].empty()
        await self.deployment.sql("select 1")
        await self.deployment.reconnect()


class SlowFsync(Fault):
    """Each fsync of PostgreSQL takes long."""

    name = "slow-fsync"
    what = "each fsync of PostgreSQL takes some hundred milliseconds"
    needs = frozenset({SLOW_FSYNC})
    touches = PRIMARY

    @classmethod
    def require(cls) -> None:
        tools.slow_fsync()

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        return {"milliseconds": chance.choice([150, 400, 900])}

    async def inject(self) -> None:
        self.deployment.fsync_file.write_text(str(self.choices["milliseconds"]))

    async def heal(self) -> None:
        self.deployment.fsync_file.unlink()


class ForgottenTransaction(Fault):
    """Somebody has rows locked and went home."""

    name = "forgotten-transaction"
    what = "an open transaction in PostgreSQL holds rows that are needed"
    lasts = (3.0, 6.0)
    _db: "asyncpg.Connection[asyncpg.Record]"

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        return {"rows": chance.choice(["people", "a step", "completions", "counts"])}

    async def inject(self) -> None:
        self._db = await asyncpg.connect(self.deployment.world.settings.dsn, timeout=5)
        await self._db.execute("begin")
        statements = {
            "people": "select from mcp_server_user where id < 'u080' for update",
            "a step": f"select from walkthrough_steps where id = '{WALKTHROUGHS['wt_a'][0]}' for update",
            "completions": "select from walkthrough_step_completions where mcp_server_user_id < 'u080' for update",
            "counts": "select from sankey_transitions where walkthrough_id = 'wt_a' for update",
        }
        with contextlib.suppress(*DATABASE_ERRORS):
            await asyncio.wait_for(self._db.execute(statements[self.choices["rows"]]), 5)

    async def heal(self) -> None:
        self._db.terminate()


class Deletions(Fault):
    """The platform deletes what events on their way refer to."""

    name = "deletions"
    what = "the platform deletes steps, people and sessions while their events are on the way"
    touches = PRIMARY
    lasts = (0.5, 1.0)

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        things = [*chance.sample(["a2", "b3", "c1", "c5"], 2), "people", "sessions", "people", "sessions"]
        return {"things": chance.sample(things, len(things)), "seed": chance.randrange(10**6)}

    async def inject(self) -> None:
        chance = random.Random(self.choices["seed"])
        for thing in self.choices["things"]:
            await asyncio.sleep(chance.uniform(0.2, 0.8))
            people = chance.sample(sorted(PEOPLE), 12)
            if thing == "people":
                await self._delete("mcp_server_user", "id", people)
            elif thing == "sessions":
                await self._delete("mcp_server_session", "mcp_server_session_id", [f"s_{p}" for p in people])
            else:
                await self._delete("walkthrough_steps", "id", [thing])
            self.note(f"deleted: {thing}")

    async def _delete(self, table: str, key: str, things: list[str]) -> None:
        self.history.deleted |= set(things)
        await self.deployment.sql(f"delete from {table} where {key} = any($1)", things)


class FreezeDatabase(Fault):
    """All processes of PostgreSQL stop: connections stay open, and nothing answers."""

    name = "database-paused"
    what = "PostgreSQL is paused (SIGSTOP) and goes on"
    touches = PRIMARY
    lasts = (2.0, 8.0)

    def _signal(self, number: int) -> None:
        process = self.deployment.primary.process
        found = process.find() if process is not None else None
        if found is not None:
            for each in [found, *found.children(recursive=True)]:
                with contextlib.suppress(Exception):
                    each.send_signal(number)

    async def inject(self) -> None:
        self._signal(signal.SIGSTOP)

    async def heal(self) -> None:
        self._signal(signal.SIGCONT)


class KillDatabase(Fault):
    """PostgreSQL crashes and recovers."""

    name = "database-killed"
    what = "PostgreSQL is killed (SIGKILL) and started again"
    touches = PRIMARY
    lasts = (0.5, 3.0)

    async def inject(self) -> None:
        await asyncio.to_thread(self.deployment.primary.kill)

    async def heal(self) -> None:
        await asyncio.to_thread(self.deployment.primary.start)
        await self.deployment.primary.answers()
        await self.deployment.reconnect()


FAULTS: tuple[type[Fault], ...] = (
    PromoteStandby,
    PromoteWhileAggregatorIsBehind,
    PromoteThenQuiet,
    PromoteAfterErasure,
    RestoreDump,
    SecondDatabase,
    DatabaseIsFull,
    SlowFsync,
    ForgottenTransaction,
    Deletions,
    FreezeDatabase,
    KillDatabase,
)

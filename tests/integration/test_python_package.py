"""The Python client as a package: its wheel, alone in an empty environment, does what its README says."""

import asyncio
import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.integration.test_intake import writing
from tests.support.world import PATIENCE, World

FOLDER = Path(__file__).parents[2] / "clients" / "python"
README = (FOLDER / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

#: As strict as a user's own checks may be.
SNIPPET = """
import asyncio
from datetime import UTC, datetime

from stepstream_client import (
    Accepted, AsyncHttpProducer, AsyncProducer, HttpProducer, InvalidEvent, Person, Producer, Session, StepCompleted,
    StepShown, validate,
)

event = StepCompleted(walkthrough_id="wt", step_id="a", distinct_id="u", session_id="s", completed_at=datetime.now(UTC))
with Producer("kafka:9092", source="/x", compression_type="gzip") as producer:
    accepted: Accepted = producer.send(event)
    partition: int | None = producer.enqueue({"type": "step-completed"}).result().partition
with HttpProducer("http://x", "key", timeout=3) as by_http:
    names: list[str] = [p.mcp_server_user_id for p in by_http.register_people(["u"]) if isinstance(p, Person)]
    by_http.register_people("u")
    by_http.register_sessions([Session("s", distinct_id="u", started_at=datetime.now(UTC))])


async def main() -> int:
    async with AsyncProducer(["kafka:9092"], source="/x", http_url="http://x", http_key="k") as one:
        verdicts = await one.send_many([event, b"{}"])
        later: asyncio.Future[Accepted] = one.enqueue(event)
        first: Accepted = await one.enqueue(event)
        print(later.done(), first, await one.begin(event))
    async with AsyncHttpProducer("http://x", "key") as other:
        await other.send(StepShown(walkthrough_id="wt", step_id="a", version="1", mcp_server_user_id="u"))
    try:
        return validate("{}").happened_at
    except InvalidEvent as error:
        field: str | None = error.field
        print(field, error.rejection, error.cause, error.advice)
    return sum(isinstance(verdict, Accepted) for verdict in verdicts)
"""
WRONG = """
from stepstream_client import Producer, StepCompleted
StepCompleted(walkthrough_id="wt", completed_at="now")
Producer("kafka:9092")
"""


def needed(name: str, extras: frozenset[str], found: set[str]) -> set[str]:
    """The distributions that one needs, with what these need."""
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        holds = [not requirement.marker or requirement.marker.evaluate({"extra": e}) for e in (*extras, "")]
        if any(holds) and requirement.name not in found:
            found.add(requirement.name)
            needed(requirement.name, frozenset(requirement.extras), found)
    return found


def install(site: Path, names: set[str]) -> None:
    """Puts distributions of this environment into another one, by links."""
    for name in names:
        for file in metadata.files(name) or ():
            top = Path(file.parts[0])
            if top.name not in {"..", "__pycache__"} and not (site / top).exists():
                (site / top).symlink_to(
                    Path(str(file.locate())).parents[len(file.parts) - 2]
                    if len(file.parts) > 1
                    else file.locate()
                )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=FOLDER, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


def environment(folder: Path, wheel: Path, *extras: str) -> Path:
    """Python with the wheel, what it requires, and nothing else."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    unpack = [sys.executable, "-m", "zipfile", "-e", str(wheel), str(site)]
    subprocess.run(unpack, check=True)
    (described,) = metadata.distributions(name="stepstream-client", path=[str(site)])
    first = [Requirement(text) for text in described.requires or ()]
    names = {r.name for r in first if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras)}
    for requirement in [r for r in first if r.name in names]:
        needed(requirement.name, frozenset(requirement.extras), names)
    install(site, names)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("venv") / "all", wheel, "kafka")


def run(python: Path, code: str, *options: str, **more: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [python, *options, "-c", code],
        env=clean | more,
        cwd=python.parent,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_base_goes_without_kafka_and_says_what_it_lacks(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "base", wheel)
    done = run(python, "import stepstream_client as s; print(s.__file__); s.HttpProducer('http://x', 'k')")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout
    done = run(python, "import stepstream_client as s; s.Producer('kafka:9092', source='/x')")
    assert "sending through Kafka needs aiokafka: install `stepstream-client[kafka]`" in done.stderr
    site = python.parents[1].glob("lib/python*/site-packages/*")
    assert {"services", "schemas", "aiokafka", "fastapi"}.isdisjoint(path.name for path in site)


def test_a_users_code_passes_strict_types_and_wrong_code_does_not(python: Path, tmp_path: Path) -> None:
    mypy = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        str(python),
        "--cache-dir",
        str(tmp_path),
    ]
    told = {}
    for name, code in (("right", SNIPPET), ("wrong", WRONG)):
        (tmp_path / f"{name}.py").write_text(code)
        done = subprocess.run(
            [*mypy, f"{name}.py"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        told[name] = done.stdout
    assert "Success" in told["right"], told["right"]
    assert 'Missing named argument "step_id"' in told["wrong"]
    assert '"completed_at" to "StepCompleted" has incompatible type "str"' in told["wrong"]
    assert 'Missing named argument "source"' in told["wrong"]


def readme_blocks() -> Iterator[str]:
    assert len(BLOCKS) == 4
    yield from BLOCKS


@pytest.mark.integration
async def test_the_readme_gets_events_counted_and_the_first_mistake_explained(
    world: World, python: Path
) -> None:
    await world.offer("wt_9fQ2xL7b", ["wts_Rt41vKp8", "wts_Zt4n8Kd1", "wts_Lc5d9Gw2"], "s7Yw2nQe")
    await world.people(["mcpu_k3Jd82LsQ0aZ"], "s7Yw2nQe")
    await world.db.execute("update mcp_server_session set mcp_server_session_id = 'mss_5d0c1e7f2a9b4c68'")
    api = await writing(world)
    world.start_both()
    by_http, by_kafka, enqueued, mistake = readme_blocks()
    kafka = ",".join(world.settings.kafka_bootstrap_servers)
    own_topic = f'source="/checkout", topic={world.settings.topic!r}'  # a test's world has one of its own
    given = {
        "STEPSTREAM_URL": api.url,
        "STEPSTREAM_KEY": api.key,
        "STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS": kafka,
    }
    ids = []
    for code in (by_http, by_kafka.replace('source="/checkout"', own_topic)):
        done = await asyncio.to_thread(run, python, code, **given)
        assert done.returncode == 0, done.stderr
        ids.append(done.stdout.split()[0])
        assert done.stdout.split()[1] == "kafka"
    done = await asyncio.to_thread(run, python, enqueued, **given)
    assert done.stdout.split() == ["kafka", "kafka"], done.stderr
    await world.drained()
    rows = await world.db.fetch("select * from walkthrough_step_completions")
    assert {row["id"] for row in rows} > {f"wtsc_{event_id}" for event_id in ids}
    assert len(rows) == 4
    assert "mcpu_k3Jd82LsQ0aZ" in {row["mcp_server_user_id"] for row in rows}
    assert json.loads(next(r["metadata"] for r in rows if r["metadata"])) == {"plan": "free"}
    await world.assert_exact()
    done = run(python, mistake)
    assert done.stdout.splitlines()[:2] == ["too-early", "completed_at"], done.stderr
    assert done.stdout.splitlines()[2].endswith("As seconds it is 2025-11-24")


def test_the_wheel_of_the_server_carries_the_client(tmp_path: Path) -> None:
    root = FOLDER.parents[1]
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (made,) = tmp_path.glob("*.whl")
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(made)], capture_output=True, text=True, check=True
    ).stdout
    for name in (
        "stepstream_client/__init__.py",
        "stepstream_client/py.typed",
        "stepstream_client/contract/events.py",
    ):
        assert name in listed
    dockerfile = (root / "Dockerfile").read_text("utf-8")
    assert "COPY clients/python/stepstream_client clients/python/stepstream_client" in dockerfile

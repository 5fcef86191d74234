"""The client for TypeScript as those have it who use it: packed, and installed in a folder of its own."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from services.analytics_api.keys import Grant
from services.analytics_api.keys import create as make_key
from tests.support.world import Api, World

HERE = Path(__file__).parent
CLIENT = HERE.parents[1] / "clients" / "typescript"
#: What a strict project has, and nothing that makes it easier.
_COMPILER = ("--strict", "--module", "nodenext", "--target", "es2023", "--exactOptionalPropertyTypes")


NODE = Path(sys.executable).with_name("node")


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Node.js and npm are those beside this Python."""
    own = {"PATH": f"{NODE.parent}:{os.environ['PATH']}", "NO_COLOR": "1", **more}
    return {k: v for k, v in os.environ.items() if not k.startswith("STEPSTREAM_")} | own


def _run(folder: Path, *command: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=folder,
        env=_environment(more.pop("env", {})),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **more,
    )


@dataclass(frozen=True)
class Project:
    """Somebody's folder with the package in it, and programs compiled there."""

    folder: Path

    def compiles(self, *files: Path) -> str:
        """What the compiler says; nothing where all is right."""
        tsc = str(self.folder / "node_modules" / ".bin" / "tsc")
        done = _run(self.folder, tsc, *_COMPILER, "--outDir", "out", *(str(f.name) for f in files))
        return done.stdout + done.stderr

    async def run(
        self, program: str, *arguments: str, stdin: str = "", **env: str
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a compiled program to its end."""
        return await asyncio.to_thread(
            _run, self.folder, str(NODE), f"out/{program}.js", *arguments, input=stdin, env=env
        )

    async def start(
        self, program: str, *arguments: str, stdout: IO[str], stderr: IO[str], **env: str
    ) -> asyncio.subprocess.Process:
        """Starts a compiled program, which goes on until its stdin is closed."""
        return await asyncio.create_subprocess_exec(
            NODE,
            f"out/{program}.js",
            *arguments,
            cwd=self.folder,
            env=_environment(env),
            stdin=asyncio.subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
        )

    async def send(self, how: str, events: Iterable[dict[str, Any]], **env: str) -> Any:
        """Sends events with `send.ts`, and returns what it prints."""
        lines = "".join(json.dumps(event) + "\n" for event in events)
        done = await self.run("send", how, stdin=lines, **env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def kafka_of(world: World) -> dict[str, str]:
    """Where programs find this world's Kafka."""
    servers = ",".join(world.settings.kafka_bootstrap_servers)
    return {"STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS": servers, "STEPSTREAM_TOPIC": world.settings.topic}


async def address_of(world: World, api: Api, grant: Grant) -> dict[str, str]:
    """Where programs find this API, and a new key to it."""
    key = (await make_key(world.db, "org", "writer", None, grant)).text
    return {"STEPSTREAM_URL": api.url, "STEPSTREAM_KEY": key}


def snippets() -> dict[str, str]:
    """The README's programs, by the heading that they are under."""
    text = (CLIENT / "README.md").read_text("utf-8")
    found = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```ts\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(found) == text.count("```ts\n"), "each program has a heading of its own"
    return {re.sub(r"\W+", "-", heading.lower()).strip("-"): program for heading, program in found}


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """An empty folder, into which the packed package is installed, with the compiler and kafkajs."""
    assert (CLIENT / "node_modules").exists(), "run `make test-typescript`, which installs what it takes"
    folder = tmp_path_factory.mktemp("project")
    shutil.rmtree(CLIENT / "dist", ignore_errors=True)  # as in a new checkout
    packed = _run(CLIENT, "npm", "pack", "--silent", "--pack-destination", str(folder))
    assert packed.returncode == 0, packed.stdout + packed.stderr
    package = json.loads((CLIENT / "package.json").read_text("utf-8"))
    tools = [
        f"{name}@{package['devDependencies'][name]}" for name in ("kafkajs", "typescript", "@types/node")
    ]
    (folder / "package.json").write_text('{"private": true, "type": "module"}', "utf-8")
    installed = _run(folder, "npm", "install", "--prefer-offline", f"./{packed.stdout.strip()}", *tools)
    assert installed.returncode == 0, installed.stderr
    for program in HERE.glob("*.ts"):
        shutil.copy(program, folder)
    for name, program in snippets().items():
        (folder / f"{name}.ts").write_text(program, "utf-8")
    made = Project(folder)
    assert made.compiles(*folder.glob("*.ts")) == ""
    return made

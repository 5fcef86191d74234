"""The compose file and the Dockerfile: no container may more than it needs, one that comes later included."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
#: Where others are named that this machine has not made.
PINNED = re.compile(r"[\w./-]+(:\d[\w.-]*|@sha256:[0-9a-f]{64})")

every_service = pytest.mark.parametrize("name", SERVICES)


def default(text: str) -> str:
    """A text with `${NAME:-default}` as it is where nobody sets NAME."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@every_service
def test_it_has_no_capabilities_and_can_gain_none(name: str) -> None:
    service = SERVICES[name]
    assert service.get("cap_drop") == ["ALL"], "merge x-hardened into it"
    assert service.get("security_opt") == ["no-new-privileges:true"], "merge x-hardened into it"
    assert not service.keys() & {
        "cap_add",
        "privileged",
        "devices",
        "pid",
        "ipc",
        "network_mode",
        "userns_mode",
    }


@every_service
def test_its_image_is_read_only(name: str) -> None:
    assert SERVICES[name].get("read_only") is True, "merge x-hardened into it; tmpfs is for what it writes"


@every_service
def test_it_does_not_run_as_root(name: str) -> None:
    user = str(SERVICES[name].get("user", "root")).partition(":")[0]
    assert user not in {"", "0", "root"}, "say `user:`"


@every_service
def test_its_ports_are_on_the_loopback_alone(name: str) -> None:
    for port in SERVICES[name].get("ports", ()):
        assert isinstance(port, str)
        assert port.startswith("127.0.0.1:"), f"{port}: everybody on the network could reach it"


@every_service
def test_it_sees_files_of_the_machine_only_to_read_them(name: str) -> None:
    for volume in SERVICES[name].get("volumes", ()):
        source = volume.partition(":")[0]
        assert source in COMPOSE["volumes"] or volume.endswith(":ro"), volume
        assert "docker.sock" not in volume


@every_service
def test_its_image_is_made_here_or_has_a_version(name: str) -> None:
    image = default(SERVICES[name]["image"])
    assert image == "stepstream:latest" or PINNED.fullmatch(image), image


def test_the_image_that_is_made_here_is_no_root_and_from_a_version() -> None:
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), "Kubernetes sees that a number is no root"
    bases = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
    for base in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE):
        named = bases.get(base.removeprefix("${").removesuffix("}"), base)
        assert PINNED.fullmatch(named), named
    assert not re.search(r"^ADD ", DOCKERFILE, re.MULTILINE), "COPY, which takes nothing from the network"


def test_what_the_image_installs_is_what_the_lock_says() -> None:
    assert "--require-hashes -r requirements.txt" in DOCKERFILE


def is_sent(path: str) -> bool:
    """Whether a build takes a file: by the last pattern of .dockerignore that is of it, or of a folder of it."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.removeprefix("!"))
        for written, meant in ((r"\*\*/", "(?:.*/)?"), (r"\*\*", ".*"), (r"\*", "[^/]*")):
            pattern = pattern.replace(written, meant)
        if re.fullmatch(rf"{pattern}(/.*)?", path):
            sent = line.startswith("!")
    return sent


def test_all_code_goes_into_the_image() -> None:
    code = {".py", ".sql", ".json", ".html", ".js", ".css", ".svg"}
    for folder in ("migrations", "schemas", "services"):
        for file in (ROOT / folder).rglob("*"):
            path = file.relative_to(ROOT)
            left_out = any(
                part == "dashboard" or part.startswith((".", "__pycache__")) for part in path.parts
            )
            if file.suffix in code and not left_out:
                assert is_sent(path.as_posix()), f"{path}: name its kind in .dockerignore"


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        ".git/config",
        "services/operator_cli/.env",
        "services/runtime/server.pem",
        "services/runtime/server.key",
        "services/analytics_api/static/.env",
        "services/analytics_api/dashboard/node_modules/x/index.js",
        "services/notes.txt",
        "migrations/.0001.sql.swp",
        "tests/conftest.py",
        "docs/security.md",
    ],
)
def test_what_else_lies_about_in_a_checkout_does_not(path: str) -> None:
    assert not is_sent(path)


@every_service
def test_a_password_may_have_any_character(name: str) -> None:
    """In a URL an `@` or a `/` of it would be taken for something else, and shown in the log."""
    environment = SERVICES[name].get("environment", {})
    for value in environment.values():
        assert "PASSWORD" not in str(value) or re.fullmatch(r"\$\{\w+:-(\w+|\$\{\w+:-\w+\})\}", value), value
    if "STEPSTREAM_DATABASE_URL" in environment:
        role = re.match(r"postgresql://stepstream(?:_(\w+))?@", environment["STEPSTREAM_DATABASE_URL"])
        assert role
        assert environment["STEPSTREAM_DATABASE_PASSWORD"] == password_of(role[1])


def password_of(role: str | None) -> str:
    """The variable that has the password of a role; of the owner, who has none, without a name."""
    if role is None:
        return "${POSTGRES_PASSWORD:-stepstream}"
    return f"${{{role.upper()}_PASSWORD:-${{SERVICE_PASSWORD:-stepstream}}}}"


def test_each_role_can_have_a_password_of_its_own() -> None:
    """Whoever gets into one service has its password, and opens nothing else with it."""
    given = SERVICES["roles"]["environment"]
    roles = re.findall(r"for role in ([\w ]+);", SERVICES["roles"]["command"][0])[0].split()
    assert {name for name in given if name.endswith("_PASSWORD")} == {f"{r.upper()}_PASSWORD" for r in roles}
    assert all(given[f"{role.upper()}_PASSWORD"] == password_of(role) for role in roles)


def test_no_password_is_an_argument_of_a_command() -> None:
    """Arguments of processes are for everybody on the machine to see."""
    for name, service in SERVICES.items():
        for line in "\n".join(map(str, service.get("command", ()))).splitlines():
            assert not re.search(r"(--\S+|-v)[ =]\S*=?\S*PASSWORD", line), f"{name}: {line}"


@every_service
def test_it_can_use_up_neither_memory_nor_disk_nor_processes_of_the_machine(name: str) -> None:
    service = SERVICES[name]
    for place in service.get("tmpfs", ()):
        assert re.search(r"[:,]size=\d+m\b", place), f"{place}: memory without a bound"
    assert service.get("pids_limit"), "merge x-hardened into it"
    assert service.get("logging", {}).get("options", {}).get("max-size"), "merge x-hardened into it"


def test_who_needs_no_kafka_cannot_reach_it() -> None:
    """Its Kafka asks nobody who they are, and agents from anywhere speak to walkthrough-mcp."""
    on_events = {name for name, service in SERVICES.items() if "events" in service.get("networks", ())}
    assert "kafka" in on_events
    assert not on_events & {"walkthrough-mcp", "roles", "postgres"}
    assert all(
        set(service.get("networks", ())) <= COMPOSE["networks"].keys() for service in SERVICES.values()
    )
    assert all(service.get("networks") for service in SERVICES.values()), "else it is in a network of its own"

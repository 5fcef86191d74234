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


@every_service
def test_it_has_a_bound_of_memory(name: str) -> None:
    assert re.fullmatch(r"\d+m", str(SERVICES[name].get("mem_limit"))), "merge x-hardened into it"


NETWORKS: dict[str, dict[str, Any]] = COMPOSE["networks"]
STORES = {"kafka", "postgres"}


def in_network(network: str) -> set[str]:
    return {name for name, service in SERVICES.items() if network in service.get("networks", ())}


def test_nobody_meets_anybody_but_the_stores_it_needs() -> None:
    """Kafka asks nobody who they are, and health ports ask for nothing: who is in a network with them reaches them."""
    assert all(service.get("networks") for service in SERVICES.values()), "else it is in a network of its own"
    assert {n for service in SERVICES.values() for n in service["networks"]} == NETWORKS.keys()
    for name, network in NETWORKS.items():
        there = in_network(name)
        if not network.get("internal"):
            options = network["driver_opts"]
            assert options["com.docker.network.bridge.enable_icc"] == "false", f"{name}: all reach all"
        elif name == "agents":
            assert there == {"walkthrough-mcp", "demo"}
        else:
            assert len(there & STORES) == 1, f"{name}: the stores reach each other, or nobody is there"
            assert len(there - STORES - {"migrate", "roles", "demo"}) <= 1, f"{name}: for one service alone"
    assert not {n for n in NETWORKS if n.endswith("-events")} & {*SERVICES["walkthrough-mcp"]["networks"]}


def test_names_of_stores_lead_to_where_they_answer() -> None:
    """In a network where nobody reaches another, a service would find them by name, and wait."""
    for name, network in NETWORKS.items():
        if not network.get("internal"):
            there = in_network(name)
            assert there <= STORES or not there & STORES, name


def test_only_who_asks_issuers_of_tokens_reaches_what_is_outside() -> None:
    option = "com.docker.network.bridge.enable_ip_masquerade"
    leads_outside = [
        name
        for name, network in NETWORKS.items()
        if not network.get("internal") and network["driver_opts"].get(option) != "false"
    ]
    assert leads_outside == ["outside"]
    assert in_network("outside") == {"walkthrough-mcp"}


def test_the_controller_of_kafka_is_for_its_own_container() -> None:
    environment = SERVICES["kafka"]["environment"]
    assert "CONTROLLER://127.0.0.1:9093" in environment["KAFKA_LISTENERS"].split(",")
    assert environment["KAFKA_CONTROLLER_QUORUM_VOTERS"] == "1@127.0.0.1:9093"

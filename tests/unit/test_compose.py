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


@every_service
def test_a_password_may_have_any_character(name: str) -> None:
    """In a URL an `@` or a `/` of it would be taken for something else, and shown in the log."""
    environment = SERVICES[name].get("environment", {})
    for value in environment.values():
        assert "PASSWORD" not in str(value) or re.fullmatch(r"\$\{\w+:-\w+\}", value), value
    if "STEPSTREAM_DATABASE_URL" in environment:
        is_owner = environment["STEPSTREAM_DATABASE_URL"].startswith("postgresql://stepstream@")
        whose = "POSTGRES_PASSWORD" if is_owner else "SERVICE_PASSWORD"
        assert environment["STEPSTREAM_DATABASE_PASSWORD"] == f"${{{whose}:-stepstream}}"

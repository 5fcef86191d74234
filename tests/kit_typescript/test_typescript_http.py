"""What the TypeScript client sends by HTTP is counted exactly, also while Kafka is away; what is wrong with it is said."""

import json
from dataclasses import replace
from typing import Any

import pytest

from schemas.generate import EXAMPLES
from services.analytics_api.keys import READS, Grant
from tests.clients import expected
from tests.clients.expected import people, traffic
from tests.kit_typescript.conftest import Project, address_of
from tests.support.world import API, RELAY, World, completed

pytestmark = pytest.mark.integration

WRITES = Grant(may_read=False, may_write=True, source="/kit-typescript")
REGISTERS = replace(WRITES, may_register=True)


def by_own_ids(event: dict[str, Any]) -> dict[str, Any]:
    """The event as somebody has it who knows neither the platform's ids nor its servers."""
    own = {k: v for k, v in event.items() if not k.startswith("mcp_server_")}
    user = event["mcp_server_user_id"]
    return own | {"distinct_id": user, "session_id": f"session of {user}"}


async def distinct_ids(world: World) -> dict[str, str]:
    """By the platform's id the one that the organization has."""
    rows = await world.db.fetch("select * from registered_people where organization_id = 'org'")
    return {row["mcp_server_user_id"]: row["distinct_id"] for row in rows}


@pytest.mark.parametrize("how", ["http", "track-http"])
async def test_what_it_sends_is_counted(world: World, project: Project, how: str) -> None:
    names = people(how)
    events = traffic(how, names)
    await world.offer(steps=expected.STEPS)
    await world.people(names)
    services = [await service.ready() for service in world.start_both()]
    address = await address_of(world, await world.start_api(), WRITES)
    for _ in range(2):  # The same again changes nothing.
        said = await project.send(how, events, **address)
        assert (said["accepted"], said["refused"]) == (len(events), 0)
    await world.drained()
    assert await world.dead_letters() == []
    assert await world.completions() == expected.completions(events)
    transitions, endings = expected.flow(events)
    assert await world.transitions() == transitions
    assert await world.endings() == endings
    await world.assert_exact()
    assert {dict(r.headers)["ce_source"] for r in await world.events()} == {b"/kit-typescript"}
    assert [service.terminate() for service in services] == [0, 0]


async def test_ids_of_ones_own_will_do_and_are_registered_on_first_sight(
    world: World, project: Project
) -> None:
    names = [name for name in people("own") if name.isprintable()]
    events = traffic("own", names)
    await world.offer(steps=expected.STEPS)
    services = [await service.ready() for service in world.start_both()]
    address = await address_of(world, await world.start_api(), REGISTERS)
    said = await project.send("http", map(by_own_ids, events), **address)
    assert (said["accepted"], said["through"]) == (len(events), "kafka")
    await world.drained()
    known = await distinct_ids(world)
    found = {(known[user], step): row for (user, step), row in (await world.completions()).items()}
    assert found == expected.completions(events)
    assert await world.transitions() == expected.flow(events)[0]
    await world.assert_exact()
    assert [service.terminate() for service in services] == [0, 0]


async def test_while_kafka_is_away_it_is_accepted_and_counted_later(world: World, project: Project) -> None:
    names = people("away")
    events = traffic("away", names)
    await world.offer(steps=expected.STEPS)
    await world.people(names)
    api = await world.start_api(kafka_bootstrap_servers="127.0.0.1:9", api_acknowledge_seconds=0.5)
    said = await project.send("http", events, **await address_of(world, api, WRITES))
    assert (said["accepted"], said["through"]) == (len(events), "outbox")
    assert await world.events() == []
    services = [*world.start_both(), world.start(RELAY)]
    await world.relayed()
    await world.drained()
    assert await world.completions() == expected.completions(events)
    assert await world.transitions() == expected.flow(events)[0]
    assert await world.endings() == expected.flow(events)[1]
    assert await world.dead_letters() == []
    await world.assert_exact()
    assert [service.terminate() for service in services] == [0, 0, 0]


async def test_what_is_tracked_while_the_api_is_away_arrives_once_it_is_back(
    world: World, project: Project
) -> None:
    """It is killed and started again at its address; the program goes on through both."""
    await world.offer()
    await world.people(["p"])
    api = await world.start_api(process=True)
    address = await address_of(world, api, WRITES)
    (service,) = world.services
    port = service.port
    service.kill()
    events = [completed("p", step, at) for at, step in enumerate("abcde")]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    with (world.folder / "said").open("w+") as said, (world.folder / "errors").open("w+") as errors:
        process = await project.start(
            "send", "track-http", stdout=said, stderr=errors, RETRY_FOR_MS="0", **address
        )
        assert process.stdin is not None
        process.stdin.write(lines.encode())
        process.stdin.close()
        await world.start(API, port).ready()
        assert await process.wait() == 0, (world.folder / "errors").read_text()
    told = json.loads((world.folder / "said").read_text())
    assert told == {"accepted": 5, "refused": 0, "failed": 0, "refusals": [], "errors": []}
    assert {r.value for r in await world.events()} == {
        json.dumps(e, separators=(",", ":")).encode() for e in events
    }


GOOD = completed("p", "a", 1_764_000_000_000)
OTHERS = {
    "no such step": (GOOD | {"step_id": "z"}, "unknown-step", "step_id"),
    "nobody": (GOOD | {"mcp_server_user_id": "nobody"}, "unknown-user", "mcp_server_user_id"),
    "no such session": (GOOD | {"mcp_server_session_id": "s"}, "unknown-session", "mcp_server_session_id"),
    "seconds": (GOOD | {"completed_at": 1_764_000_000}, "too-early", "completed_at"),
    "ISO 8601": (GOOD | {"completed_at": "2025-11-24T16:00:00Z"}, "invalid-event", "completed_at"),
    "camelCase": (
        {"completedAt" if k == "completed_at" else k: v for k, v in GOOD.items()},
        "invalid-event",
        "completed_at",
    ),
    "an operator's": (
        {k: GOOD[k] for k in ("event_id", "mcp_server_user_id")}
        | {"type": "user-erased", "erased_at": 1_764_000_000_000},
        "not-allowed",
        "type",
    ),
}


async def test_each_first_mistake_is_said_at_its_place_and_the_rest_is_taken(
    world: World, project: Project
) -> None:
    await world.offer()
    await world.people(["p"])
    address = await address_of(world, await world.start_api(), WRITES)
    said = await project.send("http", [GOOD, *(event for event, *_ in OTHERS.values())], **address)
    assert (said["accepted"], said["refused"]) == (1, len(OTHERS))
    found = {
        name: (result["error"]["class"], result["error"]["field"])
        for name, result in zip(OTHERS, said["results"][1:], strict=True)
    }
    assert found == {name: (rejection, field) for name, (_, rejection, field) in OTHERS.items()}


@pytest.mark.parametrize(
    ("grant", "key", "told"),
    [
        (READS, None, "may not do this: 403"),
        (WRITES, "stst_no_key", "is none that is known: 401"),
    ],
)
async def test_a_key_that_does_not_fit_is_said(
    world: World, project: Project, grant: Grant, key: str | None, told: str
) -> None:
    await world.offer()
    address = await address_of(world, await world.start_api(), grant)
    said = await project.send("http", [GOOD], **address | ({"STEPSTREAM_KEY": key} if key else {}))
    assert said["unsettled"] == 1
    assert f"1 of 1 not accepted, because the key {told}" in said["error"]


async def test_client_and_server_refuse_the_examples_for_the_same_reason(
    world: World, project: Project
) -> None:
    """Of the contract's examples those that are JSON; what the client lets pass the server refuses for its rows alone."""
    await world.offer()
    api = await world.start_api()
    address = await address_of(world, api, WRITES)
    values: dict[str, str] = {}
    for file in sorted((*EXAMPLES.glob("valid/*.json"), *EXAMPLES.glob("invalid/*.json"))):
        text = file.read_bytes()
        if file.stem not in {"reasons", "too-deep"} and _is_json(text):
            values[file.stem] = " ".join(text.decode().split("\n"))
    assert len(values) > 40
    done = await project.run("check", stdin="\n".join(values.values()))
    classes = dict(zip(values, done.stdout.split("\n"), strict=False))
    for name, text in values.items():
        response = await api.http.post(
            "/v1/events",
            content=f"[{text}]",
            headers={
                "Authorization": f"Bearer {address['STEPSTREAM_KEY']}",
                "Content-Type": "application/json",
            },
        )
        (result,) = response.json()["results"]
        expected_class = classes[name] or result["error"]["class"]
        assert result["error"]["class"] == expected_class, (name, result)
        if not classes[name]:
            assert expected_class.startswith("unknown-"), (name, result)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text.decode(), parse_constant=_no_json)
    except ValueError:
        return False
    return True


def _no_json(name: str) -> None:
    raise ValueError(name)

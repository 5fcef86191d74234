"""What the TypeScript client sends by Kafka is counted exactly, and what is wrong with it is said."""

import pytest

from tests.clients import expected
from tests.clients.expected import people, traffic
from tests.kit_typescript.conftest import Project, kafka_of
from tests.support.world import World, completed

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("how", ["kafka", "track-kafka"])
async def test_what_it_sends_is_counted(world: World, project: Project, how: str) -> None:
    names = people(how)
    events = traffic(how, names)
    await world.offer(steps=expected.STEPS)
    await world.people(names)
    services = [await service.ready() for service in world.start_both()]
    said = await project.send(how, events, **kafka_of(world))
    assert (said["accepted"], said["refused"]) == (len(events), 0)
    await world.drained()
    assert await world.dead_letters() == []
    assert await world.completions() == expected.completions(events)
    transitions, endings = expected.flow(events)
    assert await world.transitions() == transitions
    assert await world.endings() == endings
    await world.assert_exact()
    assert [service.terminate() for service in services] == [0, 0]


async def test_records_are_where_and_as_the_contract_says(world: World, project: Project) -> None:
    """Each in its person's partition, in order, with its headers."""
    events = traffic("records", people("records"))
    await project.send("kafka", events, **kafka_of(world))
    records = await world.events()
    assert len(records) == len(events)
    by_key: dict[str, list[str]] = {}
    for record in records:
        assert record.key is not None
        assert record.partition == expected.partition(record.key, 3)
        headers = {name: value.decode() for name, value in record.headers}
        assert headers["ce_source"] == "/kit-typescript"
        by_key.setdefault(record.key.decode(), []).append(headers["ce_id"])
    for name, ids in by_key.items():
        assert ids == [e["event_id"] for e in events if e["mcp_server_user_id"] == name]


async def test_what_is_wrong_is_said_before_or_after(world: World, project: Project) -> None:
    """What the contract refuses is not sent; what the database does not know is a dead letter of this source."""
    await world.offer()
    await world.people(["p"])
    (recorder, _) = [await service.ready() for service in world.start_both()]
    good, unknown = completed("p", "a", 1), completed("nobody", "a", 2)
    said = await project.send(
        "kafka", [good, {**good, "completed_at": 1_764_000_000}, unknown], **kafka_of(world)
    )
    assert [result["status"] for result in said["results"]] == ["accepted", "refused", "accepted"]
    assert said["results"][1]["error"]["class"] == "too-early"
    assert "are these seconds" in said["results"][1]["error"]["message"]
    await world.drained()
    (letter,) = await world.dead_letters()
    headers = {name: value.decode() for name, value in letter.headers}
    assert (headers["ce_source"], headers["stepstream-error-class"]) == ("/kit-typescript", "unknown-user")
    assert list(await world.completions()) == [("p", "a")]
    assert recorder.terminate() == 0


async def test_nobody_there_is_said_with_what_is_left(project: Project) -> None:
    events = [completed("p", "a", 1), completed("p", "b", 2)]
    nowhere = {"STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9", "STEPSTREAM_TOPIC": "t"}
    said = await project.send("kafka", events, **nowhere)
    assert said["unsettled"] == 2
    assert "Kafka cannot be reached" in said["error"]


async def test_a_topic_that_is_not_there_is_said_and_no_attempt_is_repeated(
    world: World, project: Project
) -> None:
    events = [completed("p", "a", 1), completed("p", "b", 2)]
    said = await project.send("kafka", events, **(kafka_of(world) | {"STEPSTREAM_TOPIC": "nope"}))
    assert said["unsettled"] == 2
    assert "Kafka refuses: there is no topic nope" in said["error"]

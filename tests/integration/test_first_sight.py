"""People and sessions that are registered because an event names them: of the sources that may, and of no others."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from aiokafka import ConsumerRecord

from services.completion_recorder import transaction
from services.completion_recorder import waiting as events_that_wait
from services.completion_recorder.judge import read
from services.completion_recorder.load_counts import Load
from services.completion_recorder.transaction import Recorded
from services.runtime.database import Pool
from services.runtime.kafka import next_offsets
from tests.integration.test_erase import erased
from tests.integration.test_intake import another_organization
from tests.integration.test_locks import locked
from tests.support.world import (
    AGGREGATOR,
    RECORDER,
    Message,
    World,
    completed,
    eventually,
    moment,
    started,
)

pytestmark = pytest.mark.integration
SHOP = "/shop"
SOURCES = frozenset({SHOP})


def of(source: str, *events: dict[str, Any]) -> list[Message]:
    """Events as a producer of this name sends them."""
    messages = [Message.of(event) for event in events]
    return [Message(m.key, m.value, [("ce_source", source.encode())]) for m in messages]


async def hand(world: World, pool: Pool, messages: Iterable[Message], first: int = 0) -> Recorded:
    """Hands records to the recorder's transaction, of partition 0 from an offset on."""
    topic = world.settings.topic
    records = [
        ConsumerRecord(topic, 0, first + i, 7, 0, m.key, m.value, None, 0, 0, tuple(m.headers))
        for i, m in enumerate(messages)
    ]
    accepted, refused = read(records, 10**13)
    load = Load(topic, next_offsets(records), accepted, refused, registering=SOURCES)
    return await transaction.record(pool, load)


async def users(world: World) -> set[str]:
    return {row["id"] for row in await world.db.fetch("select id from mcp_server_user")}


async def sessions(world: World) -> dict[str, tuple[Any, ...]]:
    rows = await world.db.fetch("select * from mcp_server_session")
    return {
        row["mcp_server_session_id"]: (
            row["mcp_server_slug"],
            row["mcp_server_user_id"],
            row["connection_timestamp"],
            str(row["connection_date"]),
        )
        for row in rows
    }


def rejections(recorded: Recorded) -> Sequence[str]:
    return [refused.rejection for refused in recorded.refused]


async def test_events_of_such_a_source_are_counted_though_nobody_registered_anything(world: World) -> None:
    """Through the real recorder and aggregator; the same of another source are dead letters, until they are sent
    again under a source that may."""
    await world.offer()
    world.start(RECORDER, registering_sources=f"{SHOP}, /crm")
    world.start(AGGREGATOR)
    walked = [completed(f"p-{n}", step, 10 * n + i) for n in range(50) for i, step in enumerate("abc")]
    begun = [started(f"p-{n}", 10 * n) for n in range(60)]
    await world.produce([*of(SHOP, *walked, *begun), *of("/till", completed("stranger", "a", 1))])
    await world.drained()
    assert await users(world) == {f"p-{n}" for n in range(60)}
    assert (await sessions(world))["s_p-7"] == ("srv_1", "p-7", moment(70), "2000-01-01")
    assert await world.db.fetchval("select count(*) from walkthrough_step_completions") == 150
    counted = await world.db.fetchval("select sum(journeys) from sankey_transitions where from_step_id = 'b'")
    assert counted == 50
    (letter,) = await world.dead_letters()
    assert json.loads(letter.value or b"")["mcp_server_user_id"] == "stranger"
    assert dict(letter.headers)["stepstream-error-class"] == b"unknown-user"
    verified = await world.invoke("verify")
    assert verified.returncode == 0, verified.stderr


async def test_what_was_refused_is_registered_when_it_is_sent_again_and_the_source_may_now(
    world: World,
) -> None:
    await world.offer()
    recorder = world.start(RECORDER)
    await world.produce(of(SHOP, completed("ann", "a", 1)))

    async def is_refused() -> bool:
        return len(await world.dead_letters()) == 1

    await eventually(is_refused, "it is a dead letter")
    assert recorder.terminate() == 0
    world.start(RECORDER, registering_sources=SHOP)
    world.start(AGGREGATOR)
    done = await world.invoke("dlq", "redrive", "--source", SHOP, "--execute")
    assert done.returncode == 0, done.stderr
    await world.drained()
    assert await users(world) == {"ann"}
    assert await world.db.fetchval("select count(*) from walkthrough_step_completions") == 1


async def test_a_replay_registers_who_is_gone_but_nobody_who_was_erased(world: World) -> None:
    await world.offer()
    recorder = world.start(RECORDER, registering_sources=SHOP)
    aggregator = world.start(AGGREGATOR)
    await world.produce(of(SHOP, *(completed(p, "a", 1) for p in ("ann", "bob"))))
    await world.drained()
    await world.produce([erased("ann")])
    await world.drained()
    assert await users(world) == {"bob"}
    await world.produce(of(SHOP, completed("ann", "b", 2)))
    await world.drained()
    await world.db.execute("delete from mcp_server_user")
    assert (recorder.terminate(), aggregator.terminate()) == (0, 0)
    replay = await world.invoke("replay", "--group", RECORDER, "--from-beginning", "--execute")
    assert replay.returncode == 0, replay.stderr
    world.start(RECORDER, registering_sources=SHOP)
    world.start(AGGREGATOR)
    await world.drained()
    assert await users(world) == {"bob"}
    assert set(await sessions(world)) == {"s_bob"}
    assert await world.dead_letters() == []
    assert (await world.invoke("verify")).returncode == 0


#: An event of a source that may register, and what it is refused as: nothing is made for it.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"mcp_server_id": "srv_9"}, "unknown-user"),
    ({"walkthrough_id": "wt_9"}, "unknown-user"),
    ({"step_id": "z"}, "unknown-user"),
    ({"step_id": "x"}, "unknown-user"),
    ({"mcp_server_id": "srv_2"}, "unknown-user"),
    ({"mcp_server_session_id": "s_bob"}, "unknown-user"),
    ({"mcp_server_user_id": "bob", "mcp_server_session_id": "s_elsewhere"}, "session-of-another-server"),
    ({"mcp_server_session_id": "s_elsewhere"}, "unknown-user"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
async def test_nothing_is_made_where_anything_else_is_wrong(world: World, number: int) -> None:
    await world.offer()
    await world.offer("wt_b", "xyz", "srv_1")
    await world.offer("wt_c", "uvw", "srv_3")
    await world.db.execute("insert into organization (id, name, created_at) values ('other', 'other', now())")
    await world.db.execute(
        "insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)"
        " values ('srv_2', 'other', 'two', 'two', 'srv_2')"
    )
    await world.people(["bob"])
    await world.db.execute(
        "insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date)"
        " values ('s_elsewhere', 'srv_3', current_date)"
    )
    pool = await world.recorder_pool()
    wrong, rejection = WRONG[number]
    before = await users(world), await sessions(world)
    messages = of(SHOP, completed("ann", "a", 1) | wrong, completed("bob", "b", 1))
    assert rejections(await hand(world, pool, messages)) == [rejection]
    assert (await users(world), await sessions(world)) == before
    assert await world.db.fetchval("select count(*) from walkthrough_step_completions") == 1


async def test_a_session_of_two_people_is_the_firsts_and_a_known_one_of_nobody_stays_so(world: World) -> None:
    await world.offer()
    await world.db.execute(
        "insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date)"
        " values ('s_free', 'srv_1', current_date)"
    )
    pool = await world.recorder_pool()
    shared = {"mcp_server_session_id": "s_both"}
    messages = of(
        SHOP,
        completed("zoe", "a", 5) | shared,
        completed("ann", "a", 1) | shared,
        completed("bob", "a", 3) | {"mcp_server_session_id": "s_free"},
        completed("zoe", "b", 2),
    )
    assert rejections(await hand(world, pool, messages)) == ["session-of-another-user"]
    kept = await sessions(world)
    assert {name: row[1] for name, row in kept.items()} == {"s_both": "zoe", "s_free": None, "s_zoe": "zoe"}
    assert await users(world) >= {"zoe", "bob"}
    first_seen = await world.db.fetchval("select first_seen_at from mcp_server_user where id = 'zoe'")
    assert first_seen == moment(2)


async def test_who_is_being_registered_by_somebody_else_waits_and_holds_up_nobody(world: World) -> None:
    await world.offer()
    await world.offer("wt_b", "xyz", "srv_2")
    pool = await world.recorder_pool()
    others = [completed(f"p-{n}", "a", n) for n in range(40)]
    elsewhere = completed("cat", "x", 1, walkthrough_id="wt_b", mcp_server_id="srv_2")
    async with locked(
        world,
        "insert into mcp_server_user (id) values ('ann')",
        "select from mcp_servers where id = 'srv_2' for update",
    ):
        recorded = await hand(world, pool, of(SHOP, completed("ann", "a", 1), *others, elsewhere))
        assert (rejections(recorded), recorded.waiting) == ([], 2)
        assert await world.db.fetchval("select count(*) from walkthrough_step_completions") == 40
        held = [done async for done in events_that_wait.resuming(pool, 100, registering=SOURCES)]
        assert sum(resumed.done for resumed in held) == 0
    resumed = [done async for done in events_that_wait.resuming(pool, 100, registering=SOURCES)]
    assert sum(one.done for one in resumed) == 2
    assert {"ann", "cat"} <= await users(world)
    assert await world.db.fetchval("select count(*) from waiting_events") == 0
    assert await world.db.fetchval("select count(*) from walkthrough_step_completions") == 42


async def test_whom_the_platform_does_not_take_is_unknown_and_harms_nobody(world: World) -> None:
    await world.offer()
    await world.db.execute("alter table mcp_server_user add constraint of_ours check (id not like 'x%')")
    pool = await world.recorder_pool()
    messages = of(SHOP, *(completed(p, "a", 1) for p in ("ann", "x-1", "bob", "x-2", "cat")))
    assert rejections(await hand(world, pool, messages)) == ["unknown-user", "unknown-user"]
    assert await users(world) == {"ann", "bob", "cat"}


@pytest.mark.parametrize("value", ["(no source)", "/shop, (other sources)", "x" * 101])
async def test_a_setting_that_names_no_producer_is_refused(world: World, value: str) -> None:
    done = world.command("run", RECORDER, registering_sources=value)
    assert done.returncode == 2
    assert "STEPSTREAM_REGISTERING_SOURCES" in done.stderr


async def test_who_is_another_organizations_keeps_what_they_did_there_to_it(world: World) -> None:
    """Ids of people are the platform's: an event of an organization's source counts there, and reveals nothing."""
    await world.offer()
    await another_organization(world)
    await world.db.execute(
        "update mcp_server_user set email = 'zoe@example.org', distinct_id = 'track-17' where id = 'zoe'"
    )
    there = completed(
        "zoe", "x", 5, walkthrough_id="wt_x", mcp_server_id="srv_x", mcp_server_session_id="s_zoe"
    )
    world.start(RECORDER, registering_sources=SHOP)
    world.start(AGGREGATOR)
    await world.produce(
        [*of("/other", there), *of(SHOP, completed("zoe", "a", 9, mcp_server_session_id="s_new"))]
    )
    await world.drained()
    api = await world.start_api()
    theirs = await world.make_key("other")

    async def asked(path: str, key: str) -> tuple[int, str]:
        answer = await api.http.get(f"/v1/{path}", headers={"Authorization": f"Bearer {key}"})
        return answer.status_code, answer.text

    for path, status in (
        ("walkthroughs/wt_a/journeys", 200),
        ("walkthroughs/wt_a/journeys/zoe", 200),
        ("sessions/s_new", 200),
        ("walkthroughs/wt_x/journeys", 404),
        ("walkthroughs/wt_x/journeys/zoe", 404),
        ("sessions/s_zoe", 404),
    ):
        ours = await asked(path, api.key)
        assert ours[0] == status, (path, ours)
        assert not {
            one for one in ("example.org", "track-17", "wt_x", "srv_x", "s_zoe") if one in ours[1]
        } - {one for one in ("wt_x", "s_zoe") if one in path}
    status, text = await asked("walkthroughs/wt_x/journeys/zoe", theirs)
    assert (status, "s_new" in text, "wt_a" in text) == (200, False, False)
    assert (await asked("sessions/s_new", theirs))[0] == 404

"""The consumers as processes: SIGTERM, SIGKILL, rebalances, and changes of rows with events in flight."""

import asyncio
import contextlib
import random
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from typing import Any

import asyncpg
import pytest

from services.consumers.lag import lags
from tests.support.world import (
    AGGREGATOR,
    MCP,
    RECORDER,
    RELAY,
    World,
    completed,
    eventually,
    members,
    metric,
)

pytestmark = pytest.mark.integration

PEOPLE = [f"p{i:03}" for i in range(300)]


def traffic(chance: random.Random, count: int = 6_000) -> list[dict[str, Any]]:
    """Events of many people in random order, with repeats of steps."""
    return [
        completed(chance.choice(PEOPLE), chance.choice("abcde"), chance.randrange(10**9), metadata={"n": n})
        for n in range(count)
    ]


def paths(events: list[dict[str, Any]]) -> Counter[Any]:
    """Transitions by position, computed here from the events alone."""
    best: dict[tuple[str, str], tuple[int, str]] = {}
    for e in events:
        key = e["mcp_server_user_id"], e["step_id"]
        best[key] = min(best.get(key, (2**63, "")), (e["completed_at"], e["event_id"]))
    journeys: dict[str, list[tuple[tuple[int, str], str]]] = {}
    for (user, step), rank in best.items():
        journeys.setdefault(user, []).append((rank, step))
    counts: Counter[Any] = Counter()
    for journey in journeys.values():
        steps = [step for _, step in sorted(journey)]
        for i, step in enumerate(steps):
            counts[i, steps[i - 1] if i else None, step] += 1
    return counts


async def prepare(world: World) -> None:
    await world.offer()
    await world.people(PEOPLE)


def get(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


async def test_sigterm_drains_the_batch_in_hand_and_exits_0(world: World) -> None:
    await prepare(world)
    events = traffic(random.Random(1))
    await world.produce(events)
    recorder, aggregator = world.start_both(poll_max_records=500)

    async def begun() -> bool:
        return await world.recorded() > 0

    await eventually(begun, "the first batch is recorded", every=0.01)
    assert recorder.terminate() == 0
    assert aggregator.terminate() == 0
    assert 0 < await world.recorded() < len(events)
    world.services.clear()
    world.start_both()
    await world.drained()
    assert await world.transitions() == paths(events)
    await world.assert_exact()


async def test_health_says_alive_and_ready_and_metrics_are_served(world: World) -> None:
    for service in (*world.start_both(), world.start(RELAY), world.start(MCP)):
        await service.ready()
        assert get(service.port, "/health/live") == 200
        assert get(service.port, "/metrics") == 200
        assert get(service.port, "/elsewhere") == 404


async def test_the_aggregator_waits_for_the_recorder_alive_and_goes_on_by_itself(world: World) -> None:
    await prepare(world)
    events = traffic(random.Random(2), 500)
    await world.produce(events)
    aggregator = world.start(AGGREGATOR)

    async def waiting() -> bool:
        def look() -> bool:
            if get(aggregator.port, "/health/live") != 200:
                return False
            with urllib.request.urlopen(f"http://127.0.0.1:{aggregator.port}/metrics", timeout=60) as metrics:
                return b"stepstream_aggregator_waiting 1.0" in metrics.read()

        return await asyncio.to_thread(look)

    await eventually(waiting, "the aggregator says that it waits")
    assert await world.transitions() == {}
    inside = await members(world, AGGREGATOR)
    await asyncio.sleep(world.settings.session_timeout_seconds + 1)  # it keeps its place in the group
    assert len(inside) == 1
    assert await members(world, AGGREGATOR) == inside
    world.start(RECORDER)
    await world.drained()
    assert await world.transitions() == paths(events)
    assert aggregator.terminate() == 0


@pytest.mark.parametrize("service", [RECORDER, AGGREGATOR, RELAY, MCP])
async def test_sigterm_while_starting_is_polite_too(world: World, service: str) -> None:
    """From the moment on which the command runs, and not only once its partitions are there."""
    codes = []
    for moment in (0.0, 0.1, 0.3, 0.7):  # after the interpreter is up
        starting = world.start(service, anew=True)
        starting.wait_until_it_hears_sigterm()
        with contextlib.suppress(subprocess.TimeoutExpired):
            starting.process.wait(moment)
        codes.append(starting.terminate())
        assert "Traceback" not in starting.log.read_text()
    assert codes == [0] * 4


async def test_a_waiting_aggregator_still_ends_politely(world: World) -> None:
    await prepare(world)
    await world.produce(traffic(random.Random(3), 100))
    aggregator = world.start(AGGREGATOR)

    async def ready() -> bool:
        return await asyncio.to_thread(get, aggregator.port, "/health/ready") == 200

    await eventually(ready, "the aggregator has its partitions")
    assert aggregator.terminate() == 0


async def test_instances_come_and_go_and_are_killed_under_load(world: World) -> None:
    """Rebalances of both groups, with bad keys that lead several instances to the same journeys."""
    await prepare(world)
    chance = random.Random(4)
    events = traffic(chance, 12_000)
    for event in events:
        event["key"] = None
    from tests.support.world import Message

    def badly_keyed(part: list[dict[str, Any]]) -> list[Message]:
        plain = [{k: v for k, v in e.items() if k != "key"} for e in part]
        return [Message(str(chance.random()).encode(), Message.of(e).value) for e in plain]

    await world.produce(badly_keyed(events[:4_000]))
    running = [*world.start_both(poll_max_records=300), *world.start_both(poll_max_records=700)]
    await world.produce(badly_keyed(events[4_000:8_000]))
    for goal, victim in ((2_000, 0), (4_000, 1)):

        async def reached(goal: int = goal) -> bool:
            return await world.recorded() > goal

        await eventually(reached, f"{goal} recorded")
        running[victim].kill()
    running += world.start_both(poll_max_records=400)
    await world.produce(badly_keyed(events[8_000:]))
    assert running[2].terminate() == 0
    await world.drained()
    assert await world.transitions() == paths(events)
    # Read again is at most the one batch that a killed recorder had written and not committed.
    again = [await metric(s, "stepstream_events_read_again_total") for s in (running[4],)]
    assert sum(again) <= 300
    await world.assert_exact()


async def test_deletions_with_events_in_flight_are_exact(world: World) -> None:
    """A step, users and sessions vanish while their events are on the way."""
    await prepare(world)
    chance = random.Random(5)
    events = traffic(chance, 9_000)
    world.start_both(poll_max_records=400)
    await world.produce(events[:3_000])
    gone_users, gone_sessions = set(PEOPLE[:40]), {f"s_{p}" for p in PEOPLE[30:60]}
    sending = asyncio.create_task(world.produce(events[3_000:]))
    other = await asyncpg.connect(world.settings.dsn)
    deletions = [
        ("delete from walkthrough_steps where id = any($1)", ["c"]),
        ("delete from mcp_server_user where id = any($1)", sorted(gone_users)),
        ("delete from mcp_server_session where mcp_server_session_id = any($1)", sorted(gone_sessions)),
    ]
    for number, (statement, ids) in enumerate(deletions):

        async def reached(goal: int = 1_500 * (number + 1)) -> bool:
            return await world.recorded() > goal

        await eventually(reached, "some events recorded", every=0.01)
        await other.execute(statement, ids)
    await other.close()
    await sending
    await world.drained()
    left = [
        e
        for e in events
        if e["step_id"] != "c"
        and e["mcp_server_user_id"] not in gone_users
        and e["mcp_server_session_id"] not in gone_sessions
    ]
    assert await world.transitions() == paths(left)
    await world.assert_exact()


@pytest.mark.parametrize(
    ("service", "table"), [(RECORDER, "mcp_server_session"), (AGGREGATOR, "sankey_journeys")]
)
async def test_an_error_nobody_expected_stops_the_service_before_the_offset_moves(
    world: World, service: str, table: str
) -> None:
    """FastStream by itself would log it and go on to the next batch, whose commit passes over this one."""
    await prepare(world)
    events = traffic(random.Random(6), 4_000)
    await world.produce(events)
    other = world.start(RECORDER if service == AGGREGATOR else AGGREGATOR)
    victim = world.start(service, poll_max_records=200)

    async def begun() -> bool:
        return await world.recorded() > 200

    await eventually(begun, "some events recorded", every=0.01)
    await world.db.execute(f"alter table {table} rename to elsewhere")

    async def ended() -> bool:
        return victim.process.poll() is not None

    await eventually(ended, f"{service} ends")
    assert victim.process.returncode == 1
    assert table in victim.log.read_text()
    committed = {lag.group: lag.committed for lag in await lags(world.settings)}
    assert committed[service] <= await world.recorded()
    await world.db.execute(f"alter table elsewhere rename to {table}")
    world.services = [other]  # which never looks at that table
    world.start(service)
    await world.drained()
    assert await world.transitions() == paths(events)
    await world.assert_exact()


async def test_the_database_restarts_under_load(world: World) -> None:
    """Every connection is lost at once; both go on by themselves, and nothing goes to the dead letters."""
    await prepare(world)
    events = traffic(random.Random(7), 6_000)
    for service in world.start_both(poll_max_records=300):
        await service.ready()  # a service that starts without a database says so and ends
    await world.produce(events)
    for goal in (500, 2_000, 3_500):

        async def reached(goal: int = goal) -> bool:
            return await world.recorded() > goal

        await eventually(reached, f"{goal} recorded", every=0.01)
        await world.db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
    await world.drained()
    assert await world.transitions() == paths(events)
    assert await world.dead_letters() == []
    await world.assert_exact()


CHANGES = {
    "a step is deleted": ["delete from walkthrough_steps where id = 'b'"],
    "users are deleted": ["delete from mcp_server_user where id between 'p100' and 'p150'"],
    "sessions are deleted": ["delete from mcp_server_session where mcp_server_session_id > 's_p200'"],
    "a server is deleted": ["delete from mcp_servers where id = 'srv_2'"],
    "a walkthrough is deleted": ["delete from walkthroughs where id = 'wt_b'"],
    "rows are mended by hand": [
        "update walkthrough_step_completions set completed_at = completed_at / 2 where step_id = 'a'",
        "update walkthrough_step_completions set mcp_server_id = 'srv_2' where mcp_server_user_id < 'p050'",
        "delete from walkthrough_step_completions where step_id = 'd' and mcp_server_user_id > 'p250'",
    ],
    "rows are inserted past the recorder": [
        "insert into walkthrough_step_completions select 'by_hand_' || id, id, 'wt_a', 'e', 'srv_1', 's_' || id,"
        " 5, null from mcp_server_user where id > 'p100' on conflict do nothing",
        "insert into walkthrough_step_completions select 'later_' || id, id, 'wt_b', 'z', 'srv_2', 's_' || id,"
        " 10 ^ 10, null from mcp_server_user where id < 'p100' on conflict do nothing",
    ],
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_that_no_event_tells_of_is_followed_in_flight(world: World, change: str) -> None:
    await prepare(world)
    await world.offer("wt_b", "xyz", "srv_2")
    chance = random.Random(change)
    events = traffic(chance, 3_000) + [
        completed(chance.choice(PEOPLE), chance.choice("xyz"), chance.randrange(10**9), walkthrough_id="wt_b",
                  mcp_server_id="srv_2")
        for _ in range(2_000)
    ]  # fmt: skip
    chance.shuffle(events)
    world.start_both(poll_max_records=300)
    await world.produce(events[:1_500])
    sending = asyncio.create_task(world.produce(events[1_500:]))
    other = await asyncpg.connect(world.settings.dsn)
    for number, statement in enumerate(CHANGES[change]):

        async def reached(goal: int = 1_000 * (number + 1)) -> bool:
            return await world.recorded() > goal

        await eventually(reached, "some events recorded", every=0.01)
        await other.execute(statement)
    await other.close()
    await sending
    await world.drained()
    assert await world.transitions() == await world.walked()
    assert len(await world.completions()) > 400
    await world.assert_exact()


@pytest.mark.parametrize("service", [RECORDER, AGGREGATOR])
async def test_without_migrations_or_topics_a_service_says_what_to_run(world: World, service: str) -> None:
    refused = world.command("run", service, "--port", "0", topic="there-is-no-such-topic")
    assert refused.returncode == 2
    assert "there-is-no-such-topic" in refused.stderr
    assert "stepstream migrate" in refused.stderr
    await world.db.execute("drop table stepstream_migrations")
    refused = world.command("run", service, "--port", "0")
    assert refused.returncode == 2
    assert "stepstream migrate" in refused.stderr
    assert "Traceback" not in refused.stderr

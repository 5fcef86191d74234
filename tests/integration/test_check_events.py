"""`check-events` says before what the recorder does then: each verdict is held against dead letters and rows."""

import gzip
import json
import random
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from schemas import advice_on
from schemas.generate import FOLDER
from services.completion_recorder.dead_letters import encoded
from services.consumers.lag import read_groups_with
from services.consumers.reader import reader
from services.runtime.kafka import Record, admin_client
from tests.support.bad_events import corpus
from tests.support.world import (
    RECORDER,
    Message,
    World,
    completed,
    corrected,
    eventually,
    shown,
    skipped,
    started,
)

pytestmark = pytest.mark.integration

EXAMPLES = FOLDER / "examples"
NOW = int(time.time() * 1000)


async def furnish_examples(world: World) -> list[Message]:
    """The examples of the contract as records; what the valid ones refer to is there."""
    messages = []
    for file in sorted(EXAMPLES.glob("*/*.json")):
        # What operators decide comes before, as PAST: beside it, it hangs on what is read first.
        if file.name == "reasons.json" or file.parent.name == "operator":
            continue
        value = file.read_bytes()
        user = b"nobody"
        if file.parent.name != "invalid":
            event = json.loads(value)
            user = event["mcp_server_user_id"].encode()
            if "walkthrough_id" in event:
                await furnish_one(world, event)
        messages.append(Message(user, value, []))
    assert len(messages) > 60
    return messages


async def furnish_one(world: World, event: dict[str, Any]) -> None:
    steps = [event["step_id"]] if "step_id" in event else []
    await world.offer(event["walkthrough_id"], steps, event["mcp_server_id"])
    await world.db.execute(
        "insert into mcp_server_user (id) values ($1) on conflict do nothing", event["mcp_server_user_id"]
    )
    await world.db.execute(
        "insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date)"
        " values ($1, $2, current_date) on conflict do nothing",
        event["mcp_server_session_id"],
        event["mcp_server_id"],
    )


async def furnish(world: World) -> None:
    """Two organizations, their people, and what has happened before: an erasure, a correction, completions."""
    await world.offer()
    await world.offer("wt_b", "z")
    await world.offer("wt_a", (), "srv_2")
    await world.people(["ann", "bob", "cid", "gone", *(f"p{i}" for i in range(30))])
    await world.people(["bob"], "srv_2", "other_")
    await world.db.execute("insert into organization (id, name, created_at) values ('org2', 'org2', now())")
    await world.db.execute(
        "insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)"
        " values ('far', 'org2', 'far', 'far', 'far')"
    )
    await world.people(["ann"], "far", "far_")


PAST = [
    completed("ann", "a", 1_000, event_id="00000000-0000-4000-8000-0000000000aa"),
    started("ann", 900),
    skipped("ann", "b", 2_000),
    shown("ann", "c", 3_000),
    shown("ann", "c", 4_000),
    completed("gone", "a", 1_000),
    completed("cid", "a", 1_000),
    corrected("cid", "a", 9_000, 5_000),
]
ERASED = {
    "type": "user-erased",
    "event_id": str(uuid.uuid4()),
    "mcp_server_user_id": "gone",
    "erased_at": NOW,
}


def new_events() -> list[Message]:
    """Each kind of verdict, and good ones between them."""
    reused = completed("bob", "c", 70_000)
    events: list[Message | dict[str, Any]] = [
        *PAST[:5],  # recorded
        PAST[0] | {"completed_at": PAST[0]["completed_at"] - 5},  # the same id, and an earlier time
        completed("bob", "a", 100, event_id=PAST[0]["event_id"]),  # another person's id
        completed("ann", "b", 100, event_id=PAST[0]["event_id"]),  # another step's
        started("bob", 100, event_id=PAST[0]["event_id"]),  # a start may have a completion's
        reused,
        reused,
        reused | {"mcp_server_user_id": "bob", "step_id": "d"},
        completed("gone", "b", 100),
        Message(b"gone", b'{"mcp_server_user_id": "gone", "type": "no-such"}'),
        completed("cid", "a", 3_000),  # covered
        completed("cid", "a", 6_000),  # not covered
        completed("ann", "d", 1, mcp_server_session_id="s_bob"),
        completed("bob", "d", 1, mcp_server_session_id="other_bob"),
        completed("ann", "d", 1, mcp_server_id="far", mcp_server_session_id="far_ann"),
        completed("bob", "e", 1, mcp_server_id="srv_2", mcp_server_session_id="other_bob"),
        Message(b"ann", json.dumps(ERASED | {"mcp_server_user_id": "ann"}).encode()),  # from no operator
        *(completed(f"p{i}", step, i) for i in range(30) for step in "abc"),
    ]
    return [e if isinstance(e, Message) else Message.of(e) for e in events]


def exported(record: Record) -> bytes:
    """A record as `dlq export` writes it."""
    headers = [{"name": name} | encoded("value", value) for name, value in record.headers]
    said = encoded("key", record.key) | encoded("value", record.value) | {"headers": headers}
    return json.dumps(said | {"partition": record.partition, "offset": record.offset}).encode()


async def checked(
    world: World, *args: str, stdin: bytes | None = None, code: int = 3, **more: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What `check-events` says of events, and its summary."""
    done = world.command("check-events", *args, "-o", "ndjson", stdin=stdin, **more)
    assert done.returncode == code, (done.stdout[-2000:], done.stderr[-2000:])
    *found, last = [json.loads(line) for line in done.stdout.splitlines()]
    return found, last["summary"]


async def test_each_verdict_is_what_the_recorder_then_does(world: World) -> None:
    """Of the examples, the corpus of bad events, and each kind of reference: of the topic and of a file."""
    await furnish(world)
    examples = await furnish_examples(world)
    await world.produce([Message.of(e) for e in [*PAST, ERASED]])
    recorder = world.start(RECORDER)
    await recorded_all(world)
    assert recorder.terminate() == 0
    before = await everything(world)
    old = {(r.partition, r.offset) for r in await world.events()}

    rest = [*examples, *(b.message for b in corpus())]
    random.Random(4).shuffle(rest)
    await world.produce([*new_events(), *rest])
    records = [r for r in await world.events() if (r.partition, r.offset) not in old]
    found, summary = await checked(world, "--topic", world.settings.topic, "--last", "100000")
    assert (summary["events"], summary["database"]) == (len(records) + len(old), True)
    of_topic = {(f["partition"], f["offset"]): f for f in found if (f["partition"], f["offset"]) not in old}
    file = b"\n".join(map(exported, records))
    found, summary = await checked(world, "-", stdin=gzip.compress(file))
    assert summary["events"] == len(records)
    of_file = {int(f["place"].removeprefix("line ")) - 1: f for f in found}
    assert {
        (records[i].partition, records[i].offset): (f["outcome"], f["error_class"])
        for i, f in of_file.items()
    } == {place: (f["outcome"], f["error_class"]) for place, f in of_topic.items()}
    assert await everything(world) == before

    world.start(RECORDER)
    await recorded_all(world)
    letters = {
        (int(told["stepstream-partition"]), int(told["stepstream-offset"])): told
        for told in (
            {name: value.decode() for name, value in letter.headers[-6:]}
            for letter in await world.dead_letters()
        )
    }
    refused = {place: f for place, f in of_topic.items() if f["outcome"] == "refused"}
    assert {p: f["error_class"] for p, f in refused.items()} == {
        p: told["stepstream-error-class"] for p, told in letters.items() if p not in old
    }
    others = {f["error_class"] for p, f in refused.items() if f["message"] != letters[p]["stepstream-error"]}
    assert others == {"reused-event-id"}, "where the other event is each tells in its own way"
    outcomes = {f["outcome"] for f in of_topic.values()}
    assert outcomes == {"refused", "recorded", "copy", "covered", "of-erased"}
    assert await rows_of(world) == wanted_rows(
        [
            *PAST,
            *(json.loads(r.value or b"") for r in records if counts(of_topic.get((r.partition, r.offset)))),
        ]
    )


def counts(finding: dict[str, Any] | None) -> bool:
    return finding is None or finding["outcome"] in {"copy", "recorded"}


def wanted_rows(events: list[dict[str, Any]]) -> set[tuple[str, str, str, int]]:
    """Kind, person, step or walkthrough, and time of each row that these events make: the earliest of each."""
    times = {
        "step-completed": "completed_at",
        "walkthrough-started": "started_at",
        "step-skipped": "skipped_at",
    }
    first: dict[tuple[str, str, str], int] = {}
    for event in events:
        if event["type"] not in times or event["mcp_server_user_id"] == "gone":
            continue
        if event["mcp_server_user_id"] == "cid" and event["completed_at"] <= PAST[7]["covers_until"]:
            continue
        of = event["walkthrough_id"] if event["type"] == "walkthrough-started" else event["step_id"]
        key, at = (event["type"], event["mcp_server_user_id"], of), event[times[event["type"]]]
        first[key] = min(at, first.get(key, at))
    return {(*key, at) for key, at in first.items()}


async def rows_of(world: World) -> set[tuple[str, str, str, int]]:
    rows = await world.db.fetch(
        "select 'step-completed' as kind, mcp_server_user_id, step_id, completed_at"
        " from walkthrough_step_completions"
        " where not exists (select from completion_corrections c where c.event_id ="
        "   substr(walkthrough_step_completions.id, 6))"
        " union all select 'walkthrough-started', mcp_server_user_id, walkthrough_id, started_at"
        " from walkthrough_starts"
        " union all select 'step-skipped', mcp_server_user_id, step_id, skipped_at from walkthrough_step_skips"
    )
    return {tuple(row) for row in rows}


async def recorded_all(world: World) -> None:
    """Waits until the recorder is done with all that is there: it commits behind its dead letters."""
    async with admin_client(world.settings) as admin, reader(world.settings) as consumer:

        async def done() -> bool:
            (group,) = await read_groups_with(admin, consumer, world.settings, [RECORDER])
            return group.lag == 0

        await eventually(done, "the recorder has passed all")


async def everything(world: World) -> dict[str, Any]:
    """What a check might have changed."""
    await world.db.execute("select pg_stat_force_next_flush()")  # of this session's own changes, too
    tables = await world.db.fetch(
        "select relname, n_tup_ins + n_tup_upd + n_tup_del as changes from pg_stat_user_tables order by 1"
    )
    return {row["relname"]: row["changes"] for row in tables if not row["relname"].startswith("api_")}


async def test_a_source_that_registers_on_first_sight_needs_no_rows_of_people_and_sessions(
    world: World,
) -> None:
    """What is foreseen of a topic is what the recorder then does."""
    await world.offer()
    await world.people(["ann"])
    sent = [completed(f"new_{n}", step, n) for n in range(1, 20) for step in "ab"]
    wrong = [
        completed("new_1", "nowhere", 50),
        completed("new_21", "nowhere", 51),
        completed("new_22", "a", 52, mcp_server_session_id="s_ann"),
    ]
    of_source = [replace(Message.of(one), headers=[("ce_source", b"/shop")]) for one in [*sent, *wrong]]
    stranger = completed("stranger", "a", 7)
    await world.produce([*of_source, replace(Message.of(stranger), headers=[("ce_source", b"/till")])])
    found, summary = await checked(
        world, "--topic", world.settings.topic, code=3, registering_sources="/shop"
    )
    world.start(RECORDER, registering_sources="/shop")
    await recorded_all(world)
    told = {
        json.loads(letter.value)["event_id"]: dict(letter.headers)["stepstream-error-class"].decode()
        for letter in await world.dead_letters()
    }
    assert {one["event_id"]: one["error_class"] for one in found} == told
    assert sorted(told.values()) == ["unknown-step", "unknown-user", "unknown-user", "unknown-user"]
    recorded = await world.db.fetchval("select count(*) from walkthrough_step_completions")
    assert summary["outcomes"]["counts"] == recorded == len(sent)


async def test_events_in_the_form_of_http_are_looked_up_by_their_organizations_own_ids(
    world: World, tmp_path: Path
) -> None:
    await world.offer()
    registering = ("register", "sessions", "--organization", "org")
    done = await world.invoke(*registering, "--session-id", "visit", "--distinct-id", "customer 17")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "events.ndjson"
    platform = ("mcp_server_user_id", "mcp_server_session_id", "mcp_server_id")
    bare = {name: value for name, value in completed("x", "a", NOW).items() if name not in platform}
    good = bare | {"distinct_id": "customer 17", "session_id": "visit"}
    other = [
        good | {"event_id": str(uuid.uuid4()), "step_id": "b", "distinct_id": "nobody"},
        good | {"event_id": str(uuid.uuid4()), "step_id": "c", "session_id": "none"},
    ]
    file.write_text("\n".join(map(json.dumps, [good, *other, completed("x", "a", NOW)])))
    found, summary = await checked(world, str(file), "--organization", "org", code=3)
    assert summary["outcomes"] == {"counts": 1, "refused": 3}
    assert [(one["error_class"], one["field"]) for one in found] == [
        ("unknown-user", "distinct_id"),
        ("unknown-session", "session_id"),
        ("unknown-user", "mcp_server_user_id"),
    ]
    found, _ = await checked(world, str(file), code=3)
    assert "`--organization ORG` looks up whom and what it names" in found[0]["message"]


async def test_rows_that_somebody_has_locked_hold_up_no_check(world: World, tmp_path: Path) -> None:
    await world.offer()
    await world.people(["ann"])
    file = tmp_path / "events.ndjson"
    file.write_text(json.dumps(completed("ann", "a", 1)))
    async with world.connection() as other, other.transaction():
        await other.execute("select from mcp_server_user for update")
        await other.execute("select from walkthrough_steps for update")
        found, summary = await checked(world, str(file), code=0)
    assert (found, summary["outcomes"], summary["rows"]) == ([], {"counts": 1}, {"completion": 1})


@pytest.mark.parametrize(
    ("args", "more", "why"),
    [
        (["--no-database"], {}, "without the database"),
        ([], {"database_url": "postgresql://u:hidden@127.0.0.1:1/db"}, "PostgreSQL at 127.0.0.1:1/db"),
    ],
)
async def test_without_a_database_it_says_what_it_cannot_say(
    world: World, args: list[str], more: dict[str, str], why: str
) -> None:
    lines = [json.dumps(completed("nobody", "a", 1)), "no json"]
    given = "\n".join(lines).encode()
    (bad,), summary = await checked(
        world, "-", *args, stdin=given, kafka_bootstrap_servers="127.0.0.1:1", **more
    )
    assert (bad["place"], bad["error_class"]) == ("line 2", "not-json")
    assert summary["outcomes"] == {"counts": 1, "refused": 1}
    (told,) = summary["not_looked_at"]
    assert why in told
    assert "who was erased" in told
    assert "hidden" not in told


async def test_what_a_producer_does_with_its_records_is_told_by_source(world: World) -> None:
    """librdkafka as it is by default, by name; another source beside it; codecs as they are in Kafka."""
    await world.offer()
    people = [f"p{i}" for i in range(40)]
    await world.people(people)
    events = [completed(name, "a", NOW - i * 7_919_000) for i, name in enumerate(people)]
    sender = Producer(
        {"bootstrap.servers": ",".join(world.settings.kafka_bootstrap_servers), "compression.type": "zstd"}
    )
    for event in events:
        sender.produce(
            world.settings.topic,
            key=event["mcp_server_user_id"],
            value=json.dumps(event),
            headers=[("ce_source", b"/checkout")],
        )
    assert sender.flush(30) == 0
    await world.produce([Message(None, b"no json"), *events[:10]], compression_type="gzip")

    topic = ["--topic", world.settings.topic]
    found, summary = await checked(world, *topic, "--source", "/checkout", code=0)
    (of_source,) = summary["sources"]
    assert (found, summary["events"], of_source["codecs"]) == ([], 40, {"zstd": 40})
    (hint,) = of_source["hints"]
    assert "CRC32" in hint
    assert "partitioner=murmur2_random" in hint

    found, summary = await checked(world, *topic)
    of_sources = {of["source"]: of for of in summary["sources"]}
    assert of_sources["(no source)"]["codecs"] == {"gzip": 11}
    assert any(hint.startswith("1 of 11 records have no key") for hint in of_sources["(no source)"]["hints"])
    assert summary["outcomes"] == {"counts": 40, "copy": 10, "refused": 1}

    done = world.command("check-events", *topic, "--source", "/nobody")
    assert (done.returncode, "has no records of /nobody" in done.stderr) == (2, True)
    done = world.command("check-events", *topic, "--from", "2100-01-01T00:00:00Z")
    assert (done.returncode, "look further back" in done.stderr) == (2, True)


async def test_a_table_has_the_summary_first_and_then_the_first_problems(world: World) -> None:
    lines = [*(json.dumps(completed("nobody", "a", i)) for i in range(40)), *["no json"] * 5]
    done = world.command("check-events", "-", stdin="\n".join(lines).encode())
    assert done.returncode == 3
    assert done.stdout.index("unknown-user") < done.stdout.index("not-json") < done.stdout.index("line 1 ")
    assert "mcp_server_user_id: there is no such user" in " ".join(done.stdout.split())
    assert "and 25 more; -o json lists them all" in done.stdout
    told = " ".join(done.stdout.split())
    assert f"unknown-user {advice_on('unknown-user')} not-json {advice_on('not-json')}" in told
    assert "45 of 45 events would not count" in done.stderr
    whole = json.loads(
        world.command("check-events", "-", "-o", "json", stdin="\n".join(lines).encode()).stdout
    )
    assert len(whole["events"]) == whole["summary"]["would_not_count"] == 45
    none = json.loads(world.command("check-events", "-", "-o", "json", stdin=b"").stdout)
    assert (none["events"], none["summary"]["events"]) == ([], 0)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "say where the events are"),
        (["a", "--topic", "b"], "say where the events are"),
        (["a", "--last", "5"], "--source, --last and --from are for --topic"),
        (["--topic", "b", "--partitions", "5"], "--partitions is for a file"),
        (["--topic", "b", "--last", "5", "--from", "-2h"], "say where to begin once"),
        (["--topic", "no-such-topic"], "Kafka has no topic no-such-topic"),
        (["--topic", "b", "--organization", "org"], "--organization is for a file"),
        (["nowhere.ndjson"], "nowhere.ndjson: No such file"),
    ],
)
async def test_what_makes_no_sense_is_refused(world: World, args: list[str], told: str) -> None:
    done = world.command("check-events", *args)
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr

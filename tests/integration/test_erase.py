"""Forgetting a person: nothing of them is left, and nothing brings it back."""

import asyncio
import json
from collections.abc import Collection, Set
from typing import Any
from unittest.mock import AsyncMock

import pytest
from aiokafka import ConsumerRecord

from schemas import OPERATOR_SOURCES
from services.completion_recorder import references, transaction
from services.completion_recorder.judge import read
from services.completion_recorder.load_counts import Load, LoadContext
from services.operations import erase as erasing
from services.runtime.alone import Act, be_alone
from services.runtime.database import Connection
from services.runtime.errors import StepstreamError
from services.runtime.kafka import next_offsets
from tests.support.agents import agent
from tests.support.world import (
    AGGREGATOR,
    OPERATOR,
    RECORDER,
    Message,
    World,
    completed,
    eventually,
    moment,
    shown,
    skipped,
    started,
)

pytestmark = pytest.mark.integration

DAY = 86_400_000


def erased(user: str, **other: Any) -> dict[str, Any]:
    return {
        "type": "user-erased",
        "event_id": "0192f4c9-11d2-4c40-9a3b-7e8f90a1b2c3",
        "mcp_server_user_id": user,
        "erased_at": moment(5),
    } | other


async def traces(world: World, user: str) -> dict[str, int]:
    """In how many rows of which tables the person's id is found, whichever column it is in."""
    columns = await world.db.fetch(
        "select table_name, column_name from information_schema.columns where table_schema = 'public'"
        " and data_type in ('text', 'jsonb') and table_name <> 'erased_users'"
    )
    found: dict[str, int] = {}
    for table, column in columns:
        count = await world.db.fetchval(
            f"select count(*) from {table} where position($1 in {column}::text) > 0", user
        )
        if count:
            found[f"{table}.{column}"] = count
    return found


async def fill(world: World) -> list[Message | dict[str, Any]]:
    """Ann and bob, with rows everywhere and dead letters."""
    await world.offer()
    await world.people(["ann-who-leaves", "bob"])
    await world.db.execute(
        "update mcp_server_user set distinct_id = 'visitor-1', email = 'ann@example.org' where id = 'ann-who-leaves';"
        "insert into walkthrough_progress (id, mcp_server_user_id, walkthrough_id, completed_steps)"
        " values ('wtp_1', 'ann-who-leaves', 'wt_a', '[\"a\"]');"
        "insert into mcp_user_identities values ('issuer', 'subject', 'ann-who-leaves');"
        "insert into outbox_set_aside values (7, 'ann-who-leaves', '{}', '{}', now(), now(), 'too large')"
    )
    return [
        *(completed(p, s, i * DAY) for p in ("ann-who-leaves", "bob") for i, s in enumerate("abc")),
        started("ann-who-leaves", 0),
        *(skipped("ann-who-leaves", step, DAY, reason="left") for step in "de"),
        *(shown("ann-who-leaves", "a", at) for at in (0, DAY)),
        Message(b"ann-who-leaves", b"not json"),
        Message.of(completed("ann-who-leaves", "unknown", 4)),
        Message(None, json.dumps(completed("ann-who-leaves", "no", 4)).encode()),
        Message(b"bob", b"not json either", [("h", b"\xff")]),
    ]


async def test_everything_goes_and_stays_gone_under_replay(world: World) -> None:
    events = await fill(world)
    await world.produce(events)
    services = world.start_both()
    await world.drained()
    bobs = [(r.key, r.value, r.headers) for r in await world.dead_letters() if r.key == b"bob"]
    assert len(await world.dead_letters()) == 4
    await world.put_in_outbox(
        [("ann-who-leaves", json.dumps(completed("ann-who-leaves", "d", 9))), ("bob", "{}")]
    )
    assert len(await traces(world, "ann-who-leaves")) > 8

    plan = await world.invoke("erase", "visitor-1", "-o", "json")
    assert plan.returncode == 0
    expected = {
        "completions": 3,
        "later_completions": 0,
        "corrections": 0,
        "starts": 1,
        "skips": 2,
        "showings": 1,
        "journeys": 1,
        "progress": 1,
        "sessions": 1,
        "identities": 1,
        "outbox": 1,
        "outbox_set_aside": 1,
        "waiting_events": 0,
        "sources": 0,
        "dead_letters": 3,
    }
    assert json.loads(plan.stdout)["removed"] == expected
    assert len(await world.completions()) == 6

    done = await world.invoke("erase", "ann@example.org", "--execute", "-o", "json")
    assert done.returncode == 0, done.stderr
    receipt = json.loads(done.stdout)
    assert (receipt["user"], receipt["removed"]) == ("ann-who-leaves", expected)
    assert await traces(world, "ann-who-leaves") == {}
    assert (await world.invoke("verify")).returncode == 0
    assert await world.db.fetchval("select array_agg(key) from outbox") == ["bob"]
    await world.db.execute("delete from outbox")

    assert [(r.key, r.value, r.headers) for r in await world.dead_letters()] == bobs
    (told,) = [r for r in await world.events() if b'"user-erased"' in (r.value or b"")]
    assert told.key == b"ann-who-leaves"
    assert dict(told.headers)["ce_id"].decode() == receipt["event_id"]

    again = await world.invoke("erase", "ann-who-leaves", "--execute", "-o", "json")
    assert json.loads(again.stdout)["removed"] == dict.fromkeys(expected, 0)
    assert json.loads(again.stdout)["event_id"] == receipt["event_id"]
    await world.drained()
    for service in services:
        assert service.terminate() == 0
    for group in (RECORDER, AGGREGATOR):
        replayed = await world.invoke("replay", "--group", group, "--from-beginning", "--execute")
        assert replayed.returncode == 0, replayed.stderr
    await world.produce([completed("ann-who-leaves", "e", 3), Message(b"ann-who-leaves", b"\xff")])
    world.start_both()
    await world.drained()
    assert await traces(world, "ann-who-leaves") == {}
    assert {user for user, _ in await world.completions()} == {"bob"}
    assert b"ann-who-leaves" not in b"".join(
        (r.key or b"") + (r.value or b"") for r in await world.dead_letters()
    )
    await world.assert_exact()


async def test_another_consumer_with_a_database_of_its_own_forgets_too(world: World) -> None:
    """It never ran the command: the event alone says it, wherever it is in the topic."""
    events = await fill(world)
    await world.produce(
        [erased("bob"), *events, erased("ann-who-leaves"), completed("ann-who-leaves", "e", 1)]
    )
    world.start_both()
    await world.drained()
    assert await traces(world, "ann-who-leaves") == {}
    assert await traces(world, "bob") == {}
    assert await world.completions() == {}
    assert await world.transitions() == {}
    # What has no key can be on another partition, and be refused before the event is read.
    assert all(letter.key is None for letter in await world.dead_letters())


@pytest.mark.parametrize("batch", [1, 3, 100])
async def test_where_and_in_which_batch_the_event_comes_makes_no_difference(world: World, batch: int) -> None:
    await world.offer()
    await world.people(["ann", "bob"])
    pool = await world.recorder_pool()
    events = [completed("ann", "a", 1), completed("bob", "a", 1), erased("ann"), completed("ann", "b", 2)]
    events += [
        started("ann", 0),
        erased("ann", erased_at=moment(1)),
        completed("bob", "b", 2),
        erased("nobody"),
    ]
    messages = [Message.of(event) for event in events]
    records = [
        ConsumerRecord(world.settings.topic, 0, i, 0, 0, m.key, m.value, None, 0, 0, m.headers)
        for i, m in enumerate(messages)
    ]
    for i in range(0, len(records), batch):
        part = records[i : i + batch]
        accepted, unreadable = read(part, 10**13)
        load = Load(world.settings.topic, next_offsets(part), accepted, unreadable)
        refused, *_ = await transaction.record(pool, load)
        assert refused == []
    assert set(await world.completions()) == {("bob", "a"), ("bob", "b")}
    assert await world.db.fetchval("select count(*) from walkthrough_starts") == 0
    rows = await world.db.fetch("select mcp_server_user_id from erased_users order by 1")
    assert [r[0] for r in rows] == ["ann", "nobody"]


@pytest.mark.parametrize("by_parts", [False, True])
async def test_somebody_who_is_erased_while_a_load_is_judged_is_counted_once_and_leaves_no_letter(
    world: World, monkeypatch: pytest.MonkeyPatch, by_parts: bool
) -> None:
    """By an operator, between the looks at what cannot be read and at the others."""
    await world.offer()
    await world.people(["ann", "bob"])
    find_erased = references.find_erased

    async def find_before_the_erasure(connection: Connection, people: Collection[str]) -> Set[str]:
        found = await find_erased(connection, people)
        await world.db.execute("insert into erased_users values ('ann', 0, 'e') on conflict do nothing")
        return found

    monkeypatch.setattr(references, "find_erased", find_before_the_erasure)
    messages = [
        Message(b"ann", b"no json"),
        Message.of(completed("ann", "a", 1)),
        # Without it all references are there, and nobody looks who was erased.
        Message.of(completed("bob", "none", 1)),
    ]
    records = [
        ConsumerRecord(world.settings.topic, 0, i, 0, 0, m.key, m.value, None, 0, 0, m.headers)
        for i, m in enumerate(messages)
    ]
    load = Load(world.settings.topic, next_offsets(records), *read(records, 10**13))
    recorded = await transaction.record(await world.recorder_pool(), load, LoadContext(), by_parts=by_parts)
    assert [one.record.key for one in recorded.refused] == [b"bob"]
    assert (recorded.of_erased, recorded.waiting, recorded.covered) == (2, 0, 0)
    assert await world.completions() == {}


@pytest.mark.parametrize("point", ["operator.erase-committed", "operator.letters-copied"])
async def test_killed_in_the_middle_and_run_again(world: World, point: str) -> None:
    await world.produce(await fill(world))
    services = world.start_both()
    await world.drained()
    for service in services:
        service.terminate()
    killed = world.command("erase", "ann-who-leaves", "--execute", crash_at=point)
    assert killed.returncode < 0
    done = await world.invoke("erase", "ann-who-leaves", "--execute")
    assert done.returncode == 0, done.stderr
    assert [r.value for r in await world.dead_letters()] == [b"not json either"]
    assert len([r for r in await world.events() if b'"user-erased"' in (r.value or b"")]) == 1
    assert await traces(world, "ann-who-leaves") == {}
    world.start_both()
    await world.drained()
    await world.assert_exact()


async def test_with_kafka_away_the_database_forgets_and_the_event_waits(world: World) -> None:
    await fill(world)
    await world.insert(completed("ann-who-leaves", "a", 1))
    refused = await world.invoke("erase", "ann-who-leaves", kafka_bootstrap_servers="127.0.0.1:1")
    assert refused.returncode == 1
    assert "Kafka at 127.0.0.1:1" in refused.stderr


async def test_nobody_known_is_a_mistake_until_it_is_meant(world: World) -> None:
    await world.offer()
    typo = await world.invoke("erase", "an", "--execute")
    assert typo.returncode == 2
    assert "is it right" in typo.stderr
    assert (await world.invoke("erase", "an")).returncode == 0
    meant = await world.invoke("erase", "an", "--execute", "--even-if-unknown")
    assert meant.returncode == 0
    assert await world.db.fetchval("select count(*) from erased_users") == 1
    await world.people(["x", "y"])
    await world.db.execute("update mcp_server_user set email = 'shared@example.org'")
    several = await world.invoke("erase", "shared@example.org")
    assert several.returncode == 2
    assert "is 2 people: x, y" in several.stderr


async def test_somebody_is_found_by_the_id_under_which_they_were_registered(world: World) -> None:
    await world.offer()
    await world.people(["mcpu_1", "mcpu_2", "bob"])
    await world.db.execute(
        "update organization set slug = 'acme' where id = 'org';"
        "insert into organization (id, name, slug, created_at) values ('org_2', 'Contoso', 'contoso', now());"
        "insert into registered_people (organization_id, distinct_id, mcp_server_user_id)"
        " values ('org', 'alice', 'mcpu_1'), ('org_2', 'alice', 'mcpu_2'), ('org', 'carl', 'bob')"
    )
    world.start_both()
    await world.produce([completed("mcpu_1", "a", 1), completed("alice", "a", 1)])
    await world.drained()
    for command in (("erase",), ("completions", "show")):
        several = await world.invoke(*command, "alice")
        assert several.returncode == 2, several.stderr
        told = " ".join(several.stderr.split())
        assert "`alice` is 2 people: mcpu_1 (registered by acme), mcpu_2 (registered by contoso)" in told
        assert "or say whose with --organization" in told
        nobody = await world.invoke(*command, "alice", "--organization", "nowhere")
        assert nobody.returncode == 2
        assert "there is no organization with the id or slug `nowhere`" in " ".join(nobody.stderr.split())
        strange = await world.invoke(*command, "carl", "--organization", "contoso")
        assert strange.returncode == 2
        assert "the organization `contoso` knows nobody by `carl`" in " ".join(strange.stderr.split())
        assert (await world.invoke(*command, "carl")).returncode == 0
    shown = await world.invoke("completions", "show", "alice", "--organization", "acme", "-o", "json")
    assert [entry["step_id"] for entry in json.loads(shown.stdout)] == ["a"]
    plan = await world.invoke("erase", "alice", "--organization", "acme", "-o", "json")
    found = json.loads(plan.stdout)
    assert (found["user"], found["removed"]["completions"], len(found["named_in"])) == ("mcpu_1", 1, 1)
    told = " ".join(plan.stderr.split())
    assert "`alice` is mcpu_1, by the id under which their organization registered them" in told
    done = await world.invoke("erase", "alice", "--organization", "acme", "--execute")
    assert done.returncode == 0, done.stderr
    assert {r["id"] for r in await world.db.fetch("select id from mcp_server_user")} == {"mcpu_2", "bob"}
    assert "mcpu_2" in (await world.invoke("erase", "alice")).stdout


async def test_who_has_dead_letters_alone_is_not_taken_for_somebody(world: World) -> None:
    """They come from whoever sends a wrong id, too: an operator would believe that somebody is erased."""
    await world.offer()
    world.start_both()
    await world.produce([completed("alice", "a", 1)])
    await world.drained()
    plan = await world.invoke("erase", "alice")
    assert plan.returncode == 0, plan.stderr
    told = " ".join(plan.stderr.split())
    assert "nothing is known of such a person; only 1 dead letter has this id: is the id right?" in told
    refused = await world.invoke("erase", "alice", "--execute")
    assert refused.returncode == 2
    assert "nothing is known of `alice`, but 1 dead letter with this id" in " ".join(refused.stderr.split())
    assert len(await world.dead_letters()) == 1
    meant = await world.invoke("erase", "alice", "--execute", "--even-if-unknown")
    assert meant.returncode == 0, meant.stderr
    assert await world.dead_letters() == []


async def test_who_comes_back_by_the_same_tracking_id_is_somebody_new(world: World) -> None:
    await world.offer()
    url = f"http://127.0.0.1:{(await world.start_mcp()).port}/mcp/srv_1/visitor-9"
    async with agent(url) as before:
        await before.start()
    (first,) = [r[0] for r in await world.db.fetch("select id from mcp_server_user")]
    assert (await world.invoke("erase", "visitor-9", "--execute")).returncode == 0
    assert await traces(world, first) == {}
    async with agent(url) as after:
        await after.start()
    (second,) = [r[0] for r in await world.db.fetch("select id from mcp_server_user")]
    assert second != first


@pytest.mark.parametrize("told", [True, False])
async def test_an_event_that_only_speaks_of_erasure_goes_with_the_others(world: World, told: bool) -> None:
    """What is announced is the erasure, and not a step whose metadata hold the same words.

    The version before wrote rows without their type.
    """
    await world.offer()
    await world.people(["ann"])
    step = json.dumps(completed("ann", "a", 9, metadata={"note": "user-erased", "type": "user-erased"}))
    kind = "step-completed" if told else None
    await world.db.execute("insert into outbox (key, value, type) values ('ann', $1, $2)", step, kind)
    await world.db.execute(
        "insert into outbox_set_aside (id, key, value, headers, created_at, error, type)"
        " values (7, 'ann', $1, '{}', now(), 'too large', $2)",
        step,
        kind,
    )
    plan = await world.invoke("erase", "ann", "-o", "json")
    removed = json.loads(plan.stdout)["removed"]
    assert (removed["outbox"], removed["outbox_set_aside"]) == (1, 1)
    done = await world.invoke("erase", "ann", "--execute", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert await traces(world, "ann") == {}
    (event,) = await world.events()
    assert json.loads(event.value or b"")["event_id"] == json.loads(done.stdout)["event_id"]


async def test_what_waits_under_another_key_goes_too_and_what_is_of_others_stays(world: World) -> None:
    await world.offer()
    await world.people(["ann", "bob"])
    values = [
        json.dumps(completed("ann", "a", 1)),
        "no JSON, of ann",
        '"of ann"',
        json.dumps(completed("bob", "a", 1) | {"metadata": {"by": "ann"}}),
        "no JSON",
    ]
    for table in ("outbox (key, value", "outbox_set_aside (headers, created_at, error, id, key, value"):
        more = "'{}', now(), 'refused', n, " if "aside" in table else ""
        await world.db.execute(
            f"insert into {table}) select {more}'k', v from unnest($1::text[]) with ordinality as u (v, n)",
            values,
        )
    removed = (await erasing.erase(world.settings, "ann", unknown_too=False)).removed
    assert (removed["outbox"], removed["outbox_set_aside"]) == (3, 3)
    for table in ("outbox", "outbox_set_aside"):
        left = await world.db.fetch(f"select value from {table} order by value")
        assert [row["value"] for row in left] == sorted(values[3:])


@pytest.mark.parametrize("user", ["acme/ann", 'ann "the first"', "acme\\ann"])
async def test_an_id_that_json_writes_with_escapes_is_found_under_another_key(
    world: World, user: str
) -> None:
    """Some write a slash as `\\/`; quotes and backslashes all do."""
    await world.offer()
    await world.people([user, "bob"])
    world.start(RECORDER)

    def written(event: dict[str, Any]) -> str:
        return json.dumps(event).replace("/", "\\/")

    await world.produce(
        [Message(None, written(completed(one, "none", 1)).encode()) for one in (user, "bob/ann", "bob")]
    )
    await world.db.executemany(
        "insert into outbox (key, value) values ('bob', $1)",
        [(written(completed(one, "a", 1)),) for one in (user, "bob/ann", "bob")],
    )
    await world.db.execute(
        "insert into outbox_set_aside (id, key, value, headers, created_at, error)"
        " select id, key, value, headers, created_at, '' from outbox"
    )

    async def are_letters() -> bool:
        return len(await world.dead_letters()) == 3

    await eventually(are_letters, "the recorder has refused them")
    done = await world.invoke("erase", user, "--execute", "-o", "json")
    assert done.returncode == 0, done.stderr
    removed = json.loads(done.stdout)["removed"]
    assert [removed[what] for what in ("outbox", "outbox_set_aside", "dead_letters")] == [1, 1, 1]
    for table in ("outbox", "outbox_set_aside"):
        left = [
            json.loads(row[0])["mcp_server_user_id"]
            for row in await world.db.fetch(f"select value from {table}")
        ]
        assert sorted(left) == ["bob", "bob/ann"]
    letters = [json.loads(letter.value or b"")["mcp_server_user_id"] for letter in await world.dead_letters()]
    assert sorted(letters) == ["bob", "bob/ann"]


async def test_an_announcement_that_kafka_refused_waits_for_whoever_sends_it_again(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    done = await world.invoke("erase", "ann", "--execute", "-o", "json")
    headers = json.dumps({"ce_id": json.loads(done.stdout)["event_id"], "ce_type": "user-erased"})
    await world.db.execute(
        "insert into outbox_set_aside (id, key, value, headers, created_at, error, type)"
        " values (7, 'ann', '{}', $1, now(), 'a policy', 'user-erased'),"
        " (8, 'ann', '{}', '{}', now(), 'a policy', 'user-erased')",
        headers,
    )
    assert (await world.invoke("erase", "ann", "--execute")).returncode == 0
    assert await world.db.fetchval("select array_agg(id) from outbox_set_aside") == [7]


async def test_an_announcement_of_a_version_before_this_one_is_sent(world: World) -> None:
    """It wrote no type, and waits while the relay is away."""
    await world.offer()
    event = erased("ann")
    await world.db.execute("insert into erased_users values ('ann', 5, $1)", event["event_id"])
    await world.db.execute(
        "insert into outbox (key, value, headers) values ('ann', $1, $2)",
        json.dumps(event),
        json.dumps({"ce_id": event["event_id"], "ce_type": "user-erased"}),
    )
    done = await world.invoke("erase", "ann", "--execute", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(e.value or b"") for e in await world.events()] == [event]


async def test_no_other_event_is_announced_whatever_type_it_is_given(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    step = json.dumps(completed("ann", "a", 9))
    await world.db.execute(
        "insert into outbox (key, value, type, headers) values ('ann', $1, 'user-erased', $2)",
        step,
        json.dumps({"ce_id": "theirs", "ce_type": "user-erased"}),
    )
    done = await world.invoke("erase", "ann", "--execute", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert await world.db.fetchval("select count(*) from outbox") == 0
    (event,) = await world.events()
    assert json.loads(event.value or b"")["event_id"] == json.loads(done.stdout)["event_id"]


async def test_of_two_people_who_are_erased_at_once_no_letter_is_left(world: World) -> None:
    """Each command copies the letters of others, which must not be those that the other removes."""
    await world.offer()
    await world.people(["ann", "bob"])
    async with world.producing() as producer:
        for user in ("ann", "bob", "cat"):
            for step in "ab":
                letter = Message.of(completed(user, step, 1))
                await producer.send(
                    world.settings.dead_letter_topic, letter.value, key=letter.key, partition=0
                )
    settings = world.settings_of(OPERATOR)
    receipts = await asyncio.gather(
        *(erasing.erase(settings, user, unknown_too=False) for user in ("ann", "bob"))
    )
    assert [receipt.removed["dead_letters"] for receipt in receipts] == [2, 2]
    assert {letter.key for letter in await world.dead_letters()} == {b"cat"}


async def test_a_command_that_freezes_in_its_transaction_holds_others_up_for_a_bounded_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process, say: PostgreSQL ends its connection, and nothing is changed."""
    await world.offer()
    await world.people(["ann"])
    recount_within = erasing.counting.recount_within

    async def recount_and_freeze(db: Any, journeys: Any) -> None:
        await recount_within(db, journeys)
        await world.ended(db)

    monkeypatch.setattr(erasing.counting, "recount_within", recount_and_freeze)
    monkeypatch.setattr(erasing, "_TRANSACTION_SECONDS", 1)
    with pytest.raises(StepstreamError):
        await erasing.erase(world.settings_of(OPERATOR), "ann", unknown_too=False)
    assert await world.db.fetchval("select count(*) from mcp_server_user where id = 'ann'") == 1


async def test_who_waits_in_vain_for_the_dead_letters_is_told_what_is_done_and_what_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.offer()
    await world.people(["ann"])
    monkeypatch.setattr(erasing, "_LETTERS_SECONDS", 0.0)
    monkeypatch.setattr(erasing, "wait_for_recorder", AsyncMock(return_value=True))
    async with world.connection() as other:
        await be_alone(other, Act.HANDLE_LETTERS)
        with pytest.raises(StepstreamError, match="handles the dead letters") as caught:
            await erasing.erase(world.settings_of(OPERATOR), "ann", unknown_too=False)
    assert str(caught.value).endswith("Run `stepstream erase ann --execute` for the dead letters")
    assert "outbox" not in str(caught.value)
    assert await world.db.fetchval("select count(*) from outbox") == 0, "the event was sent"


async def test_a_command_that_freezes_while_it_removes_a_source_lets_the_others_write(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.offer()
    await world.db.execute(
        "insert into event_sources (topic, source, events, refused, looked_at, elsewhere, without_key, known,"
        " first_at, last_at) values ('t', 'ann@example.org', 1, 0, 1, 0, 0, true, now(), now())"
    )
    forget_names = erasing.source_names.forget_names

    async def forget_and_freeze(db: Any, source_pattern: str, pattern: str) -> None:
        await forget_names(db, source_pattern, pattern)
        await world.ended(db)

    monkeypatch.setattr(erasing.source_names, "forget_names", forget_and_freeze)
    monkeypatch.setattr(erasing, "_TRANSACTION_SECONDS", 1)
    with pytest.raises(StepstreamError):
        await erasing.erase(world.settings_of(OPERATOR), "ann@example.org", unknown_too=False)
    assert await world.db.fetchval("select source from event_sources") == "ann@example.org"


NAMES = ("ann-who-leaves", "visitor-1", "ann@example.org")


@pytest.mark.parametrize("name", NAMES)
async def test_a_source_that_is_the_person_is_no_source_any_more(world: World, name: str) -> None:
    """By id, tracking id or e-mail address; totals stay, and so does what is of others."""
    await fill(world)

    def sent(user: str, step: str, source: str) -> Message:
        value = json.dumps(completed(user, step, 1)).encode()
        return Message(user.encode(), value, [("ce_source", source.encode())])

    world.start_both()
    await world.produce([sent("bob", "a", name), sent("bob", "b", "/shop"), sent("bob", "unknown", name)])
    corrected = {"type": "user-erased", "event_id": erased("bob")["event_id"]}
    forged = json.dumps(corrected | {"mcp_server_user_id": "bob", "erased_at": moment(5)})
    await world.produce([Message(b"bob", forged.encode(), [("ce_source", f"by:{name}".encode())])])
    await world.drained()

    async def counted() -> bool:
        total = await world.db.fetchval("select coalesce(sum(events), 0) from event_sources")
        return bool(total == 4 and await world.db.fetchval("select count(*) from source_organizations") == 2)

    await eventually(counted, "who sent what is written")
    found = await traces(world, name)
    assert {"event_sources.source", "refused_events.source", "source_organizations.source"} <= found.keys()
    assert "refused_events.message" in found
    # The last one is on its way when the command begins.
    await world.produce([sent("ann-who-leaves", "a", name)])
    done = await world.invoke("erase", "ann-who-leaves", "--execute", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["removed"]["sources"] >= 4
    await world.produce([sent("ann-who-leaves", "b", name), sent("bob", "c", "/shop")])
    await world.drained()

    async def all_counted() -> bool:
        return bool(await world.db.fetchval("select sum(events) from event_sources") == 8)

    await eventually(all_counted, "what came since is written")
    rows = dict(await world.db.fetch("select source, events from event_sources"))
    if name == "visitor-1":  # anybody may take a word for a tracking id: a source that only holds it stays
        assert rows.pop(f"by:{name}") == 1
        assert await traces(world, name) == {"event_sources.source": 1, "refused_events.source": 1}
    else:
        rows["(no source)"] -= 1
        assert await traces(world, name) == {}
    assert rows == {"(no source)": 4, "/shop": 2, OPERATOR_SOURCES[0]: 1}
    assert (await world.invoke("verify")).returncode == 0


async def test_a_source_that_comes_back_is_removed_and_its_name_is_kept_nowhere(world: World) -> None:
    """Nobody keeps what an erased person was called, so an e-mail address is taken for an id then."""
    await world.offer()
    await world.people(["bob"])
    world.start_both()
    source = [("ce_source", b"mailto:ann@example.org")]
    values = [json.dumps(completed("bob", step, 1)).encode() for step in ("a", "unknown")]
    await world.produce([Message(b"bob", value, source) for value in values])
    await world.drained()

    async def is_written() -> bool:
        counted = await world.db.fetchrow(
            "select (select sum(events) from event_sources), (select count(*) from source_organizations)"
        )
        return tuple(counted) == (2, 1)

    await eventually(is_written, "who sent what is written")
    plan = await world.invoke("erase", "ann@example.org")
    assert "only sources are called so" in plan.stderr
    done = await world.invoke("erase", "ann@example.org", "--execute")
    assert done.returncode == 0, done.stderr
    assert await traces(world, "ann@example.org") == {}
    assert await world.db.fetchval("select count(*) from erased_users") == 0
    assert len(await world.events()) == 2
    assert dict(await world.db.fetch("select source, events from event_sources")) == {"(no source)": 2}
    assert (await world.invoke("erase", "ann@example.org", "--execute")).returncode == 2


async def test_a_slip_takes_nothing_of_sources_whose_names_hold_it(world: World) -> None:
    await world.offer()
    await world.db.execute(
        "insert into event_sources (topic, source, events, refused, looked_at, elsewhere, without_key, known,"
        " first_at, last_at)"
        " select $1, name, 1, 0, 1, 0, 0, true, now(), now() from unnest($2::text[]) as name",
        world.settings.topic,
        ["https://shop.example.com/a", "com", "b c"],
    )
    await world.db.execute(
        "insert into refused_events values ($1, 'b c', 'org', 'unknown-step', 1, now(), now(), 0, 1,"
        " 'no such step in com', '{\"com\": 1}')",
        world.settings.topic,
    )
    slips = ("example", "step", "", " ", "com\n")
    assert {s: (await world.invoke("erase", s, "--execute")).returncode for s in slips} == dict.fromkeys(
        slips, 2
    )
    planned = await world.invoke("erase", "com", "-o", "json")
    done = await world.invoke("erase", "com", "--execute", "-o", "json")
    assert [json.loads(p.stdout)["removed"]["sources"] for p in (planned, done)] == [1, 1]
    left = {r["source"] for r in await world.db.fetch("select source from event_sources")}
    assert left == {"https://shop.example.com/a", "b c", "(no source)"}
    refused = await world.db.fetchrow("select message, fields::text from refused_events")
    assert refused is not None
    assert tuple(refused) == ("no such step in com", '{"com": 1}')


async def test_an_address_is_not_found_in_those_of_others_that_hold_it(world: World) -> None:
    await world.offer()
    await world.people(["mcpu_1"])
    await world.db.execute("update mcp_server_user set email = 'ann@example.org'")
    others = ["mailto:Ann@example.org.uk", "mailto:mary.ann@example.org", "it+ann@example.org"]
    await world.db.execute(
        "insert into event_sources (topic, source, events, refused, looked_at, elsewhere, without_key, known,"
        " first_at, last_at)"
        " select 't', name, 1, 0, 1, 0, 0, true, now(), now() from unnest($1::text[]) as name",
        [*others, "mailto:ann@example.org", "<Ann@EXAMPLE.org>."],
    )
    done = await world.invoke("erase", "ANN@example.ORG", "--execute")
    assert done.returncode == 0, done.stderr
    assert "`ANN@example.ORG` is mcpu_1, by the e-mail address ann@example.org" in " ".join(
        done.stderr.split()
    )
    left = {r["source"] for r in await world.db.fetch("select source from event_sources")}
    assert left == {*others, "(no source)"}


async def test_of_two_whose_addresses_differ_by_case_only_one_is_erased_and_the_other_keeps_theirs(
    world: World,
) -> None:
    await world.offer()
    await world.people(["mcpu_1", "mcpu_2"])
    await world.db.execute(
        "update mcp_server_user"
        " set email = case id when 'mcpu_1' then 'Ann@Example.org' else 'ann@example.org' end"
    )
    await world.db.execute(
        "insert into event_sources (topic, source, events, refused, looked_at, elsewhere, without_key, known,"
        " first_at, last_at)"
        " select 't', name, 1, 0, 1, 0, 0, true, now(), now() from unnest($1::text[]) as name",
        ["mailto:Ann@Example.org", "mailto:ann@example.org", "ANN@EXAMPLE.ORG"],
    )
    for address in ("Ann@Example.org", "ann@example.org", "ANN@example.org"):
        asked = await world.invoke("erase", address, "--execute")
        assert asked.returncode == 2
        assert "is 2 people: mcpu_1, mcpu_2. Name one by id" in " ".join(asked.stderr.split())
    done = await world.invoke("erase", "mcpu_1", "--execute")
    assert done.returncode == 0, done.stderr
    assert "their address is that of others, too, in another case" in " ".join(done.stderr.split())
    left = {r["source"] for r in await world.db.fetch("select source from event_sources")}
    assert left == {"mailto:ann@example.org", "ANN@EXAMPLE.ORG", "(no source)"}
    assert [r["id"] for r in await world.db.fetch("select id from mcp_server_user")] == ["mcpu_2"]


async def test_somebody_of_a_platform_whose_id_no_event_can_have_is_erased_without_one(world: World) -> None:
    long, other = "x" * 65, "x" * 66
    await world.offer()
    await world.people([long, other])
    await world.db.execute("insert into outbox (key, value) values ($1, '{}'), ($2, '{}')", long, other)
    world.start_both()
    await world.produce([Message.of(completed(user, "a", 1)) for user in (long, other)])
    await world.drained()
    done = await world.invoke("erase", long, "--execute")
    assert done.returncode == 0, done.stderr
    assert "no event can have this id" in " ".join(done.stderr.split())
    assert {r["id"] for r in await world.db.fetch("select id from mcp_server_user")} == {other}
    assert await world.db.fetchval("select count(*) from erased_users") == 0
    assert await world.db.fetchval("select array_agg(key) from outbox") == [other]
    assert [letter.key for letter in await world.dead_letters()] == [other.encode()]


@pytest.mark.parametrize("name", ["x" * 65, "a\tb"])
async def test_what_no_event_can_name_is_said_in_words(world: World, name: str) -> None:
    refused = await world.invoke("erase", name, "--execute", "--even-if-unknown")
    assert refused.returncode == 2, refused.stderr
    assert "is no id that an event can have" in refused.stderr


async def test_what_comes_later_under_another_key_or_as_a_source_leaves_no_trace(world: World) -> None:
    """The key need not be the person; and the events of others may come from a source that is."""
    await world.offer()
    await world.people(["ann", "bob"])
    world.start_both()
    await world.produce([erased("ann")])
    bad = json.dumps(completed("ann", "a", 1) | {"completed_at": 5})
    values = [
        bad,
        bad[:-1],
        bad.replace("ann", "\\u0061nn"),
        bad.replace("mcp_server_user_id", "mcp_server_user_\\u0069d"),
    ]
    await world.produce([Message(key, value.encode(), []) for value in values for key in (None, b"bob")])
    sources = [("ce_source", b"ann"), ("ce_source", b"/people/ann")]
    bobs = [Message.of(completed("bob", "a", 1)), Message(b"bob", b"bad", [])]
    await world.produce([Message(m.key, m.value, [source]) for m in bobs for source in sources])
    await world.drained()

    async def is_written() -> bool:
        return await world.db.fetchval("select sum(events) from event_sources") == 13

    await eventually(is_written, "who sent what is written")
    assert await traces(world, "ann") == {}
    assert {letter.value for letter in await world.dead_letters()} == {b"bad"}
    assert set(await world.completions()) == {("bob", "a")}


async def test_letters_of_others_that_name_the_person_stay_and_are_told(world: World) -> None:
    await fill(world)
    bobs = completed("bob", "no", 1, metadata={"by": "ann-who-leaves"})
    letters = [
        Message.of(bobs),
        Message(b"bob", b"not json", [("sent-by", b"ann@example.org")]),
        Message(b"for visitor-1", b"not json"),
        Message(b"bob", json.dumps(completed("bob", "no", 2, metadata={"by": "visitor-11"})).encode()),
        Message(
            b"x", json.dumps(completed("ann-who-leaves", "no", 4)).replace("ann-", "\\u0061nn-").encode()
        ),
    ]
    async with world.producing() as producer:
        for letter in letters:
            await producer.send_and_wait(
                world.settings.dead_letter_topic,
                letter.value,
                key=letter.key,
                headers=letter.headers,
                partition=1,
            )
    plan = json.loads((await world.invoke("erase", "visitor-1", "-o", "json")).stdout)
    assert (plan["removed"]["dead_letters"], plan["named_in"]) == (1, ["1:0", "1:1", "1:2"])
    done = await world.invoke("erase", "visitor-1", "--execute")
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stderr.split())
    assert "3 dead letters of others name this person and stay" in told
    assert [r.value for r in await world.dead_letters()] == [letter.value for letter in letters[:4]]


async def test_letters_behind_the_last_of_theirs_stay_where_they_are(world: World) -> None:
    """However many there are: only those before it are sent again."""
    await world.offer()
    await world.people(["ann", "bob"])
    topic = world.settings.dead_letter_topic
    async with world.producing() as producer:
        for key in (b"bob", b"ann", *[b"bob"] * 30):
            await producer.send_and_wait(topic, b"not json", key=key, partition=0)
    done = await world.invoke("erase", "ann", "--execute", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["removed"]["dead_letters"] == 1
    left = [r.offset for r in await world.dead_letters()]
    assert left == [*range(2, 32), 32], "the one before it was sent again, behind all"
    assert all(r.key == b"bob" for r in await world.dead_letters())


async def test_whoevers_id_begins_like_theirs_keeps_what_cannot_be_read(world: World) -> None:
    await world.offer()
    await world.people(["ann", "ann2"])
    unreadable = ["no JSON, of ann2", '{"user": "ann2"}', '"of ann2"']
    await world.db.execute("insert into outbox (key, value) select 'ann2', unnest($1::text[])", unreadable)
    letters = [Message(b"ann2", value.encode()) for value in unreadable]
    await world.produce([completed("ann2", "a", 1), *letters])
    world.start_both()
    await world.drained()
    receipt = await erasing.erase(world.settings, "ann", unknown_too=False)
    assert (receipt.removed["outbox"], receipt.removed["dead_letters"]) == (0, 0)
    assert await world.db.fetchval("select count(*) from outbox") == 3
    assert sorted(letter.value or b"" for letter in await world.dead_letters()) == sorted(
        value.encode() for value in unreadable
    )


async def test_one_letter_that_is_nested_too_deeply_stops_no_erasure(world: World) -> None:
    """Whoever may send events could keep everybody from being forgotten."""
    await world.offer()
    await world.people(["ann", "bob"])
    deep = r'["\u0061", ' + "[" * 20_000
    await world.db.execute("insert into outbox (key, value) values ('bob', $1)", deep)
    await world.produce([completed("bob", "a", 1), Message(b"bob", deep.encode())])
    world.start_both()
    await world.drained()
    done = await world.invoke("erase", "ann", "--execute")
    assert done.returncode == 0, done.stderr
    assert await world.db.fetchval("select count(*) from outbox where key = 'bob'") == 1
    assert [letter.key for letter in await world.dead_letters()] == [b"bob"]

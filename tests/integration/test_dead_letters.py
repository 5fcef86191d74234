"""Dead letters: seen, sent again once, and let go."""

import json
from typing import Any

import pytest

from schemas import advice_on
from tests.support.world import RECORDER, Message, World, completed, eventually

pytestmark = pytest.mark.integration


async def letters(world: World, *args: str) -> list[dict[str, Any]]:
    done = await world.invoke("dlq", "list", *args, "-o", "json")
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def unknown(user: str, step: str = "a", at: int = 1) -> Message:
    """An event of somebody who does not exist (yet), with headers of all kinds."""
    event = Message.of(completed(user, step, at))
    return Message(event.key, event.value, [("ce_id", b"x"), ("bytes", b"\xff\x00"), ("ce_id", b"twice")])


@pytest.fixture
async def some(world: World) -> World:
    """Letters of three classes."""
    await world.offer()
    await world.people(["ann"])
    await world.produce(
        [
            *(unknown("bob", s) for s in "abc"),
            unknown("cat"),
            Message(b"ann", b"no json \x1b[2J\x1b]0;pwned\x07 [bold red]loud[/]"),
            Message(None, None),
            Message(b"\xff\xfe", b"\x80\x81"),
            completed("ann", "a", 1),
        ]
    )
    world.start_both()
    await world.drained()
    return world


async def test_one_event_is_one_in_the_log(world: World) -> None:
    await world.offer()
    recorder = world.start(RECORDER)
    await world.produce([unknown("bob")])

    async def is_told() -> bool:
        return "1 event went to" in recorder.log.read_text()

    await eventually(is_told, "it is in the log")


async def test_listed_by_class_partition_time_and_key(some: World) -> None:
    found = await letters(some)
    assert sorted(x["error_class"] for x in found) == [
        "empty-value",
        "not-json",
        "not-json",
        *["unknown-user"] * 4,
    ]
    assert {x["key"] for x in await letters(some, "--class", "unknown-user")} == {"bob", "cat"}
    assert len(await letters(some, "--key", "bob")) == 3
    of = [x for x in found if x["id"].startswith("1:")]
    assert await letters(some, "--partition", "1") == of
    assert await letters(some, "--from", "-0s") == []
    assert await letters(some, "--from", "-1h", "--to", "2100-01-01T00:00:00Z") == found
    table = await some.invoke("dlq", "list")
    assert "unknown-user         4" in table.stdout
    wrong = await some.invoke("dlq", "list", "--class", "nonsense")
    assert wrong.returncode == 2
    assert "there are empty-value, not-json" in wrong.stderr


async def test_what_to_do_is_told_beside_what_was_refused(some: World) -> None:
    found = await letters(some)
    assert all(letter["advice"] == advice_on(letter["error_class"]) for letter in found)
    for args in (("list",), ("summary",), ("show", found[0]["id"])):
        told = " ".join((await some.invoke("dlq", *args)).stdout.split())
        classes = {found[0]["error_class"]} if args[0] == "show" else {x["error_class"] for x in found}
        assert all(told.count(advice_on(name)) == 1 for name in classes), told
    summary = json.loads((await some.invoke("dlq", "summary", "-o", "json")).stdout)
    assert {(one["error_class"], one["advice"]) for one in summary} == {
        (letter["error_class"], letter["advice"]) for letter in found
    }


async def test_a_body_cannot_speak_to_the_terminal(some: World) -> None:
    for letter in await letters(some):
        shown = await some.invoke("dlq", "show", letter["id"])
        assert shown.returncode == 0
        assert all(c.isprintable() or c == "\n" for c in shown.stdout)
    loud = next(x for x in await letters(some, "--class", "not-json") if x["key"] == "ann")
    shown = await some.invoke("dlq", "show", loud["id"])
    assert r"no json \x1b[2J\x1b]0;pwned\x07 [bold red]loud[/]" in shown.stdout
    raw = next(x for x in await letters(some, "--class", "not-json") if x["key"] != "ann")
    whole = json.loads((await some.invoke("dlq", "show", raw["id"], "-o", "json")).stdout)
    assert whole["value_base64"] == "gIE="
    assert (await some.invoke("dlq", "show", "9:9")).returncode == 2


async def test_redriven_once_mended_they_count(some: World) -> None:
    """Key, value, event id and headers are those of the first time."""
    first = [r for r in await some.events() if r.key in {b"bob", b"cat"}]
    await some.people(["bob"])
    plan = await some.invoke("dlq", "redrive", "--key", "bob")
    assert plan.returncode == 0
    assert "3 would be sent" in plan.stderr
    done = await some.invoke("dlq", "redrive", "--key", "bob", "--execute", "-o", "json")
    assert json.loads(done.stdout)["sent"] == 3
    await some.drained()
    assert {step for user, step in await some.completions() if user == "bob"} == set("abc")
    await some.assert_exact()
    again = [r for r in await some.events() if r.key == b"bob"][3:]
    want = [(r.key, r.value, list(r.headers)) for r in first if r.key == b"bob"]
    assert [(r.key, r.value, list(r.headers)[: len(r.headers) - 7]) for r in again] == want
    assert not await letters(some, "--key", "bob")
    assert [x["action"] for x in await letters(some, "--key", "bob", "--all")] == ["redriven"] * 3
    assert len(await letters(some, "--key", "cat")) == 1
    more = await some.invoke("dlq", "redrive", "--key", "bob", "--execute", "-o", "json")
    assert json.loads(more.stdout) == {
        "matching": 0,
        "executed": True,
        "sent": 0,
        "sent_before": 0,
        "cut": 0,
        "ids": [],
    }


async def test_what_fails_again_comes_back_once_with_its_history(some: World) -> None:
    (before,) = await letters(some, "--key", "cat")
    for failed in (2, 3):
        assert (await some.invoke("dlq", "redrive", "--key", "cat", "--execute")).returncode == 0
        await some.drained()
        (after,) = await letters(some, "--key", "cat")
        assert after["failures"] == failed
        assert after["id"] != before["id"]
    shown = json.loads((await some.invoke("dlq", "show", after["id"], "-o", "json")).stdout)
    assert [h["error_class"] for h in shown["history"]] == ["unknown-user"] * 3
    assert shown["history"][0]["id"] == before["id"]
    assert [h["name"] for h in shown["headers"]] == ["ce_id", "bytes", "ce_id"]
    await some.people(["cat"])
    await some.invoke("dlq", "redrive", "--id", after["id"], "--execute")
    await some.drained()
    assert ("cat", "a") in await some.completions()
    assert not await letters(some, "--key", "cat")


@pytest.mark.parametrize("point", ["operator.redrive-noted", "operator.redrive-sent"])
async def test_interrupted_and_run_again_nothing_is_sent_twice(some: World, point: str) -> None:
    await some.people(["bob"])
    before = len(await some.events())
    args = ("dlq", "redrive", "--key", "bob", "--rate", "2", "--execute")
    killed = some.command(*args, crash_at=f"{point}:2")  # two at a time: in the second load
    assert killed.returncode < 0
    done = await some.invoke(*args[:-1], "--execute", "-o", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["sent"] + told["sent_before"] == 1
    assert told["sent_before"] == point.endswith("sent")
    assert len(await some.events()) == before + 3
    await some.drained()
    assert not await letters(some, "--key", "bob")
    assert {step for user, step in await some.completions() if user == "bob"} == set("abc")


async def test_dropped_they_are_seen_no_more(some: World) -> None:
    plan = await some.invoke("dlq", "drop", "--class", "not-json")
    assert plan.returncode == 0
    assert len(await letters(some, "--class", "not-json")) == 2
    assert (await some.invoke("dlq", "drop", "--class", "not-json", "--execute")).returncode == 0
    assert not await letters(some, "--class", "not-json")
    assert {x["action"] for x in await letters(some, "--all", "--class", "not-json")} == {"dropped"}
    redriven = await some.invoke("dlq", "redrive", "--class", "not-json", "--execute", "-o", "json")
    assert json.loads(redriven.stdout)["sent"] == 0


async def test_one_operator_at_a_time(some: World) -> None:
    await some.db.execute("set application_name = 'stepstream-cli zoë@desk'")
    await some.db.fetchval("select pg_advisory_lock(7226377002)")
    refused = await some.invoke("dlq", "redrive", "--class", "unknown-user", "--execute")
    assert refused.returncode == 4
    assert "@desk handles the dead letters of this database" in refused.stderr


async def test_letters_that_do_not_say_where_they_are_from_stay(world: World) -> None:
    """Somebody else wrote into the topic of dead letters: shown, not sent anywhere."""

    async with world.producing() as producer:
        await producer.send_and_wait(world.settings.dead_letter_topic, b"a note", key=b"k")
        headers = [
            (f"stepstream-{n}", v)
            for n, v in zip(
                ("topic", "partition", "offset", "timestamp", "error-class", "error"),
                (b"t", b"not a number", b"1", b"1", b"x", b"y"),
                strict=True,
            )
        ]
        await producer.send_and_wait(world.settings.dead_letter_topic, b"forged", key=b"k", headers=headers)
    assert [x["error_class"] for x in await letters(world)] == ["unknown", "unknown"]
    done = await world.invoke("dlq", "redrive", "--execute", "-o", "json")
    assert json.loads(done.stdout)["sent"] == 0
    assert "2 do not say that they come from" in done.stderr
    assert await world.events() == []


async def test_a_letter_sent_twice_by_a_recorder_that_crashed_is_one(world: World) -> None:
    await world.offer()
    await world.produce([unknown("bob")])
    world.start(RECORDER, crash_at="recorder.dead-letters-sent:1")

    async def sent() -> bool:
        return len(await world.dead_letters()) >= 1 and world.services[0].process.poll() is not None

    await eventually(sent, "the letter is sent and the recorder dead")
    world.start_both()
    await world.drained()
    assert len(await world.dead_letters()) == 2
    assert len(await letters(world)) == 1

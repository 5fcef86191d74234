"""Events that come in by HTTP: each gets its verdict, nothing good is lost, and what is accepted is counted once."""

import asyncio
import contextlib
import gzip
import json
import os
import random
import re
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from prometheus_client import REGISTRY

from services.analytics_api.intake import routes
from services.analytics_api.intake.bodies import MOST_BYTES, MOST_ITEM_BYTES, MOST_ITEMS, Item, zstd
from services.analytics_api.keys import Grant
from services.analytics_api.keys import create as make_key
from services.analytics_api.registering import own_session_id, register_people
from services.devstack.processes import free_port
from tests.support.world import PATIENCE, RELAY, Api, Message, World, eventually, metric

pytestmark = pytest.mark.integration

#: The first moment of a test's events: some days ago, so that the hour of the day makes no difference.
BEGAN = int(time.time() * 1000) - 5 * 86_400_000
WRITES = Grant(may_read=False, may_write=True)


async def key_of(world: World, grant: Grant = WRITES, organization: str = "org") -> str:
    return (await make_key(world.db, organization, "writer", None, grant)).text


async def writing(world: World, grant: Grant = WRITES, **more: Any) -> Api:
    """The API, with a key that writes."""
    api = await world.start_api(**more)
    api.key = await key_of(world, grant)
    return api


def event(user: str = "ann", step: str = "a", at: int = BEGAN, **more: Any) -> dict[str, Any]:
    made = {
        "type": "step-completed",
        "event_id": str(uuid.uuid4()),
        "mcp_server_user_id": user,
        "walkthrough_id": "wt_a",
        "step_id": step,
        "mcp_server_id": "srv_1",
        "mcp_server_session_id": f"s_{user}",
        "completed_at": at,
    }
    return {k: v for k, v in (made | more).items() if v is not None}


async def send(
    api: Api, body: Any, *, media_type: str = "application/json", key: str | None = None, **headers: str
) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Authorization": f"Bearer {key or api.key}", "Content-Type": media_type}
    return await api.http.post("/v1/events", content=content, headers=given | headers)


async def post(api: Api, path: str, body: Any) -> httpx2.Response:
    """Something in JSON for `/v1/people`, say."""
    return await api.http.post(f"/v1/{path}", json=body, headers={"Authorization": f"Bearer {api.key}"})


def lines(events: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in events)


def errors(response: httpx2.Response) -> list[tuple[int, str, str | None]]:
    """Index, class and field of what was refused."""
    return [
        (r["index"], r["error"]["class"], r["error"]["field"])
        for r in response.json()["results"]
        if r["status"] == "refused"
    ]


async def test_what_is_accepted_is_recorded_and_counted_whatever_its_form(world: World) -> None:
    """JSON as one, as many and in a wrapper, NDJSON, gzip and zstd; all of it twice."""
    await world.offer()
    people = [f"u{n}" for n in range(40)]
    await world.people(people)
    api = await writing(world)
    world.start_both()
    steps: dict[tuple[str, str], int] = {}
    events = []
    rng = random.Random(7)
    for user in people:
        for number, step in enumerate("abcde"[: rng.randint(1, 5)]):
            at = BEGAN + number * 60_000 + rng.randrange(30_000)
            steps[user, step] = at
            events.append(event(user, step, at))
    rng.shuffle(events)
    parts = [events[n::6] for n in range(6)]
    for _ in range(2):
        for response in (
            await send(api, parts[0]),
            await send(api, {"events": parts[1]}),
            await send(api, lines(parts[2]), media_type="application/x-ndjson"),
            await send(
                api,
                gzip.compress(lines(parts[3])),
                media_type="application/ndjson",
                **{"Content-Encoding": "gzip"},
            ),
            await send(api, zstd.compress(json.dumps(parts[4]).encode()), **{"Content-Encoding": "zstd"}),
            *[await send(api, one) for one in parts[5]],
        ):
            assert response.status_code == 200, response.text
            assert response.json()["through"] == "kafka"
    await world.drained()
    assert {key: at for key, (at, _) in (await world.completions()).items()} == steps
    links: Counter[tuple[int, str | None, str]] = Counter()
    for user in people:
        path = [None, *(s for _, s in sorted((at, s) for (u, s), at in steps.items() if u == user))]
        links.update((n, path[n], path[n + 1]) for n in range(len(path) - 1))
    assert await world.transitions() == links
    assert not await world.dead_letters()
    assert {h[0]: h[1] for h in (await world.events())[0].headers}["ce_source"].startswith(b"/keys/")


# --- verdicts ------------------------------------------------------------------------------------------

#: What is changed of a good event, and the class and field of its refusal. None takes a field away.
BAD: list[tuple[dict[str, Any], str, str | None]] = [
    ({"type": "step-finished"}, "unknown-type", "type"),
    ({"type": None}, "invalid-event", "type"),
    ({"type": ["step-completed"]}, "unknown-type", "type"),
    ({"type": "user-erased"}, "not-allowed", "type"),
    ({"type": "step-corrected"}, "not-allowed", "type"),
    ({"event_id": "7"}, "invalid-event", "event_id"),
    ({"event_id": None}, "invalid-event", "event_id"),
    ({"completed_at": None, "completedAt": BEGAN}, "invalid-event", "completed_at"),
    ({"completed_at": str(BEGAN)}, "invalid-event", "completed_at"),
    ({"completed_at": BEGAN // 1000}, "too-early", "completed_at"),
    ({"completed_at": BEGAN + 400 * 86_400_000}, "in-the-future", "completed_at"),
    ({"metadata": {"text": "x" * 9_000}}, "invalid-event", "metadata"),
    ({"metadata": {"text": "x" * MOST_ITEM_BYTES}}, "too-large", None),
    ({"unknown": "x" * MOST_ITEM_BYTES}, "too-large", None),
    ({"mcp_server_user_id": "nobody"}, "unknown-user", "mcp_server_user_id"),
    ({"mcp_server_user_id": None, "distinct_id": "nobody"}, "unknown-user", "distinct_id"),
    ({"distinct_id": "ann"}, "invalid-event", "distinct_id"),
    ({"mcp_server_user_id": None, "distinct_id": ""}, "invalid-event", "distinct_id"),
    ({"mcp_server_user_id": None, "distinct_id": 7}, "invalid-event", "distinct_id"),
    ({"mcp_server_user_id": None, "distinct_id": "a\0b"}, "invalid-event", "distinct_id"),
    ({"mcp_server_user_id": None}, "invalid-event", "mcp_server_user_id"),
    ({"walkthrough_id": "wt_none"}, "unknown-walkthrough", "walkthrough_id"),
    ({"walkthrough_id": "wt_b"}, "step-of-another-walkthrough", "step_id"),
    ({"step_id": "z"}, "unknown-step", "step_id"),
    ({"mcp_server_id": "srv_none"}, "unknown-server", "mcp_server_id"),
    ({"mcp_server_id": "srv_2"}, "session-of-another-server", "mcp_server_session_id"),
    ({"mcp_server_id": None}, "ambiguous-server", "mcp_server_id"),
    ({"mcp_server_session_id": "s_none"}, "unknown-session", "mcp_server_session_id"),
    ({"mcp_server_session_id": None, "session_id": "s-1"}, "unknown-session", "session_id"),
    ({"mcp_server_session_id": "s_bob"}, "session-of-another-user", "mcp_server_session_id"),
]


async def two_servers(world: World) -> None:
    await world.offer()
    await world.offer("wt_b", ["b1"], "srv_2")
    await world.people(["ann", "bob"])


async def test_each_bad_event_is_told_its_class_and_field_and_the_good_ones_beside_it_are_taken(
    world: World,
) -> None:
    await two_servers(world)
    api = await writing(world)
    batch: list[Any] = []
    expected = []
    for number, (change, kind, field) in enumerate(BAD):
        batch += [event("ann", "a", BEGAN + number), event(**change)]
        expected.append((2 * number + 1, kind, field))
    batch += [7, "text", None, [event()], {}]
    expected += [(len(BAD) * 2 + n, "invalid-event", field) for n, field in enumerate([None] * 4 + ["type"])]
    response = await send(api, batch)
    assert response.status_code == 207, response.text
    assert errors(response) == expected
    answer = response.json()
    assert (answer["accepted"], answer["refused"], answer["through"]) == (len(BAD), len(BAD) + 5, "kafka")
    sent = [json.loads(record.value or b"") for record in await world.events()]
    assert sorted(e["event_id"] for e in sent) == sorted(e["event_id"] for e in batch[: 2 * len(BAD) : 2])
    told = [r["error"]["message"] for r in answer["results"] if r["status"] == "refused"]
    assert all(told)
    assert "completedAt" in told[7]
    response = await send(api, batch[1 : 2 * len(BAD) : 2])
    assert response.status_code == 422
    assert response.json()["through"] is None
    assert [kind for _, kind, _ in errors(response)] == [kind for _, kind, _ in BAD]


async def test_what_is_answered_is_what_the_recorder_says_of_the_same_events(world: World) -> None:
    """But for what only HTTP knows: sizes, own ids, and servers left out."""
    await two_servers(world)
    api = await writing(world)
    own = {"too-large", "ambiguous-server", "not-allowed"}
    given = [
        event(**change)
        for change, kind, _ in BAD
        if kind not in own and not {"distinct_id", "session_id"} & change.keys()
    ]
    refused = [r["error"]["class"] for r in (await send(api, given)).json()["results"]]
    await world.produce([Message(b"ann", json.dumps(e).encode()) for e in given])
    world.start_both()
    await world.drained()
    letters = {
        json.loads(record.value or b"")["event_id"]: dict(record.headers)["stepstream-error-class"].decode()
        for record in await world.dead_letters()
        if b'"event_id"' in (record.value or b"")
    }
    compared = [
        (kind, letters[e["event_id"]]) for e, kind in zip(given, refused, strict=True) if "event_id" in e
    ]
    assert len(compared) > 12
    assert all(ours == theirs for ours, theirs in compared), compared


async def test_lines_are_told_by_their_number_and_empty_ones_are_left_out(world: World) -> None:
    await two_servers(world)
    api = await writing(world)
    good = json.dumps(event()).encode()
    body = (
        b"\n"
        + good
        + b"\r\n\r\n{broken\n"
        + good[:-10]
        + b"\n\xff\xfe\n"
        + json.dumps(event(step="z")).encode()
    )
    response = await send(api, body, media_type="application/x-ndjson")
    assert response.status_code == 207
    results = [
        (r["index"], r["line"], r.get("error", {}).get("class", "accepted"))
        for r in response.json()["results"]
    ]
    assert results == [
        (0, 2, "accepted"),
        (1, 4, "not-json"),
        (2, 5, "not-json"),
        (3, 6, "not-json"),
        (4, 7, "unknown-step"),
    ]


async def test_half_of_a_surrogate_pair_is_the_fault_of_its_event_alone(world: World) -> None:
    await two_servers(world)
    api = await writing(world)
    bad = json.dumps(event(metadata={"text": "X"})).replace("X", "\\ud800")
    response = await send(api, f"[{json.dumps(event())}, {bad}]".encode())
    assert response.status_code == 207
    assert errors(response) == [(1, "not-json", None)]


async def test_an_id_is_one_events_alone_and_a_copy_or_another_time_is_no_other_event(world: World) -> None:
    await two_servers(world)
    api = await writing(world)
    world.start_both()
    first = event("ann", "a", BEGAN + 5_000)
    start = event("ann", None, None, type="walkthrough-started", started_at=BEGAN)
    del start["event_id"]
    start["event_id"] = first["event_id"].upper()
    assert (await send(api, [first, start])).status_code == 200
    await world.drained()
    assert (await send(api, [first, first | {"completed_at": BEGAN + 2_000}, start])).status_code == 200
    of_bob = {"mcp_server_user_id": "bob", "mcp_server_session_id": "s_bob"}
    for change, told in (({"step_id": "b"}, "this person and another step"), (of_bob, "another person")):
        response = await send(api, [first | change, first])
        assert errors(response) == [(0, "reused-event-id", "event_id")]
        assert told in response.json()["results"][0]["error"]["message"]
    await world.drained()
    assert await world.completions() == {("ann", "a"): (BEGAN + 2_000, first["event_id"])}
    assert not await world.dead_letters()
    one = event("bob", "c")
    response = await send(api, [one, one | {"step_id": "d"}, one, event(step="b", event_id=one["event_id"])])
    assert errors(response) == [(1, "reused-event-id", "event_id"), (3, "reused-event-id", "event_id")]
    await world.drained()
    assert not await world.dead_letters()


async def test_an_id_whose_event_gave_way_to_an_earlier_one_stays_its_own(world: World) -> None:
    """The recorder keeps it beside the earlier one: another event has no claim to it, a copy changes nothing."""
    await two_servers(world)
    api = await writing(world)
    world.start_both()
    late, early = event("ann", "a", BEGAN + 9_000), event("ann", "a", BEGAN)
    assert (await send(api, [late, early])).status_code == 200
    await world.drained()
    taken_over = event("bob", "a", BEGAN + 1_000, event_id=late["event_id"])
    assert errors(await send(api, taken_over)) == [(0, "reused-event-id", "event_id")]
    assert (await send(api, late)).status_code == 200
    await world.drained()
    assert not await world.dead_letters()


# --- whose, and where ----------------------------------------------------------------------------------


async def another_organization(world: World) -> None:
    """An organization with a server, a walkthrough and a person of its own."""
    for statement in (
        "insert into organization (id, name, created_at) values ('other', 'other', now())",
        "insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)"
        " values ('srv_x', 'other', 'x', 'x', 'srv_x')",
        "insert into walkthroughs (id, organization_id, title, status) values ('wt_x', 'other', 'x', 'published')",
        "insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order)"
        " values ('x', 'wt_x', 'x', '{}', 0)",
    ):
        await world.db.execute(statement)
    await world.people(["zoe"], "srv_x")


async def test_what_is_another_organizations_is_answered_as_what_does_not_exist(world: World) -> None:
    await two_servers(world)
    await another_organization(world)
    theirs = (await register_people(world.db, "other", ["u-1"]))["u-1"].user_id
    api = await writing(world)
    named = {
        "mcp_server_user_id": ["zoe", theirs, "nobody"],
        "mcp_server_session_id": ["s_zoe", own_session_id("other", "s-1"), "s_none"],
        "mcp_server_id": ["srv_x", "srv_none", "srv_none"],
        "walkthrough_id": ["wt_x", "wt_none", "wt_none"],
        "step_id": ["x", "none", "none"],
    }
    for field, ids in named.items():
        results = (await send(api, [event(**{field: one}) for one in ids])).json()["results"]
        assert len({json.dumps(r["error"], sort_keys=True) for r in results}) == 1, results
        assert results[0]["error"]["class"].startswith("unknown-")
    whole = event("zoe", "x", walkthrough_id="wt_x", mcp_server_id="srv_x")
    nobody = event("nobody", "none", walkthrough_id="wt_none", mcp_server_id="srv_none")
    results = (await send(api, [whole, nobody])).json()["results"]
    assert results[0]["error"] == results[1]["error"]
    by_name = (
        event(mcp_server_user_id=None, distinct_id="u-1"),
        event(mcp_server_user_id=None, distinct_id="u-9"),
    )
    results = (await send(api, list(by_name))).json()["results"]
    assert results[0]["error"] == results[1]["error"]
    assert not await world.events()


async def test_another_organizations_event_id_is_not_told_of(world: World) -> None:
    """It is accepted as any id is; what the recorder then refuses is a dead letter of this organization."""
    await two_servers(world)
    await another_organization(world)
    theirs = event("zoe", "x", walkthrough_id="wt_x", mcp_server_id="srv_x")
    await world.insert(theirs)
    api = await writing(world)
    assert (await send(api, event(event_id=theirs["event_id"]))).status_code == 200


async def test_people_and_sessions_may_be_named_by_ids_of_the_producers_own(world: World) -> None:
    await world.offer()
    people = await register_people(world.db, "org", ["u-1", "u-2"])
    api = await writing(world)
    headers = {"Authorization": f"Bearer {api.key}"}
    sessions = [{"session_id": "s-1", "distinct_id": "u-1"}, {"session_id": "s-2"}]
    response = await api.http.post("/v1/sessions", json=sessions, headers=headers)
    assert response.status_code == 200, response.text
    world.start_both()
    mine = {"mcp_server_user_id": None, "mcp_server_session_id": None, "mcp_server_id": None}
    batch = [
        event(step="a", distinct_id="u-1", session_id="s-1", **mine),
        event(step="b", distinct_id="u-1", session_id="s-2", **mine),
        event(step="a", distinct_id="u-2", session_id="s-2", note="not of the contract", **mine),
        event(step="c", distinct_id="u-2", session_id="s-1", **mine),
    ]
    response = await send(api, batch)
    assert errors(response) == [(3, "session-of-another-user", "session_id")]
    await world.drained()
    ids = {name: person.user_id for name, person in people.items()}
    assert set(await world.completions()) == {(ids["u-1"], "a"), (ids["u-1"], "b"), (ids["u-2"], "a")}
    sent = [json.loads(record.value or b"") for record in await world.events()]
    assert not {"distinct_id", "session_id", "note"} & {name for one in sent for name in one}
    assert {one["mcp_server_id"] for one in sent} == {"srv_1"}
    assert {record.key for record in await world.events()} == {id_.encode() for id_ in ids.values()}


async def test_a_tracking_id_is_who_came_with_it_to_a_server_of_the_organization(world: World) -> None:
    await world.offer()
    await another_organization(world)
    await world.people(["ann"])
    await world.db.execute("update mcp_server_user set distinct_id = 't-' || id")
    api = await writing(world)
    known = event(mcp_server_user_id=None, distinct_id="t-ann", mcp_server_session_id="s_ann")
    foreign = event(mcp_server_user_id=None, distinct_id="t-zoe", mcp_server_session_id="s_ann")
    response = await send(api, [known, foreign])
    assert errors(response) == [(1, "unknown-user", "distinct_id")]
    assert [record.key for record in await world.events()] == [b"ann"]


async def test_a_key_that_registers_makes_people_and_sessions_that_nobody_knows(world: World) -> None:
    """Once, also where many come at once; and none of an event that is refused for another reason."""
    await world.offer()
    await world.offer("wt_b", ["b1"], "srv_2")
    api = await writing(world, Grant(may_read=False, may_write=True, may_register=True))
    world.start_both()

    def named(user: str, step: str, **more: Any) -> dict[str, Any]:
        mine = {"mcp_server_user_id": None, "mcp_server_session_id": None}
        return event(step=step, distinct_id=user, session_id=f"s-{user}", **mine, **more)

    batches = [[named(f"u-{n}", step) for n in range(30)] for step in "abcde"]
    responses = await asyncio.gather(*(send(api, batch) for batch in batches))
    assert [response.status_code for response in responses] == [200] * 5
    response = await send(api, [named("u-x", "z"), named("u-y", "a", mcp_server_id="srv_none")])
    assert [kind for _, kind, _ in errors(response)] == ["unknown-step", "unknown-server"]
    await world.drained()
    assert await world.db.fetchval("select count(*) from mcp_server_user") == 30
    assert await world.db.fetchval("select count(*) from mcp_server_session") == 30
    assert await world.db.fetchval("select count(*) from walkthrough_step_completions") == 150
    assert not await world.dead_letters()


async def test_a_key_sends_its_types_and_servers_and_leaves_out_the_only_one(world: World) -> None:
    await two_servers(world)
    grant = Grant(
        may_read=False, may_write=True, types=["step-completed"], servers=["srv_1"], source="/checkout"
    )
    api = await writing(world, grant)
    shown = event(type="step-shown", completed_at=None, shown_at=BEGAN)
    batch = [
        event(mcp_server_id=None),
        event(),
        shown,
        event(mcp_server_id="srv_2"),
        event(mcp_server_id="srv_0"),
    ]
    response = await send(api, batch)
    assert errors(response) == [
        (2, "type-not-allowed", "type"),
        (3, "server-not-allowed", "mcp_server_id"),
        (4, "server-not-allowed", "mcp_server_id"),
    ]
    records = await world.events()
    assert [dict(r.headers)["ce_source"] for r in records] == [b"/checkout"] * 2
    headers = dict(records[0].headers)
    value = json.loads(records[0].value or b"")
    assert headers["ce_id"].decode() == value["event_id"]
    assert (headers["ce_type"], headers["ce_specversion"]) == (b"step-completed", b"1.0")


async def test_somebody_erased_is_unknown(world: World) -> None:
    await world.offer()
    await world.people(["ann", "bob"])
    api = await writing(world)
    world.start_both()
    assert (await send(api, [event("ann"), event("bob")])).status_code == 200
    await world.drained()
    done = await world.invoke("erase", "ann", "--execute")
    assert done.returncode == 0, done.stderr
    response = await send(api, [event("ann", "b"), event("bob", "b")])
    assert errors(response) == [(0, "unknown-user", "mcp_server_user_id")]


async def test_somebody_whose_erasure_waits_for_a_lock_is_not_registered_as_who_they_were(
    world: World,
) -> None:
    """Nothing is accepted that nobody would count; nothing beside it waits."""
    await world.offer()
    api = await writing(world, Grant(may_read=False, may_write=True, may_register=True))

    def named(user: str) -> dict[str, Any]:
        mine = {"mcp_server_user_id": None, "mcp_server_session_id": None}
        return event(distinct_id=user, session_id=f"s-{user}", **mine)

    assert (await send(api, [named("ann"), named("bob")])).status_code == 200
    ann = await world.db.fetchval(
        "select mcp_server_user_id from registered_people where distinct_id = 'ann'"
    )
    await world.db.execute("insert into erased_users values ($1, 0, 'e')", ann)
    response = await send(api, [named("ann") | {"event_id": str(uuid.uuid4())}, named("bob")])
    assert errors(response) == [(0, "unknown-user", "distinct_id")]
    headers = {"Authorization": f"Bearer {api.key}", "Content-Type": "application/json"}
    again = await api.http.post("/v1/people", headers=headers, content=b'{"distinct_id": "ann"}')
    assert again.status_code == 503, again.text
    await world.db.execute("delete from mcp_server_user where id = $1", ann)
    assert (await send(api, [named("ann") | {"event_id": str(uuid.uuid4())}])).status_code == 200
    now = await world.db.fetchval(
        "select mcp_server_user_id from registered_people where distinct_id = 'ann'"
    )
    assert now != ann


# --- bodies and keys -----------------------------------------------------------------------------------


async def test_a_body_that_nothing_can_be_made_of_is_a_problem_and_nothing_is_taken(world: World) -> None:
    await two_servers(world)
    api = await writing(world)
    good = json.dumps([event()]).encode()
    large = json.dumps([event(metadata={"x": "y" * 8_000}) for _ in range(70)]).encode()
    assert MOST_BYTES < len(large) < 1_000_000
    zipped = {"Content-Encoding": "gzip"}
    tried: list[tuple[int, Any, dict[str, str]]] = [
        (400, b"", {}),
        (400, b"[]", {}),
        (400, b'{"events": []}', {}),
        (400, b'{"events": 7}', {}),
        (400, b"7", {}),
        (400, good[:-1], {}),
        (400, b"\xef\xbb\xbf" + good, {}),
        (400, good.decode().encode("utf-16"), {}),
        (400, b"\n\n", {"Content-Type": "application/x-ndjson"}),
        (400, good, zipped),
        (400, gzip.compress(good)[:-8], zipped),
        (400, zstd.compress(good)[:-4], {"Content-Encoding": "zstd"}),
        (413, large, {}),
        (413, large * 3, {}),
        (413, gzip.compress(bytes(200_000_000)), zipped),
        (413, zstd.compress(bytes(200_000_000)), {"Content-Encoding": "zstd"}),
        (413, b"[" + b"{}," * MOST_ITEMS + b"{}]", {}),
        (415, good, {"Content-Type": "text/plain"}),
        (415, good, {"Content-Type": "application/x-www-form-urlencoded"}),
        (415, good, {"Content-Type": "application/json; charset=latin1"}),
        (415, good, {"Content-Encoding": "br"}),
        (415, good, {"Content-Encoding": "gzip, gzip"}),
    ]
    for status, body, headers in tried:
        response = await send(api, body, **headers)
        assert response.status_code == status, (status, body[:50], headers, response.text)
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == status
    assert not await world.events()


async def test_keys_that_may_not_write_and_none_send_nothing(world: World) -> None:
    await two_servers(world)
    api = await writing(world)
    reader = await world.make_key("org")
    assert (await send(api, event(), key=reader)).status_code == 403
    assert (await send(api, event(), key="sst_nobody_nothing")).status_code == 401
    response = await api.http.post("/v1/events", json=event())
    assert response.status_code == 401
    assert (
        await api.http.get("/v1/events", headers={"Authorization": f"Bearer {api.key}"})
    ).status_code == 405
    assert (await api.ask("organization")).status_code == 403
    assert not await world.events()


async def test_too_many_events_are_refused_whole_with_when_to_come_again(world: World) -> None:
    await two_servers(world)
    api = await writing(world, api_write_rate="20/minute")
    assert (await send(api, [event() for _ in range(15)])).status_code == 200
    response = await send(api, [event() for _ in range(15)])
    assert response.status_code == 429
    assert 0 < int(response.headers["Retry-After"]) <= 60
    assert len(await world.events()) == 15


@pytest.mark.parametrize(
    ("content", "codes"),
    [(b'[{"a":"' + b"x" * 450_000 + b'"}]', [422, 422, 422, 422, 429]), (b"[" * 102_400, [400, 400, 429])],
)
async def test_what_is_long_counts_by_its_length_and_what_is_no_json_ten_times(
    world: World, content: bytes, codes: list[int]
) -> None:
    await two_servers(world)
    api = await writing(world, api_write_rate="2000/minute")
    headers = {"Authorization": f"Bearer {api.key}", "Content-Type": "application/json"}
    answers = [await api.http.post("/v1/events", content=content, headers=headers) for _ in codes]
    assert [answer.status_code for answer in answers] == codes
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 60


# --- Kafka, the outbox, and processes that end ---------------------------------------------------------


async def test_without_kafka_the_api_runs_and_what_comes_is_counted_through_the_outbox(world: World) -> None:
    await two_servers(world)
    api = await writing(world, kafka_bootstrap_servers=f"127.0.0.1:{free_port()}")
    world.start_both()
    world.start(RELAY)
    batch = [event("ann", step, BEGAN + n) for n, step in enumerate("abcde")]
    for _ in range(3):
        response = await send(api, batch)
        assert response.status_code == 200, response.text
        assert response.json()["through"] == "outbox"
    await world.relayed()
    await world.drained()
    assert {key: at for key, (at, _) in (await world.completions()).items()} == {
        ("ann", step): BEGAN + n for n, step in enumerate("abcde")
    }
    headers = dict((await world.events())[0].headers)
    assert headers["ce_source"].startswith(b"/keys/")
    assert headers["ce_type"] == b"step-completed"


async def test_a_full_outbox_is_told_and_a_database_away_too(world: World) -> None:
    await two_servers(world)
    api = await writing(world, kafka_bootstrap_servers=f"127.0.0.1:{free_port()}", api_outbox_events=5)
    assert (await send(api, [event() for _ in range(4)])).status_code == 200
    response = await send(api, [event() for _ in range(4)])
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) > 0
    assert await world.db.fetchval("select count(*) from outbox") == 4


async def test_who_is_killed_before_the_answer_is_asked_again_and_all_counts_once(world: World) -> None:
    await world.offer()
    people = [f"u{n}" for n in range(20)]
    await world.people(people)
    world.start_both()
    api = await writing(world, process=True, crash_at="intake.acknowledged:2")
    batches = [[event(user, step, BEGAN + n) for user in people] for n, step in enumerate("abc")]
    assert (await send(api, batches[0])).status_code == 200
    with pytest.raises(httpx2.HTTPError):
        await send(api, batches[1])
    api = await writing(world, process=True)
    for batch in batches:
        assert (await send(api, batch)).status_code == 200
    await world.drained()
    assert set(await world.completions()) == {(user, step) for user in people for step in "abc"}
    assert await world.transitions() == {
        (0, None, "a"): 20,
        (1, "a", "b"): 20,
        (2, "b", "c"): 20,
    }
    assert not await world.dead_letters()


@contextlib.asynccontextmanager
async def half_sent(
    api: Api, key: str, body: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A request whose body does not come to its end."""
    url = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    head = (
        f"POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body) + 1}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    try:
        yield reader, writer
    finally:
        writer.close()


async def test_bodies_that_do_not_end_hold_no_place_and_use_up_nobody_elses_share(world: World) -> None:
    await two_servers(world)
    await another_organization(world)
    api = await writing(world, api_organization_writes=8)
    other = await key_of(world, organization="other")
    assert (await send(api, event())).status_code == 200  # its key is known now
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(half_sent(api, api.key, json.dumps(event()).encode()))

        async def refused() -> bool:
            return (await send(api, event())).status_code == 429

        await eventually(refused, "its key has as many batches as it may")
        theirs = event("zoe", "x", walkthrough_id="wt_x", mcp_server_id="srv_x")
        for _ in range(10):
            assert (await send(api, theirs, key=other)).status_code == 200
        second = await key_of(world)
        assert (await send(api, event(), key=second)).status_code == 200

    async def taken() -> bool:
        return (await send(api, event())).status_code == 200

    await eventually(taken, "who went away leaves the share")


async def test_a_key_that_nobody_used_lately_has_no_more_batches_than_any_other(world: World) -> None:
    """As after a restart: its first batches all come before it is known whose they are."""
    await two_servers(world)
    api = await writing(world, api_organization_writes=8, api_lock_seconds=120)
    async with contextlib.AsyncExitStack() as stack:
        async with world.connection() as lock, lock.transaction():
            await lock.execute("lock table api_keys in access exclusive mode")
            half = [
                await stack.enter_async_context(half_sent(api, api.key, json.dumps(event()).encode()))
                for _ in range(12)
            ]

            async def all_wait() -> bool:
                return REGISTRY.get_sample_value("stepstream_api_waiting", {"lane": "strangers"}) == 11

            await eventually(all_wait, "one is looked up, and eleven wait for it")
        refused = asyncio.Semaphore(0)

        async def answered(reader: asyncio.StreamReader) -> None:
            assert (await reader.readline()).startswith(b"HTTP/1.1 429 ")
            refused.release()

        reading = [asyncio.create_task(answered(reader)) for reader, _ in half]
        for _ in range(8):
            await asyncio.wait_for(refused.acquire(), PATIENCE)
        assert (await send(api, event())).status_code == 429
        assert (await send(api, event(), key=await key_of(world))).status_code == 200
        assert refused.locked(), "four are still to be sent"
        for task in reading:
            task.cancel()
        await asyncio.wait(reading)


@pytest.mark.parametrize("path", ["people", "sessions", "events"])
async def test_a_batch_that_waits_for_its_place_is_not_read_yet(
    world: World, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """What it says may take fifty times the memory of its body."""
    await two_servers(world)
    api = await writing(world, api_lock_seconds=120, api_write_database_pool_size=4)
    read: list[int] = []
    items_of = routes.items_of

    def watched(body: bytes, *more: Any) -> list[Item]:
        read.append(len(body))
        return items_of(body, *more)

    monkeypatch.setattr(routes, "items_of", watched)
    one = {
        "people": {"distinct_id": "x"},
        "sessions": {"session_id": "x", "server": "srv_1", "distinct_id": "x"},
        "events": event(),
    }[path]
    assert (await post(api, path, one)).status_code in {200, 422}  # its key is known now
    read.clear()
    async with world.connection() as lock, lock.transaction():
        await lock.execute(
            "lock table mcp_servers, mcp_server_user, registered_people in access exclusive mode"
        )
        sent = [asyncio.create_task(post(api, path, one)) for _ in range(10)]

        async def eight_wait() -> bool:
            return REGISTRY.get_sample_value("stepstream_api_waiting", {"lane": "writing"}) == 8

        await eventually(eight_wait, "two have a place, and eight wait")
        assert len(read) == 2
    await asyncio.gather(*sent)
    assert len(read) == 10


async def test_a_large_body_is_read_beside_what_others_wait_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two_servers(world)
    api = await writing(world)
    threads: list[bool] = []
    items_of = routes.items_of

    def watched(*given: Any) -> list[Item]:
        threads.append(threading.current_thread() is threading.main_thread())
        return items_of(*given)

    monkeypatch.setattr(routes, "items_of", watched)
    for body, headers in (
        (lines([event()]), {}),
        (lines([event()] * 400), {}),
        (gzip.compress(lines([event()])), {"Content-Encoding": "gzip"}),  # nobody knows how much that is
    ):
        answer = await send(api, body, media_type="application/x-ndjson", **headers)
        assert answer.status_code == 200, answer.text
    assert threads == [True, False, False]


async def test_a_client_that_leaves_leaves_no_task_behind(world: World) -> None:
    await two_servers(world)
    api = await writing(world)
    assert (await send(api, event())).status_code == 200
    before = len(asyncio.all_tasks())
    body = json.dumps([event("ann", step, BEGAN + n) for n, step in enumerate("abcde")]).encode()
    for _ in range(20):
        async with half_sent(api, api.key, body) as (_, writer):
            writer.write(b" ")
            await writer.drain()

    async def as_before() -> bool:
        return len(asyncio.all_tasks()) <= before

    await eventually(as_before, "no task is left")
    assert (await send(api, body)).status_code == 200


async def test_metrics_say_what_came_and_what_became_of_it(world: World) -> None:
    await two_servers(world)
    api = await writing(world, process=True)
    await send(api, [event(), event(step="z")])
    service = world.services[-1]
    assert await metric(service, "stepstream_intake_events_total") == 2
    assert await metric(service, "stepstream_intake_accepted_total") == 1
    assert await metric(service, "stepstream_intake_kafka_away") == 0


async def test_the_curl_lines_of_the_page_work_as_they_stand(world: World) -> None:
    """The first register the person and the session that the others name; the last shows what is counted."""
    page = (Path(__file__).parents[2] / "docs" / "producers.md").read_text()
    blocks = re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)
    commands = [block for block in blocks if "$STEPSTREAM_URL/" in block]
    assert len(commands) == 4
    await world.offer("wt_9fQ2xL7b", ["wts_Rt41vKp8"])
    api = await writing(world, Grant(may_write=True))
    mine = {"mcp_server_user_id": None, "mcp_server_session_id": None, "mcp_server_id": None}
    named = event(
        step="wts_Rt41vKp8", walkthrough_id="wt_9fQ2xL7b", distinct_id="u-1", session_id="s-1", **mine
    )
    (world.folder / "events.ndjson").write_bytes(lines([named]))

    async def run(command: str) -> "subprocess.CompletedProcess[bytes]":
        return await asyncio.to_thread(
            subprocess.run,
            ["sh", "-c", command],
            cwd=world.folder,
            env={**os.environ, "STEPSTREAM_KEY": api.key, "STEPSTREAM_URL": api.url},
            capture_output=True,
            timeout=60,
        )

    *sending, looking = commands
    for command in sending:
        done = await run(command)
        assert done.stdout.count(b'"accepted":1,"refused":0') == command.count("curl "), done
    assert len(await world.events()) == 2
    world.start_both()
    await world.drained()
    person = await world.db.fetchval("select mcp_server_user_id from registered_people")
    shown = json.loads((await run(looking.replace("mcpu_4f1d0c2b9a8e7f6d5c4b", person))).stdout)
    assert shown["journey"]["step_ids"] == ["wts_Rt41vKp8"], shown

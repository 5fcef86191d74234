"""The recorder's judgement without a database: reading, references, and the merge rule in a batch."""

import itertools
import json
import random
from typing import Any

from aiokafka import ConsumerRecord

from schemas import Rejection
from services.completion_recorder.judge import Accepted, Known, check_references, merge, read
from services.runtime.kafka import Record, next_offsets
from tests.support.world import completed

NOW = 1_764_000_000_000
_offsets = itertools.count()


def record(value: bytes | None, partition: int = 0, offset: int | None = None) -> Record:
    at = next(_offsets) if offset is None else offset
    return ConsumerRecord("t", partition, at, 0, 0, None, value, None, 0, 0, ())


def accepted(*events: dict[str, Any]) -> list[Accepted]:
    good, bad = read([record(json.dumps(e).encode()) for e in events], NOW)
    assert bad == []
    return good


def test_one_bad_record_harms_no_other() -> None:
    good = json.dumps(completed("u", "a", 1)).encode()
    kept, refused = read([record(good), record(b"\xff"), record(None), record(good)], NOW)
    assert len(kept) == 2
    assert [r.rejection for r in refused] == [Rejection.NOT_JSON, Rejection.EMPTY]


def test_the_smallest_time_then_the_smallest_event_id_wins_in_any_order() -> None:
    low, high = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-0000000000ff"
    events = [
        completed("u", "a", 7),
        completed("u", "a", 5, event_id=high),
        completed("u", "a", 5, event_id=low),
        completed("u", "b", 9),
    ]
    for order in itertools.permutations(events):
        won = {item.event.step_id: item.event.event_id for item in merge(accepted(*order))}
        assert won == {"a": low, "b": events[3]["event_id"]}


def test_copies_of_one_event_are_one() -> None:
    event = completed("u", "a", 1)
    assert len(merge(accepted(event, event, event))) == 1


def test_different_contents_under_one_event_id_are_left_to_sql() -> None:
    event = completed("u", "a", 1)
    other = event | {"mcp_server_session_id": "s_other"}
    for order in ((event, other), (other, event)):
        assert {i.event.mcp_server_session_id for i in merge(accepted(*order))} == {"s_u", "s_other"}


def test_every_reference_is_judged() -> None:
    known = Known(
        users={"u", "v"},
        sessions={
            "s_u": ("srv_1", "u"),
            "s_v": ("srv_1", "v"),
            "s_2": ("srv_2", "u"),
            "s_gone": (None, "u"),
            "s_anyone": ("srv_1", None),
        },
        servers={"srv_1": "org", "srv_2": "org", "srv_b": "org_b"},
        walkthroughs={"wt_a": "org", "wt_b": "org", "wt_of_b": "org_b"},
        steps={"a": "wt_a", "z": "wt_b", "o": "wt_of_b"},
    )
    events = {
        "good": completed("u", "a", 1),
        Rejection.UNKNOWN_USER: completed("nobody", "a", 1),
        Rejection.UNKNOWN_SESSION: completed("u", "a", 1, mcp_server_session_id="none"),
        Rejection.UNKNOWN_SERVER: completed("u", "a", 1, mcp_server_id="none"),
        Rejection.UNKNOWN_WALKTHROUGH: completed("u", "a", 1, walkthrough_id="none"),
        Rejection.UNKNOWN_STEP: completed("u", "none", 1),
        Rejection.STEP_OF_ANOTHER_WALKTHROUGH: completed("u", "z", 1),
        Rejection.SERVER_OF_ANOTHER_ORGANIZATION: completed("u", "a", 1, mcp_server_id="srv_b"),
        Rejection.SESSION_OF_ANOTHER_SERVER: completed("u", "a", 1, mcp_server_session_id="s_2"),
        Rejection.SESSION_OF_ANOTHER_USER: completed("u", "a", 1, mcp_server_session_id="s_v"),
        "a session that nobody has yet": completed("u", "a", 1, mcp_server_session_id="s_anyone"),
    }
    good, refused = check_references(accepted(*events.values()), known)
    names = {event["event_id"]: name for name, event in events.items()}
    kept = [names[item.event.event_id] for item in good]
    assert kept == ["good", "a session that nobody has yet"]
    assert [r.rejection for r in refused] == [name for name in events if name not in kept]
    assert all(r.known_in_part for r in refused)


def test_all_that_is_wrong_with_references_is_told_and_the_class_is_of_the_first() -> None:
    known = Known(
        users={"u"},
        sessions={"s_v": ("srv_2", "v")},
        servers={"srv_1": "org"},
        walkthroughs={"wt_a": "org"},
        steps={"z": "wt_b"},
    )
    event = completed("nobody", "z", 1, mcp_server_id="none", mcp_server_session_id="s_v")
    _, (refused,) = check_references(accepted(event), known)
    assert refused.rejection is Rejection.UNKNOWN_USER
    assert refused.message.split("; ") == [
        "mcp_server_user_id: there is no such user",
        "step_id: the step belongs to another walkthrough",
        "mcp_server_id: there is no such server",
        "mcp_server_session_id: the session belongs to another server",
        "mcp_server_session_id: the session belongs to another user",
    ]


def test_offsets_go_on_after_the_last_record_of_each_partition() -> None:
    records = [record(b"", p, o) for p, o in ((0, 4), (1, 9), (0, 7), (0, 5))]
    random.shuffle(records)
    assert {p.partition: o for p, o in next_offsets(records).items()} == {0: 8, 1: 10}

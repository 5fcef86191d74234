"""The recorder's judgement without a database: reading, references, and the merge rule in a batch."""

import itertools
import json
import random
import re
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import ConsumerRecord

from schemas import OPERATOR_SOURCES, Rejection
from services.completion_recorder.correction_rows import Decision, corrections, decide
from services.completion_recorder.judge import Accepted, Known, check_references, merge, read
from services.runtime.kafka import Record, next_offsets
from tests.support.world import completed, corrected, moment, shown, skipped, started

NOW = 1_764_000_000_000
_offsets = itertools.count()


def record(value: bytes | None, partition: int = 0, offset: int | None = None) -> Record:
    at = next(_offsets) if offset is None else offset
    return ConsumerRecord("t", partition, at, 0, 0, None, value, None, 0, 0, ())


def accepted(*events: dict[str, Any]) -> list[Accepted]:
    good, bad = read([record(json.dumps(e).encode()) for e in events], NOW)
    assert bad == []
    return good


def by_operator(*events: dict[str, Any]) -> list[Accepted]:
    headers = [("ce_source", OPERATOR_SOURCES[0].encode())]
    sent = [replace(record(json.dumps(e).encode()), key=b"u", headers=headers) for e in events]
    good, bad = read(sent, NOW)
    assert bad == []
    return good


def test_one_bad_record_harms_no_other() -> None:
    good = json.dumps(completed("u", "a", 1)).encode()
    kept, refused = read([record(good), record(b"\xff"), record(None), record(good)], NOW)
    assert len(kept) == 2
    assert [r.rejection for r in refused] == [Rejection.NOT_JSON, Rejection.EMPTY]


def test_of_starts_the_smallest_time_then_the_smallest_event_id_is_kept_in_any_order() -> None:
    low, high = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-0000000000ff"
    events = [
        started("u", 7),
        started("u", 5, event_id=high),
        started("u", 5, event_id=low),
        started("v", 9),
    ]
    for order in itertools.permutations(events):
        won = {item.event.mcp_server_user_id: item.event.event_id for item in merge(accepted(*order))}
        assert won == {"u": low, "v": events[3]["event_id"]}


def test_of_skips_the_first_and_of_showings_the_first_and_the_last_are_kept_in_any_order() -> None:
    low, high = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-0000000000ff"
    events = [
        *(
            make("u", "a", at, event_id=i)
            for make in (skipped, shown)
            for at, i in ((5, low), (5, high), (7, low))
        ),
        shown("u", "a", 6),
        shown("u", "b", 6),
        skipped("v", "a", 1),
    ]
    kept = [events[0], events[3], events[5], events[7], events[8]]
    for order in itertools.islice(itertools.permutations(events), 0, None, 5_003):
        found = merge(accepted(*order, *order))
        assert {item.event for item in found} == {item.event for item in accepted(*kept)}
        assert len(found) == len(kept)


@pytest.mark.parametrize("field", ["version", "mcp_server_session_id"])
def test_of_showings_all_contents_of_the_first_and_of_the_last_are_left_to_sql(field: str) -> None:
    ends = [shown("u", "a", at, event_id=completed("u", "a", 1)["event_id"]) for at in (1, 9)]
    events = [end | {field: value} for end in ends for value in ("x", "y")]
    between = shown("u", "a", 5)
    assert len(merge(accepted(between, *events, between, *events))) == 4


def test_of_completions_all_are_kept_since_a_correction_may_cover_the_first() -> None:
    events = [completed("u", "a", at) for at in (7, 5, 9)]
    assert len(merge(accepted(*events, *events))) == 3


def test_the_newest_correction_decides_and_the_largest_cover_holds_in_any_order() -> None:
    events = [
        corrected("u", "a", 5, 9, to=1),
        corrected("u", "a", 6, 2, to=3, event_id="00000000-0000-4000-8000-0000000000aa"),
        corrected("u", "a", 6, 4, event_id="00000000-0000-4000-8000-0000000000ff"),
        corrected("u", "b", 1, 1, to=1),
    ]
    for order in itertools.permutations(events):
        at_once = decide(corrections(by_operator(*order)), [])
        one_by_one: list[Decision] = []
        for event in order:
            one_by_one = decide(by_operator(event), one_by_one)
        assert set(at_once) == set(one_by_one)
        told = {d.step_id: (d.event_id, d.covers_until, d.completed_at) for d in at_once}
        assert told["a"] == (events[2]["event_id"], moment(9), None)
        assert told["b"] == (events[3]["event_id"], moment(1), moment(1))


ERASED = completed("u", "a", 0, type="user-erased", erased_at=NOW)


@pytest.mark.parametrize("event", [ERASED, corrected("u", "a", 1, 1)], ids=lambda event: event["type"])
@pytest.mark.parametrize(
    ("key", "sources", "told"),
    [
        (b"u", [b"stepstream-operator"], None),
        (b"u", [b"/stepstream/erase"], None),
        (b"u", [b"crm"], None),
        (b"v", [b"crm"], "the key of a record"),
        (None, [b"crm"], "the key of a record"),
        (b"\xff", [b"crm"], "the key of a record"),
        (b"u", [], "there is no header ce_source"),
        (b"u", [None], "the header ce_source is ''"),
        (b"u", [b"somebody"], "'somebody', and .* STEPSTREAM_TRUSTED_SOURCES"),
        (b"u", [b"crm", b"\xff"], "STEPSTREAM_TRUSTED_SOURCES"),
    ],
)
def test_who_decides_about_a_person_is_trusted_and_names_them_by_the_key(
    event: dict[str, Any], key: bytes | None, sources: list[bytes | None], told: str | None
) -> None:
    headers = [("ce_id", b"1"), *(("ce_source", source) for source in sources)]
    sent = replace(record(json.dumps(event).encode()), key=key, headers=headers)
    _, refused = read([sent], NOW, {"crm", *OPERATOR_SOURCES})
    if told is None:
        assert refused == []
    else:
        assert [r.rejection for r in refused] == [Rejection.NOT_ALLOWED]
        assert re.search(told, refused[0].message)


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
        "mcp_server_session_id: the session belongs to another user",
    ]


def test_offsets_go_on_after_the_last_record_of_each_partition() -> None:
    records = [record(b"", p, o) for p, o in ((0, 4), (1, 9), (0, 7), (0, 5))]
    random.shuffle(records)
    assert {p.partition: o for p, o in next_offsets(records).items()} == {0: 8, 1: 10}

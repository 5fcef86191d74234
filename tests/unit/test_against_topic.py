"""What is read of a partition, and what a portion of the topic becomes."""

import json
from dataclasses import replace

import pytest
from aiokafka import ConsumerRecord

from services.completion_recorder.judge import Table
from services.completion_recorder.portions import Doubt, sift
from services.completion_recorder.topic_parts import add_to_digests, compare_digests, plan_part
from services.consumers.agreement import agreements, why_apart
from services.consumers.positions import Digest, Position
from services.consumers.topic import TopicLog
from services.runtime.kafka import Record

AT = 10**12
LOG = TopicLog("c", "t")
STORED = Position(100, 100, cluster_id="c", topic_id="t", digest=Digest(10, 80, 7))


def record(offset: int, value: bytes | None = b"x", partition: int = 0) -> Record:
    return ConsumerRecord("t", partition, offset, 1_000, 0, b"k", value, None, 1, 1, ())


@pytest.mark.parametrize(
    ("case", "begin", "end", "wanted", "start", "until", "is_comparable"),
    [
        ("all", 0, 120, 0, 0, 100, True),
        ("from where the digest begins", 0, 120, 10, 10, 100, True),
        ("from behind there", 0, 120, 11, 11, 100, False),
        ("what it was made of has expired", 20, 120, 0, 20, 100, False),
        ("all that was judged has expired", 110, 120, 0, 110, 110, False),
        ("from behind what was judged", 0, 120, 110, 100, 100, False),
        ("nothing is as new as that", 0, 120, None, 100, 100, False),
        ("the log lost its end", 0, 90, 0, 0, 90, False),
    ],
)
def test_what_is_read_of_a_partition(
    case: str, begin: int, end: int, wanted: int | None, start: int, until: int, is_comparable: bool
) -> None:
    part = plan_part(3, begin, end, wanted, STORED, LOG)
    assert (part.start, part.until, part.recorded is not None) == (start, until, is_comparable), case
    assert part.not_judged == end - until
    assert bool(part.note) == (end < 100)


def test_a_position_of_another_log_says_nothing_of_this_one() -> None:
    part = plan_part(0, 5, 50, 0, STORED, TopicLog("c", "another"))
    assert (part.start, part.until, part.not_judged, part.recorded) == (5, 5, 45, None)
    assert "made anew" in part.note
    assert plan_part(0, 0, 120, 0, STORED, TopicLog()).until == 100, "an old broker tells no ids"
    assert plan_part(0, 0, 50, 0, None, LOG).not_judged == 50


def test_digests_begin_where_the_stored_one_does() -> None:
    records = [record(offset, partition=p) for offset in range(8, 13) for p in (0, 1)]
    read = add_to_digests({0: Digest(10)}, records)
    assert read == {0: Digest(10).after([r for r in records if r.partition == 0 and r.offset > 9])}
    assert compare_digests(read[0], read[0]) == "same"
    assert compare_digests(Digest(10, 3, 1), read[0]) == "differs"
    assert compare_digests(None, read[0]) == "not comparable"


def test_each_record_becomes_a_row_or_is_counted() -> None:
    event = {
        "type": "step-completed",
        "event_id": "0192F4C9-11d2-4c40-9a3b-7e8f90a1b2c3",
        "mcp_server_user_id": "ann",
        "walkthrough_id": "w",
        "step_id": "a",
        "mcp_server_id": "s",
        "mcp_server_session_id": "ss",
        "completed_at": AT + 5,
        "metadata": {"a": 1},
    }
    began = {**event, "type": "walkthrough-started", "started_at": AT + 4}
    skipped = {**event, "type": "step-skipped", "skipped_at": AT + 6, "reason": "not needed"}
    shown = {**event, "type": "step-shown", "shown_at": AT + 7, "version": "v2"}
    gone = {**event, "type": "user-erased", "erased_at": AT + 9}
    mended = {**event, "type": "step-corrected", "corrected_at": AT + 8, "covers_until": AT + 8}
    portion = sift(
        [
            replace(record(n, v), key=b"ann", headers=[("ce_source", b"stepstream-operator")])
            for n, v in enumerate(
                [None, *(json.dumps(e).encode() for e in (event, began, gone, mended, skipped, shown))]
            )
        ],
        AT + 10,
    )
    row_id = "0192f4c9-11d2-4c40-9a3b-7e8f90a1b2c3"
    of_step = ("ann", "w", "a", "s", "ss")
    assert portion.rows == {
        Table.COMPLETIONS: [(1, "wtsc_" + row_id, *of_step, AT + 5, '{"a":1}')],
        Table.STARTS: [(2, "wtst_" + row_id, "ann", "w", "s", "ss", AT + 4, '{"a":1}')],
        Table.SKIPS: [(5, "wtss_" + row_id, *of_step, AT + 6, "not needed", '{"a":1}')],
        Table.SHOWINGS: [(6, "wtsh_" + row_id, *of_step, AT + 7, "v2")],
    }
    assert portion.erasures == {"ann": 3}
    assert portion.corrections == [(4, row_id, "ann", "a", AT + 8, AT + 8, AT + 5)]
    assert portion.unreadable == {"empty-value": 1}
    doubts = [Doubt.of(portion.records[n], portion.events[n], "no-row") for n in range(1, 7)]
    assert [(d.kind, d.offset, d.step_id, d.happened_at) for d in doubts] == [
        ("completion", 1, "a", AT + 5),
        ("start", 2, None, AT + 4),
        ("erasure", 3, None, AT + 9),
        ("correction", 4, "a", AT + 8),
        ("skip", 5, "a", AT + 6),
        ("showing", 6, "a", AT + 7),
    ]


def test_recorder_and_aggregator_are_compared_where_both_are_as_far() -> None:
    other = Position(100, 100, digest=Digest(10, 79, 3))
    agrees = agreements(
        {0: STORED, 1: STORED, 2: STORED, 3: STORED}, {0: STORED, 1: other, 2: Position(9, 9)}
    )
    assert agrees == {0: True, 1: False, 2: None}
    assert "partition 1:" in (why_apart(agrees) or "")
    assert why_apart({0: True, 1: None}) is None

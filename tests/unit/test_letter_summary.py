"""The summary of dead letters, whatever their number; and the event id in a value that is no event."""

import json
from collections.abc import AsyncIterator

import pytest
from aiokafka import ConsumerRecord

from schemas import event_id_in
from services.completion_recorder.dead_letters import Failure, Letter, Source
from services.completion_recorder.letter_summary import summarize
from services.runtime.sources import OTHERS
from tests.support.world import completed


def letter(sender: str, error_class: str, at: int) -> Letter:
    record = ConsumerRecord("t.dlq", 0, at, 0, 0, None, None, None, 0, 0, ())
    failure = Failure(Source("t", 0, at), at, error_class, f"error at {at}")
    return Letter(record, [failure], [("ce_source", sender.encode())])


async def test_the_most_letters_come_first_with_the_newest_as_example_and_memory_is_bounded() -> None:
    async def letters() -> AsyncIterator[Letter]:
        for at in (5, 9, 7):
            yield letter("a", "not-json", at)
        for i in range(100):
            yield letter(f"s{i}", "not-json" if i % 2 else "forged", 100 + i)

    tallies = await summarize(letters(), pairs=3)
    assert [(t.sender, t.error_class, t.letters) for t in tallies] == [
        (OTHERS, "(other classes)", 49),
        (OTHERS, "not-json", 49),
        ("a", "not-json", 3),
        ("s0", "forged", 1),
        ("s1", "not-json", 1),
    ]
    of_a = tallies[2]
    assert (of_a.since, of_a.newest, of_a.example.offset, of_a.error) == (5, 9, 9, "error at 9")


ID = "6f1f5c3e-6d0e-4c0e-9a55-2f6f0f5a7a11"
EVENT = completed("u", "a", 1, event_id=ID.upper())
TEXT = json.dumps(EVENT)


@pytest.mark.parametrize(
    "value",
    [
        TEXT.encode(),
        b"\0\0\0\0\x01" + TEXT.encode(),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-be"),
        TEXT.encode("utf-8-sig"),
        TEXT.encode()[:120],
        json.dumps(TEXT).encode(),
        json.dumps({"payload": EVENT}).encode(),
        TEXT.replace("event_id", "eventId").encode(),
    ],
)
def test_the_event_id_is_found_in_what_is_no_event(value: bytes) -> None:
    assert event_id_in(value) == ID


@pytest.mark.parametrize(
    "value", [b"", b"\xff", b"[1]", b"{}", b'{"event_id": 5}', b'{"event_id": "x"}', b"\x1f\x8b"]
)
def test_where_there_is_none_none_is_found(value: bytes) -> None:
    assert event_id_in(value) is None

"""The rule of the guard against a plain count over all verdicts; and what is counted by source."""

from collections.abc import Sequence

from aiokafka import ConsumerRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import Rejection
from schemas.documents import partition_vectors
from services.completion_recorder.guard import WINDOW, Chunk, Recent
from services.completion_recorder.judge import Refused
from services.completion_recorder.source_tally import (
    MOST_SOURCES,
    Counts,
    SourceNames,
    count_by_source,
    kinds_of,
    masked,
)
from services.runtime.kafka import Record
from services.runtime.sources import NO_SOURCE, OTHERS, habits


def fed(*loads: tuple[int, int]) -> Recent:
    recent = Recent()
    for events, refused in loads:
        recent = recent.after(events, refused)
    return recent


def test_nearly_all_of_a_thousand_are_suspect() -> None:
    assert fed((1_000, 990)).is_suspect
    assert not fed((999, 999)).is_suspect
    assert not fed((1_000, 989)).is_suspect
    assert fed(*[(1, 1)] * 1_000).is_suspect


def test_old_trouble_is_forgotten() -> None:
    assert fed((500, 500), (1_000, 1_000), (WINDOW, 0)).total == Chunk(WINDOW, 0)
    assert not fed((1_500, 1_500), (100, 0)).is_suspect


def test_a_successor_goes_on_with_the_worse_count() -> None:
    assert fed((1_200, 10)).resumed(Chunk(1_500, 1_500)).is_suspect
    assert fed((1_200, 1_200)).resumed(Chunk(100, 3)).is_suspect


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 100)), max_size=80))
@settings(deadline=None)
def test_what_is_counted_is_what_the_newest_events_are(loads: list[tuple[int, int]]) -> None:
    """A load counts whole; the refused ones of it are spread over what is left of it by nobody."""
    given_ = [Chunk(max(events, refused), refused) for events, refused in loads]
    total = fed(*given_).total
    newest: list[Chunk] = []
    for chunk in reversed([c for c in given_ if c.events]):
        if sum(c.events for c in newest) >= WINDOW:
            break
        newest.append(chunk)
    counted = sum(c.events for c in newest)
    # Small neighbours are one chunk, so that up to a chunk more may be remembered.
    assert counted <= total.events < counted + 100 + 1
    assert total.refused >= sum(c.refused for c in newest)


def record(
    *headers: tuple[str, bytes], key: bytes | None = b"p", value: bytes = b"{}", partition: int = 0
) -> Record:
    return ConsumerRecord("t", partition, 7, 0, 0, key, value, None, 1, 2, headers)


def test_what_to_change_is_told_of_one_in_twenty_of_enough_events() -> None:
    assert habits(19, 19, 0) == []
    assert habits(140, 6, 0) == []
    assert habits(100, 0, 0) == []
    (partitioner, key) = habits(140, 4, 3)
    assert partitioner.startswith("3% of a sample are in another partition")
    assert key.startswith("2% of a sample have no key")


def test_habits_are_counted_by_source() -> None:
    vector = next(v for v in partition_vectors()["vectors"] if v["key"] == "abc")
    right = vector["partitions"]["6"]
    records = [
        record(("ce_source", b"good"), key=b"abc", partition=right),
        record(("ce_source", b"odd"), key=b"abc", partition=(right + 1) % 6),
        record(("ce_source", b"odd"), key=None),
        record(),
    ]
    counts = count_by_source(
        records, [Refused(records[1], Rejection.NOT_JSON, "")], (), SourceNames(set()), 6
    )
    assert counts["good"] == Counts(1, 0, 1, 0, 0)
    assert counts["odd"] == Counts(2, 1, 2, 1, 1)
    assert counts[NO_SOURCE].events == 1


def test_names_that_somebody_makes_up_are_bounded() -> None:
    names = SourceNames({"known"})
    made_up: Sequence[Record] = [record(("ce_source", str(n).encode())) for n in range(MOST_SOURCES + 50)]
    counts = count_by_source(made_up, [], (), names, 0)
    assert len(counts) <= MOST_SOURCES
    assert counts[OTHERS].events >= 50


def test_kinds_of_refusals_say_whose_they_are_and_show_no_content() -> None:
    value = (
        b'{"type":"step-completed","mcp_server_id":"srv_1","walkthrough_id":"wt","note":"secret","n":[1,2]}'
    )
    names = SourceNames(set())
    (kind,) = kinds_of([Refused(record(value=value), Rejection.INVALID, "x")] * 3, names)
    assert (kind.source, kind.server_id, kind.walkthrough_id, kind.events) == (NO_SOURCE, "srv_1", "wt", 3)
    assert masked(value) == {
        "type": "text of 14",
        "mcp_server_id": "text of 5",
        "walkthrough_id": "text of 2",
        "note": "text of 6",
        "n": "list of 2",
    }
    for odd in (None, b"", b"\x00\x00\x00\x00\x07abc", b"[1]", b"{", b'"text"', b"{" * 70_000):
        assert masked(odd) == {}
        assert (
            kinds_of([Refused(record(value=odd or b""), Rejection.NOT_JSON, "x")], names)[0].server_id == ""
        )

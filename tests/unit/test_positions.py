"""Where a service reads on: each case of decision 0014, and the digest of what was read."""

from dataclasses import replace

import pytest
from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from services.consumers.database_identity import DatabaseIdentity, Ours, identity_in, last_in
from services.consumers.positions import Digest, Fingerprint, Gone, Position, Seen, decide
from services.runtime.kafka import Record

LAST = Fingerprint(99, 5_000, 7)
STORED = Position(
    reads_from=100,
    next_offset=100,
    cluster_id="c",
    topic_id="t",
    leader_epoch=3,
    last=LAST,
    digest=Digest(0, 100, 42),
)
SEEN = Seen(begin=0, committed=100, cluster_id="c", topic_id="t", leader_epoch=3)


def record(offset: int, value: bytes | None = b"x", key: bytes | None = b"k") -> Record:
    return ConsumerRecord("t", 0, offset, 1_000 + offset, 0, key, value, None, 1, 1, ())


CASES = {
    "both agree": (STORED, SEEN, 100, 100),
    "the database is ahead: a commit to Kafka was lost, or somebody asks for a replay": (
        STORED,
        replace(SEEN, committed=60),
        60,
        100,
    ),
    "Kafka is ahead: the database went back, or somebody wants to skip": (
        STORED,
        replace(SEEN, committed=160),
        100,
        100,
    ),
    "the group never committed": (STORED, replace(SEEN, committed=None), 100, 100),
    "the database knows nothing": (None, SEEN, 0, 0),
    "a replay is under way": (replace(STORED, reads_from=40), replace(SEEN, committed=40), 40, 100),
    "a replay is under way, and the database went back": (
        replace(STORED, reads_from=40),
        replace(SEEN, committed=90),
        40,
        100,
    ),
    "a later leader has all that was read": (STORED, replace(SEEN, leader_epoch=4, epoch_end=100), 100, 100),
    "a later leader, after which more was read, and it is there": (
        STORED,
        replace(SEEN, leader_epoch=4, epoch_end=70, same_record=True),
        70,
        100,
    ),
    "a later leader, and what was read has expired": (
        STORED,
        replace(SEEN, leader_epoch=4, epoch_end=70, same_record=None),
        70,
        100,
    ),
    "Kafka does not know the epoch, and the record is there": (
        STORED,
        replace(SEEN, leader_epoch=1, epoch_end=None, same_record=True),
        100,
        100,
    ),
    "old brokers tell no ids": (STORED, Seen(begin=0, committed=100), 100, 100),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_gone_and_reading_goes_on_at_the_smaller_place(case: str) -> None:
    stored, seen, reads_from, next_offset = CASES[case]
    placed = decide(stored, seen)
    assert (placed.position.reads_from, placed.position.next_offset) == (reads_from, next_offset)
    assert list(placed.gone) == []
    assert (placed.missed, placed.other_log) == (0, False)
    if stored is not None:
        assert (placed.position.digest, placed.position.last) == (stored.digest, stored.last)


def test_what_retention_removed_before_it_was_read_is_gone() -> None:
    placed = decide(STORED, replace(SEEN, begin=130))
    assert placed.gone == [Gone("expired", 100, 130, before_at=5_000)]
    assert (placed.position.reads_from, placed.position.next_offset, placed.missed) == (130, 130, 30)
    assert placed.position.digest == Digest(130)


def test_what_retention_removed_of_what_was_to_be_read_again_is_not_gone() -> None:
    placed = decide(replace(STORED, reads_from=40), replace(SEEN, begin=70, committed=40))
    assert list(placed.gone) == []
    assert (placed.position.reads_from, placed.position.next_offset, placed.missed) == (70, 100, 30)
    assert placed.position.digest == STORED.digest


def test_a_new_database_is_told_what_came_before_it() -> None:
    placed = decide(None, replace(SEEN, begin=30, committed=80))
    assert placed.gone == [Gone("expired", 0, 30)]
    assert (placed.position.reads_from, placed.position.topic_id) == (30, "t")


@pytest.mark.parametrize("epoch_end", [70, None])
def test_a_cut_log_is_read_from_the_cut_on(epoch_end: int | None) -> None:
    seen = replace(SEEN, committed=100, leader_epoch=5, epoch_end=epoch_end, same_record=False)
    placed = decide(STORED, seen)
    at = epoch_end or 0
    assert (placed.position.reads_from, placed.position.next_offset) == (at, at)
    assert placed.gone == [Gone("cut", at, None, judged_until=100)]
    assert (placed.position.marks_until, placed.other_log) == (100, True)
    assert placed.position.leader_epoch == 5
    assert placed.position.digest == Digest(at)


def test_a_cut_of_what_had_not_been_read_is_named() -> None:
    placed = decide(STORED, replace(SEEN, leader_epoch=5, epoch_end=100, same_record=False))
    assert placed.gone == [Gone("cut", 100, None, before_at=5_000)]
    assert (placed.position.reads_from, placed.position.next_offset, placed.other_log) == (100, 100, True)
    assert placed.position.digest == STORED.digest


@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        (Seen(begin=0, committed=100, cluster_id="c", topic_id="new", leader_epoch=0), "topic-made-anew"),
        (Seen(begin=0, committed=None, cluster_id="other", topic_id="new", leader_epoch=0), "moved"),
    ],
)
def test_another_log_is_read_from_its_beginning(seen: Seen, cause: str) -> None:
    placed = decide(STORED, seen)
    assert (placed.position.reads_from, placed.position.next_offset) == (0, 0)
    assert [(g.cause, g.from_offset, g.until) for g in placed.gone] == [(cause, 100, None)]
    assert (placed.position.marks_until, placed.other_log) == (100, True)
    assert placed.position.topic_id == "new"


def test_a_log_that_is_another_twice_keeps_the_old_ground() -> None:
    once = decide(
        STORED, Seen(begin=0, committed=None, cluster_id="c", topic_id="two", leader_epoch=0)
    ).position
    twice = decide(once.after([record(0)]), Seen(0, None, "c", "three", 0)).position
    assert (twice.reads_from, twice.marks_until) == (0, 100)


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=30), st.data())
def test_the_digest_does_not_know_how_batches_were_cut(values: list[bytes], data: st.DataObject) -> None:
    records = [record(i, value) for i, value in enumerate(values)]
    whole = Position().after(records)
    cut = data.draw(st.integers(0, len(records)))
    parts = Position()
    for part in (records[:cut], records[cut:]):
        if part:
            parts = parts.after(part)
    assert parts == whole
    again = replace(parts, reads_from=0).after(records[: cut or 1])
    assert again.digest == whole.digest
    assert again.agrees_with(whole) is True


@given(st.lists(st.binary(max_size=5), min_size=2, max_size=30), st.data())
def test_the_digest_sees_what_is_missing(values: list[bytes], data: st.DataObject) -> None:
    records = [record(i, value) for i, value in enumerate(values)]
    missing = data.draw(st.integers(0, len(records) - 2))
    whole = Position().after(records)
    part = Position().after([r for r in records if r.offset != missing])
    assert part.agrees_with(whole) is False
    other = data.draw(st.binary(max_size=5).filter(lambda value: value != values[missing]))
    changed = [record(r.offset, other) if r.offset == missing else r for r in records]
    assert Position().after(changed).agrees_with(whole) is False


def test_a_digest_begins_anew_where_all_is_read_again() -> None:
    assert STORED.back_to(50) == replace(STORED, reads_from=50)
    assert STORED.back_to(0) == replace(STORED, reads_from=0, digest=Digest(100))


def test_digests_of_other_ranges_are_not_compared() -> None:
    assert STORED.agrees_with(replace(STORED, next_offset=101)) is None
    assert STORED.agrees_with(replace(STORED, digest=Digest(10, 90, 42))) is None


@pytest.mark.parametrize(
    ("words", "relation"),
    [
        ("database=1/5 timeline=2", "same"),
        ("database=1/5 timeline=3", "newer"),
        ("database=1/5 timeline=1", "older"),
        ("database=1/6 timeline=2", "other"),
        ("database=2/5 timeline=2", "other"),
        ("", "unknown"),
        ("of another tool", "unknown"),
    ],
)
def test_whose_offset_it_is(words: str, relation: str) -> None:
    ours = Ours(DatabaseIdentity(1, 5, 2))
    assert ours.relation_to(words) == relation
    assert ours.relation_to(ours.words) == "same"
    assert Ours(None).relation_to(words) == "unknown"


def test_with_an_offset_goes_the_last_record_before_it() -> None:
    ours, last = Ours(DatabaseIdentity(1, 5, 2)), Fingerprint(8, 1_700, 77)
    words = ours.commit_metadata(Position(9, 9, last=last))
    assert ours.relation_to(words) == "same"
    assert (identity_in(words), last_in(words)) == (ours.words, last)
    assert last_in(Ours(None).commit_metadata(Position(9, 9, last=last))) == last
    assert ours.commit_metadata(Position()) == ours.words
    assert last_in(ours.words) is None

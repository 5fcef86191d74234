"""What a load adds to the counts, from what was known before it and what became of it."""

from aiokafka import ConsumerRecord

from schemas import Rejection
from services.completion_recorder.guard import Chunk, Recent
from services.completion_recorder.judge import Refused
from services.completion_recorder.load_counts import Before, Load, LoadContext, count_load
from services.completion_recorder.source_tally import Counts, Unwritten
from services.runtime.kafka import Record
from services.runtime.sources import NO_SOURCE

NOTHING = Chunk(0, 0)


def records(count: int, source: bytes = b"shop", partition: int = 0) -> list[Record]:
    headers = (("ce_source", source),)
    return [ConsumerRecord("t", partition, i, 0, 0, b"k", b"{}", None, 1, 2, headers) for i in range(count)]


def refused(of: list[Record]) -> list[Refused]:
    return [Refused(record, Rejection.UNKNOWN_USER, "there is no such user") for record in of]


def load_of(these: list[Record], topic: str = "t") -> Load:
    return Load(topic, {}, (), refused(these))


KNOWN = LoadContext()


def test_what_was_read_before_is_not_counted() -> None:
    counted = count_load(load_of(records(10)), KNOWN, {0: Before(7, NOTHING)}, refused(records(8)), ())
    assert counted.counts == {"shop": Counts(events=3, refused=1)}
    assert counted.read_again == 7
    assert counted.recent.total == Chunk(3, 1)
    assert [kind.events for kind in counted.to_write.refused] == [1]


def test_counts_are_written_where_that_is_due_and_what_was_refused_always() -> None:
    taken = Unwritten({"shop": Counts(events=5)}, {("shop", "srv")})
    before = {0: Before(0, NOTHING)}
    later = count_load(load_of(records(2)), KNOWN, before, refused(records(1)), ())
    assert (later.to_write.counts, later.to_write.source_servers, len(later.to_write.refused)) == (
        {},
        set(),
        1,
    )
    now = count_load(load_of(records(2)), LoadContext(taken=taken), before, refused(records(1)), ())
    assert now.to_write.counts == {"shop": Counts(events=7, refused=1)}
    assert now.to_write.source_servers == {("shop", "srv")}
    assert taken.counts == {"shop": Counts(events=5)}, "whoever took it can give it back"


def test_of_erased_people_the_source_is_not_told() -> None:
    counted = count_load(load_of(records(3)), KNOWN, {0: Before(0, NOTHING)}, [], {(0, 1)})
    assert counted.counts == {NO_SOURCE: Counts(events=1), "shop": Counts(events=2)}


def test_it_looks_like_the_wrong_database_where_nearly_all_is_refused_for_the_first_time() -> None:
    bad = records(1_000)
    load, before = load_of(bad, "topic"), {0: Before(0, NOTHING)}
    told = count_load(load, KNOWN, before, refused(bad), ()).wrong_database_message
    assert told.startswith("1,000 of the last 1,000 events were refused")
    assert "unknown-user 1,000; from shop 1,000; the first on partition 0 at offset 0" in told
    assert not count_load(load, KNOWN, {0: Before(1_000, NOTHING)}, refused(bad), ()).wrong_database_message
    assert not count_load(load, KNOWN, before, refused(bad[:900]), ()).wrong_database_message
    assert not count_load(
        load, LoadContext(is_guarded=False), before, refused(bad), ()
    ).wrong_database_message


def test_a_partition_that_another_recorder_had_brings_what_it_saw() -> None:
    before = {0: Before(0, Chunk(1_500, 1_500))}
    one = records(1)
    assert count_load(load_of(one), KNOWN, before, refused(one), ()).wrong_database_message
    assert not count_load(
        load_of(one), LoadContext(recorded_partitions={0}), before, refused(one), ()
    ).wrong_database_message
    known = LoadContext(Recent((Chunk(9, 0),)), recorded_partitions={0})
    assert not count_load(load_of(one), known, before, [], ()).wrong_database_message

"""Bad events: to the dead letters byte for byte, with the reason; each good one beside them counts once."""

import json
import random
from collections import Counter
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import EventError, decode
from services.completion_recorder import transaction
from services.completion_recorder.judge import read
from services.completion_recorder.load_counts import Load
from services.runtime.kafka import next_offsets
from tests.support import damage
from tests.support.bad_events import corpus
from tests.support.bombs import produce_raw
from tests.support.world import (
    AGGREGATOR,
    RECORDER,
    Message,
    Service,
    World,
    completed,
    eventually,
    metric,
    shown,
    skipped,
)

pytestmark = pytest.mark.integration

WHERE_FROM = ("topic", "partition", "offset", "timestamp", "error-class", "error")


async def test_each_of_a_large_corpus_is_a_dead_letter_and_harms_nothing(world: World) -> None:
    """Small batches, so that transactions, dead letters and commits alternate; and one large one."""
    await world.offer()
    await world.offer("wt_b", "z")
    people = [f"p{i:03}" for i in range(400)]
    await world.people([*people, "ann"])
    bad = corpus()
    good = [completed(person, step, i) for i, person in enumerate(people) for step in "ab"]
    sent = [b.message for b in bad] + [Message.of(e) for e in good]
    random.Random(1).shuffle(sent)
    await world.produce(sent)
    recorder = world.start(RECORDER, poll_max_records=60)
    world.start(AGGREGATOR, poll_max_records=100)
    await world.drained()

    letters = await world.dead_letters()
    wanted = Counter((b.message.key, b.message.value, tuple(b.message.headers), b.rejection) for b in bad)
    got: Counter[Any] = Counter()
    for letter in letters:
        own = list(letter.headers[-len(WHERE_FROM) :])
        assert [name for name, _ in own] == [f"stepstream-{part}" for part in WHERE_FROM]
        told = {name: value.decode() for name, value in own}
        assert told["stepstream-topic"] == world.settings.topic
        assert told["stepstream-error"]
        theirs = tuple(letter.headers[: -len(WHERE_FROM)])
        got[letter.key, letter.value, theirs, told["stepstream-error-class"]] += 1
    names = {(b.message.key, b.message.value, tuple(b.message.headers), b.rejection): b.name for b in bad}
    assert [names[key] for key in wanted - got] == []
    assert [(str(key)[:200]) for key in got - wanted] == []
    await _came_from_there(world, letters)

    assert set(await world.completions()) == {(e["mcp_server_user_id"], e["step_id"]) for e in good}
    assert await world.transitions() == {(0, None, "a"): 400, (1, "a", "b"): 400}
    await world.assert_exact()
    await _logs_say_little(recorder, people)
    assert recorder.terminate() == 0


async def _logs_say_little(recorder: Service, people: list[str]) -> None:
    """A line for a batch at most, and nothing of what an event holds."""
    lines = recorder.log.read_text().splitlines()
    assert len(lines) <= await metric(recorder, "stepstream_batch_events_count") + 5
    text = "".join(lines)
    assert "events went to" in text
    assert not any(person in text for person in [*people, "nobody", "' or 1=1"])


async def _came_from_there(world: World, letters: list[Any]) -> None:
    """Each letter names the record that it is a copy of."""
    records = {(r.partition, r.offset): r for r in await world.events()}
    for letter in letters:
        told = dict(letter.headers[-len(WHERE_FROM) :])
        source = records[int(told["stepstream-partition"]), int(told["stepstream-offset"])]
        assert (source.key, source.value) == (letter.key, letter.value)
        assert source.timestamp == int(told["stepstream-timestamp"])


async def test_a_value_of_1_mib_and_more_fits_into_the_dead_letters(world: World) -> None:
    """Where the topic takes larger values than Kafka does by default."""
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
    from aiokafka.errors import MessageSizeTooLargeError

    world.is_topic_changed = True
    admin = AIOKafkaAdminClient(bootstrap_servers=world.settings.kafka_bootstrap_servers)
    await admin.start()
    limit = {"max.message.bytes": str(2 * 1024 * 1024)}
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, world.settings.topic, limit)])
    await admin.close()
    await world.offer()
    await world.people(["ann"])
    value = b"x" * (1024 * 1024)

    async def taken() -> bool:
        """The broker has the setting a moment after it has said so."""
        try:
            await world.produce([Message(b"ann", value)], max_request_size=2**21)
        except MessageSizeTooLargeError:
            return False
        return True

    await eventually(taken, "the topic takes large values")
    await world.produce([completed("ann", "a", 1)])
    world.start_both()
    await world.drained()
    assert [letter.value for letter in await world.dead_letters()] == [value]
    assert await world.transitions() == {(0, None, "a"): 1}


# --- fuzz: whatever comes, it is either an event whose row PostgreSQL takes, or refused with a reason ------

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=80),
    st.sampled_from(["ann", "a", "b", "wt_a", "srv_1", "s_ann", "step-completed", "walkthrough-started"]),
    st.sampled_from(["step-skipped", "step-shown"]),
)
_anything = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
_NAMES = [
    *completed("ann", "a", 1),
    *("started_at", "metadata", "skipped_at", "reason", "shown_at", "version"),
]


@st.composite
def near_valid(draw: Any) -> bytes:
    """An event with some fields replaced, removed, doubled or with bytes changed."""
    make = draw(st.sampled_from([completed, skipped, shown]))
    event: dict[str, Any] = make("ann", draw(st.sampled_from("abcde")), draw(st.integers(0, 10**12)))
    for name in draw(st.lists(st.sampled_from(_NAMES), max_size=3)):
        if draw(st.booleans()):
            event.pop(name, None)
        else:
            event[name] = draw(_anything)
    value = json.dumps(event, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(value)))
        value = value[:at] + draw(st.binary(max_size=3)) + value[at + draw(st.integers(0, 3)) :]
    return value


@given(st.one_of(st.binary(max_size=300), near_valid()))
@settings(max_examples=600, deadline=None)
def test_whatever_bytes_come_they_are_an_event_or_an_error_that_says_why(value: bytes) -> None:
    told, happened_at = "", None
    try:
        happened_at = decode(value, 10**12).happened_at
    except EventError as error:
        told = str(error)
    assert "\0" not in told
    assert told if happened_at is None else 0 <= happened_at <= 10**12 + 86_400_000


async def test_fuzzed_batches_lose_no_good_event(world: World) -> None:
    """Each batch as the recorder judges and writes it, in a real PostgreSQL."""
    await world.offer()
    await world.people(["ann", *(f"p{i}" for i in range(40))])
    pool = await world.recorder_pool()
    drawn: list[list[bytes]] = []

    @given(st.lists(st.one_of(st.binary(min_size=1, max_size=60), near_valid()), max_size=12))
    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def draw(values: list[bytes]) -> None:
        drawn.append(values)

    draw()
    offset = 0
    for number, values in enumerate(drawn):
        person = f"p{number % 40}"
        good = [completed(person, step, number) for step in "abc"]
        mixed = [*values, *(json.dumps(e).encode() for e in good)]
        random.Random(number).shuffle(mixed)
        records = [
            ConsumerRecord(world.settings.topic, 0, offset + i, 0, 0, None, value, None, 0, 0, ())
            for i, value in enumerate(mixed)
        ]
        offset += len(mixed)
        accepted, unreadable = read(records, 10**13)
        topic, offsets = world.settings.topic, next_offsets(records)
        refused, *_ = await transaction.record(pool, Load(topic, offsets, accepted, unreadable))
        kept = {r.offset for r in records} - {r.record.offset for r in refused}
        values_kept = [r.value for r in records if r.offset in kept]
        assert all(json.dumps(e).encode() in values_kept for e in good)
    assert await world.recorded() == offset
    rows = await world.completions()
    assert {(f"p{i}", step) for i in range(min(40, len(drawn))) for step in "abc"} <= rows.keys()


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_header_name_that_is_not_utf_8_harms_nothing(world: World, *, compressed: bool) -> None:
    """Brokers take it from every client, and the library alone could not read the batch."""
    await world.offer()
    await world.people(["ann", "bob"])
    events = [completed(name, step, at) for name in ("ann", "bob") for at, step in enumerate("abc", 1)]
    records = [Message.of(event) for event in events]
    bad = Message(b"bob", b"no event")
    odd = damage.with_odd_header_names([*records[:4], bad, *records[4:]], compressed=compressed)
    await produce_raw(world, 0, odd)
    await world.produce([completed("ann", "d", 4)])
    world.start_both()
    await world.drained()
    assert (await world.completions()).keys() == {
        *((name, step) for name in ("ann", "bob") for step in "abc"),
        ("ann", "d"),
    }
    await world.assert_exact()
    (letter,) = await world.dead_letters()
    assert (letter.key, letter.value) == (bad.key, bad.value)
    assert letter.headers[0] == (r"odd\xff\xfe", b"value")
    ranges = ("--from-beginning", "--to", "2100-01-01T00:00:00Z", "--execute", "-o", "json")
    for service in world.services:
        assert service.terminate() == 0
    fed = await world.invoke("replay", "--group", RECORDER, *ranges)
    assert json.loads(fed.stdout)["events"] == 8
    verified = await world.invoke("verify", "--against-topic", "-o", "json")
    assert (verified.returncode, json.loads(verified.stdout)["events"]) == (0, 8), verified.stdout

"""Events held against all that decides whether they count, before or after they are sent; nothing is written.

They come from a file, or from a topic, which is read without a group. The rules are the recorder's own.
"""

import contextlib
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from schemas import Rejection, advice_on
from services.analytics_api.registering import find_organization
from services.completion_recorder.forecast import Forecast, Foreseen, Outcome
from services.completion_recorder.judge import Table
from services.completion_recorder.seen_events import SeenEvents, seen_events
from services.consumers.batches import codecs_of
from services.consumers.lag import partitions_of
from services.consumers.reader import read_range, reader
from services.consumers.reading import unreadable_of
from services.operations.event_files import Item, Known
from services.operations.event_habits import Habits
from services.operations.own_ids import Named, by_platform_ids, is_of_http
from services.runtime.database import Connection, connected
from services.runtime.environment import names_database
from services.runtime.errors import StepstreamError, UsageError
from services.runtime.kafka import Record, admin_client, check_codecs, describe_topics, unreachable
from services.runtime.settings import Settings
from services.runtime.sources import OTHERS, source_of

#: So many are held against the database at once, or of so many bytes.
_PORTION: Final = 2_000
_PORTION_BYTES: Final = 8 * 1024 * 1024
#: So many records of each partition are read, where nobody says how many.
LAST: Final = 1_000
#: So many sources are told apart.
_MOST_SOURCES: Final = 100
_SILENCE: Final = 60.0
_ALL_KNOWN: Final = Known(key=True, headers=True, partition=True, timestamp=True)
#: Which outcomes are no reason for anybody to do something.
FINE: Final = frozenset({Outcome.COUNTS, Outcome.COPY, Outcome.RECORDED})


@dataclass(frozen=True, slots=True)
class Finding:
    """An event that would not count once more, and why."""

    place: str
    partition: int | None
    offset: int | None
    source: str
    outcome: Outcome
    error_class: str | None
    field: str | None
    message: str
    advice: str | None
    event_id: str | None

    @property
    def is_problem(self) -> bool:
        """Whether somebody should do something about it."""
        return self.outcome not in FINE


@dataclass
class OfSource:
    """What was seen of one source."""

    habits: Habits
    outcomes: Counter[Outcome] = field(default_factory=Counter)


@dataclass
class Checked:
    """What was found, in numbers."""

    events: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    sources: dict[str, OfSource] = field(default_factory=dict)
    #: How many rows the events are of, by table.
    rows: dict[Table, int] = field(default_factory=dict)
    has_database: bool = False
    #: What could not be looked at, and why.
    not_said: list[str] = field(default_factory=list)
    #: What of the topic nobody can read.
    unreadable: list[str] = field(default_factory=list)

    @property
    def problems(self) -> int:
        """How many would not count."""
        return sum(count for outcome, count in self.outcomes.items() if outcome not in FINE)


@dataclass(frozen=True)
class TopicRange:
    """What of a topic is read: its last records, so many of each partition, or those from a time on."""

    topic: str
    last: int
    from_ms: int | None = None
    source: str | None = None


# --- where events come from -------------------------------------------------------------------------------


async def from_file(items: Iterable[Item]) -> AsyncIterator[list[Item]]:
    """The items of a file in portions."""
    for portion in _portions(items):
        yield portion


def _portions(items: Iterable[Item]) -> Iterator[list[Item]]:
    portion: list[Item] = []
    size = 0
    for item in items:
        portion.append(item)
        size += len(item.record.value or b"")
        if len(portion) >= _PORTION or size >= _PORTION_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


class TopicSource:
    """Reads a range of a topic: no group, and nothing is committed."""

    def __init__(self, settings: Settings, wanted: TopicRange) -> None:
        self._settings = settings
        self._wanted = wanted
        #: Of each partition the offsets behind batches that were fetched, with their codecs.
        self._codecs: defaultdict[TopicPartition, deque[tuple[int, str]]] = defaultdict(deque)
        self.partitions = 0
        #: How many records were read, of whichever source.
        self.read = 0
        self.unreadable: list[str] = []

    async def portions(self, progress: Callable[[int, int], None]) -> AsyncIterator[list[Item]]:
        """The records of the range in portions.

        Raises:
            ConfigurationError: there is no such topic.
            StepstreamError: Kafka cannot be reached, or sends nothing for long.
        """
        check_codecs()
        try:
            async with (
                admin_client(self._settings) as admin,
                reader(self._settings, quiet=True, fetched=self._fetched) as consumer,
            ):
                await describe_topics(admin, self._wanted.topic)
                tps = await partitions_of(admin, self._wanted.topic)
                self.partitions = len(tps)
                ranges = await self._ranges(consumer, tps)
                total = sum(until - first for first, until in ranges.values())
                async for piece in read_range(consumer, ranges, at_most=_PORTION, patience=_SILENCE):
                    progress(piece.passed, total)
                    self.read += len(piece.records)
                    wanted = self._wanted.source
                    some = [self._item(r) for r in piece.records]
                    for portion in _portions(
                        i for i in some if wanted is None or source_of(i.record.headers) == wanted
                    ):
                        yield portion
                self.unreadable = [str(found) for found in unreadable_of(consumer)]
        except KafkaError as error:
            raise unreachable(self._settings, error) from error

    async def _ranges(
        self, consumer: AIOKafkaConsumer, tps: Sequence[TopicPartition]
    ) -> dict[TopicPartition, tuple[int, int]]:
        begins, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
        if self._wanted.from_ms is None:
            return {tp: (max(begins[tp], ends[tp] - self._wanted.last), ends[tp]) for tp in tps}
        found = await consumer.offsets_for_times(dict.fromkeys(tps, self._wanted.from_ms))
        return {tp: (ends[tp] if (at := found.get(tp)) is None else at.offset, ends[tp]) for tp in tps}

    def _fetched(self, tp: TopicPartition, batches: bytes) -> None:
        self._codecs[tp].extend(codecs_of(batches))

    def _item(self, record: Record) -> Item:
        known = self._codecs[TopicPartition(record.topic, record.partition)]
        while known and known[0][0] <= record.offset:
            known.popleft()
        codec = known[0][1] if known else None
        return Item(place_in_topic(record), record, _ALL_KNOWN, codec)


def place_in_topic(record: Record) -> str:
    """Where a record is, as `dlq` writes it."""
    return f"{record.partition}:{record.offset}"


# --- what is said of them ---------------------------------------------------------------------------------


async def check_events(
    settings: Settings,
    portions: AsyncIterator[list[Item]],
    tell: Callable[[Sequence[Finding]], None],
    *,
    partitions: Callable[[], int | None],
    with_database: bool = True,
    organization: str | None = None,
) -> Checked:
    """Holds events against the contract, against each other and, where there is one, against the database.

    Args:
        settings: which database, and which sources are trusted.
        portions: the events.
        tell: called with what would not count once more, in order.
        partitions: how many the topic has, once a portion is there; None where that is not known.
        with_database: whether to look into it.
        organization: by whose own ids, people and sessions are named, as by HTTP: id or slug.

    Raises:
        UsageError: there is no such organization, or no database to look it up in.
        StepstreamError: the database went away while it was needed.
    """
    checked = Checked()
    async with contextlib.AsyncExitStack() as stack:
        seen = stack.enter_context(seen_events())
        db = await _database(settings, stack, checked, wanted=with_database)
        checked.has_database = db is not None
        if organization is not None and db is None:
            raise UsageError(f"--organization looks up people and sessions: {checked.not_said[-1]}")
        owner = await find_organization(db, organization) if db is not None and organization else None
        check = _Check(settings, seen, checked, partitions, owner)
        async with aclosing(portions) as opened:  # type: ignore[type-var]
            async for portion in opened:
                tell(await check.hold(db, portion))
        checked.rows = seen.count_rows()
    return checked


_CANNOT_SAY: Final = (
    "whether persons, walkthroughs, steps, servers and sessions are there and belong together, whether an "
    "event_id is another event's there, what is recorded already, and who was erased"
)


async def _database(
    settings: Settings, stack: contextlib.AsyncExitStack, checked: Checked, *, wanted: bool
) -> "Connection | None":
    """A connection that only reads; None where there is none, which is then said."""
    if not wanted:
        why = "without the database"
    elif not names_database(settings):
        why = "STEPSTREAM_DATABASE_URL is not set"
    else:
        only_reads = {"default_transaction_read_only": "on"}
        try:
            return await stack.enter_async_context(connected(settings, server_settings=only_reads))
        except (StepstreamError, OSError) as error:
            why = str(error)
    checked.not_said.append(f"{why}: it is not known {_CANNOT_SAY}")
    return None


class _Check:
    def __init__(
        self,
        settings: Settings,
        seen: SeenEvents,
        checked: Checked,
        partitions: Callable[[], int | None],
        organization: str | None,
    ) -> None:
        self._checked = checked
        self._organization = organization
        self._partitions = partitions
        self._places: dict[int, str] = {}
        self._forecast = Forecast(
            seen, settings.trusted(), settings.registering(), lambda record: self._places[id(record)]
        )

    async def hold(self, db: "Connection | None", given: Sequence[Item]) -> list[Finding]:
        """What of a portion would not count once more; counts all of it."""
        now_ms = int(time.time() * 1000)
        if db is not None and self._organization is not None:
            named = await by_platform_ids(db, self._organization, given)
        else:
            named = [Named(item, {}) for item in given]
        portion = [item for item, _ in named]
        self._places = {id(item.record): item.place for item in portion}
        foreseen = await self._forecast.foresee(db, [item.record for item in portion], now_ms)
        found = []
        for (item, names), one in zip(named, foreseen, strict=True):
            of_source = self._of_source(source_of(item.record.headers))
            self._count(of_source, one)
            of_source.habits.note(item, one.event, now_ms, has_another_id=one.has_another_id)
            if one.outcome is not Outcome.COUNTS:
                found.append(_finding(item, _as_named(one, names)))
        return found

    def _count(self, of_source: OfSource, one: Foreseen) -> None:
        self._checked.events += 1
        self._checked.outcomes[one.outcome] += 1
        of_source.outcomes[one.outcome] += 1
        if one.rejection is not None:
            self._checked.classes[one.rejection.value] += 1

    def _of_source(self, source: str) -> OfSource:
        sources = self._checked.sources
        if source not in sources and len(sources) >= _MOST_SOURCES:
            source = OTHERS
        if source not in sources:
            sources[source] = OfSource(Habits(self._partitions()))
        return sources[source]


#: Fields that messages begin with; another beginning is of the value as a whole.
_FIELDS: Final = frozenset(
    {
        *("type", "event_id", "mcp_server_user_id", "walkthrough_id", "step_id", "mcp_server_id"),
        *("mcp_server_session_id", "completed_at", "started_at", "skipped_at", "shown_at", "erased_at"),
        *("corrected_at", "covers_until", "metadata", "reason", "version", "distinct_id", "session_id"),
    }
)


def field_of(message: str) -> str | None:
    """The field that a message about an event begins with."""
    name = message.partition(":")[0]
    return name if name in _FIELDS else None


def _as_named(one: Foreseen, names: Mapping[str, str]) -> Foreseen:
    """With the names that the event has for fields, and what to do about names that Kafka does not take."""
    message = one.message
    for name, own in names.items():
        message = message.replace(f"{name}: ", f"{own}: ")
    if one.rejection is Rejection.INVALID and "Field required" in message and is_of_http(one.record.value):
        message += "; by HTTP it may go so: `--organization ORG` looks up whom and what it names"
    return replace(one, message=message)


def _finding(item: Item, one: Foreseen) -> Finding:
    known, record = item.known, item.record
    return Finding(
        place=item.place,
        partition=record.partition if known.partition else None,
        offset=record.offset if known is _ALL_KNOWN else None,
        source=source_of(record.headers),
        outcome=one.outcome,
        error_class=one.rejection.value if one.rejection else None,
        field=field_of(one.message),
        message=one.message,
        advice=advice_on(one.rejection) if one.rejection else None,
        event_id=one.event.event_id if one.event else None,
    )


def as_json(finding: Finding) -> dict[str, Any]:
    """A finding for programs."""
    return {
        name: getattr(finding, name)
        for name in (
            *("place", "partition", "offset", "source", "outcome", "error_class", "field", "message"),
            *("advice", "event_id"),
        )
    }

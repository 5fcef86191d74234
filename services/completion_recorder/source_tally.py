"""Who sends what: events, refusals and habits by source, counted for the first time that each is read."""

import random
import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Final

from aiokafka.partitioner import DefaultPartitioner
from pydantic_core import from_json

from schemas import Rejection, UserErased
from services.completion_recorder.judge import Accepted, Refused
from services.runtime.database import can_be_stored
from services.runtime.kafka import Record
from services.runtime.sources import NO_SOURCE, OTHERS, source_of

#: The most sources that are told apart; and those of them whose refusals are a metric each.
MOST_SOURCES: Final = 10_000
#: Of so many records of a load the partition is held against the key: the hash takes 10 µs.
_LOOKED_AT: Final = 100
#: Larger values are not looked into, for whose they are and what they look like.
_MOST_BYTES: Final = 64 * 1024
#: So much is kept while somebody has locked the rows that it belongs to.
_MOST_KINDS: Final = 10_000
_MOST_FIELDS: Final = 30
_MOST_NAME: Final = 40
#: A source is known once so many of its events, and one in so many, were recorded; `source_stats.sql` has the
#: same numbers.
_RECORDED: Final = 20
_ONE_IN: Final = 20
#: Classes of what could not be read, so that nothing that it names was looked up.
UNREAD: Final = frozenset(
    {
        Rejection.NOT_JSON,
        Rejection.UNKNOWN_TYPE,
        Rejection.INVALID,
        Rejection.IN_THE_FUTURE,
        Rejection.TOO_EARLY,
        Rejection.NOT_ALLOWED,
    }
)
#: Ids, found without reading the value: that takes a tenth of the time, and there may be many.
_SERVER: Final = re.compile(rb'"mcp_server_id"\s*:\s*"([^"\\]{1,64})"')
_WALKTHROUGH: Final = re.compile(rb'"walkthrough_id"\s*:\s*"([^"\\]{1,64})"')

#: The partition of a key among so many, as Kafka's default partitioner chooses it.
_partition_of: Final = DefaultPartitioner()


@dataclass(slots=True)
class Counts:
    """Of one source: how many records there were, and were refused; and of those looked at, their habits.

    `elsewhere` have a key and are in another partition than Kafka's default partitioner chooses.
    """

    events: int = 0
    refused: int = 0
    looked_at: int = 0
    elsewhere: int = 0
    without_key: int = 0

    def add(self, other: "Counts") -> None:
        self.events += other.events
        self.refused += other.refused
        self.looked_at += other.looked_at
        self.elsewhere += other.elsewhere
        self.without_key += other.without_key


@dataclass(frozen=True, slots=True)
class RefusedKind:
    """Refused records of one source and error class that name the same server and walkthrough.

    `events` is how many, `example` the last of them; an id that they do not name is empty.
    """

    source: str
    rejection: str
    server_id: str
    walkthrough_id: str
    events: int
    example: Refused


@dataclass(slots=True)
class Unwritten:
    """Counts by source, sources with the servers of which they send events, and what was refused."""

    counts: dict[str, Counts] = field(default_factory=dict)
    source_servers: set[tuple[str, str]] = field(default_factory=set)
    refused: list[RefusedKind] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.counts or self.source_servers or self.refused)

    def add(self, other: "Unwritten") -> None:
        """Adds what another has; of refusals only as many as fit: the rest are in the dead letters alone."""
        for source, of in other.counts.items():
            self.counts.setdefault(source, Counts()).add(of)
        self.source_servers |= other.source_servers
        self.refused += other.refused[: _MOST_KINDS - len(self.refused)]

    def renamed(self, names: Mapping[str, str]) -> "Unwritten":
        """The same with other names of some sources; counts that come under one name are added up."""
        renamed = Unwritten(
            source_servers={(names.get(source, source), server) for source, server in self.source_servers},
            refused=[replace(kind, source=names.get(kind.source, kind.source)) for kind in self.refused],
        )
        for source, of in self.counts.items():
            renamed.counts.setdefault(names.get(source, source), Counts()).add(of)
        return renamed


class SourceNames:
    """SourceNames sources: at most `MOST_SOURCES` are told apart, and those beyond are `OTHERS`."""

    def __init__(self, known: Set[str]) -> None:
        self._known = known
        #: Those that were not told apart before.
        self.new: set[str] = set()

    def of(self, record: Record) -> str:
        """The source of a record."""
        source = source_of(record.headers)
        if source not in self._known and source not in self.new:
            if len(self._known) + len(self.new) >= MOST_SOURCES:
                return OTHERS
            self.new.add(source)
        return source


def count_by_source(
    records: Sequence[Record],
    refused: Collection[Refused],
    of_erased: Container[tuple[int, int]],
    names: SourceNames,
    partitions: int,
) -> dict[str, Counts]:
    """Of records by their source; a sample of them is held against their keys.

    What is of people who were erased, by partition and offset, is of no source: the source may be them.
    """
    counts: dict[str, Counts] = {}
    theirs = [r for r in records if (r.partition, r.offset) in of_erased] if of_erased else []
    if theirs:
        counts[NO_SOURCE] = Counts(events=len(theirs))
        records = [r for r in records if (r.partition, r.offset) not in of_erased]
    for record in records:
        source = names.of(record)
        if (of := counts.get(source)) is None:
            of = counts[source] = Counts()
        of.events += 1
    for one in refused:
        counts[names.of(one.record)].refused += 1
    looked_at = records if len(records) <= _LOOKED_AT else random.sample(records, _LOOKED_AT)
    for record in looked_at if partitions else ():
        of = counts[names.of(record)]
        of.looked_at += 1
        if record.key is None:
            of.without_key += 1
        elif _partition_of(record.key, _numbers(partitions), _numbers(partitions)) != record.partition:
            of.elsewhere += 1
    return counts


def kinds_of(refused: Iterable[Refused], names: SourceNames) -> list[RefusedKind]:
    """Refused records by source, class, and whose they say that they are."""
    found: dict[tuple[str, str, str, str], tuple[int, Refused]] = {}
    for one in refused:
        server, walkthrough = _server_and_walkthrough(one.record.value)
        kind = (names.of(one.record), one.rejection.value, server, walkthrough)
        found[kind] = (found.get(kind, (0, one))[0] + 1, one)
    return [RefusedKind(*kind, events, one) for kind, (events, one) in found.items()]


class SourceTally:
    """What this process knows of sources: which are told apart, and counts that are not written yet.

    Counts are kept for some seconds, so that many loads cost one write; refusals go with their own load.
    """

    def __init__(self) -> None:
        self._names: set[str] = {NO_SOURCE, OTHERS}
        self._known_source_servers: set[tuple[str, str]] = set()
        self._unwritten = Unwritten()
        self._lately: dict[str, Counts] = {}
        #: Whether enough of a source was recorded by this process, be it written already or not.
        self.has_recorded = False

    @property
    def names(self) -> Set[str]:
        """The sources that are told apart."""
        return self._names

    def remember_names(self, sources: Iterable[str]) -> None:
        """Sources that are told apart from now on."""
        self._names.update(sources)

    def remember_source_servers(self, accepted: Iterable[Accepted]) -> None:
        """Remembers of which servers these events, which are recorded, are."""
        names = SourceNames(self._names)
        for event, record in accepted:
            if not isinstance(event, UserErased):
                one = (names.of(record), event.mcp_server_id)
                if one not in self._known_source_servers and len(self._known_source_servers) < MOST_SOURCES:
                    self._known_source_servers.add(one)
                    self._unwritten.source_servers.add(one)
        self.remember_names(names.new)

    def remember_recorded(self, counts: Mapping[str, Counts]) -> None:
        """Remembers what was recorded of each source, of a load that is committed."""
        if self.has_recorded:
            return
        for source, of in counts.items():
            lately = self._lately.setdefault(source, Counts())
            lately.add(of)
            recorded = lately.events - lately.refused
            self.has_recorded |= recorded >= _RECORDED and _ONE_IN * recorded >= lately.events

    def take(self) -> Unwritten:
        """What is not written yet: whoever takes it writes it, or gives it back."""
        taken, self._unwritten = self._unwritten, Unwritten()
        return taken

    def give_back(self, taken: Unwritten) -> None:
        """Adds what is still to be written."""
        self._unwritten.add(taken)


_ranges: dict[int, list[int]] = {}


def _numbers(partitions: int) -> list[int]:
    return _ranges.setdefault(partitions, list(range(partitions)))


def _server_and_walkthrough(value: bytes | None) -> tuple[str, str]:
    """Server and walkthrough that a value names, in whatever state it is; empty where it names none."""
    if value is None or len(value) > _MOST_BYTES:
        return "", ""
    return _id(_SERVER.search(value)), _id(_WALKTHROUGH.search(value))


def _id(found: re.Match[bytes] | None) -> str:
    try:
        text = found[1].decode() if found else ""
    except UnicodeDecodeError:
        return ""
    return text if can_be_stored(text) else ""


def _object(value: bytes | None) -> Mapping[str, Any]:
    if not value or len(value) > _MOST_BYTES or not value.lstrip().startswith(b"{"):
        return {}
    try:
        found = from_json(value)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def masked(value: bytes | None) -> dict[str, str]:
    """What a refused value looks like without its content: the names of its fields, and their types."""
    fields = _object(value)
    if not fields:
        return {}
    names = [name for name in list(fields)[:_MOST_FIELDS] if can_be_stored(name)]
    return {name[:_MOST_NAME]: _kind(fields[name]) for name in names}


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "number"
        case str():
            return f"text of {len(value)}"
        case list():
            return f"list of {len(value)}"
        case _:
            return "object"

"""A portion of the topic as rows, to be held against the tables; and what these do not show: pure."""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import Final, NamedTuple

from schemas import (
    OPERATOR_SOURCES,
    AnyEvent,
    EventError,
    StepCompleted,
    StepCorrected,
    StepShown,
    StepSkipped,
    UserErased,
    WalkthroughStarted,
)
from services.completion_recorder.event_rows import SHAPES, TABLE_OF, Row
from services.completion_recorder.judge import Table, read_one
from services.consumers.positions import checksum
from services.runtime.kafka import Record

#: The columns of `heard_corrections`; those of the other tables are `number` and what `event_rows` has.
CORRECTIONS: Final = (
    "number",
    "event_id",
    "mcp_server_user_id",
    "step_id",
    "corrected_at",
    "covers_until",
    "completed_at",
)


class Portion(NamedTuple):
    """A portion of the topic as rows; `events` are the readable ones by their number in the portion."""

    records: Sequence[Record]
    events: Mapping[int, AnyEvent]
    #: Of each table, with the number of the event in front.
    rows: Mapping[Table, list[Row]]
    corrections: list[Row]
    erasures: dict[str, int]
    unreadable: Counter[str]


def sift(records: Sequence[Record], now_ms: int, trusted: Container[str] = OPERATOR_SOURCES) -> Portion:
    """Reads each record once, as the recorder does, and makes rows of the events."""
    events: dict[int, AnyEvent] = {}
    rows: dict[Table, list[Row]] = {table: [] for table in Table}
    corrections: list[Row] = []
    erasures: dict[str, int] = {}
    unreadable: Counter[str] = Counter()
    for number, record in enumerate(records):
        try:
            event = read_one(record, now_ms, trusted)
        except EventError as error:
            unreadable[error.rejection.value] += 1
            continue
        events[number] = event
        if isinstance(event, StepCorrected):
            corrections.append((number, *(getattr(event, name) for name in CORRECTIONS[1:])))
        elif isinstance(event, UserErased):
            erasures[event.mcp_server_user_id] = number
        else:
            table = TABLE_OF[type(event)]
            rows[table].append((number, *SHAPES[table].row(event)))
    return Portion(records, events, rows, corrections, erasures, unreadable)


class Doubt(NamedTuple):
    """An event that the tables do not show, for now; the columns of `doubted`."""

    kind: str
    partition: int
    offset: int
    checksum: int
    id: str
    mcp_server_user_id: str
    walkthrough_id: str | None
    step_id: str | None
    mcp_server_id: str | None
    mcp_server_session_id: str | None
    happened_at: int
    metadata: str | None
    reason: str | None
    version: str | None
    cause: str
    row_id: str | None
    row_at: int | None

    @classmethod
    def of(
        cls, record: Record, event: AnyEvent, cause: str, row_id: str | None = None, row_at: int | None = None
    ) -> "Doubt":
        """The doubt about an event, and the row that is there in its place."""
        kind, prefix = _KINDS[type(event)]
        fields = {name: getattr(event, name, None) for name in _OF_EVENT}
        return cls(
            kind=kind,
            partition=record.partition,
            offset=record.offset,
            checksum=checksum(record),
            id=prefix + event.event_id,
            mcp_server_user_id=event.mcp_server_user_id,
            happened_at=event.happened_at,
            cause=cause,
            row_id=row_id,
            row_at=row_at,
            **fields,
        )


_KINDS: Mapping[type[AnyEvent], tuple[str, str]] = {
    StepCompleted: ("completion", "wtsc_"),
    WalkthroughStarted: ("start", "wtst_"),
    StepSkipped: ("skip", "wtss_"),
    StepShown: ("showing", "wtsh_"),
    UserErased: ("erasure", ""),
    StepCorrected: ("correction", "wtsc_"),
}
_OF_EVENT = (
    *("walkthrough_id", "step_id", "mcp_server_id", "mcp_server_session_id"),
    *("metadata", "reason", "version"),
)

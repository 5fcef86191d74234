"""Events as rows: in which table, under which id, with which columns: pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, TypeAlias

from schemas import AnyEvent, StepCompleted, StepShown, StepSkipped, WalkthroughStarted
from services.completion_recorder.judge import Table

Row: TypeAlias = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """How the events of a table become rows."""

    #: What statements and temporary tables call them.
    name: str
    #: A row's id is this and the event's.
    prefix: str
    #: The columns after the id: fields of the event.
    fields: tuple[str, ...]
    #: Their values.
    values: Callable[[AnyEvent], Row]

    @property
    def columns(self) -> tuple[str, ...]:
        """The id, and the fields."""
        return ("id", *self.fields)

    def row_id(self, event: AnyEvent) -> str:
        """The id of the row that an event becomes."""
        return self.prefix + event.event_id

    def row(self, event: AnyEvent) -> Row:
        """The values of `columns`."""
        return (self.prefix + event.event_id, *self.values(event))


def _shape(name: str, prefix: str, *fields: str) -> Shape:
    return Shape(name, prefix, fields, attrgetter(*fields))


_WHERE: Final = ("mcp_server_id", "mcp_server_session_id")
_OF_STEP: Final = ("mcp_server_user_id", "walkthrough_id", "step_id", *_WHERE)

SHAPES: Final[Mapping[Table, Shape]] = {
    Table.COMPLETIONS: _shape("completions", "wtsc_", *_OF_STEP, "completed_at", "metadata"),
    Table.STARTS: _shape(
        "starts", "wtst_", "mcp_server_user_id", "walkthrough_id", *_WHERE, "started_at", "metadata"
    ),
    Table.SKIPS: _shape("skips", "wtss_", *_OF_STEP, "skipped_at", "reason", "metadata"),
    Table.SHOWINGS: _shape("showings", "wtsh_", *_OF_STEP, "shown_at", "version"),
}
#: What becomes a row of its own; corrections and erasures do not.
TABLE_OF: Final[Mapping[type[AnyEvent], Table]] = {
    StepCompleted: Table.COMPLETIONS,
    WalkthroughStarted: Table.STARTS,
    StepSkipped: Table.SKIPS,
    StepShown: Table.SHOWINGS,
}

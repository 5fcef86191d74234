"""Events whose id another has: the one that is recorded keeps it, else the first of them in the log.

Of completions and starts: in the tables of skips and showings no id has to be unique.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from schemas import AnyEvent, Rejection, StepCompleted, WalkthroughStarted
from services.completion_recorder.judge import Accepted, Refused, RowKey, Table, row_of
from services.runtime.database import Connection, load_queries
from services.runtime.kafka import Record

SQL = load_queries(__file__)


async def without_reused_ids(
    connection: Connection, merged: Sequence[Accepted], doubled: Collection[tuple[Table, str]]
) -> tuple[list[Accepted], list[Refused]]:
    """Refuses events whose id is another event's: one of the table, or with `doubled` one beside them."""
    looked_up: dict[int, SeenId] = {}
    for of_type, statement in (
        (StepCompleted, "find_reused_ids_of_completions"),
        (WalkthroughStarted, "find_reused_ids_of_starts"),
    ):
        given = [
            (
                i,
                event.event_id,
                *row_of(event)[1:],
                event.mcp_server_id,
                event.happened_at,
                (row_of(event).table, event.event_id) in doubled,
            )
            for i, (event, _) in enumerate(merged)
            if isinstance(event, of_type)
        ]
        if given:
            columns = [list(column) for column in zip(*given, strict=True)]
            for number, *seen in await connection.fetch(SQL[statement], *columns):
                looked_up[number] = SeenId(*seen)
    return check_ids(merged, looked_up)


class SeenId(NamedTuple):
    """What the tables say of an event whose id is another event's, too."""

    #: Whether it claims the id: a completion that is not recorded under it, a start that would be written.
    claims: bool
    #: The organization of its server.
    organization: str
    #: Whose event of another user or step is recorded under the id; None where there is none.
    holder_user: str | None
    #: When that happened, in milliseconds since the epoch, and the organization of its server.
    holder_at: int | None
    holder_organization: str | None


def doubled_ids(merged: Sequence[Accepted]) -> set[tuple[Table, str]]:
    """The ids that events of different rows carry, each with the table that it is of."""
    seen: dict[tuple[Table, str], RowKey] = {}
    doubled: set[tuple[Table, str]] = set()
    ids = [event.event_id for event, _ in merged]
    if len(ids) == len(set(ids)):  # nearly always, and much sooner known
        return doubled
    for event, _ in merged:
        if isinstance(event, StepCompleted | WalkthroughStarted):
            row = row_of(event)
            if seen.setdefault((row.table, event.event_id), row) != row:
                doubled.add((row.table, event.event_id))
    return doubled


def check_ids(
    merged: Sequence[Accepted], looked_up: Mapping[int, SeenId]
) -> tuple[list[Accepted], list[Refused]]:
    """Refuses events whose id another event has: the one that is recorded, else the first of them in the log.

    Args:
        merged: what is to be written.
        looked_up: by their index in it, the events of which another has the id.
    """
    firsts: dict[tuple[Table, str], tuple[Accepted, SeenId]] = {}
    refused: dict[int, Refused] = {}
    for i in sorted(looked_up, key=lambda i: (merged[i].record.partition, merged[i].record.offset)):
        (event, record), seen = merged[i], looked_up[i]
        if not isinstance(event, StepCompleted | WalkthroughStarted) or not seen.claims:
            continue
        if seen.holder_user is not None:
            refused[i] = _refused(record, _describe_holder(event, seen))
            continue
        # What is refused for the recorded event's sake has no claim to the id.
        first, seen_first = firsts.setdefault((row_of(event).table, event.event_id), (merged[i], seen))
        if isinstance(first.event, StepCompleted | WalkthroughStarted) and row_of(first.event) != row_of(
            event
        ):
            told = _describe_first(event, first, seen.organization == seen_first.organization)
            refused[i] = _refused(record, told)
    return [item for i, item in enumerate(merged) if i not in refused], list(refused.values())


def _refused(record: Record, holder: str) -> Refused:
    return Refused(record, Rejection.REUSED_EVENT_ID, f"event_id: {holder}")


def _describe_holder(event: StepCompleted | WalkthroughStarted, seen: SeenId) -> str:
    """Of another organization's event nothing is told."""
    if seen.holder_organization != seen.organization or seen.holder_at is None:
        return "another event is recorded under it"
    at = datetime.fromtimestamp(seen.holder_at / 1000, UTC).isoformat(timespec="milliseconds")
    told = whose(event, seen.holder_user)
    return f"{told}, of {at.replace('+00:00', 'Z')}, is recorded under it"


def _describe_first(
    event: StepCompleted | WalkthroughStarted, first: Accepted, same_organization: bool
) -> str:
    if not same_organization:
        return "another event before this one has it"
    told = whose(event, first.event.mcp_server_user_id)
    return f"{told}, at {first.record.partition}:{first.record.offset}, has it and comes first"


def whose(event: AnyEvent, user: str | None) -> str:
    """Whose event another one with the same id is, as far as that may be told."""
    if user != event.mcp_server_user_id:
        return "another user's event"
    what = "step" if isinstance(event, StepCompleted) else "walkthrough"
    return f"an event of this user and another {what}"

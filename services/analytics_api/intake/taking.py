"""A batch of events, from its body to the verdicts: one query, then Kafka, or else the outbox."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeAlias

from services.analytics_api.fair import Turn
from services.analytics_api.intake import store
from services.analytics_api.intake.bodies import QUICK_ITEMS, Item
from services.analytics_api.intake.sending import Outgoing, Sender
from services.analytics_api.intake.verdicts import (
    Found,
    Judged,
    Read,
    Refusal,
    Wanted,
    contested,
    judge,
    read,
    settle,
    unregistered,
)
from services.analytics_api.keys_and_rates import may_write
from services.analytics_api.problems import ProblemError
from services.analytics_api.registering import (
    Kept,
    OwnSession,
    being_erased,
    register_people,
    register_sessions,
)
from services.analytics_api.writing import Writer
from services.runtime.crashpoints import crash_point
from services.runtime.database import Connection
from services.runtime.fair import Writing
from services.runtime.settings import Settings
from services.runtime.telemetry import INTAKE_EVENTS, INTAKE_THROUGH

Through: TypeAlias = Literal["kafka", "outbox"]
#: How long what was counted in the outbox is believed.
_COUNT_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a batch: where its good events went, None where there are none, and each verdict."""

    accepted: int
    refused: int
    through: Through | None
    results: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Verdicts:
    """What becomes of a batch: where each item is, ids of good events by index, refusals, what is sent."""

    places: list[dict[str, int]]
    ids: dict[int, str]
    refused: dict[int, Refusal]
    events: list[Outgoing]

    def results(self) -> list[dict[str, Any]]:
        """The verdict on each item, as an answer has it."""
        return [_result(place, self.ids, self.refused) for place in self.places]


class Intake:
    """Takes batches of events.

    Args:
        settings: how long Kafka is waited for, and how many events may wait in the outbox.
        writer: where what events refer to is looked up, and the outbox is.
        clock: seconds since the epoch.
    """

    def __init__(self, settings: Settings, writer: Writer, clock: Callable[[], float] = time.time) -> None:
        self._writer = writer
        self._clock = clock
        self.sender = Sender(settings)
        self._outbox = _Outbox(writer, settings.api_outbox_events)

    async def take(
        self, turn: Turn, read_items: Callable[[], Awaitable[Sequence[Item]]], *, is_quick: bool
    ) -> Taken:
        """Takes a batch, whose items `read_items` reads; all that takes time is done in the asker's turn.

        Raises:
            ProblemError: the body cannot be read; or neither Kafka nor the outbox takes the events, of which
                some may have arrived all the same.
        """
        async with turn.lanes.writing.place(turn.asker):
            items = await read_items()
            is_quick = is_quick and len(items) <= QUICK_ITEMS
            verdicts = await self._verdicts(turn, items, is_quick=is_quick)
            del items  # they may be large
        through = await self._send(turn, verdicts.events)
        _count(verdicts.ids, verdicts.refused, through)
        results = await turn.made(verdicts.results, is_quick=is_quick)
        return Taken(len(verdicts.ids), len(verdicts.refused), through, results)

    async def _verdicts(self, turn: Turn, items: Sequence[Item], *, is_quick: bool) -> "_Verdicts":
        """What becomes of each item; nothing is kept of what they say, which may be large."""
        organization, writing = turn.asker.organization, may_write(turn.asker)
        read_all = partial(_read_all, items, organization, writing, int(self._clock() * 1000))
        reads, refused = await turn.made(read_all, is_quick=is_quick)
        judged = await self._judge(reads, organization, writing) if reads else Judged()
        return _Verdicts(
            [item.place for item in items],
            {r.item.index: r.event.event_id for r in judged.good},
            refused | judged.refused,
            [Outgoing.of(r.event, r.value, writing.source) for r in judged.good],
        )

    async def _judge(self, reads: Sequence[Read], organization: str, writing: Writing) -> Judged:
        """Judges events by what they refer to: one query, and more only for what is missing or unclear."""
        wanted = Wanted.of(reads)

        async def find(db: Connection) -> Found:
            return await store.find_references(db, organization, wanted, writing.server_ids)

        found = await self._writer.run(find, is_one_statement=True)
        settle(reads, found)
        if writing.may_register:
            await self._register(reads, found, organization)
        if doubtful := contested(reads, found):

            async def find_surpassed(db: Connection) -> set[int]:
                return await store.find_surpassed(db, doubtful)

            found.surpassed = await self._writer.run(find_surpassed, is_one_statement=True)
        return judge(reads, found, organization, registers=writing.may_register)

    async def _register(self, reads: Sequence[Read], found: Found, organization: str) -> None:
        """Registers people and sessions that nobody knows, where walkthrough, step and server are there."""
        missing = unregistered(reads, found.known(organization))
        if not missing:
            return

        async def register(db: Connection) -> tuple[dict[str, str], dict[str, Kept]]:
            unknown = {r.distinct_id for r in missing if r.distinct_id is not None} - found.people.keys()
            gone = await being_erased(db, organization, unknown)
            new = await register_people(db, organization, unknown - gone)
            people = {own: person.user_id for own, person in new.items()}
            of_others = [r for r in missing if r.distinct_id not in gone]
            return people, await register_sessions(db, _sessions_of(of_others, found, found.people | people))

        people, kept = await self._writer.run(register)
        found.people.update(people)
        found.users.update(people.values())
        settle(missing, found)
        servers = {slug: server for server, slug in found.servers.items()}
        for session_id, session in kept.items():
            found.sessions[session_id] = servers.get(session.server_slug), session.user_id

    async def _send(self, turn: Turn, events: Sequence[Outgoing]) -> Through | None:
        """Sends events to Kafka, and what that does not acknowledge to the outbox."""
        if not events:
            return None
        left = await self.sender.send(events)
        crash_point("intake.acknowledged")
        if not left:
            return "kafka"
        async with turn.lanes.writing.place(turn.asker):
            await self._outbox.put(left)
        return "outbox"


def _read_all(
    items: Sequence[Item], organization: str, writing: Writing, now_ms: int
) -> tuple[list[Read], dict[int, Refusal]]:
    """What of the items are events, and why the others are none."""
    reads: list[Read] = []
    refused: dict[int, Refusal] = {}
    for item in items:
        one = read(item, organization, writing, now_ms)
        if isinstance(one, Refusal):
            refused[item.index] = one
        else:
            reads.append(one)
    return reads, refused


def _sessions_of(missing: Sequence[Read], found: Found, people: Mapping[str, str]) -> list[OwnSession]:
    """The sessions that these events need, each of the event's person, at its server, since its time."""
    return [
        OwnSession(
            r.event.mcp_server_session_id,
            found.servers[r.event.mcp_server_id],
            r.event.mcp_server_user_id if r.distinct_id is None else people[r.distinct_id],
            r.event.happened_at,
        )
        for r in missing
        if r.session_id is not None and r.event.mcp_server_session_id not in found.sessions
    ]


class _Outbox:
    """The outbox, as far as what comes in by HTTP may fill it."""

    def __init__(self, writer: Writer, most: int) -> None:
        self._writer = writer
        self._most = most
        self._waiting = 0
        self._counted_at = float("-inf")

    async def put(self, events: Sequence[Outgoing]) -> None:
        """Writes events.

        Raises:
            ProblemError: too many wait there, or the database is away.
        """
        if time.monotonic() - self._counted_at >= _COUNT_SECONDS:
            self._counted_at = time.monotonic()  # others go on with what was known
            self._waiting = await self._writer.run(self._count, is_one_statement=True)
        if self._waiting + len(events) > self._most:
            raise ProblemError(
                503,
                "Kafka away",
                f"Kafka is away, and {self._most:,} events wait for it: send it again later, which is safe",
                {"Retry-After": "30"},
            )
        self._waiting += len(events)

        async def put(db: Connection) -> None:
            await store.put_in_outbox(db, events)

        await self._writer.run(put, is_one_statement=True)

    async def _count(self, db: Connection) -> int:
        return await store.count_outbox(db, self._most)


def _count(accepted: dict[int, str], refused: dict[int, Refusal], through: Through | None) -> None:
    if through is not None:
        INTAKE_EVENTS.labels("accepted").inc(len(accepted))
        INTAKE_THROUGH.labels(through).inc(len(accepted))
    for refusal in refused.values():
        INTAKE_EVENTS.labels(refusal.rejection.value).inc()


def _result(place: dict[str, int], accepted: dict[int, str], refused: dict[int, Refusal]) -> dict[str, Any]:
    """The verdict on the item there, as an answer has it."""
    if (event_id := accepted.get(place["index"])) is not None:
        return {**place, "status": "accepted", "event_id": event_id}
    refusal = refused[place["index"]]
    error = {"class": refusal.rejection, "field": refusal.field, "message": refusal.message}
    return {**place, "status": "refused", "error": error}

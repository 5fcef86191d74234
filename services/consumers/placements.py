"""Placements of partitions in PostgreSQL and in the log: stored in one transaction, and told to operators."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from services.consumers.gone import name_gone
from services.consumers.lag import RECORDER
from services.consumers.positions import Gone, Placement, Position
from services.consumers.sent import forget_sent, trust_sent
from services.consumers.stored_positions import (
    MovedError,
    lock_free_positions,
    read_positions,
    set_positions,
)
from services.runtime.database import Connection, Pool
from services.runtime.telemetry import EXPIRED, REWINDS

log = logging.getLogger("stepstream.positions")

#: Called in the transaction that places partitions where events can tell no more which journeys changed.
OnDiscontinuity: TypeAlias = Callable[[Connection, Mapping[int, Placement]], Awaitable[None]]


def marking_what_is_counted(placement: Placement, counted: Position | None) -> Placement:
    """Of where the aggregator has been already, no event tells it what changes: marks have to."""
    position = placement.position
    if counted is None or counted.next_offset <= max(position.next_offset, position.marks_until):
        return placement
    return replace(placement, position=replace(position, marks_until=counted.next_offset))


async def store_placements(
    pool: Pool,
    service: str,
    topic: str,
    stored: Mapping[int, Position],
    placements: Mapping[int, Placement],
    on_discontinuity: OnDiscontinuity,
) -> Mapping[int, str]:
    """Stores what has changed since `stored`, but for the rows that somebody else has locked.

    Returns:
        Those, and who has each, for people.

    Raises:
        MovedError: somebody else has moved the positions.
    """
    changed = {p: new.position for p, new in placements.items() if new.position != stored.get(p)}
    if not changed and service != RECORDER:
        return {}
    async with pool.acquire() as connection, connection.transaction():
        locked = await lock_free_positions(connection, service, topic, list(placements))
        placements = {p: new for p, new in placements.items() if p not in locked}
        changed = {p: position for p, position in changed.items() if p not in locked}
        known = {p: position for p, position in stored.items() if p in placements}
        if await read_positions(connection, service, topic, list(placements)) != known:
            raise MovedError("somebody else has moved them meanwhile")
        other = {p: new for p, new in placements.items() if new.missed or new.other_log}
        if other:
            await on_discontinuity(connection, other)
        await name_gone(connection, topic, {p: new.gone for p, new in placements.items()})
        if service == RECORDER and (anew := [p for p, new in other.items() if new.other_log]):
            await forget_sent(connection, topic, anew)
        if service == RECORDER:
            await trust_sent(connection, topic, list(placements))
        if changed:
            await set_positions(connection, service, topic, changed)
    return locked


def log_placements(service: str, placements: Mapping[int, Placement], stored: Mapping[int, Position]) -> None:
    """Counts and logs what was missed, what is gone, and where is read on."""
    if missed := sum(new.missed for new in placements.values()):
        EXPIRED.labels(service).inc(missed)
        log.error(
            "%s: Kafka removed %d events before they were read (retention?); the oldest there is comes next",
            service,
            missed,
        )
    for p, new in sorted(placements.items()):
        log_gone({p: new.gone})
        if p in stored and new.position.reads_from < stored[p].next_offset:
            REWINDS.labels(service).inc()
        if p in stored and new.why:
            at, why = new.position.reads_from, "; ".join(new.why)
            log.warning("partition %d is read on from offset %d: %s", p, at, why)


def log_gone(gone: Mapping[int, Sequence[Gone]]) -> None:
    """Says which events are gone, by partition."""
    for partition, ranges in sorted(gone.items()):
        for one in ranges:
            log.error(
                "partition %d: events from offset %d to %s are gone from Kafka (%s). `stepstream status` "
                "names them until somebody acknowledges them with `stepstream gone acknowledge`",
                partition,
                one.from_offset,
                "an unknown one" if one.until is None else one.until - 1,
                one.cause,
            )

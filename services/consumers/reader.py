"""Reading a topic without a group: a consumer that commits nothing, and ranges of offsets."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from services.consumers.batches import UnreadableError
from services.consumers.reading import Fetched, Unreadable, leave_out_the_unreadable, unreadable_of
from services.runtime.errors import StepstreamError
from services.runtime.kafka import Record, connection, unreachable
from services.runtime.settings import Settings

log = logging.getLogger("stepstream.lag")

#: How long a fetch waits for records.
_POLL_MS = 200


@contextlib.asynccontextmanager
async def reader(
    settings: Settings,
    *,
    quiet: bool = False,
    isolation_level: str = "read_committed",
    fetched: Fetched = lambda *_: None,
    **options: Any,
) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer of no group, which commits nothing, for looking.

    What cannot be read it leaves out, and says so, unless it is `quiet`. `fetched` is given what brokers
    send.

    Raises:
        StepstreamError: Kafka cannot be reached.
    """
    consumer = AIOKafkaConsumer(
        **connection(settings),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level=isolation_level,
        **options,
    )
    try:
        try:
            await consumer.start()
        except KafkaError as error:
            raise unreachable(settings, error) from error
        leave_out_the_unreadable(consumer, _ignore if quiet else _log, fetched)
        await asyncio.sleep(0)  # its tasks begin: one that is cancelled before makes its stop raise
        yield consumer
    finally:
        await consumer.stop()


class SilentError(StepstreamError):
    """Kafka sends nothing of a topic that goes on."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some records of a range, how many offsets of all ranges are passed, and the partitions that are read.

    Those of a partition are in order; there are none where nothing came for a moment.
    """

    records: list[Record]
    passed: int
    finished: frozenset[TopicPartition]


async def read_range(
    consumer: AIOKafkaConsumer,
    ranges: Mapping[TopicPartition, tuple[int, int]],
    *,
    at_most: int | None = None,
    first_only: bool = False,
    patience: float = math.inf,
) -> AsyncIterator[Piece]:
    """Reads ranges of offsets, the last one exclusive, and ends behind all of them.

    A range may end with markers of transactions, of which nobody reads anything.

    Args:
        consumer: what `reader` gives; it is assigned these partitions.
        ranges: from which offset up to which, by partition.
        at_most: how many records are in a piece.
        first_only: read the first record of each range, and not the others.
        patience: how many seconds may pass in which nothing is read.

    Raises:
        UnreadableError: a range cannot be read on; all that can be was read before.
        SilentError: Kafka has sent nothing for so long.
    """
    at = {tp: first for tp, (first, until) in ranges.items() if first < until}
    total = sum(ranges[tp][1] - first for tp, first in at.items())
    left, heard = set(at), time.monotonic()
    consumer.assign(list(at))
    for tp, first in at.items():
        consumer.seek(tp, first)
    while left:
        records: list[Record] = []
        for tp, some in (await _fetch(consumer, left, at_most)).items():
            until = ranges[tp][1]
            wanted = some if some[-1].offset < until else [r for r in some if r.offset < until]
            records += wanted[:1] if first_only else wanted
            if first_only and wanted:
                at[tp] = until
        for tp in list(left):
            until, position = ranges[tp][1], await consumer.position(tp)
            if position > at[tp]:
                at[tp], heard = min(position, until), time.monotonic()
            if at[tp] >= until:
                left.discard(tp)
                consumer.pause(tp)
        if time.monotonic() - heard > patience:
            raise SilentError(f"Kafka has sent nothing for {patience:g} s: is a partition without leader?")
        yield Piece(records, total - sum(ranges[tp][1] - at[tp] for tp in left), frozenset(at.keys() - left))
        if records:  # what their reader took is no silence
            heard = time.monotonic()


async def read_first(
    consumer: AIOKafkaConsumer,
    ranges: Mapping[TopicPartition, tuple[int, int]],
    found: dict[TopicPartition, "Record | None"],
    *,
    patience: float = math.inf,
) -> None:
    """Reads the first record of each range into `found`; None where there is none.

    What is found stays there when this is ended.

    Raises:
        UnreadableError, SilentError: as `read_range`.
    """
    async for piece in read_range(consumer, ranges, first_only=True, patience=patience):
        found |= {TopicPartition(r.topic, r.partition): r for r in piece.records}
        found |= dict.fromkeys(piece.finished - found.keys())


async def _fetch(
    consumer: AIOKafkaConsumer, left: Collection[TopicPartition], at_most: int | None
) -> Mapping[TopicPartition, list[Record]]:
    """What comes next of the partitions that are left.

    Raises:
        UnreadableError: none of them can be read on.
    """
    try:
        return await consumer.getmany(timeout_ms=_POLL_MS, max_records=at_most)
    except UnreadableError:
        if {found.tp for found in unreadable_of(consumer) if found.until is None}.issuperset(left):
            raise
        return {}


def _log(found: Unreadable) -> None:
    log.error("%s", found)


def _ignore(_: Unreadable) -> None:
    pass

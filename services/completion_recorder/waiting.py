"""Events that wait for a row that somebody else has locked: set aside, and recorded when the lock goes."""

import base64
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Container, Iterable, Iterator, Sequence, Set
from functools import partial
from typing import Any, NamedTuple

import asyncpg
from aiokafka import ConsumerRecord

from schemas import OPERATOR_SOURCES, UserErased
from services.completion_recorder.judge import Refused, read
from services.completion_recorder.not_written import Waiting
from services.completion_recorder.write import write_by_parts
from services.runtime.crashpoints import crash_point
from services.runtime.database import Connection, Pool, fetch_one, load_queries
from services.runtime.kafka import Record

SQL = load_queries(__file__)

#: About so many bytes of events are written, or looked at, at once: they may be large.
_PORTION_BYTES = 16 * 1024 * 1024


class Resumed(NamedTuple):
    """What became of some events that waited."""

    #: How many are recorded now, or of people who were erased.
    done: int
    #: What is refused now, by the number of the row that holds it until `claim_refused` lets it go.
    refused: dict[int, Refused]
    #: The locks that these events waited for, and wait for no more.
    free: set[str]
    #: The last of them in order, and the number of the last event.
    last_lock: str
    last: int


async def set_aside(connection: Connection, waiting: Sequence[Waiting]) -> None:
    """Keeps events that wait, byte for byte."""
    for portion in _portions(waiting):
        records = [w.item.record for w in portion]
        await connection.execute(
            SQL["set_aside"],
            [r.topic for r in records],
            [r.partition for r in records],
            [r.offset for r in records],
            [r.timestamp for r in records],
            [r.key for r in records],
            [r.value for r in records],
            [_headers_to_json(r) for r in records],
            [w.item.event.mcp_server_user_id for w in portion],
            [
                None if isinstance(e, UserErased) else e.walkthrough_id
                for e in (w.item.event for w in portion)
            ],
            [w.waits_for for w in portion],
        )


def _portions(waiting: Sequence[Waiting]) -> Iterator[Sequence[Waiting]]:
    """What one statement takes: PostgreSQL wants its arguments to be less than a gigabyte."""
    first, size = 0, 0
    for i, (item, _) in enumerate(waiting):
        size += len(item.record.value or b"")
        if size >= _PORTION_BYTES:
            yield waiting[first : i + 1]
            first, size = i + 1, 0
    if waiting[first:]:
        yield waiting[first:]


async def resuming(
    pool: Pool,
    limit: int,
    trusted: Container[str] = OPERATOR_SOURCES,
    registering: Set[str] = frozenset(),
) -> AsyncIterator[Resumed]:
    """Records what waited for locks that have gone, as everything replayed; looks at each lock once.

    The first event of each lock tells whether it has gone; the others follow where it has.

    Args:
        pool: of `connections`.
        limit: how many events to look at in a transaction, at most.
        trusted: the sources whose events may decide about a person.
        registering: those whose events have people and sessions made that are missing.
    """
    resume = partial(_resume, pool, trusted, registering)
    lock = ""
    while (resumed := await resume("take_first_waiting", lock, limit)) is not None:
        yield resumed
        lock, free, number = resumed.last_lock, resumed.free, 0
        while free and (resumed := await resume("take_waiting", list(free), number, limit)):
            yield resumed
            free, number = free & resumed.free, resumed.last


async def _resume(
    pool: Pool, trusted: Container[str], registering: Set[str], query: str, *which: object
) -> Resumed | None:
    async with pool.acquire() as connection, connection.transaction():
        taken = await connection.fetch(SQL[query], *which, _PORTION_BYTES)
        if not taken:
            return None
        records = [_record_of(row) for row in taken]
        numbers = {id(record): row["id"] for record, row in zip(records, taken, strict=True)}
        accepted, unreadable = read(records, int(time.time() * 1000), trusted)
        replayed_before = dict.fromkeys((r.partition for r in records), sys.maxsize)
        not_written = await write_by_parts(connection, accepted, unreadable, replayed_before, registering)
        refused = {numbers[id(r.record)]: r for r in not_written.refused}
        waiting = {numbers[id(w.item.record)]: w.waits_for for w in not_written.waiting}
        await connection.execute(SQL["wait_for_another"], list(waiting), list(waiting.values()))
        done = [number for number in numbers.values() if number not in waiting and number not in refused]
        await connection.execute(SQL["forget_waiting"], done)
        if done:
            crash_point("waiting.in-transaction")
    free = {row["waits_for"] for row in taken if waiting.get(row["id"]) != row["waits_for"]}
    return Resumed(len(done), refused, free, taken[-1]["waits_for"], taken[-1]["id"])


@contextlib.asynccontextmanager
async def claim_refused(pool: Pool, numbers: Iterable[int]) -> AsyncIterator[dict[int, bool]]:
    """Those of these events that no other recorder sends to the dead letters just now, or has sent.

    The block says which are dead letters now; at its end these are removed.
    """
    async with pool.acquire() as connection, connection.transaction():
        taken = await connection.fetch(SQL["take_refused"], list(numbers))
        are_sent = {row["id"]: False for row in taken}
        yield are_sent
        await connection.execute(SQL["forget_waiting"], [n for n, is_sent in are_sent.items() if is_sent])


async def count_waiting(pool: Pool) -> tuple[int, float]:
    """How many events wait for a lock, and for how many seconds the oldest does."""
    row = await fetch_one(pool, SQL["count_waiting"])
    return row["events"], row["oldest_seconds"]


def _headers_to_json(record: Record) -> str:
    """Headers byte for byte: neither names nor values need be text."""
    return json.dumps(
        [
            [
                base64.b64encode(name.encode("utf-8", "surrogateescape")).decode(),
                None if value is None else base64.b64encode(value).decode(),
            ]
            for name, value in record.headers
        ]
    )


def _record_of(row: asyncpg.Record) -> Record:
    headers: Any = tuple(
        (
            base64.b64decode(name).decode("utf-8", "surrogateescape"),
            None if value is None else base64.b64decode(value),
        )
        for name, value in json.loads(row["headers"])
    )
    key, value = row["key"], row["value"]
    return ConsumerRecord(
        topic=row["topic"],
        partition=row["partition"],
        offset=row["offset"],
        timestamp=row["timestamp"],
        timestamp_type=0,
        key=key,
        value=value,
        checksum=None,
        serialized_key_size=len(key or b""),
        serialized_value_size=len(value),
        headers=headers,
    )

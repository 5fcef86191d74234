"""Rows whose event is not in the topic, where all of it was read."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from services.completion_recorder.event_rows import SHAPES
from services.completion_recorder.judge import Table
from services.completion_recorder.portions import CORRECTIONS, Portion, sift
from services.completion_recorder.topic_parts import Part
from services.completion_recorder.topic_reader import TopicReader
from services.consumers.lag import RECORDER
from services.consumers.stored_positions import read_positions
from services.runtime.database import Connection, load_queries
from services.runtime.settings import Settings

SQL = load_queries(__file__)


def _events_in(portion: Portion) -> Iterator[tuple[object, object, object]]:
    """Row id, person and step: an event id alone need not be of one row."""
    yield "", "", None
    for table, rows in portion.rows.items():
        user, step = (_place(table, name) for name in ("mcp_server_user_id", "step_id"))
        assert user is not None  # noqa: S101 - all tables have it
        for row in rows:
            yield row[1], row[user], None if step is None else row[step]
    for row in portion.corrections:
        of = dict(zip(CORRECTIONS, row, strict=True))
        yield f"wtsc_{of['event_id']}", of["mcp_server_user_id"], of["step_id"]


def _place(table: Table, column: str) -> int | None:
    """Where a column is in a row, behind the number of the event."""
    columns = SHAPES[table].columns
    return columns.index(column) + 1 if column in columns else None


async def find_unseen(
    settings: Settings, db: Connection, reader: TopicReader, parts: Sequence[Part], most: int
) -> tuple[int, list[dict[str, Any]]]:
    """Rows of no event that was read, nor of one that the recorder has passed since.

    Args:
        settings: which topic.
        db: the connection on which is noted what was read.
        reader: of the topic.
        parts: what was read.
        most: so many rows are listed.

    Returns:
        How many there are, and the first of them.
    """
    await db.execute(SQL["unseen_begin"])
    async with db.transaction(isolation="repeatable_read"):
        await db.execute(SQL["unseen_with_memory"])
        await db.execute(SQL["unseen_find"])
        if not await db.fetchval(SQL["unseen_count"]):
            return 0, []
        stored = await read_positions(db, RECORDER, settings.topic)
    ends = await reader.ends([p.partition for p in parts])
    since = {
        p.partition: (p.until, min(stored[p.partition].next_offset, ends[p.partition]))
        for p in parts
        if p.partition in stored
    }
    async for records in reader.portions(since):
        portion = sift(records, int(time.time() * 1000), settings.trusted())
        await db.execute(SQL["unseen_forget"], *zip(*_events_in(portion), strict=True))
    rows = [dict(row) for row in await db.fetch(SQL["unseen_list"], most)]
    return await db.fetchval(SQL["unseen_count"]), rows

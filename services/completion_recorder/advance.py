"""How far the recorder is: moved on in the transaction of the rows."""

from services.completion_recorder.guard import Chunk
from services.completion_recorder.load_counts import Before
from services.consumers.stored_positions import Advance
from services.runtime.database import Connection, load_queries, no_longer_than
from services.runtime.kafka import Offsets

SQL = load_queries(__file__)

#: It reads both tables whole.
_MARK_ALL_SECONDS = 3600.0


async def advance_positions(connection: Connection, advance: Advance) -> dict[int, Before]:
    """Moves positions on; returns what was known of each partition before.

    Raises:
        PositionLockedError: somebody else has locked one of them.
        MovedError: one of them is not where the load begins.
    """
    rows = await advance.write(connection, "recent_events", "recent_broken")
    recent = {r["partition"]: Chunk(r["recent_events"], r["recent_broken"]) for r in rows}
    return {
        partition: Before(max(old.next_offset, old.marks_until), recent[partition])
        for partition, (old, _) in advance.moves.items()
    }


async def advance_offsets(connection: Connection, topic: str, offsets: Offsets) -> dict[int, Before]:
    """Notes how far offsets come, never backwards; returns what was known of each partition before."""
    rows = await connection.fetch(
        SQL["advance_offsets"], topic, [p.partition for p in offsets], list(offsets.values())
    )
    return {
        r["partition"]: Before(r["next_offset"], Chunk(r["recent_events"], r["recent_refused"])) for r in rows
    }


async def mark_all(connection: Connection) -> None:
    """Marks every journey: no event tells any more which of them changed."""
    await no_longer_than(connection, _MARK_ALL_SECONDS)
    await connection.execute(SQL["mark_all"], timeout=_MARK_ALL_SECONDS)

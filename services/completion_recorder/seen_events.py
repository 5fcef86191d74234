"""The events that a check has read so far, in a temporary file: any number of them takes little memory."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from services.completion_recorder.judge import RowKey, Table
from services.runtime.database import load_queries

SQL = load_queries(__file__)

#: It is read by nobody else, and gone with the process; the cache is 64 MiB.
_SETTINGS = ("journal_mode = off", "synchronous = off", "cache_size = -65536")
#: Of which an event id is one event's alone.
_OF_ONE = (Table.COMPLETIONS, Table.STARTS)


@dataclass(frozen=True, slots=True)
class Earlier:
    """An event before another one, with the same id."""

    user: str
    #: Whether it is of the same row: then the later one is a copy, if not of the same time.
    is_same_row: bool
    at: int
    place: str


class SeenEvents:
    """The accepted events so far, by id and by row."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        for setting in _SETTINGS:
            connection.execute(f"pragma {setting}")
        connection.executescript(SQL["seen_create"])
        connection.execute("begin")

    def note(self, row: RowKey, event_id: str, at: int, place: str) -> Earlier | None:
        """Notes an event; returns the earlier one with its id, and then keeps that.

        Skips and showings may share ids: of these only the same row counts as earlier.
        """
        key: tuple[str, ...] = (row.table, event_id)
        statement = "seen_under_id"
        if row.table not in _OF_ONE:
            key, statement = (*key, row.user, row.of_what), "seen_under_id_of_row"
        found = self._db.execute(SQL[statement], key).fetchone()
        if found is not None:
            user, of_what, earlier_at, earlier_place = found
            return Earlier(user, (user, of_what) == (row.user, row.of_what), earlier_at, earlier_place)
        self._db.execute(SQL["seen_note"], (row.table, event_id, row.user, row.of_what, at, place))
        return None

    def has_another_id(self, row: RowKey, event_id: str, at: int) -> bool:
        """Whether an event of the same row and time came before, under another id: notes this one's."""
        values = (row.table, row.user, row.of_what, at)
        if self._db.execute(SQL["seen_note_time"], (*values, event_id)).rowcount:
            return False
        return bool(self._db.execute(SQL["seen_id_of_time"], values).fetchone()[0] != event_id)

    def count_rows(self) -> dict[Table, int]:
        """How many rows the events are of, by table."""
        return {Table(relation): rows for relation, rows in self._db.execute(SQL["seen_count_rows"])}


@contextmanager
def seen_events() -> Iterator[SeenEvents]:
    """Nothing seen yet; what is noted is gone with the block."""
    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    try:
        yield SeenEvents(connection)
    finally:
        connection.close()

"""Which database a service works with, and what goes with each committed offset to say so."""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import asyncpg

from services.consumers.positions import Fingerprint, Position
from services.runtime.database import Connection, fetch_one, load_queries

SQL = load_queries(__file__)

Relation: TypeAlias = Literal["same", "newer", "older", "other", "unknown"]
_WORDS = re.compile(r"database=(\d+)/(\d+) timeline=(\d+)")
_LAST = re.compile(r"last=(\d+)/(\d+)/(\d+)")


class DatabaseIdentity(NamedTuple):
    """A database: its server's system identifier, its number there, and the server's timeline."""

    system: int
    oid: int
    timeline: int

    def __str__(self) -> str:
        return f"database={self.system}/{self.oid} timeline={self.timeline}"


@dataclass(frozen=True, slots=True)
class Ours:
    """Which database is ours, where that is known, as against what others say."""

    identity: DatabaseIdentity | None

    @property
    def words(self) -> str:
        """What goes with each committed offset."""
        return "" if self.identity is None else str(self.identity)

    def commit_metadata(self, position: Position) -> str:
        """The same with the last record before the offset: a database that comes from a backup forgot it."""
        last = "" if position.last is None else "last={}/{}/{}".format(*position.last)
        return f"{self.words} {last}".strip()

    def relation_to(self, words: str) -> Relation:
        """What the database behind a committed offset is to ours: the same, or on a newer timeline, or ..."""
        found = _WORDS.search(words)
        if found is None or self.identity is None:
            return "unknown"
        theirs = DatabaseIdentity(*map(int, found.groups()))
        if theirs[:2] != self.identity[:2]:
            return "other"
        if theirs.timeline == self.identity.timeline:
            return "same"
        return "newer" if theirs.timeline > self.identity.timeline else "older"


def identity_in(words: str) -> str:
    """The part of what goes with a committed offset that says whose it is."""
    found = _WORDS.search(words)
    return found[0] if found else words


def last_in(words: str) -> Fingerprint | None:
    """The last record before a committed offset, where it is said."""
    found = _LAST.search(words)
    return None if found is None else Fingerprint(*map(int, found.groups()))


async def read_identity(connection: Connection) -> Ours:
    """Which database a connection leads to; unknown where the server does not tell."""
    try:
        row = await fetch_one(connection, SQL["identity"])
    except asyncpg.InsufficientPrivilegeError:
        return Ours(None)
    if row["timeline"] is None:
        raise asyncpg.ReadOnlySQLTransactionError("this server is a standby")
    return Ours(DatabaseIdentity(row["system"], row["oid"], row["timeline"]))

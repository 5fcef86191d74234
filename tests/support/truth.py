"""What the tables must hold, by ways that share nothing with how the project counts.

Cells by window functions over the tables of events (`truth.sql`), journeys by a walk in Python over the rows.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import asyncpg

from services.runtime.database import load_queries

SQL = load_queries(__file__)


class Journey(NamedTuple):
    """A person's way through a walkthrough."""

    server: str
    started_at: int | None
    steps: tuple[str, ...]
    times: tuple[int, ...]
    skipped: tuple[bool, ...]
    shown_at: tuple[int | None, ...]
    shown_step: str | None
    first_shown_at: int | None


async def differences(db: asyncpg.Connection) -> dict[str, list[Mapping[str, Any]]]:
    """What is not as it must be, by kind; to be called in a transaction that is repeatable read."""
    found = {name: [dict(row) for row in await db.fetch(query)] for name, query in SQL.items()}
    found["differing_journeys"] = await _differing_journeys(db)
    return {name: rows for name, rows in found.items() if rows}


async def _differing_journeys(db: asyncpg.Connection) -> list[Mapping[str, Any]]:
    expected = await _expected_journeys(db)
    counted = {
        (row["mcp_server_user_id"], row["walkthrough_id"]): Journey(
            row["mcp_server_id"],
            row["started_at"],
            tuple(row["step_ids"]),
            tuple(row["completed_at"]),
            tuple(row["skipped"] or [False] * len(row["step_ids"])),
            tuple(row["shown_at"] or [None] * len(row["step_ids"])),
            row["shown_step_id"],
            row["first_shown_at"],
        )
        for row in await db.fetch("select * from sankey_journeys")
    }
    return [
        {"user": user, "walkthrough": walkthrough, "expected": expected.get(key), "counted": counted.get(key)}
        for key in sorted(expected.keys() | counted.keys())
        for user, walkthrough in [key]
        if expected.get(key) != counted.get(key)
    ]


async def _expected_journeys(db: asyncpg.Connection) -> dict[tuple[str, str], Journey]:
    """(user, walkthrough) to what they did there."""
    done: dict[tuple[str, str], dict[str, _Pass]] = {}
    for row in await db.fetch("select * from walkthrough_step_skips"):
        done.setdefault(_key(row), {})[row["step_id"]] = _Pass(
            row["skipped_at"], row["id"], row, is_skip=True
        )
    for row in await db.fetch("select * from walkthrough_step_completions"):
        done.setdefault(_key(row), {})[row["step_id"]] = _Pass(row["completed_at"], row["id"], row)
    starts = {_key(row): row for row in await db.fetch("select * from walkthrough_starts")}
    shown: dict[tuple[str, str], dict[str, asyncpg.Record]] = {}
    for row in await db.fetch("select * from walkthrough_step_showings"):
        shown.setdefault(_key(row), {})[row["step_id"]] = row
    return {
        key: _journey(done.get(key, {}), starts.get(key), shown.get(key, {}))
        for key in done.keys() | starts.keys() | shown.keys()
    }


class _Pass(NamedTuple):
    at: int
    id: str
    row: asyncpg.Record
    is_skip: bool = False


def _key(row: asyncpg.Record) -> tuple[str, str]:
    return row["mcp_server_user_id"], row["walkthrough_id"]


def _journey(
    done: Mapping[str, _Pass], start: asyncpg.Record | None, shown: Mapping[str, asyncpg.Record]
) -> Journey:
    passes = sorted(done.values(), key=lambda p: (p.at, p.id.encode()))
    if start is not None and passes and start["started_at"] > passes[0].at:
        start = None
    first_shown = min(
        shown.values(), key=lambda r: (r["first_shown_at"], r["first_id"].encode()), default=None
    )
    left = [r for step, r in shown.items() if step not in done]
    last_shown = max(left, key=lambda r: (r["last_shown_at"], r["last_id"].encode()), default=None)
    first = start or (passes[0].row if passes else first_shown)
    assert first is not None
    return Journey(
        first["mcp_server_id"],
        start and start["started_at"],
        tuple(p.row["step_id"] for p in passes),
        tuple(p.at for p in passes),
        tuple(p.is_skip for p in passes),
        tuple(_shown_before(p, shown.get(p.row["step_id"])) for p in passes),
        last_shown and last_shown["step_id"],
        first["first_shown_at"] if first is first_shown else None,
    )


def _shown_before(passed: _Pass, showing: asyncpg.Record | None) -> int | None:
    times = [] if showing is None else [showing["first_shown_at"], showing["last_shown_at"]]
    return max((t for t in times if t <= passed.at), default=None)

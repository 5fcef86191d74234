"""What the tables must hold, by ways that share nothing with how the project counts.

Cells by window functions over completions and starts (`truth.sql`), journeys by a walk in Python over the rows.
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


async def differences(db: asyncpg.Connection) -> dict[str, list[Mapping[str, Any]]]:
    """What is not as it must be, by kind; to be called in a transaction that is repeatable read."""
    found = {name: [dict(row) for row in await db.fetch(query)] for name, query in SQL.items()}
    found["differing_journeys"] = await _differing_journeys(db)
    return {name: rows for name, rows in found.items() if rows}


async def _differing_journeys(db: asyncpg.Connection) -> list[Mapping[str, Any]]:
    expected = await _expected_journeys(db)
    counted = {
        (row["mcp_server_user_id"], row["walkthrough_id"]): Journey(
            row["mcp_server_id"], row["started_at"], tuple(row["step_ids"]), tuple(row["completed_at"])
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
    completions = await db.fetch("select * from walkthrough_step_completions")
    done: dict[tuple[str, str], list[asyncpg.Record]] = {}
    for row in sorted(completions, key=lambda r: (r["completed_at"], r["id"].encode())):
        done.setdefault((row["mcp_server_user_id"], row["walkthrough_id"]), []).append(row)
    starts = {
        (row["mcp_server_user_id"], row["walkthrough_id"]): row
        for row in await db.fetch("select * from walkthrough_starts")
    }
    journeys = {}
    for key in done.keys() | starts.keys():
        rows, start = done.get(key, []), starts.get(key)
        if start is not None and rows and start["started_at"] > rows[0]["completed_at"]:
            start = None
        journeys[key] = Journey(
            (start or rows[0])["mcp_server_id"],
            start and start["started_at"],
            tuple(row["step_id"] for row in rows),
            tuple(row["completed_at"] for row in rows),
        )
    return journeys

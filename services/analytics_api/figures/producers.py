"""What was refused of whom, and how producers choose partitions."""

import json
from collections.abc import Sequence

import asyncpg

from schemas import advice_on
from services.analytics_api.figures.common import share
from services.analytics_api.models import EventSource, RefusedClass, RefusedExample
from services.runtime.sources import habits


def refused_class(row: asyncpg.Record) -> RefusedClass:
    """What was refused of a source for one reason, with what to do and an example without content."""
    return RefusedClass(
        source=row["source"],
        rejection=row["rejection"],
        events=row["events"],
        first_at=row["first_at"],
        last_at=row["last_at"],
        advice=advice_on(row["rejection"]),
        example=RefusedExample(
            partition=row["partition"],
            offset=row["last_offset"],
            message=row["message"],
            fields=json.loads(row["fields"]),
        ),
    )


def sources_of(rows: Sequence[asyncpg.Record]) -> list[EventSource]:
    """Each source once, in the order of its first row."""
    by_source: dict[str, list[asyncpg.Record]] = {}
    for row in rows:
        by_source.setdefault(row["source"], []).append(row)
    return [_source(source, of) for source, of in by_source.items()]


def _source(source: str, rows: Sequence[asyncpg.Record]) -> EventSource:
    one = rows[0]
    is_alone = one["sent"] is not None
    refused = one["sent_refused"] if is_alone else sum(row["events"] for row in rows)
    return EventSource(
        source=source,
        events=one["sent"],
        refused=refused,
        share=share(refused, one["sent"]) if is_alone else None,
        looked_at=one["looked_at"],
        elsewhere=one["elsewhere"],
        without_key=one["without_key"],
        hints=habits(one["looked_at"], one["elsewhere"], one["without_key"]) if is_alone else [],
    )

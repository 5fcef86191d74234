"""Walkthroughs from the platform's export format, version 1.0."""

import hashlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from services.runtime.database import Connection, load_queries
from services.runtime.errors import StepstreamError, UsageError

SQL = load_queries(__file__)

Text = Annotated[str, Field(min_length=1)]


class _Exported(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")


class ContentFields(_Exported):
    """What the agent is told about a step, and what the person is shown."""

    model_config = ConfigDict(extra="allow")
    version: Literal["v1"]


class Step(_Exported):
    """One step of the export."""

    id: Text | None = None
    title: Text
    content_fields: ContentFields
    display_order: int
    metadata: dict[str, Any] | None = None


class Walkthrough(_Exported):
    """The walkthrough of the export."""

    id: Text | None = None
    title: Text
    description: str | None = None
    type: Literal["course", "installer", "troubleshooting", "integration", "quickstart"] = "course"
    status: Literal["draft", "published", "archived"] = "draft"
    estimated_duration_minutes: int | None = None
    tags: list[str] = []
    metadata: dict[str, Any] | None = None


class Export(_Exported):
    """A file of the platform's export format."""

    version: Literal["1.0"]
    walkthrough: Walkthrough
    steps: Annotated[list[Step], Field(min_length=1)]


def read_export(file: Path) -> Export:
    """Reads and validates an export.

    Raises:
        UsageError: no such file, or a field is wrong; names the field and what is the matter.
    """
    try:
        return Export.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except ValidationError as error:
        problems = (f"  {'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors(include_url=False))
        raise UsageError(f"{file} is no export of format 1.0:\n" + "\n".join(problems)) from None


def _identifier(prefix: str, *parts: str) -> str:
    """The same id for the same walkthrough and step each time, so that importing again updates."""
    return prefix + hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:8]


async def import_walkthrough(connection: Connection, export: Export, slug: str) -> str:
    """Writes the walkthrough with its steps and offers it on the server; returns the walkthrough's id.

    Raises:
        StepstreamError: there is no server of that slug.
    """
    server = await connection.fetchrow("select id, organization_id from mcp_servers where slug = $1", slug)
    if server is None:
        known = await connection.fetch("select slug from mcp_servers order by slug limit 10")
        names = ", ".join(row["slug"] for row in known) or "none yet"
        raise StepstreamError(f"there is no MCP server with the slug `{slug}`; there is: {names}")
    given = export.walkthrough
    walkthrough = given.id or _identifier("wt_", server["organization_id"], given.title)
    now = int(time.time() * 1000)
    titles: Counter[str] = Counter()
    steps = []
    for step in export.steps:
        titles[step.title] += 1  # two steps may share a title
        identifier = step.id or _identifier("wts_", walkthrough, step.title, str(titles[step.title]))
        content = step.content_fields.model_dump_json()
        metadata = _json(step.metadata)
        steps.append((identifier, walkthrough, step.title, content, step.display_order, now, metadata))
    async with connection.transaction():
        await connection.execute(
            SQL["import_walkthrough"],
            walkthrough,
            server["organization_id"],
            given.title,
            given.description,
            given.type,
            given.status,
            now,
            given.estimated_duration_minutes,
            json.dumps(given.tags),
            _json(given.metadata),
        )
        await connection.executemany(SQL["import_step"], steps)
        offer = _identifier("msw_", server["id"], walkthrough)
        await connection.execute(SQL["offer_walkthrough"], offer, server["id"], walkthrough, now)
    return walkthrough


def _json(value: dict[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value)

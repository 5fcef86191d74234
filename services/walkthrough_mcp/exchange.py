"""Walkthroughs in the platform's export format, version 1.0: in and out."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import asyncpg
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel, to_snake
from pydantic_core import PydanticCustomError

from services.journeys.finishing import FinishRule
from services.runtime.database import Connection, load_queries, no_longer_than
from services.runtime.errors import StepstreamError, UsageError
from services.runtime.files import read_whole
from services.runtime.finish_rules import GivenRule, finished_means, read_finish_rule, set_finish_rule

SQL = load_queries(__file__)

#: As `walkthroughs create` takes: every answer that names a step has it.
Title = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\u0000]*$")]
#: What a change of steps has locked is free then: a command that is frozen in it loses its connection.
TRANSACTION_SECONDS = 60
Identifier = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\u0000-\u001f\u007f-\u009f]*$")]
Milliseconds = Annotated[int, Field(strict=True, ge=0, le=253_402_300_799_999)]
#: Of an export: of a thousand steps with 16 KB each.
_MOST_BYTES = 16 * 1024 * 1024
_INTEGER = Field(strict=True, ge=-(2**31), le=2**31 - 1)


class _Exported(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")


class ContentFields(_Exported):
    """What the agent is told about a step, and what the person is shown. Other fields are kept."""

    model_config = ConfigDict(extra="allow")

    version: Literal["v1"]
    introduction_for_agent: str | None = None
    context_for_agent: str | None = None
    content_for_user: str | None = None
    operations_for_agent: str | None = None


class ExportedStep(_Exported):
    """One step of the export; `next_step_reference` is the index of the step that it links to."""

    id: Identifier | None = None
    title: Title
    content_fields: ContentFields
    display_order: Annotated[int, _INTEGER]
    next_step_reference: Annotated[int, Field(strict=True, ge=0)] | None = None
    created_at: Milliseconds | None = None
    updated_at: Milliseconds | None = None
    metadata: dict[str, Any] | None = None


Reference = Annotated[int, Field(strict=True, ge=0)]


class ExportedFinishRule(_Exported):
    """When journeys count as finished: indices of steps, as in `next_step_reference`."""

    goal_references: list[Reference] = Field(default_factory=list)
    optional_references: list[Reference] = Field(default_factory=list)
    end_references: list[Reference] = Field(default_factory=list)

    @property
    def references(self) -> Iterator[tuple[str, int]]:
        """Each with the name of its list."""
        for name in ("goalReferences", "optionalReferences", "endReferences"):
            yield from ((name, index) for index in getattr(self, to_snake(name)))


class ExportedWalkthrough(_Exported):
    """The walkthrough of the export; without a finish rule, an import leaves it as it is."""

    id: Identifier | None = None
    title: Title
    description: str | None = None
    type: Literal["course", "installer", "troubleshooting", "integration", "quickstart"] = "course"
    status: Literal["draft", "published", "archived"] = "draft"
    created_at: Milliseconds | None = None
    updated_at: Milliseconds | None = None
    estimated_duration_minutes: Annotated[int, _INTEGER] | None = None
    tags: list[str] | None = None
    metadata: dict[str, Any] | None = None
    finish_rule: ExportedFinishRule | None = None


class Origin(_Exported):
    """Where an export comes from."""

    original_id: Identifier | None = None


class Export(_Exported):
    """A file of the platform's export format."""

    version: Literal["1.0"]
    walkthrough: ExportedWalkthrough
    steps: Annotated[list[ExportedStep], Field(min_length=1)]
    metadata: Origin | None = None

    @model_validator(mode="after")
    def _references_fit(self) -> "Export":
        for index, step in enumerate(self.steps):
            reference = step.next_step_reference
            if reference is not None and (reference >= len(self.steps) or reference == index):
                raise PydanticCustomError(
                    "reference",
                    "steps.{index}.nextStepReference: {reference} is no other step; steps are counted from 0",
                    {"index": index, "reference": reference},
                )
        for name, reference in (
            self.walkthrough.finish_rule.references if self.walkthrough.finish_rule else ()
        ):
            if reference >= len(self.steps):
                raise PydanticCustomError(
                    "reference",
                    "walkthrough.finishRule.{name}: {reference} is no step; steps are counted from 0",
                    {"name": name, "reference": reference},
                )
        twice = [name for name, n in Counter(s.id for s in self.steps if s.id).items() if n > 1]
        if twice:
            raise PydanticCustomError(
                "twice", "steps: the id {name} is there twice", {"name": ", ".join(map(str, twice))}
            )
        return self


def read_export(file: Path) -> Export:
    """Reads and validates an export.

    Raises:
        UsageError: no such file, it is too long, or a field is wrong; names the field and what is the matter.
    """
    text = read_whole(file, _MOST_BYTES)
    try:
        _refuse_nul(json.loads(text))
        return Export.model_validate_json(text)
    except ValidationError as error:
        problems = (
            f"  {'.'.join(map(str, p['loc']))}: {p['msg']}".replace("  : ", "  ")
            for p in error.errors(include_url=False)
        )
        raise UsageError(f"{file} is no export of format 1.0:\n" + "\n".join(problems)) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is no export of format 1.0:\n  {error}") from None


def _refuse_nul(value: object, path: str = "") -> None:
    """PostgreSQL stores no NUL characters, wherever in the file they are."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"{path}: it holds a NUL character, which PostgreSQL cannot store")
    if isinstance(value, dict):
        for name, part in value.items():
            _refuse_nul(name, path or "a name")
            _refuse_nul(part, f"{path}.{name}".strip("."))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            _refuse_nul(part, f"{path}.{index}".strip("."))


@dataclass(frozen=True, slots=True)
class Change:
    """What an import does to a row: `create`, `update`, `keep`, or `leave` what the file does not have."""

    action: Literal["create", "update", "keep", "leave"]
    what: str
    id: str
    title: str


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What an import does, row by row."""

    walkthrough_id: str
    server: str
    changes: list[Change]

    @property
    def counts(self) -> Counter[str]:
        """How many rows are created, updated, kept and left."""
        return Counter(change.action for change in self.changes)


async def import_walkthrough(
    connection: Connection, export: Export, slug: str, *, dry_run: bool = False
) -> ImportPlan:
    """Writes the walkthrough with its steps and offers it on the server; with `dry_run` only says so.

    Ids of the file are kept where nobody else has them. Without ids, steps are found again by their title,
    and a renamed one by its place. Steps that the file does not have stay: deleting them would delete what
    people did.

    Raises:
        StepstreamError: there is no server of that slug; or an id that was free was taken meanwhile.
    """
    async with connection.transaction():
        await no_longer_than(connection, TRANSACTION_SECONDS)
        server = await connection.fetchrow(SQL["import_server"], slug)
        if server is None:
            known = await connection.fetch("select slug from mcp_servers order by slug limit 10")
            names = ", ".join(row["slug"] for row in known) or "none yet"
            raise StepstreamError(f"there is no MCP server with the slug `{slug}`; there is: {names}")
        work = _Import(connection, export, server, int(time.time() * 1000), dry_run=dry_run)
        return await work.run()


class _Import:
    """One import, in the caller's transaction."""

    def __init__(
        self, connection: Connection, export: Export, server: asyncpg.Record, now: int, *, dry_run: bool
    ) -> None:
        self._db = connection
        self._export = export
        self._server = server
        self._now = now
        self._dry_run = dry_run

    async def run(self) -> ImportPlan:
        walkthrough = await self._walkthrough_id()
        changes = [await self._write_walkthrough(walkthrough)]
        ids, steps = await self._write_steps(walkthrough)
        changes += steps
        changes += await self._set_finish_rule(walkthrough, ids)
        changes.append(await self._offer(walkthrough))
        return ImportPlan(walkthrough, self._server["slug"], changes)

    async def _walkthrough_id(self) -> str:
        given = self._export.walkthrough
        origin = self._export.metadata.original_id if self._export.metadata else None
        organization = self._server["organization_id"]
        for candidate in _candidates("wt_", given.id or origin, organization, origin or given.title):
            owner = await self._db.fetchrow(SQL["import_owner_of_walkthrough"], candidate)
            if owner is None or owner["organization_id"] == organization:
                return candidate
        raise AssertionError("there is always another candidate")

    async def _write_walkthrough(self, identifier: str) -> Change:
        given = self._export.walkthrough
        before = await self._db.fetchrow(SQL["import_walkthrough_before"], identifier)
        wanted = {
            "title": given.title,
            "description": given.description,
            "type": given.type,
            "status": given.status,
            "estimated_duration_minutes": given.estimated_duration_minutes,
            "tags": _json(given.tags),
            "metadata": _json(given.metadata),
        }
        times = (given.created_at, given.updated_at)
        action = _action(before, wanted, times)
        if action != "keep" and not self._dry_run:
            await self._db.execute(
                SQL["import_walkthrough"],
                identifier,
                self._server["organization_id"],
                *wanted.values(),
                *_times(before, times, self._now),
            )
            owner = await self._db.fetchval(SQL["import_owner_of_walkthrough"], identifier)
            if owner != self._server["organization_id"]:
                raise _made_meanwhile("a walkthrough", identifier)
        return Change(action, "walkthrough", identifier, given.title)

    async def _set_finish_rule(self, walkthrough: str, ids: Sequence[str]) -> list[Change]:
        """When journeys are finished, where the file says so."""
        given = self._export.walkthrough.finish_rule
        if given is None:
            return []
        before = (await read_finish_rule(self._db, walkthrough)).given
        wanted = GivenRule(
            *(
                tuple(ids[index] for index in sorted(set(references)))
                for references in (given.goal_references, given.optional_references, given.end_references)
            )
        )
        parts = zip(
            (before.goal, before.optional, before.ends),
            (wanted.goal, wanted.optional, wanted.ends),
            strict=True,
        )
        action: Literal["create", "update", "keep"] = "create" if before.is_empty else "update"
        if all(set(old) == set(new) for old, new in parts):
            action = "keep"
        elif not self._dry_run:
            await set_finish_rule(self._db, walkthrough, wanted)
        if self._dry_run:
            titles = dict(zip(ids, (step.title for step in self._export.steps), strict=True))
            optional = {
                step
                for step, of in zip(ids, self._export.steps, strict=True)
                if (of.metadata or {}).get("optional") is True or "(optional)" in of.title.lower()
            }
            rule = FinishRule(
                tuple(ids),
                frozenset({*optional, *wanted.optional}),
                frozenset(wanted.goal),
                frozenset(wanted.ends),
            )
            says = finished_means(rule, titles)
        else:
            says = (await read_finish_rule(self._db, walkthrough)).says
        return [Change(action, "finish rule", walkthrough, says)]

    async def _write_steps(self, walkthrough: str) -> tuple[list[str], list[Change]]:
        """The ids of the file's steps, and what changes."""
        rows = await self._db.fetch(SQL["import_steps_before"], walkthrough)
        before = {row["id"]: row for row in rows}
        ids = await self._step_ids(walkthrough, rows)
        changes: list[Change] = []
        writes: list[tuple[Any, ...]] = []
        for step, identifier in zip(self._export.steps, ids, strict=True):
            link = None if step.next_step_reference is None else ids[step.next_step_reference]
            wanted = {
                "title": step.title,
                "content_fields": _json(
                    step.content_fields.model_dump(mode="json", by_alias=True, exclude_unset=True)
                ),
                "display_order": step.display_order,
                "next_step_id": link,
                "metadata": _json(step.metadata),
            }
            times = (step.created_at, step.updated_at)
            action = _action(before.get(identifier), wanted, times)
            if action != "keep":
                writes.append(
                    (
                        identifier,
                        walkthrough,
                        *wanted.values(),
                        # Steps of one place keep the file's order: the one made earlier comes first.
                        *_times(before.get(identifier), times, self._now + len(changes)),
                    )
                )
            changes.append(Change(action, "step", identifier, step.title))
        if writes and not self._dry_run:
            # Links may go to steps that come later: all of them first, then the links.
            await self._db.executemany(SQL["import_step"], [(*w[:5], None, *w[6:]) for w in writes])
            await self._db.executemany(SQL["import_link"], [(w[0], w[5]) for w in writes])
            written = [w[0] for w in writes]
            if elsewhere := await self._db.fetchval(SQL["import_steps_elsewhere"], written, walkthrough):
                raise _made_meanwhile("a step", elsewhere)
        left = [row for row in rows if row["id"] not in ids]
        return ids, changes + [Change("leave", "step", row["id"], row["title"]) for row in left]

    async def _step_ids(self, walkthrough: str, rows: Sequence[asyncpg.Record]) -> list[str]:
        """The ids of the file's steps, of those that are there already or new ones."""
        ids: dict[int, str] = {}
        free = {row["id"]: row for row in rows}
        steps = list(enumerate(self._export.steps))
        given = [step.id for step in self._export.steps if step.id is not None]
        elsewhere = {r["id"] for r in await self._db.fetch(SQL["import_steps_elsewhere"], given, walkthrough)}
        for index, step in steps:
            if step.id in free:
                ids[index] = free.pop(step.id)["id"]
        for same in (_by_title, _by_place):
            for index, step in steps:
                if index in ids or (step.id is not None and step.id not in elsewhere):
                    continue
                if found := next((row for row in free.values() if same(row, step)), None):
                    ids[index] = free.pop(found["id"])["id"]
        nth: Counter[str] = Counter()
        for index, step in steps:
            nth[step.title] += 1
            if index not in ids:
                parts = (walkthrough, step.title, str(nth[step.title]))
                ids[index] = await self._new_step_id(step.id, parts, {*ids.values(), *free})
        return [ids[index] for index, _ in steps]

    async def _new_step_id(self, given: str | None, parts: Sequence[str], taken: set[str]) -> str:
        for candidate in _candidates("wts_", given, *parts):
            exists = await self._db.fetchval(SQL["import_step_exists"], candidate)
            if candidate not in taken and not exists:
                return candidate
        raise AssertionError("there is always another candidate")

    async def _offer(self, walkthrough: str) -> Change:
        offered = await self._db.fetchval(SQL["import_offer_before"], self._server["id"], walkthrough)
        identifier = offered or next(_candidates("msw_", None, self._server["id"], walkthrough))
        if offered is None and not self._dry_run:
            await self._db.execute(
                SQL["offer_walkthrough"], identifier, self._server["id"], walkthrough, self._now
            )
        action: Literal["keep", "create"] = "keep" if offered else "create"
        return Change(action, "offer", identifier, f"on {self._server['slug']}")


def _made_meanwhile(what: str, identifier: str) -> StepstreamError:
    """Two imports at once found an id free: to write would change what is somebody else's."""
    return StepstreamError(
        f"somebody else has made {what} with the id `{identifier}` at this moment. Nothing was changed: run "
        "this again, and it takes another id"
    )


def _candidates(prefix: str, given: str | None, *parts: str) -> Iterator[str]:
    """The given id; then ids made from the parts, the same each time, so that importing again updates."""
    if given is not None:
        yield given
    for attempt in range(1_000_000):
        text = "\x1f".join([*parts, *([str(attempt)] if attempt else [])])
        yield prefix + hashlib.sha256(text.encode()).hexdigest()[:8]


def _by_title(row: asyncpg.Record, step: ExportedStep) -> bool:
    return bool(row["title"] == step.title)


def _by_place(row: asyncpg.Record, step: ExportedStep) -> bool:
    return bool(row["display_order"] == step.display_order)


_Times = tuple[int | None, int | None]


def _action(
    before: asyncpg.Record | None, wanted: dict[str, Any], times: _Times
) -> Literal["create", "update", "keep"]:
    if before is None:
        return "create"
    same = all(_same(name, before[name], value) for name, value in wanted.items())
    told = zip((before["created_at"], before["updated_at"]), times, strict=True)
    return "keep" if same and all(new is None or old == new for old, new in told) else "update"


_JSON_COLUMNS = {"content_fields", "tags", "metadata"}


def _same(column: str, old: Any, new: Any) -> bool:
    if column in _JSON_COLUMNS and old is not None and new is not None:
        return bool(json.loads(old) == json.loads(new))
    return bool(old == new)


def _times(before: asyncpg.Record | None, times: _Times, now: int) -> _Times:
    """The file's times where it has them."""
    created, updated = times
    if created is None:
        created = before["created_at"] if before is not None else now
    return created, now if updated is None else updated


def _json(value: object) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


async def export_walkthrough(connection: Connection, identifier: str) -> dict[str, Any]:
    """A walkthrough as a value of the export format.

    Raises:
        UsageError: there is no walkthrough of that id.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        row = await connection.fetchrow(SQL["export_walkthrough"], identifier)
        if row is None:
            raise UsageError(f"there is no walkthrough with the id `{identifier}`")
        steps = await connection.fetch(SQL["import_steps_before"], identifier)
        rule = (await read_finish_rule(connection, identifier)).given
    places = {step["id"]: index for index, step in enumerate(steps)}
    return {
        "version": "1.0",
        "exportedAt": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "walkthrough": {
            "id": row["id"],
            "title": row["title"],
            "description": row["description"],
            "type": row["type"],
            "status": row["status"],
            "createdAt": row["created_at"],
            "updatedAt": row["updated_at"],
            "estimatedDurationMinutes": row["estimated_duration_minutes"],
            "tags": _parsed(row["tags"]),
            "metadata": _parsed(row["metadata"]),
            **_exported_rule(rule, places),
        },
        "steps": [
            {
                "id": step["id"],
                "title": step["title"],
                "contentFields": _parsed(step["content_fields"]),
                "displayOrder": step["display_order"],
                "createdAt": step["created_at"],
                "updatedAt": step["updated_at"],
                "metadata": _parsed(step["metadata"]),
                "nextStepReference": places.get(step["next_step_id"]),
            }
            for step in steps
        ],
        "metadata": {
            "originalId": row["id"],
            "originalOrganizationId": row["organization_id"],
            "stepCount": len(steps),
            "serverAssociationCount": row["servers"],
        },
    }


def _exported_rule(rule: GivenRule, places: Mapping[str, int]) -> dict[str, Any]:
    """The rule with places of steps, if one is set; steps that are gone are left out."""
    parts = {"goalReferences": rule.goal, "optionalReferences": rule.optional, "endReferences": rule.ends}
    found = {name: sorted(places[step] for step in ids if step in places) for name, ids in parts.items()}
    return {"finishRule": found} if any(found.values()) else {}


def _parsed(value: str | None) -> Any:
    return None if value is None else json.loads(value)

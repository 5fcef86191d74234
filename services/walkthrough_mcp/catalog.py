"""What an operator sets up: organizations, their MCP servers, and walkthroughs with steps.

Steps may be moved at any time: what people have done stays done, and each goes on with the first step in
display order that is not done.
"""

import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import asyncpg

from services.journeys.versions import StepThen, Versions, steps_then
from services.runtime.database import Connection, load_queries, no_longer_than
from services.runtime.errors import UsageError
from services.runtime.tokens import problem_of_issuer
from services.walkthrough_mcp.exchange import SQL as EXCHANGE
from services.walkthrough_mcp.exchange import TRANSACTION_SECONDS

SQL = load_queries(__file__)

AuthType = Literal["none", "collect_email", "platform_oauth", "custom_oauth"]
WalkthroughType = Literal["course", "installer", "troubleshooting", "integration", "quickstart"]
Status = Literal["draft", "published", "archived"]

#: How agents' addresses name a server.
_SLUG = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
#: Of a name or title, in characters.
_LONGEST = 500


@dataclass(frozen=True, slots=True)
class Organization:
    """Whose servers and walkthroughs they are."""

    id: str
    name: str
    slug: str | None
    servers: int = 0
    walkthroughs: int = 0


@dataclass(frozen=True, slots=True)
class Server:
    """An MCP server; `walkthroughs` is how many it offers."""

    id: str
    organization_id: str
    name: str
    slug: str
    product: str
    auth_type: str
    issuer: str | None
    walkthroughs: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """A step in display order; `shown_to` is how many people stand before it."""

    id: str
    title: str
    shown_to: int = 0
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Walkthrough:
    """A walkthrough; `under_way` is how many people have begun it and not finished."""

    id: str
    organization_id: str
    title: str
    status: str
    servers: Sequence[str]
    under_way: int
    steps: Sequence[Step] = field(default_factory=tuple)
    step_count: int = 0


@dataclass(frozen=True, slots=True)
class StepMove:
    """Steps in another order: how it is, how it would be, and how many people are under way."""

    walkthrough: Walkthrough
    after: Sequence[Step]

    @property
    def is_needed(self) -> bool:
        """Whether the order changes."""
        return [step.id for step in self.after] != [step.id for step in self.walkthrough.steps]


# --- organizations and servers -------------------------------------------------------------------------


async def create_organization(db: Connection, name: str, slug: str | None) -> Organization:
    """Makes an organization.

    Raises:
        UsageError: the name or the slug cannot be, or another has the slug.
    """
    name, slug = _checked("the name", name), _slug(name, slug)
    identifier = f"org_{secrets.token_hex(6)}"
    if await db.fetchval(SQL["create_organization"], identifier, name, slug) is None:
        raise UsageError(f"there is an organization with the slug `{slug}` already: give another with --slug")
    return Organization(identifier, name, slug)


async def list_organizations(db: Connection) -> list[Organization]:
    """All organizations by name."""
    return [Organization(**dict(row)) for row in await db.fetch(SQL["list_organizations"])]


async def create_server(
    db: Connection,
    organization: str,
    name: str,
    *,
    product: str | None = None,
    slug: str | None = None,
    auth_type: AuthType = "none",
    issuer: str | None = None,
) -> Server:
    """Makes an MCP server of an organization, which is named by id or slug.

    Raises:
        UsageError: there is no such organization, a value cannot be, or another server has the slug.
    """
    owner = await _find_organization(db, organization)
    name, slug = _checked("the name", name), _slug(name, slug)
    product = _checked("the product", product or name)
    if issuer is not None and (problem := problem_of_issuer(issuer)) is not None:
        raise UsageError(f"--issuer: {problem}")
    identifier = secrets.token_hex(4)
    created = await db.fetchval(
        SQL["create_server"],
        identifier,
        owner.id,
        name,
        product,
        slug,
        auth_type,
        issuer,
        int(time.time() * 1000),
    )
    if created is None:
        raise UsageError(f"there is a server with the slug `{slug}` already: give another with --slug")
    return Server(identifier, owner.id, name, slug, product, auth_type, issuer)


async def list_servers(db: Connection, organization: str | None = None) -> list[Server]:
    """Servers by slug: of one organization, or all.

    Raises:
        UsageError: there is no such organization.
    """
    owner = None if organization is None else (await _find_organization(db, organization)).id
    return [Server(**dict(row)) for row in await db.fetch(SQL["list_servers"], owner, None)]


async def find_server(db: Connection, slug: str) -> Server:
    """The server of that slug.

    Raises:
        UsageError: there is none.
    """
    rows = await db.fetch(SQL["list_servers"], None, slug)
    if not rows:
        raise UsageError(
            f"there is no MCP server with the slug `{slug}`: `stepstream servers list` shows all"
        )
    return Server(**dict(rows[0]))


# --- walkthroughs --------------------------------------------------------------------------------------


async def create_walkthrough(
    db: Connection,
    server: str,
    title: str,
    *,
    description: str | None = None,
    type_: WalkthroughType = "course",
    minutes: int | None = None,
) -> Walkthrough:
    """Makes a draft without steps, which a server offers once it is published.

    Raises:
        UsageError: there is no server of that slug, or a value cannot be.
    """
    where = await find_server(db, server)
    title, now = _checked("the title", title), int(time.time() * 1000)
    if description is not None:
        description = _checked("the description", description, 10_000)
    identifier = f"wt_{secrets.token_hex(4)}"
    async with db.transaction():
        await db.execute(
            SQL["create_walkthrough"],
            identifier,
            where.organization_id,
            title,
            description,
            type_,
            minutes,
            now,
        )
        offer = f"msw_{secrets.token_hex(4)}"
        await db.execute(EXCHANGE["offer_walkthrough"], offer, where.id, identifier, now)
    return Walkthrough(identifier, where.organization_id, title, "draft", (where.slug,), 0)


async def list_walkthroughs(
    db: Connection, organization: str | None = None, server: str | None = None
) -> list[Walkthrough]:
    """Walkthroughs by title, without their steps: of an organization, of a server, or all.

    Raises:
        UsageError: there is no such organization or server.
    """
    owner = None if organization is None else (await _find_organization(db, organization)).id
    slug = None if server is None else (await find_server(db, server)).slug
    return [_walkthrough(row) for row in await db.fetch(SQL["list_walkthroughs"], owner, None, slug)]


async def find_walkthrough(db: Connection, identifier: str) -> Walkthrough:
    """The walkthrough of that id, with its steps.

    Raises:
        UsageError: there is none.
    """
    rows = await db.fetch(SQL["list_walkthroughs"], None, identifier, None)
    if not rows:
        raise UsageError(
            f"there is no walkthrough with the id `{identifier}`: `stepstream walkthroughs list` shows all"
        )
    steps = await db.fetch(SQL["list_steps"], identifier)
    return _walkthrough(
        rows[0], [Step(row["id"], row["title"], row["shown_to"], row["optional"]) for row in steps]
    )


async def list_versions(db: Connection, identifier: str) -> Versions:
    """The versions of a walkthrough: its steps after each edit.

    Raises:
        UsageError: there is no such walkthrough.
    """
    found = await find_walkthrough(db, identifier)
    rows = await db.fetch(SQL["list_versions"], found.id)
    edits = [(row["made_at"], steps_then(*row[1:])) for row in rows]
    return Versions.of(edits, [StepThen(step.id, step.title) for step in found.steps])


async def set_status(db: Connection, walkthrough: Walkthrough, status: Status) -> None:
    """Publishes, archives, or makes it a draft again.

    Raises:
        UsageError: it is to be published, and has no step.
    """
    if status == "published" and not walkthrough.steps:
        raise UsageError(
            f"{walkthrough.id} has no step, and would be offered to nobody: add some with "
            "`stepstream walkthroughs add-step`"
        )
    await db.execute(SQL["set_status"], walkthrough.id, status, int(time.time() * 1000))


# --- steps ---------------------------------------------------------------------------------------------


async def add_step(
    db: Connection, walkthrough: str, title: str, content: dict[str, str], *, optional: bool = False
) -> Step:
    """Adds a step behind the last one; people who have finished go on with it when they come back.

    Args:
        db: a connection.
        walkthrough: its id.
        title: of the step.
        content: what agent and person get, by the platform's names of the four fields.
        optional: whether people may leave it out.

    Raises:
        UsageError: there is no such walkthrough, or a value cannot be.
    """
    found = await find_walkthrough(db, walkthrough)
    title, now = _checked("the title", title), int(time.time() * 1000)
    for name, text in content.items():
        _checked(name, text, 1_000_000)
    step = Step(f"wts_{secrets.token_hex(4)}", title, optional=optional)
    metadata = json.dumps({"optional": True}) if optional else None
    fields = json.dumps({"version": "v1", **content}, ensure_ascii=False)
    async with db.transaction():
        await no_longer_than(db, TRANSACTION_SECONDS)
        await db.execute(SQL["lock_walkthrough"], found.id)
        await db.execute(SQL["add_step"], step.id, found.id, title, fields, now, metadata)
        await db.execute(SQL["touch_walkthrough"], found.id, now)
    return step


async def plan_move(db: Connection, step: str, place: int) -> StepMove:
    """How the steps would stand with one of them at another place, from 1.

    Raises:
        UsageError: there is no such step or place.
    """
    walkthrough = await db.fetchval(SQL["walkthrough_of_step"], step)
    if walkthrough is None:
        raise UsageError(f"there is no step with the id `{step}`: `stepstream walkthroughs show` lists them")
    found = await find_walkthrough(db, walkthrough)
    if not 1 <= place <= len(found.steps):
        raise UsageError(f"--to: {found.id} has {len(found.steps)} steps, so places 1 to {len(found.steps)}")
    others = [s for s in found.steps if s.id != step]
    moved = next(s for s in found.steps if s.id == step)
    return StepMove(found, [*others[: place - 1], moved, *others[place - 1 :]])


async def move_step(db: Connection, step: str, place: int) -> StepMove:
    """Carries it out, as the steps are now.

    Raises:
        UsageError: as `plan_move`.
    """
    async with db.transaction():
        await no_longer_than(db, TRANSACTION_SECONDS)
        plan = await plan_move(db, step, place)
        await db.execute(SQL["lock_walkthrough"], plan.walkthrough.id)
        plan = await plan_move(db, step, place)  # somebody may have moved another meanwhile
        now = int(time.time() * 1000)
        await db.execute(SQL["order_steps"], [s.id for s in plan.after], now)
        await db.execute(SQL["touch_walkthrough"], plan.walkthrough.id, now)
    return plan


# --- values --------------------------------------------------------------------------------------------


async def _find_organization(db: Connection, given: str) -> Organization:
    row = await db.fetchrow(SQL["find_organization"], given)
    if row is None:
        raise UsageError(
            f"there is no organization with the id or slug `{given}`: `stepstream organizations list` shows "
            "them"
        )
    return Organization(**dict(row))


def _walkthrough(row: asyncpg.Record, steps: Sequence[Step] = ()) -> Walkthrough:
    return Walkthrough(
        row["id"],
        row["organization_id"],
        row["title"],
        row["status"],
        tuple(row["servers"]),
        row["under_way"],
        tuple(steps),
        row["steps"],
    )


def _checked(what: str, text: str, longest: int = _LONGEST) -> str:
    text = text.strip()
    if not text or len(text) > longest or "\0" in text:
        raise UsageError(f"{what} has to be a text of 1 to {longest:,} characters")
    return text


def _slug(name: str, given: str | None) -> str:
    slug = given if given is not None else re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].strip("-")
    if _SLUG.fullmatch(slug) is None:
        hint = "" if given is not None else f", and none can be made of `{name}`"
        raise UsageError(
            f"a slug has 1 to 63 of the characters a-z, 0-9 and -, and - neither first nor last{hint}: give "
            "one with --slug"
        )
    return slug

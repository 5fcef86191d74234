"""Functions that run with their owner's rights: whoever may change completions gets none of these rights."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest

from services.runtime.errors import MigrationError
from services.runtime.migrate import migrate
from tests.support.world import ROLES_SQL, create_database, drop_database

pytestmark = pytest.mark.integration

#: The tables with triggers of ours, and the statements that fire each of these.
STATEMENTS = {
    "walkthrough_step_completions": (
        "insert into {schema}.walkthrough_step_completions"
        " values ('wtsc_2', 'ann', 'wt_a', 'b', 'srv_1', 's_ann', 6, null)",
        "update {schema}.walkthrough_step_completions set completed_at = 7 where step_id = 'b'",
        "delete from {schema}.walkthrough_step_completions where step_id = 'b'",
        "truncate {schema}.walkthrough_step_completions",
    ),
    "walkthrough_starts": (
        "insert into {schema}.walkthrough_starts values ('wts_1', 'ann', 'wt_a', 'srv_1', 's_ann', 4, null)",
        "update {schema}.walkthrough_starts set started_at = 3",
        "delete from {schema}.walkthrough_starts",
        "truncate {schema}.walkthrough_starts",
    ),
    "walkthrough_step_skips": (
        "insert into {schema}.walkthrough_step_skips values ('wtss_1', 'ann', 'wt_a', 'b', 'srv_1', 's_ann', 4)",
        "update {schema}.walkthrough_step_skips set skipped_at = 3",
        "delete from {schema}.walkthrough_step_skips",
        "truncate {schema}.walkthrough_step_skips",
    ),
    "walkthrough_step_showings": (
        "insert into {schema}.walkthrough_step_showings"
        " values ('wtsh_1', 'wtsh_2', 'ann', 'wt_a', 'b', 'srv_1', 's_ann', 4, 5)",
        "update {schema}.walkthrough_step_showings set last_shown_at = 6",
        "delete from {schema}.walkthrough_step_showings",
        "truncate {schema}.walkthrough_step_showings",
    ),
}
#: Edits of a walkthrough, and the titles of its versions after each. Nobody comes after the first version.
EDITS = (
    (
        "insert into {schema}.walkthrough_steps (id, walkthrough_id, title, content_fields, display_order)"
        " values ('n', 'wt_a', 'n', '{{}}', 9)",
        ["a b", "a b n"],
    ),
    ("update {schema}.walkthrough_steps set title = 'new' where id = 'n'", ["a b", "a b new"]),
    ("delete from {schema}.walkthrough_steps where id = 'n'", ["a b"]),
    ("delete from {schema}.walkthroughs where id = 'wt_a'", []),
)
#: What a function that runs with its owner's rights could be led to, were it to look among temporary objects.
DECOYS = (
    "sankey_dirty (id bigint generated always as identity, mcp_server_user_id text, walkthrough_id text)",
    "sankey_journeys (mcp_server_user_id text, walkthrough_id text)",
    "recorded_offsets (topic text, partition integer, next_offset bigint)",
    "old_rows (mcp_server_user_id text, walkthrough_id text)",
    "new_rows (mcp_server_user_id text, walkthrough_id text)",
    "walkthrough_versions (id bigint generated always as identity, walkthrough_id text, made_at bigint,"
    " step_ids text [], titles text [], contents text [])",
    "walkthrough_steps (id text, walkthrough_id text, title text, content_fields jsonb, display_order integer)",
    "walkthrough_progress (walkthrough_id text)",
    "sankey_freshness (walkthrough_id text, newest_at bigint)",
)
SCHEMA_ROWS = """
insert into organization (id, name, created_at) values ('o', 'o', now());
insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)
  values ('srv_1', 'o', 's', 'p', 'srv_1');
insert into mcp_server_user (id) values ('ann'), ('bob');
insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date)
  values ('s_ann', 'srv_1', current_date);
insert into walkthroughs (id, organization_id, title) values ('wt_a', 'o', 't');
insert into walkthrough_steps (id, walkthrough_id, title, content_fields)
  values ('a', 'wt_a', 'a', '{}'), ('b', 'wt_a', 'b', '{}');
insert into walkthrough_step_completions values ('wtsc_1', 'ann', 'wt_a', 'a', 'srv_1', 's_ann', 5, null);
insert into sankey_journeys (mcp_server_user_id, walkthrough_id) values ('ann', 'wt_a');
delete from sankey_dirty;
"""


@dataclass
class Victim:
    """A migrated database, its owner's connection, and somebody who has rights on the counted tables alone."""

    owner: "asyncpg.Connection[asyncpg.Record]"
    other: "asyncpg.Connection[asyncpg.Record]"
    role: str
    schema: str

    async def marks(self) -> list[tuple[str, str]]:
        """The real marks, which are then removed."""
        rows = await self.owner.fetch(
            f"delete from {self.schema}.sankey_dirty returning mcp_server_user_id, walkthrough_id"
        )
        return sorted((r[0], r[1]) for r in rows)

    async def versions(self) -> list[str]:
        """The titles of each version that is really kept, in order."""
        rows = await self.owner.fetch(
            f"select titles from {self.schema}.walkthrough_versions order by made_at"
        )
        return [" ".join(r[0]) for r in rows]


@pytest.fixture(params=["public", 'Our "tables" aren\'t there'])
async def victim(addresses: tuple[str, str], request: pytest.FixtureRequest) -> AsyncIterator[Victim]:
    name = f"d_{uuid.uuid4().hex[:12]}"
    url = await create_database(addresses[1], name)
    owner = await asyncpg.connect(url)
    schema = await owner.fetchval("select quote_ident($1)", request.param)
    role = f"other_{name}"
    await owner.execute(f"create schema if not exists {schema}; set search_path = {schema}")
    await migrate(owner)
    await owner.execute(SCHEMA_ROWS)
    await owner.execute(
        f"create role {role} login password 'other'; grant usage on schema {schema} to {role};"
        f" grant select, insert, update, delete, truncate on {', '.join(STATEMENTS)} to {role};"
        f" grant select, insert, update, delete on walkthroughs, walkthrough_steps to {role}"
    )
    host = url.split("@")[-1]
    other = await asyncpg.connect(f"postgresql://{role}:other@{host}")
    try:
        yield Victim(owner, other, role, schema)
    finally:
        await other.close()
        await owner.execute(f"drop owned by {role}; drop role {role}")
        await owner.close()
        await drop_database(addresses[1], name)


async def definer_functions(victim: Victim) -> dict[str, list[str]]:
    """Every function with its owner's rights outside PostgreSQL's own schemas, and its settings."""
    rows = await victim.owner.fetch(
        "select proname, coalesce(proconfig, '{}') as settings from pg_proc where prosecdef and pronamespace"
        " <> all(array['pg_catalog', 'information_schema']::regnamespace[])"
    )
    return {r["proname"]: list(r["settings"]) for r in rows}


async def test_temporary_tables_lead_no_definer_function_astray(victim: Victim) -> None:
    """Decoys with triggers lie where a careless search path finds them first; each statement is tried."""
    await victim.other.execute(
        "create function pg_temp.grab() returns trigger language plpgsql as"
        f" $$ begin execute 'alter role {victim.role} superuser'; return new; end $$"
    )
    for decoy in DECOYS:
        name = decoy.split()[0]
        await victim.other.execute(
            f"create temporary table {decoy}; grant all on {name} to public;"
            f" create trigger grab before insert on {name} for each row execute function pg_temp.grab()"
        )
    await victim.owner.execute(f"set search_path = {victim.schema}; set track_functions = 'all'")
    await victim.other.execute(f"set search_path = pg_temp, {victim.schema}")
    reached = set()
    for statements in STATEMENTS.values():
        for statement in statements:
            await victim.other.execute(statement.format(schema=victim.schema))
            assert await victim.marks() == [("ann", "wt_a")], statement
    await victim.other.execute(STATEMENTS["walkthrough_starts"][0].format(schema=victim.schema))
    for statement, versions in EDITS:
        await victim.other.execute(statement.format(schema=victim.schema))
        assert await victim.versions() == versions, statement
    for table in (*STATEMENTS, "walkthroughs", "walkthrough_steps", "walkthrough_versions"):
        reached |= {
            r[0]
            for r in await victim.owner.fetch(
                "select proname from pg_trigger join pg_proc on tgfoid = pg_proc.oid"
                " where tgrelid = $1::regclass and prosecdef",
                f"{victim.schema}.{table}",
            )
        }
    assert not await victim.owner.fetchval("select rolsuper from pg_roles where rolname = $1", victim.role)
    for decoy in DECOYS:
        assert not await victim.other.fetchval(f"select count(*) from pg_temp.{decoy.split()[0]}"), decoy
    assert reached == (await definer_functions(victim)).keys(), "try the new function here, too"


async def test_definer_functions_search_no_schema_that_others_write_to(victim: Victim) -> None:
    functions = await definer_functions(victim)
    assert functions
    for name, settings in functions.items():
        assert settings == ["search_path=pg_catalog, pg_temp"], (
            f"{name}: add `set search_path = pg_catalog, pg_temp`, and name our tables with tg_table_schema"
        )


async def test_nobody_else_can_put_them_into_a_trigger_of_their_own(victim: Victim) -> None:
    """Else anybody could write marks without number, and without a right on any table of ours."""
    await victim.other.execute("create temporary table mine (mcp_server_user_id text, walkthrough_id text)")
    for name in await definer_functions(victim):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await victim.other.execute(
                "create trigger flood after truncate on mine for each statement"
                f" execute function {victim.schema}.{name}()"
            )


async def test_nobody_passes_for_the_recorder_who_may_not_record(victim: Victim) -> None:
    """The recorder's changes leave no marks, because its events follow; a setting alone makes nobody it."""
    await victim.other.execute(
        "set stepstream.recorder = 'on'; create temporary table recorded_offsets (topic text)"
    )
    for statements in STATEMENTS.values():
        for statement in statements:
            await victim.other.execute(statement.format(schema=victim.schema))
            assert await victim.marks() == [("ann", "wt_a")], statement


async def test_a_renamed_schema_leads_nobody_to_whoever_has_the_old_name(victim: Victim) -> None:
    await victim.owner.execute(
        f"alter schema {victim.schema} rename to moved; create schema {victim.schema};"
        f" grant create, usage on schema {victim.schema} to {victim.role}"
    )
    for decoy in DECOYS:
        await victim.other.execute(f"create table {victim.schema}.{decoy}")
    moved = Victim(victim.owner, victim.other, victim.role, "moved")
    for statements in STATEMENTS.values():
        for statement in statements:
            await victim.other.execute(statement.format(schema="moved"))
            assert await moved.marks() == [("ann", "wt_a")], statement
    for decoy in DECOYS:
        table = decoy.split()[0]
        assert not await victim.owner.fetchval(f"select count(*) from {victim.schema}.{table}"), table


async def test_a_function_of_the_platform_with_its_owners_rights_makes_nobody_the_recorder(
    victim: Victim,
) -> None:
    """Who signed in is asked, and not whose rights are used at the moment."""
    for table, (insert, update, *_) in STATEMENTS.items():
        await victim.owner.execute(
            f"create function {victim.schema}.platform_{table}() returns void language plpgsql security definer as"
            f" $$ begin {insert.format(schema=victim.schema)}; {update.format(schema=victim.schema)}; end $$"
        )
        await victim.other.execute(
            f"set stepstream.recorder = 'on'; select {victim.schema}.platform_{table}()"
        )
        assert await victim.marks() == [("ann", "wt_a")] * 2


@pytest.fixture
async def open_schema(addresses: tuple[str, str]) -> AsyncIterator[Victim]:
    """An empty database where anybody may create objects, as before PostgreSQL 15."""
    name = f"d_{uuid.uuid4().hex[:12]}"
    url = await create_database(addresses[1], name)
    owner = await asyncpg.connect(url)
    role = f"other_{name}"
    await owner.execute(f"create role {role} login password 'other'; grant create on schema public to public")
    other = await asyncpg.connect(f"postgresql://{role}:other@{url.split('@')[-1]}")
    try:
        yield Victim(owner, other, role, "public")
    finally:
        await other.close()
        await owner.execute(f"drop owned by {role}; drop role {role}")
        await owner.close()
        await drop_database(addresses[1], name)


#: What others could leave for whoever migrates, and how to take it away again.
PLANTED = {
    "a function that fits better than PostgreSQL's": (
        "create function public.format(a text, b name) returns text language plpgsql as"
        " $$ begin execute 'alter role {role} superuser'; return ''; end $$",
        "drop function public.format(text, name)",
    ),
    "an aggregate": (
        "create aggregate public.array_agg(text) (sfunc = textcat, stype = text)",
        "drop aggregate public.array_agg(text)",
    ),
    "an operator": (
        "create function public.theirs(oid, regclass) returns boolean language sql as 'select true';"
        " create operator public.= (function = public.theirs, leftarg = oid, rightarg = regclass)",
        "drop function public.theirs(oid, regclass) cascade",
    ),
    "a table of ours": (
        "create table public.sankey_dirty (id bigint, mcp_server_user_id text, walkthrough_id text)",
        "drop table public.sankey_dirty",
    ),
    "the table of migrations": (
        "create table public.stepstream_migrations (number integer, name text, checksum text)",
        "drop table public.stepstream_migrations",
    ),
    "a function of ours": (
        "create function public.sankey_mark_deleted() returns trigger language plpgsql as"
        " $$ begin return null; end $$",
        "drop function public.sankey_mark_deleted()",
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
async def test_migrate_uses_nothing_that_others_have_left_for_it(open_schema: Victim, planted: str) -> None:
    plant, remove = PLANTED[planted]
    await open_schema.other.execute(plant.format(role=open_schema.role))
    with pytest.raises(MigrationError, match=open_schema.role):
        await migrate(open_schema.owner)
    assert (
        await open_schema.owner.fetchval("select count(*) from pg_class where relname = 'organization'") == 0
    )
    await open_schema.other.execute(remove)
    assert await migrate(open_schema.owner)
    assert not await open_schema.owner.fetchval(
        "select rolsuper from pg_roles where rolname = $1", open_schema.role
    )


async def test_the_roles_are_not_given_out_where_others_have_left_something(open_schema: Victim) -> None:
    await migrate(open_schema.owner)
    await open_schema.other.execute(
        "create function public.hashtextextended(text, integer) returns bigint language sql as 'select 1::bigint'"
    )
    with pytest.raises(asyncpg.RaiseError, match=r"hashtextextended\(text,integer\) of other_"):
        await open_schema.owner.execute(ROLES_SQL)
    await open_schema.other.execute("drop function public.hashtextextended(text, integer)")
    await open_schema.owner.execute(ROLES_SQL)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await open_schema.other.execute("create table public.more ()")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await open_schema.other.execute("create temporary table more ()")


async def test_the_roles_fit_a_schema_of_any_name(victim: Victim) -> None:
    await victim.owner.execute(ROLES_SQL)
    for table in STATEMENTS:
        assert await victim.owner.fetchval(
            "select has_table_privilege('stepstream_recorder', $1, 'insert')", f"{victim.schema}.{table}"
        )


async def test_who_may_not_revoke_is_told_so(open_schema: Victim) -> None:
    """PostgreSQL only warns, and everybody would keep the rights."""
    await open_schema.owner.execute(f"alter role {open_schema.role} createrole")
    await migrate(open_schema.other)
    with pytest.raises(asyncpg.RaiseError, match="run this as the owner of the database"):
        await open_schema.other.execute(ROLES_SQL)

"""Functions that run with their owner's rights: whoever may change completions gets none of these rights."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest

from services.runtime.migrate import migrate
from tests.support.world import create_database, drop_database

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
}
#: What a function that runs with its owner's rights could be led to, were it to look among temporary objects.
DECOYS = (
    "sankey_dirty (id bigint generated always as identity, mcp_server_user_id text, walkthrough_id text)",
    "sankey_journeys (mcp_server_user_id text, walkthrough_id text)",
    "recorded_offsets (topic text, partition integer, next_offset bigint)",
    "old_rows (mcp_server_user_id text, walkthrough_id text)",
    "new_rows (mcp_server_user_id text, walkthrough_id text)",
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
        f" grant select, insert, update, delete, truncate on {', '.join(STATEMENTS)} to {role}"
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
    for table, statements in STATEMENTS.items():
        for statement in statements:
            await victim.other.execute(statement.format(schema=victim.schema))
            assert await victim.marks() == [("ann", "wt_a")], statement
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
        assert settings == [f"search_path=pg_catalog, {victim.schema}, pg_temp"], (
            f"{name}: add `set search_path = pg_catalog, OUR SCHEMA, pg_temp`, the last one last"
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

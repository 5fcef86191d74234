"""The roles of ops/roles.sql: enough for each service, which all tests run under, and no more."""

import re

import asyncpg
import pytest

from tests.support.world import (
    AGGREGATOR,
    API,
    MCP,
    OPERATOR,
    RECORDER,
    RELAY,
    ROLES,
    ROLES_SQL,
    World,
    as_role,
    completed,
    eventually,
)

pytestmark = pytest.mark.integration

#: What each role is not let do; `everybody` is tried by all of them.
REFUSED = {
    "everybody": [
        "create table theirs ()",
        "alter table walkthrough_step_completions disable trigger all",
        "create trigger t after delete on sankey_dirty for each statement execute function outbox_notify()",
        "create trigger t after delete on outbox for each statement execute function sankey_mark_truncated()",
        "truncate walkthrough_step_completions",
        "delete from walkthrough_starts",
        "delete from walkthrough_step_skips",
        "delete from walkthrough_step_showings",
        "delete from recorded_offsets",
        "delete from erased_users",
        "delete from organization",
        "update organization set name = 'theirs'",
        "delete from mcp_servers",
        "update mcp_servers set organization_id = 'theirs'",
        "update mcp_servers set oauth_issuer_url = 'https://theirs.example'",
        "delete from walkthroughs",
        "delete from walkthrough_steps",
        "delete from walkthrough_versions",
        "update walkthrough_versions set made_at = 0",
        "insert into walkthrough_versions (walkthrough_id) values ('wt_a')",
        "create trigger t after truncate on outbox for each statement execute function walkthrough_versions_remove()",
        "delete from stepstream_migrations",
        "set session authorization {owner}",
        "copy sankey_journeys to program 'cat'",
    ],
    RECORDER: [
        "insert into sankey_transitions select * from sankey_transitions",
        "delete from sankey_dirty",
        "select * from api_keys",
        "insert into outbox (key, value) values ('k', 'v')",
        "insert into mcp_server_user (id, distinct_id) values ('theirs', 'theirs')",
        "update mcp_server_session set mcp_server_user_id = 'theirs'",
        "select * from registered_people",
        "update walkthroughs set title = 'theirs'",
        "select email from mcp_server_user",
        "select profile_data from mcp_server_user",
    ],
    AGGREGATOR: [
        "delete from walkthrough_step_completions",
        "insert into walkthrough_step_completions select * from walkthrough_step_completions",
        "update walkthrough_starts set started_at = 0",
        "update walkthrough_step_skips set skipped_at = 0",
        "update walkthrough_step_showings set last_shown_at = 0",
        "update recorded_offsets set next_offset = 0",
        "select * from mcp_server_user",
        "select * from outbox",
        "select * from api_keys",
    ],
    RELAY: [
        "delete from walkthrough_step_completions",
        "create temporary table t ()",
        "insert into outbox (key, value) values ('k', 'v')",
        "update outbox set value = 'theirs'",
        "select * from walkthrough_step_completions",
        "select * from walkthrough_step_skips",
        "select * from walkthrough_step_showings",
        "select * from mcp_server_user",
        "select * from api_keys",
    ],
    MCP: [
        "delete from walkthrough_step_completions",
        "create temporary table t ()",
        "select * from outbox",
        "delete from outbox",
        "select * from walkthrough_step_completions",
        "select * from sankey_journeys",
        "select * from api_keys",
        "delete from mcp_server_user",
        "update mcp_server_user set upstream_sub = 'theirs'",
        "insert into registered_people select * from registered_people",
        "insert into outbox (id, key, value) overriding system value values (7, 'k', 'v')",
        "insert into outbox (key, value, created_at) values ('k', 'v', '-infinity')",
        "update walkthroughs set title = 'theirs'",
        "select email from mcp_server_user",
        "select profile_data from mcp_server_user",
    ],
    API: [
        "delete from walkthrough_step_completions",
        "create temporary table t ()",
        "insert into sankey_dirty (mcp_server_user_id, walkthrough_id) values ('u', 'w')",
        "insert into walkthrough_step_skips select * from walkthrough_step_skips",
        "update walkthrough_step_showings set last_shown_at = 0",
        "update sankey_transitions set journeys = 0",
        "update api_keys set revoked_at = null",
        "update api_keys set may_write = true",
        "delete from registered_people",
        "update registered_people set mcp_server_user_id = 'theirs'",
        "insert into mcp_server_user (id, distinct_id) values ('theirs', 'theirs')",
        "delete from mcp_server_user",
        "update mcp_server_session set mcp_server_slug = 'theirs'",
        "select * from mcp_server_user",
        "select * from outbox",
        "insert into outbox (id, key, value) overriding system value values (7, 'k', 'v')",
    ],
    OPERATOR: [
        "insert into outbox (id, key, value) overriding system value values (7, 'k', 'v')",
        "update mcp_server_user set email = 'theirs'",
        "delete from api_keys",
    ],
}


async def refused(db: "asyncpg.Connection[asyncpg.Record]", statement: str) -> bool:
    try:
        await db.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return True
    return False


@pytest.mark.parametrize("service", ROLES)
async def test_a_role_may_do_no_more_than_its_service_does(world: World, service: str) -> None:
    await world.offer()
    owner = await world.db.fetchval("select quote_ident(current_user)")
    db = await asyncpg.connect(as_role(world.settings.dsn, service, world.base))
    try:
        for statement in REFUSED["everybody"] + REFUSED[service]:
            assert await refused(db, statement.format(owner=owner)), f"{service} could: {statement}"
    finally:
        await db.close()


async def test_the_file_can_be_run_again_and_knows_every_table(world: World) -> None:
    await world.db.execute(ROLES_SQL)
    tables = await world.db.fetch(
        "select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace"
    )
    named = set(re.findall(r"[a-z_]+", ROLES_SQL))
    assert {r[0] for r in tables} <= named, "say in ops/roles.sql which service may do what with a new table"


async def test_no_right_is_gone_for_a_moment_while_the_file_is_run_again(world: World) -> None:
    """Statement by statement, as psql runs it: a running service that met that would end."""
    rights = """
        select grantee || privilege_type || table_name || column_name from information_schema.column_privileges
        where grantee like 'stepstream%'
    """
    async with world.connection() as other:
        before = {row[0] for row in await other.fetch(rights)}
        tables = re.sub(r"--.*", "", ROLES_SQL.partition("-- --- tables ---")[2])
        for statement in filter(str.strip, tables.split(";")):
            await world.db.execute(statement)
            gone = before - {row[0] for row in await other.fetch(rights)}
            assert not gone, f"after: {statement}"


async def test_the_recorder_leaves_no_marks_under_its_role_and_others_do(world: World) -> None:
    """The database believes that somebody is the recorder who may move its offsets, and nobody else."""
    await world.offer()
    await world.people(["ann"])
    await world.produce([completed("ann", "a", 1)])
    recorder = world.start(RECORDER)

    async def recorded() -> bool:
        return await world.recorded() == 1

    await eventually(recorded, "it is recorded")
    recorder.terminate()
    assert await world.db.fetchval("select count(*) from sankey_dirty") == 0
    await world.insert(completed("ann", "b", 2))
    assert await world.db.fetchval("select count(*) from sankey_dirty") == 1

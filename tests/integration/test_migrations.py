"""Migrations: on an empty database, on the platform's, two at once, edited, failing; and what they leave."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from services.runtime.errors import MigrationError
from services.runtime.migrate import FOLDER, migrate, pending, read_migrations
from tests.support.world import create_database, drop_database, eventually

pytestmark = pytest.mark.integration

#: The number that the next migration has.
NEXT = len(read_migrations()) + 1
BROKEN = f"{NEXT:04}_broken"

ALL = [m.name for m in read_migrations()]


@pytest.fixture
async def empty(addresses: tuple[str, str]) -> AsyncIterator[str]:
    name = f"m_{uuid.uuid4().hex[:12]}"
    yield await create_database(addresses[1], name)
    await drop_database(addresses[1], name)


@pytest.fixture
async def db(empty: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(empty)
    yield connection
    await connection.close()


Db = "asyncpg.Connection[asyncpg.Record]"

#: The platform's tables as it has them: fewer rules, and its unique constraint over three columns.
PLATFORM = """
create table organization (id text primary key, name text not null, slug text unique, logo text,
  created_at timestamp not null, metadata text);
create table mcp_servers (id text primary key,
  organization_id text not null references organization (id) on delete cascade, oauth_issuer_url text,
  name text not null, product_platform_or_tool text not null, slug text unique not null, created_at bigint);
create table mcp_server_user (id text primary key, distinct_id text unique, email text, upstream_sub text,
  profile_data jsonb, first_seen_at bigint);
create table mcp_server_session (mcp_server_session_id text primary key, title text,
  mcp_server_slug text not null references mcp_servers (slug) on delete cascade, connection_date date not null,
  connection_timestamp bigint, mcp_server_user_id text references mcp_server_user (id) on delete cascade);
create table walkthroughs (id text primary key,
  organization_id text not null references organization (id) on delete cascade, title text not null);
create table walkthrough_steps (id text primary key,
  walkthrough_id text not null references walkthroughs (id) on delete cascade, title text not null,
  content_fields jsonb not null, display_order int not null default 0);
create table walkthrough_step_completions (id text primary key,
  mcp_server_user_id text not null references mcp_server_user (id) on delete cascade,
  walkthrough_id text not null references walkthroughs (id) on delete cascade,
  step_id text not null references walkthrough_steps (id) on delete cascade,
  mcp_server_id text not null references mcp_servers (id) on delete cascade,
  mcp_server_session_id text not null references mcp_server_session (mcp_server_session_id) on delete cascade,
  completed_at bigint not null, metadata jsonb,
  constraint wtsc_user_step_unique unique (mcp_server_user_id, walkthrough_id, step_id));
create table walkthrough_progress (id text primary key,
  mcp_server_user_id text not null references mcp_server_user (id) on delete cascade,
  walkthrough_id text not null references walkthroughs (id) on delete cascade, completed_steps jsonb default '[]',
  current_step_id text references walkthrough_steps (id), completed_at bigint, started_at bigint,
  last_activity_at bigint, metadata jsonb);
insert into organization values ('o', 'o', 'o', null, now(), null);
insert into mcp_servers values ('srv_1', 'o', null, 's', 'p', 'srv_1', 0);
insert into mcp_server_user (id) values ('ann');
insert into mcp_server_session values ('s_ann', null, 'srv_1', current_date, 0, 'ann');
insert into walkthroughs values ('wt_a', 'o', 't');
insert into walkthrough_steps values ('a', 'wt_a', 'a', '{}', 0), ('b', 'wt_a', 'b', '{}', 1);
insert into walkthrough_step_completions values ('wtsc_old', 'ann', 'wt_a', 'a', 'srv_1', 's_ann', 5, null);
"""


async def test_an_empty_database_gets_everything_and_a_second_run_nothing(db: Db) -> None:
    assert await pending(db) == ALL
    assert await migrate(db) == ALL
    assert await migrate(db) == []
    assert await pending(db) == []


async def test_the_platforms_tables_are_left_as_they_are_and_its_completions_are_to_be_counted(
    db: Db,
) -> None:
    await db.execute(PLATFORM)
    assert await migrate(db) == ALL
    kept = await db.fetchval(
        "select pg_get_constraintdef(oid) from pg_constraint where conname = 'wtsc_user_step_unique'"
    )
    assert kept == "UNIQUE (mcp_server_user_id, walkthrough_id, step_id)"
    marks = await db.fetch("select mcp_server_user_id, walkthrough_id from sankey_dirty")
    assert [tuple(m) for m in marks] == [("ann", "wt_a")]
    indexes = await db.fetch("select indexname from pg_indexes where tablename = 'walkthrough_progress'")
    assert "walkthrough_progress_user_idx" in {r["indexname"] for r in indexes}
    # What its steps are becomes the first version, and what they are after an edit the second.
    await db.execute("update walkthrough_steps set display_order = 7 where id = 'a'")
    versions = await db.fetch("select step_ids from walkthrough_versions order by made_at")
    assert [v["step_ids"] for v in versions] == [["a", "b"], ["b", "a"]]


async def test_two_at_once_apply_each_migration_once(empty: str) -> None:
    async def one() -> list[str]:
        connection = await asyncpg.connect(empty)
        try:
            return await migrate(connection)
        finally:
            await connection.close()

    done = await asyncio.gather(*(one() for _ in range(4)))
    assert sorted(name for names in done for name in names) == ALL


def copy_with(folder: Path, **files: str) -> Path:
    for file in FOLDER.glob("*.sql"):
        (folder / file.name).write_text(file.read_text())
    for name, text in files.items():
        (folder / f"{name}.sql").write_text(text)
    return folder


async def test_an_edited_migration_is_refused_and_named(db: Db, tmp_path: Path) -> None:
    await migrate(db)
    edited = (FOLDER / "0001_platform.sql").read_text() + "\ncreate table sneaked_in ();\n"
    folder = copy_with(tmp_path, **{"0001_platform": edited, f"{NEXT:04}_more": "create table more ();"})
    with pytest.raises(MigrationError, match=r"0001_platform\.sql was edited after it was applied"):
        await migrate(db, folder)
    assert await db.fetchval("select to_regclass('more')") is None


async def test_line_ends_are_no_edit(db: Db, tmp_path: Path) -> None:
    await migrate(db)
    for file in FOLDER.glob("*.sql"):
        (tmp_path / file.name).write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert await migrate(db, tmp_path) == []


async def test_a_failing_migration_says_where_and_leaves_nothing_half_done(db: Db, tmp_path: Path) -> None:
    broken = "create table half ();\n\nselect * from there_is_no_such_table;\n"
    folder = copy_with(tmp_path, **{BROKEN: broken})
    with pytest.raises(MigrationError, match=rf"{BROKEN}\.sql, line 3: .*there_is_no_such_table") as caught:
        await migrate(db, folder)
    assert "Nothing of this migration was applied" in str(caught.value)
    assert await db.fetchval("select to_regclass('half')") is None
    assert await pending(db, folder) == [BROKEN]
    (folder / f"{BROKEN}.sql").write_text("create table half ();")
    assert await migrate(db, folder) == [BROKEN]


async def test_what_was_counted_before_there_were_starts_stays_exact(db: Db, tmp_path: Path) -> None:
    """Past the first step the time was always known; of a first step it is known from the first start on."""
    for file in sorted(FOLDER.glob("*.sql"))[:2]:
        (tmp_path / file.name).write_text(file.read_text())
    await migrate(db, tmp_path)
    await db.execute(
        "insert into sankey_transitions (walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id,"
        " journeys, elapsed_ms) values ('w', 's', '1970-01-01', 0, null, 'a', 7, 0),"
        " ('w', 's', '1970-01-01', 1, 'a', 'b', 5, 55)"
    )
    assert await migrate(db) == ALL[2:]
    rows = await db.fetch("select position, timed_journeys from sankey_transitions order by position")
    assert [tuple(r) for r in rows] == [(0, 0), (1, 5)]


async def test_who_holds_the_lock_of_migrations_is_named(
    db: Db, empty: str, caplog: pytest.LogCaptureFixture
) -> None:
    holder = await asyncpg.connect(empty, server_settings={"application_name": "somebody"})
    await holder.execute("select pg_advisory_lock(7226377001)")
    who = await holder.fetchval("select session_user")
    migrating = asyncio.create_task(migrate(db))

    async def told() -> bool:
        return f"waits for process {holder.get_server_pid()} ({who}, somebody)" in caplog.text

    await eventually(told, "it says whom it waits for")
    await holder.close()
    assert await migrating == ALL


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (f"{NEXT + 1:04}_gap", f"number {NEXT:04} is next"),
        ("3_short", "NNNN_what_it_does"),
        ("0002_twice", "runs? from 0001"),
    ],
)
async def test_a_misnamed_migration_is_refused(db: Db, tmp_path: Path, name: str, told: str) -> None:
    folder = copy_with(tmp_path, **{name: "select 1;"})
    with pytest.raises(MigrationError, match=told):
        await migrate(db, folder)


async def test_table_conventions(db: Db) -> None:
    """Foreign keys of completions, starts, skips and showings cascade and have an index; the Sankey tables have none."""
    await migrate(db)
    keys = await db.fetch(
        "select conname, confdeltype::text as rule, conrelid::regclass::text as table_name,"
        " (select attname from pg_attribute where attrelid = conrelid and attnum = conkey[1]) as column_name"
        " from pg_constraint where contype = 'f'"
    )
    ours = [k for k in keys if k["table_name"].startswith("sankey_")]
    assert ours == [], "journeys are deleted by marks; drop this foreign key"
    counted = (
        "walkthrough_step_completions",
        "walkthrough_starts",
        "walkthrough_step_skips",
        "walkthrough_step_showings",
        "completion_corrections",
        "later_completions",
    )
    rows = [k for k in keys if k["table_name"] in counted]
    assert len(rows) == 5 + 4 + 5 + 5 + 5 + 5
    for key in rows:
        assert key["rule"] == "c", f"{key['conname']}: add `on delete cascade`"
        # PostgreSQL 18 skips over the first column of an index where that has few values.
        indexed = await db.fetchval(
            "select exists (select from pg_index i join pg_attribute a on a.attrelid = i.indrelid"
            " and a.attnum in (i.indkey[0], i.indkey[1]) where i.indrelid = $2::regclass"
            " and a.attname = $1)",
            key["column_name"],
            key["table_name"],
        )
        assert indexed, f"{key['column_name']}: deleting its parent scans the table; add an index"

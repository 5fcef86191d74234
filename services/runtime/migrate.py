"""Forward-only migrations in plain SQL: one transaction each, under a lock, with checksums.

Why not a tool: docs/decisions/0001-migrations.md.
"""

import asyncio
import contextlib
import hashlib
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from services.runtime.database import Connection, Pool, fetch_one, load_queries
from services.runtime.database_errors import DATABASE_ERRORS
from services.runtime.errors import ConfigurationError, MigrationError
from services.runtime.refusals import SCHEMA, Refusals
from services.runtime.tasks import beside

log = logging.getLogger("stepstream.migrate")

FOLDER = Path(__file__).resolve().parents[2] / "migrations"
#: Any constant: every migrator of Stepstream takes the same advisory lock.
_LOCK = 7_226_377_001
_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
#: Between two looks at the schema, and how long one may take.
_CHECK_SECONDS = 5.0
#: What a migration makes where it is missing.
_MADE = re.compile(r"^create (?:table if not exists|or replace function) (\w+)", re.MULTILINE)
#: The first one is of the platform's tables, which belong to whom they belong.
_PLATFORM = 1
SQL = load_queries(__file__)


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its number, name, text, and the checksum of the text."""

    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, whatever its line ends."""
        return hashlib.sha256("\n".join(self.text.splitlines()).encode()).hexdigest()


def read_migrations(folder: Path = FOLDER) -> list[Migration]:
    """The migrations of a folder in order.

    Raises:
        MigrationError: a file's name is not `NNNN_name.sql`, or numbers are missing or doubled.
    """
    migrations = []
    for file in sorted(folder.glob("*.sql")):
        match = _NAME.fullmatch(file.name)
        if match is None:
            raise MigrationError(f"{file.name}: a migration is named NNNN_what_it_does.sql, in lower case")
        migrations.append(Migration(int(match[1]), file.stem, file.read_text("utf-8")))
    for expected, migration in enumerate(migrations, start=1):
        if migration.number != expected:
            raise MigrationError(
                f"{migration.name}: number {expected:04} is next; numbers run from 0001 without gap"
            )
    if not migrations:
        raise MigrationError(f"no migrations found in {folder}")
    return migrations


async def migrate(connection: Connection, folder: Path = FOLDER) -> list[str]:
    """Applies what is pending, one transaction per file, and returns the names that it applied.

    Several may run at once: each takes the lock, looks again, and applies only what is still missing.

    Raises:
        MigrationError: an applied file was edited, others have put objects where ours are looked for, or a
            file fails; the database stays as it was before it.
    """
    migrations = read_migrations(folder)
    done = []
    while (name := await _apply_next(connection, migrations)) is not None:
        done.append(name)
    return done


async def pending(connection: Connection, folder: Path = FOLDER) -> list[str]:
    """Names of the migrations that the database still lacks, without changing anything.

    Raises:
        MigrationError: an applied file was edited.
    """
    if await connection.fetchval("select pg_catalog.to_regclass('stepstream_migrations')") is None:
        return [m.name for m in read_migrations(folder)]
    return [m.name for m in _missing(read_migrations(folder), await _applied(connection))]


async def check_migrated(pool: Pool) -> None:
    """Looks whether the schema is what this version needs.

    Raises:
        ConfigurationError: migrations are pending.
    """
    async with pool.acquire() as connection:
        missing = await pending(connection)
    if missing:
        raise ConfigurationError(f"the database lacks {', '.join(missing)}: run `stepstream migrate` first")


async def _take_turn(connection: Connection) -> None:
    """Waits until no other migrator is at work, and says whom it waits for."""
    if await connection.fetchval(f"select pg_catalog.pg_try_advisory_xact_lock({_LOCK})"):
        return
    holder = await connection.fetchrow(
        "select activity.pid, activity.usename, activity.application_name"
        " from pg_catalog.pg_locks as held"
        " inner join pg_catalog.pg_stat_activity as activity on held.pid = activity.pid"
        " where held.locktype = 'advisory' and held.granted and held.objsubid = 1"
        " and (held.classid::bigint << 32 | held.objid::bigint) = $1"
        " and held.database = (select oid from pg_catalog.pg_database where datname = current_database())",
        _LOCK,
    )
    who = "another" if holder is None else "process {} ({}, {})".format(*holder)
    log.warning("migrate waits for %s to let go of the lock that only one may have", who)
    await connection.execute(f"select pg_catalog.pg_advisory_xact_lock({_LOCK})")


@contextlib.asynccontextmanager
async def watching_schema(pool: Pool, refusals: Refusals) -> AsyncIterator[None]:
    """Looks while the block lasts whether the database still has what this version needs.

    `refusals` learns it. What the connection itself is refused, the pool tells.
    """

    async def look() -> None:
        try:
            async with asyncio.timeout(_CHECK_SECONDS), pool.acquire() as connection:
                missing = await pending(connection)
        except DATABASE_ERRORS:
            return
        except MigrationError as error:
            refusals.refused(SCHEMA, str(error))
            return
        if missing:
            refusals.refused(SCHEMA, f"the database lacks {', '.join(missing)}: run `stepstream migrate`")
        else:
            refusals.worked(SCHEMA)

    async def again_and_again() -> None:
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            await look()

    async with beside(again_and_again()):
        yield


async def _apply_next(connection: Connection, migrations: list[Migration]) -> str | None:
    async with connection.transaction():
        await _take_turn(connection)
        await _refuse_foreign(connection, migrations)
        await connection.execute(
            "create table if not exists stepstream_migrations ("
            " number integer primary key, name text not null, checksum text not null,"
            " applied_at timestamptz not null default now())"
        )
        missing = _missing(migrations, await _applied(connection))
        if not missing:
            return None
        migration = missing[0]
        try:
            await connection.execute(migration.text)
        except asyncpg.PostgresError as error:
            raise MigrationError(_describe(migration, error)) from error
        await connection.execute(
            "insert into stepstream_migrations (number, name, checksum) values ($1, $2, $3)",
            migration.number,
            migration.name,
            migration.checksum,
        )
        return migration.name


async def _refuse_foreign(connection: Connection, migrations: list[Migration]) -> None:
    """Raises MigrationError where others left what the migration would use with the rights of who runs it."""
    path = await fetch_one(connection, SQL["search_path"])
    names = [name for m in migrations if m.number > _PLATFORM for name in _MADE.findall(m.text)]
    await connection.execute("set local search_path = pg_catalog")
    found = await connection.fetch(SQL["foreign_objects"], path["schemas"], [*names, "stepstream_migrations"])
    await connection.execute(SQL["set_search_path"], path["setting"])
    if found:
        owners = "; ".join(f"{row['what']} belongs to {row['owner']}" for row in found)
        raise MigrationError(
            f"{owners}. It would be used in place of ours or of PostgreSQL's own, with the rights of who "
            "migrates. If you trust its owner, migrate as that role; else drop it. Nobody else needs the "
            "right to create objects in our schema: ops/roles.sql takes it away"
        )


async def _applied(connection: Connection) -> dict[int, asyncpg.Record]:
    rows = await connection.fetch("select number, name, checksum from stepstream_migrations")
    return {row["number"]: row for row in rows}


def _missing(migrations: list[Migration], applied: dict[int, asyncpg.Record]) -> list[Migration]:
    for migration in migrations:
        row = applied.get(migration.number)
        if row is not None and row["checksum"] != migration.checksum:
            raise MigrationError(
                f"{migration.name}.sql was edited after it was applied (as {row['name']}). Applied "
                "migrations stay as they are: restore the file, and put the change into a new one"
            )
    return [m for m in migrations if m.number not in applied]


def _describe(migration: Migration, error: asyncpg.PostgresError) -> str:
    position = getattr(error, "position", None)
    where = ""
    if position:
        where = f", line {migration.text[: int(position)].count(chr(10)) + 1}"
    detail = getattr(error, "detail", None)
    hint = getattr(error, "hint", None)
    more = "".join(f"\n  {part}" for part in (detail, hint) if part)
    return f"{migration.name}.sql{where}: {error}{more}\n  Nothing of this migration was applied."

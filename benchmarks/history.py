"""A long history in the database, made by SQL alone: for what has to be fast however much there is.

    python -m benchmarks.history [--completions 1000000]

A tenth of the completions are people, each in one of 20 walkthroughs of 12 steps, over two servers and 90
days, with ten steps in an order that mostly is the walkthrough's. Measured, in seconds, with the most memory
of the command and of its database session: a rebuild from empty tables, a verify, a verify of 5 % of the
people, and a rebuild after 1 % of the journeys and some cells were changed.
"""

import argparse
import asyncio
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from services.devstack import down, up

TABLES = ("walkthrough_step_completions", "walkthrough_starts")

REFERENCES = """
insert into organization (id, name, created_at) values ('org', 'org', now());
insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)
select 'srv_' || n, 'org', 'srv_' || n, 'x', 'srv-' || n from generate_series(0, 1) as n;
insert into walkthroughs (id, organization_id, title, status)
select 'wt_' || n, 'org', 'wt_' || n, 'published' from generate_series(0, 19) as n;
insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order)
select 'wts_' || w || '_' || s, 'wt_' || w, 'step ' || s, '{"version": "v1"}', s
from generate_series(0, 19) as w, generate_series(0, 11) as s;
"""

#: Nobody waits for foreign keys and marks here: a rebuild comes next.
PEOPLE = """
set session_replication_role = replica;
insert into mcp_server_user (id) select 'mcpu_' || n from generate_series(1, {people}) as n;
insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date, mcp_server_user_id)
select 'mss_' || n, 'srv-' || n % 2, date '2026-01-01', 'mcpu_' || n from generate_series(1, {people}) as n;
insert into walkthrough_starts
select
  'wtst_' || n, 'mcpu_' || n, 'wt_' || n % {walkthroughs}, 'srv_' || n % 2, 'mss_' || n,
  1767225600000 + (hashint8(n)::bigint & 1073741823) * 7776000 / 1073742, null
from generate_series(1, {people}) as n where n % 3 > 0;
insert into walkthrough_step_completions
select
  'wtsc_' || md5(n || ' ' || s)::uuid, 'mcpu_' || n, 'wt_' || n % {walkthroughs},
  'wts_' || n % {walkthroughs} || '_' || s,
  'srv_' || n % 2, 'mss_' || n,
  1767225600000 + (hashint8(n)::bigint & 1073741823) * 7776000 / 1073742
  + s * 60000 + (hashint8(n * 31 + s)::bigint & 65535) * 3, null
from generate_series(0, 9) as s, generate_series(1, {people}) as n;
"""


async def make(url: str, completions: int, walkthroughs: int = 20) -> None:
    """Fills the database; indexes are made afterwards, as one would for so much."""
    db = await asyncpg.connect(url, command_timeout=3600)
    await db.execute("set maintenance_work_mem = '512MB'; set synchronous_commit = off")
    await db.execute(REFERENCES)
    indexes = await db.fetch(
        "select indexrelid::regclass::text as name, pg_get_indexdef(indexrelid) as definition"
        " from pg_index where indrelid = any($1::regclass[]) and not indisunique",
        list(TABLES),
    )
    for row in indexes:
        await db.execute(f"drop index {row['name']}")
    await db.execute(PEOPLE.format(people=completions // 10, walkthroughs=walkthroughs))
    for row in indexes:
        await db.execute(row["definition"])
    await db.execute("vacuum analyze")
    await db.close()


class Watch(threading.Thread):
    """The most memory of a database session while a command runs, without what sessions share."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.most = 0

    def run(self) -> None:
        while not self.done.wait(0.2):
            for process in psutil.process_iter(["name"]):
                if process.info["name"] == "postgres":
                    try:
                        memory = process.memory_info()
                    except psutil.Error:
                        continue
                    self.most = max(self.most, memory.rss - memory.shared)


def stepstream(environment: dict[str, str], *args: str) -> None:
    """Runs a command and tells what it took."""
    watch = Watch()
    watch.start()
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "services.operator_cli", *args],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - began
    watch.done.set()
    own = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    last = done.stderr.strip().splitlines()[-1:] or [""]
    print(
        f"{' '.join(args):<24} exit {done.returncode} {seconds:7.1f} s   command {own:.0f} MB, "
        f"session {watch.most / 2**20:.0f} MB   {last[0]}",
        flush=True,
    )


CORRUPT = (
    (
        "update sankey_journeys set step_ids = step_ids[2:], completed_at = completed_at[2:]"
        " where hashtext(mcp_server_user_id) % 100 = 0 and cardinality(step_ids) > 1"
    ),
    "update sankey_transitions set journeys = journeys + 1 where position = 3",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history")
    parser.add_argument("--completions", type=int, default=1_000_000)
    wanted = parser.parse_args().completions
    folder = Path(tempfile.mkdtemp(prefix="history-"))
    try:
        addresses = up(folder)
        environment = {**os.environ, **addresses.environment()}
        stepstream(environment, "migrate")
        began = time.monotonic()
        asyncio.run(make(addresses.database_url, wanted))
        print(f"{wanted:,} completions made in {time.monotonic() - began:.0f} s")
        stepstream(environment, "rebuild", "--execute")
        stepstream(environment, "verify")
        stepstream(environment, "verify", "--sample", "5")
        asyncio.run(execute(addresses.database_url, *CORRUPT))
        stepstream(environment, "verify")
        stepstream(environment, "rebuild", "--execute")
        stepstream(environment, "verify")
    finally:
        down(folder, purge=True)
        shutil.rmtree(folder, ignore_errors=True)


async def execute(url: str, *statements: str) -> Any:
    db = await asyncpg.connect(url, command_timeout=3600)
    for statement in statements:
        await db.execute(statement)
    await db.close()


if __name__ == "__main__":
    main()

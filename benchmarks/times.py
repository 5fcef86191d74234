"""What percentiles and histograms of links cost: read from journeys, or kept in cells as the counts are.

    python -m benchmarks.times [--journeys 100000 1000000] [--cells 5000]

Journeys are made by SQL: one walkthrough of 12 steps, two servers, 90 days, ten steps a person, each shown
before. Of each number of them, in ms: the read of those that times are of (20,000 people at most), making
them Python's, and the links' durations, percentiles and bins of that. Then one batch that adds to so many
cells of `sankey_transitions`, as it is, and with two histograms of 39 bins in each: time, WAL and size.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg

from services.analytics_api.store import SQL, _timed_of, server_settings
from services.devstack import down, up
from services.journeys.flow import View
from services.journeys.times import histogram, link_durations, spread

SAMPLE = 20_000

JOURNEYS = """
insert into sankey_journeys (
  mcp_server_user_id, walkthrough_id, mcp_server_id, step_ids, completed_at, started_at, shown_at
)
select
  'mcpu_' || n, 'wt', 'srv_' || n % 2,
  array(select 'wts_' || (s + case when n % 5 = s then 1 else 0 end) from generate_series(0, 9) as s),
  array(select at + s * 60000 + (hashint8(n * 31 + s)::bigint & 65535) from generate_series(0, 9) as s),
  case when n % 3 > 0 then at end,
  array(select at + s * 60000 - 20000 from generate_series(0, 9) as s)
from generate_series(1, {journeys}) as n
cross join lateral (
  select 1767225600000 + (hashint8(n)::bigint & 1073741823) * 7776000 / 1073742 as at
) as began
"""

#: A table of cells, and what a batch adds to each: with histograms, element by element.
CELLS = """
create unlogged table {name}_deltas as
select
  'wt'::text as walkthrough_id, 'srv_1' as mcp_server_id,
  date '2026-01-01' + (n / 200)::integer as began_on,
  n::integer % 200 as position, 'wts_1'::text as from_step_id, 'wts_2'::text as to_step_id, false as skipped,
  1::bigint as journeys, 60000::numeric as elapsed_ms, 1::bigint as timed_journeys,
  20000::numeric as active_ms, 1::bigint as active_journeys
  {deltas}
from generate_series(0, {cells} - 1) as n;
create table {name} as select * from {name}_deltas;
alter table {name} set (fillfactor = 60);
create unique index on {name} (
  walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id, skipped
);
"""
BINS = ", array_fill(0, array[20]) || 1 || array_fill(0, array[18]) as {0}"
ADD = """
insert into {name} as kept select * from {name}_deltas order by 1, 2, 3, 4, 5, 6, 7
on conflict (walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id, skipped)
do update set
  journeys = kept.journeys + excluded.journeys,
  elapsed_ms = kept.elapsed_ms + excluded.elapsed_ms,
  timed_journeys = kept.timed_journeys + excluded.timed_journeys,
  active_ms = kept.active_ms + excluded.active_ms,
  active_journeys = kept.active_journeys + excluded.active_journeys
  {sums}
"""
SUM = """, {0} = array(
  select mine + theirs
  from unnest(kept.{0}, excluded.{0}) with ordinality as bins (mine, theirs, i)
  order by i
)"""


async def median_ms(
    times: int, do: Callable[[], Awaitable[Any]], clock: Callable[[], float] = time.perf_counter
) -> float:
    took = []
    for _ in range(times):
        began = clock()
        await do()
        took.append((clock() - began) * 1000)
    return statistics.median(took)


async def read(db: Any, journeys: int) -> list[tuple[str, float]]:
    await db.execute("truncate sankey_journeys")
    await db.execute(JOURNEYS.format(journeys=journeys))
    await db.execute("vacuum analyze sankey_journeys")
    every = -(-journeys // SAMPLE)
    rows: list[asyncpg.Record] = []

    async def fetch() -> None:
        rows[:] = await db.fetch(SQL["timed_journeys"], "wt", None, None, None, every, 0)

    results = [("read", await median_ms(5, fetch)), ("(journeys read)", float(len(rows)))]
    timed = _timed_of(rows, 12)

    async def make() -> None:
        _timed_of(rows, 12)

    links = link_durations(View(), timed)

    async def order() -> None:
        link_durations(View(), timed)

    async def compute() -> None:
        for of in links.values():
            spread(of.elapsed), spread(of.active), histogram(of.elapsed)

    for name, do in (("made Python's", make), ("durations", order), ("percentiles, bins", compute)):
        results.append((f"{name} (CPU)", await median_ms(5, do, time.process_time)))
    return results


async def keep(db: Any, cells: int, histograms: tuple[str, ...]) -> list[tuple[str, float]]:
    name = "wide" if histograms else "narrow"
    deltas = "".join(BINS.format(column) for column in histograms)
    await db.execute(CELLS.format(name=name, cells=cells, deltas=deltas))
    await db.execute(f"vacuum full analyze {name}")
    size = await db.fetchval("select pg_relation_size($1::regclass) / $2::float8", name, cells)
    add = ADD.format(name=name, sums="".join(SUM.format(column) for column in histograms))
    before = await db.fetchval("select pg_current_wal_insert_lsn()")
    took = await median_ms(10, lambda: db.execute(add))
    wal = await db.fetchval("select ($1 - $2::pg_lsn)::float8 / 10", await lsn(db), before)
    return [(f"a batch, {name}", took), ("(WAL, KB)", wal / 1024), ("(bytes a cell)", size)]


async def lsn(db: Any) -> Any:
    return await db.fetchval("select pg_current_wal_insert_lsn()")


async def measure(url: str, sizes: list[int], cells: int) -> None:
    settings = {k: v for k, v in server_settings(600).items() if "read_only" not in k and "_timeout" not in k}
    db = await asyncpg.connect(url, command_timeout=3600, server_settings=settings)
    for size in sizes:
        for name, figure in await read(db, size):
            print(f"{size:>12,} journeys  {name:<26}{figure:>12,.1f}", flush=True)
    for histograms in ((), ("elapsed_bins", "active_bins")):
        for name, figure in await keep(db, cells, histograms):
            print(f"{cells:>12,} cells     {name:<26}{figure:>12,.1f}", flush=True)
    await db.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.times")
    parser.add_argument("--journeys", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--cells", type=int, default=5_000)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="times-"))
    try:
        addresses = up(folder)
        environment = {**os.environ, **addresses.environment()}
        run = [sys.executable, "-m", "services.operator_cli"]
        subprocess.run([*run, "migrate"], env=environment, check=True, capture_output=True)
        asyncio.run(measure(addresses.database_url, given.journeys, given.cells))
    finally:
        down(folder, purge=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

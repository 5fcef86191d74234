"""What somebody's forgotten lock costs everybody else.

    python -m benchmarks.locks [--events 100000] [--rounds 2]

On an embedded stack of its own, with the real recorder as a process. A backlog is drained, in turns:

- nothing is locked;
- one person is: a few events wait, in a few batches;
- a walkthrough is: a quarter of all events wait, in every batch;
- all completions that are there already are, and half of the events would change one.

Then the lock goes: how long until nothing waits. Rates only mean something beside the first of the same run.
"""

import argparse
import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.drain import STEPS, drain, fresh, make_events, produce, reached, start, wait_ready
from services.devstack import down, up

RECORDED = "select coalesce(sum(next_offset), 0) from recorded_offsets"
LOCKS = {
    "nothing": "select 1",
    "a person": "select from mcp_server_user where id = 'mcpu_000000000007' for update",
    "a walkthrough": "select from walkthroughs where id = 'wt_00000000' for update",
    "completions": "select from walkthrough_step_completions for update",
}


async def measure(name: str, events: list[dict[str, Any]], base_url: str) -> tuple[float, int, float]:
    """Events a second while the lock is held, how many waited, and seconds until none does."""
    async with fresh(base_url, len(events) // STEPS) as (topic, db):
        if name == "completions":  # half of them are there, somewhat later
            later = [e | {"completed_at": e["completed_at"] + 1} for e in events[::2]]
            await produce(later, topic)
            await drain("completion-recorder", dict(os.environ), db, len(later), RECORDED)
        before = await db.fetchval(RECORDED)
        await produce(events, topic)
        other = await asyncpg.connect(os.environ["STEPSTREAM_DATABASE_URL"])
        await other.execute("begin; " + LOCKS[name])
        recorder = start("completion-recorder", 18300, dict(os.environ))
        try:
            wait_ready(18300)
            began = time.monotonic()
            await reached(recorder, db, RECORDED, before + len(events))
            rate = len(events) / (time.monotonic() - began)
            waiting = await db.fetchval("select count(*) from waiting_events")
            await other.close()
            began = time.monotonic()
            await reached(recorder, db, "select -count(*) from waiting_events", 0)
            released = time.monotonic() - began
        finally:
            recorder.terminate()
            recorder.wait()
        assert await db.fetchval("select count(*) from walkthrough_step_completions") == len(events)
    return rate, waiting, released


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dir", type=Path, default=Path(".stepstream-bench"))
    args = parser.parse_args()
    addresses = await asyncio.to_thread(up, args.dir)
    os.environ |= addresses.environment()
    try:
        for number in range(args.rounds):
            events = make_events(args.events, number)
            random.Random(number).shuffle(events)
            free = 0.0
            for name in LOCKS:
                rate, waiting, released = await measure(name, events, addresses.database_url)
                free = free or rate
                print(
                    f"{name:14} locked: {rate:>7,.0f} events/s = {rate / free:.2f} of nothing locked, "
                    f"{waiting:>6,} waited, all recorded {released:.1f} s after the lock went",
                    flush=True,
                )
    finally:
        await asyncio.to_thread(down, args.dir, purge=True)


if __name__ == "__main__":
    asyncio.run(main())

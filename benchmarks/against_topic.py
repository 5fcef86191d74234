"""How fast `verify --against-topic` holds the tables against the topic.

    python -m benchmarks.against_topic [--events 200000] [--rounds 2]

On an embedded stack of its own: the events of `benchmarks.drain` in shuffled order, recorded by the recorder,
then read and compared by the command's own function. The processor time of this process is told beside the
time on the clock: PostgreSQL compares on another core.
"""

import argparse
import asyncio
import os
import random
import resource
import time
from pathlib import Path

from benchmarks.drain import RECORDED, STEPS, drain, fresh, make_events, produce
from services.completion_recorder.against_topic import verify_against_topic
from services.completion_recorder.topic_parts import TopicStart
from services.devstack import down, up
from services.runtime.environment import load_settings


async def measure(count: int, rounds: int, base_url: str) -> None:
    events = make_events(count, 1)
    random.Random(1).shuffle(events)
    async with fresh(base_url, count // STEPS) as (topic, db):
        await produce(events, topic)
        await drain("completion-recorder", dict(os.environ), db, count, RECORDED)
        await db.execute("vacuum analyze walkthrough_step_completions")
        events.clear()
        for _ in range(rounds):
            began, used = time.monotonic(), time.process_time()
            outcome = await verify_against_topic(load_settings(), TopicStart())
            seconds, used = time.monotonic() - began, time.process_time() - used
            if outcome.differing or outcome.counts.completions != count:
                raise SystemExit(f"it is not exact: {outcome.by_cause}")
            print(
                f"{count:,} events in {seconds:.1f} s: {count / seconds:,.0f}/s; this process "
                f"{used / count * 1e6:.1f} µs an event, "
                f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB",
                flush=True,
            )


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dir", type=Path, default=Path(".stepstream-bench"))
    args = parser.parse_args()
    addresses = await asyncio.to_thread(up, args.dir)
    os.environ |= addresses.environment()
    try:
        await measure(args.events, args.rounds, addresses.database_url)
    finally:
        await asyncio.to_thread(down, args.dir, purge=True)


if __name__ == "__main__":
    asyncio.run(main())

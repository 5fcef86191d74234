"""How fast the consumers drain a backlog, beside the floor of the same run.

    python -m benchmarks.drain [--events 200000] [--rounds 2] [--shown]

For time-ordered and for fully shuffled traffic, on an embedded stack of its own, with the real services
as processes:

- recorder: a backlog of distinct events, produced before it starts;
- floor: one plain COPY of the same rows, in binary, into the same table with its keys, indexes and
  foreign keys;
- aggregator, following: in turns, the recorder drains 20,000 events while the aggregator is stopped
  (SIGSTOP), then the aggregator follows alone. So each sees the tables as they are at that moment, and
  neither takes the other's processor;
- aggregator, replay: the whole topic at once over completions that are all there, into empty counts.

With `--shown`, the recorder alone, of completions and then of the same with a showing before each.

Rates only mean something beside each other: the machine decides the absolute figures.
"""

import argparse
import asyncio
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg

from schemas import encode
from services.devstack import down, up
from services.runtime.environment import load_settings
from services.runtime.producer import producer

STEPS = 8
START = 1_750_000_000_000
MONTH_MS = 30 * 24 * 3600 * 1000
TURN = 20_000
RECORDED = "select coalesce(sum(next_offset), 0) from recorded_offsets"
COUNTED = "select coalesce(sum(journeys), 0) from sankey_transitions"


def make_events(count: int, seed: int) -> list[dict]:
    """Distinct events, in time order: people begin over a month, and take minutes to days for a step."""
    chance = random.Random(seed)
    events = []
    for person in range(count // STEPS):
        at = START + chance.randrange(MONTH_MS)
        order = list(range(STEPS))
        if chance.random() < 0.3:
            chance.shuffle(order)
        for step in order:
            at += int(chance.lognormvariate(12, 2))
            events.append(
                {
                    "type": "step-completed",
                    "event_id": str(uuid.UUID(int=chance.getrandbits(128), version=4)),
                    "mcp_server_user_id": f"mcpu_{person:012}",
                    "walkthrough_id": f"wt_{person % 4:08}",
                    "step_id": f"wts_{person % 4}{step:07}",
                    "mcp_server_id": f"srv{person % 3:05}",
                    "mcp_server_session_id": f"mss_{person:012}",
                    "completed_at": at,
                    "metadata": {"stepOrder": step, "isLastStep": step == STEPS - 1},
                }
            )
    events.sort(key=lambda e: (e["completed_at"], e["event_id"]))
    return events


async def insert_references(db: asyncpg.Connection, people: int) -> None:
    await db.execute("insert into organization (id, name, created_at) values ('org', 'org', now())")
    await db.execute(
        "insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)"
        " select 'srv' || lpad(n::text, 5, '0'), 'org', 's', 'p', 'srv' || n from generate_series(0, 2) n"
    )
    await db.execute(
        "insert into walkthroughs (id, organization_id, title, status)"
        " select 'wt_' || lpad(n::text, 8, '0'), 'org', 'w', 'published' from generate_series(0, 3) n"
    )
    await db.execute(
        "insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order)"
        " select 'wts_' || w || lpad(s::text, 7, '0'), 'wt_' || lpad(w::text, 8, '0'), 's', '{}', s"
        f" from generate_series(0, 3) w, generate_series(0, {STEPS - 1}) s"
    )
    await db.execute(
        "insert into mcp_server_user (id) select 'mcpu_' || lpad(n::text, 12, '0')"
        f" from generate_series(0, {people - 1}) n"
    )
    await db.execute(
        "insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date,"
        " mcp_server_user_id) select 'mss_' || lpad(n::text, 12, '0'), 'srv' || n % 3, current_date,"
        f" 'mcpu_' || lpad(n::text, 12, '0') from generate_series(0, {people - 1}) n"
    )
    await db.execute("vacuum analyze")


async def produce(events: list[dict], topic: str) -> None:
    async with producer(load_settings(), linger_ms=20, max_batch_size=512 * 1024) as sending:
        sender = await sending.start()
        for i in range(0, len(events), 20_000):
            part = events[i : i + 20_000]
            await asyncio.gather(
                *[
                    await sender.send(
                        topic,
                        encode(e),
                        key=e["mcp_server_user_id"].encode(),
                    )
                    for e in part
                ]
            )


def start(service: str, port: int, env: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("stepstream")), "run", service, "--port", str(port)], env=env
    )


def wait_ready(port: int) -> None:
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=1)
        except (urllib.error.URLError, OSError):
            time.sleep(0.02)
        else:
            return


async def drain(service: str, env: dict[str, str], db: asyncpg.Connection, goal: int, done: str) -> float:
    """Seconds from the assignment of partitions until the query `done` reaches the goal."""
    process = start(service, 18300, env)
    try:
        wait_ready(18300)
        began = time.monotonic()
        await reached(process, db, done, goal)
        return time.monotonic() - began
    finally:
        process.terminate()
        process.wait()


async def copy_floor(db: asyncpg.Connection) -> float:
    """Seconds that a plain COPY of the rows takes into the emptied table."""
    rows = io.BytesIO()
    await db.copy_from_table("walkthrough_step_completions", output=rows, format="binary")
    await db.execute("truncate walkthrough_step_completions")
    rows.seek(0)
    began = time.monotonic()
    await db.copy_to_table("walkthrough_step_completions", source=rows, format="binary")
    return time.monotonic() - began


async def reached(process: subprocess.Popen, db: asyncpg.Connection, query: str, goal: int) -> None:
    while await db.fetchval(query) < goal:
        if process.poll() is not None:
            raise SystemExit(f"the service ended with {process.returncode}")
        await asyncio.sleep(0.005)


async def follow(events: list[dict], topic: str, env: dict[str, str], db: asyncpg.Connection) -> float:
    """Seconds that the aggregator takes in all, a turn after each of the recorder's."""
    recorder = start("completion-recorder", 18300, env)
    aggregator = start("sankey-aggregator", 18301, env)
    try:
        wait_ready(18300)
        wait_ready(18301)
        spent = 0.0
        for i in range(0, len(events), TURN):
            aggregator.send_signal(signal.SIGSTOP)
            goal = min(i + TURN, len(events))
            await produce(events[i:goal], topic)
            await reached(recorder, db, RECORDED, goal)
            aggregator.send_signal(signal.SIGCONT)
            began = time.monotonic()
            await reached(aggregator, db, COUNTED, goal)
            spent += time.monotonic() - began
        return spent
    finally:
        for process in (recorder, aggregator):
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait()


def stepstream(*args: str) -> None:
    command = [str(Path(sys.executable).with_name("stepstream")), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"stepstream {' '.join(args)}: {done.stdout}{done.stderr}")


@contextlib.asynccontextmanager
async def fresh(base_url: str, people: int) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    """A database and a topic of their own."""
    name = f"bench_{uuid.uuid4().hex[:8]}"
    admin = await asyncpg.connect(base_url)
    await admin.execute(f"create database {name}")
    url = base_url.rsplit("/", 1)[0] + "/" + name
    os.environ |= {
        "STEPSTREAM_DATABASE_URL": url,
        "STEPSTREAM_TOPIC": name,
        "STEPSTREAM_GROUP_PREFIX": name + ".",
        "STEPSTREAM_LOG_LEVEL": "WARNING",
    }
    stepstream("migrate")
    db = await asyncpg.connect(url, server_settings={"stepstream.recorder": "on"})
    await insert_references(db, people)
    await db.execute("checkpoint")
    yield name, db
    await db.close()
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


def with_showings(events: list[dict]) -> list[dict]:
    """The same, and before each completion the step is shown."""
    found = []
    for number, event in enumerate(events):
        shown = {name: value for name, value in event.items() if name not in {"completed_at", "metadata"}}
        shown |= {
            "type": "step-shown",
            "event_id": str(uuid.UUID(int=number << 64, version=4)),
            "version": "v1",
        }
        found += [shown | {"shown_at": event["completed_at"] - 1}, event]
    return found


async def measure_showings(events: list[dict], base_url: str) -> None:
    rates = []
    for sent in (events, with_showings(events)):
        async with fresh(base_url, len(events) // STEPS) as (topic, db):
            await produce(sent, topic)
            seconds = await drain("completion-recorder", dict(os.environ), db, len(sent), RECORDED)
            rates.append(len(sent) / seconds)
    alone, shown = rates
    print(
        f"recorder: completions alone {alone:>7,.0f} events/s, with a showing of each {shown:>7,.0f}/s",
        flush=True,
    )


async def measure(name: str, events: list[dict], base_url: str) -> None:
    async with fresh(base_url, len(events) // STEPS) as (topic, db):
        await produce(events, topic)
        recorder = await drain("completion-recorder", dict(os.environ), db, len(events), RECORDED)
        await db.execute("vacuum analyze walkthrough_step_completions")
        await db.execute("checkpoint")
        replay = await drain("sankey-aggregator", dict(os.environ), db, len(events), COUNTED)
        stepstream("verify")
        await db.execute("checkpoint")
        floor = await copy_floor(db)
    async with fresh(base_url, len(events) // STEPS) as (topic, db):
        following = await follow(events, topic, dict(os.environ), db)
        stepstream("verify")
    rates = [len(events) / seconds for seconds in (floor, recorder, following, replay)]
    copy, recorder, following, replay = rates
    print(
        f"{name:12}  COPY {copy:>7,.0f}/s   recorder {recorder:>7,.0f}/s = {recorder / copy:.2f} of COPY   "
        f"aggregator following {following:>7,.0f}/s = {following / recorder:.2f} of the recorder, "
        f"replay {replay:>7,.0f}/s",
        flush=True,
    )


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--shown", action="store_true")
    parser.add_argument("--dir", type=Path, default=Path(".stepstream-bench"))
    args = parser.parse_args()
    addresses = await asyncio.to_thread(up, args.dir)
    os.environ |= addresses.environment()
    try:
        for number in range(args.rounds):
            ordered = make_events(args.events, number)
            if args.shown:
                await measure_showings(ordered, addresses.database_url)
                continue
            shuffled = random.Random(number).sample(ordered, len(ordered))
            await measure("time-ordered", ordered, addresses.database_url)
            await measure("shuffled", shuffled, addresses.database_url)
    finally:
        await asyncio.to_thread(down, args.dir, purge=True)


if __name__ == "__main__":
    asyncio.run(main())

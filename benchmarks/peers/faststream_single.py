"""FastStream with one message a call: a transaction for each event, partitions beside each other."""

import asyncpg
from faststream import AckPolicy

from benchmarks.peers.consuming import OPTIONS, Progress, StepCompleted, broker, connect, run, settings
from benchmarks.peers.faststream_executemany import UPSERT, row

WORKERS = 6
progress = Progress()
pool: asyncpg.Pool


async def opened() -> None:
    global pool  # noqa: PLW0603
    pool = await connect(WORKERS)


@broker.subscriber(settings.topic, max_workers=WORKERS, ack_policy=AckPolicy.ACK, **OPTIONS)
async def handle(event: StepCompleted) -> None:
    await pool.execute(UPSERT, *row(event))
    progress.handled(1)


if __name__ == "__main__":
    run(opened)

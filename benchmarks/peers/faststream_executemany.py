"""FastStream in batches: one statement for each event, sent together, in one transaction for each batch."""

import json

import asyncpg
from faststream import AckPolicy

from benchmarks.peers.consuming import BATCH, OPTIONS, Progress, StepCompleted, broker, connect, run, settings

UPSERT = """
insert into walkthrough_step_completions as known
(
  id, mcp_server_user_id, walkthrough_id, step_id, mcp_server_id, mcp_server_session_id, completed_at,
  metadata
)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (mcp_server_user_id, step_id) do update set
  id = excluded.id,
  walkthrough_id = excluded.walkthrough_id,
  mcp_server_id = excluded.mcp_server_id,
  mcp_server_session_id = excluded.mcp_server_session_id,
  completed_at = excluded.completed_at,
  metadata = excluded.metadata
where (excluded.completed_at, excluded.id collate "C") < (known.completed_at, known.id collate "C")
"""


def row(event: StepCompleted) -> tuple[object, ...]:
    """The arguments of `UPSERT`."""
    return (
        "wtsc_" + event.event_id,
        event.mcp_server_user_id,
        event.walkthrough_id,
        event.step_id,
        event.mcp_server_id,
        event.mcp_server_session_id,
        event.completed_at,
        json.dumps(event.metadata),
    )


if __name__ == "__main__":
    progress = Progress()
    pool: asyncpg.Pool

    async def opened() -> None:
        global pool  # noqa: PLW0603
        pool = await connect()

    @broker.subscriber(settings.topic, batch=True, max_records=BATCH, ack_policy=AckPolicy.ACK, **OPTIONS)
    async def handle(events: list[StepCompleted]) -> None:
        await pool.executemany(UPSERT, map(row, events))
        progress.handled(len(events))

    run(opened)

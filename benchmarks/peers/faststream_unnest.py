"""FastStream in batches: one statement for each batch, from arrays."""

import json

import asyncpg
from faststream import AckPolicy

from benchmarks.peers.consuming import BATCH, OPTIONS, Progress, StepCompleted, broker, connect, run, settings

# Of two events of a user and step in one batch only the earlier may get to ON CONFLICT.
UPSERT = """
insert into walkthrough_step_completions as known
(
  id, mcp_server_user_id, walkthrough_id, step_id, mcp_server_id, mcp_server_session_id, completed_at,
  metadata
)
select distinct on (given.user_, given.step)
  given.id, given.user_, given.walkthrough, given.step, given.server, given.session_, given.at, given.metadata
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::jsonb[])
  as given (id, user_, walkthrough, step, server, session_, at, metadata)
order by given.user_, given.step, given.at, given.id collate "C"
on conflict (mcp_server_user_id, step_id) do update set
  id = excluded.id,
  walkthrough_id = excluded.walkthrough_id,
  mcp_server_id = excluded.mcp_server_id,
  mcp_server_session_id = excluded.mcp_server_session_id,
  completed_at = excluded.completed_at,
  metadata = excluded.metadata
where (excluded.completed_at, excluded.id collate "C") < (known.completed_at, known.id collate "C")
"""

progress = Progress()
pool: asyncpg.Pool


async def opened() -> None:
    global pool  # noqa: PLW0603
    pool = await connect()


@broker.subscriber(settings.topic, batch=True, max_records=BATCH, ack_policy=AckPolicy.ACK, **OPTIONS)
async def handle(events: list[StepCompleted]) -> None:
    rows = [
        (
            "wtsc_" + event.event_id,
            event.mcp_server_user_id,
            event.walkthrough_id,
            event.step_id,
            event.mcp_server_id,
            event.mcp_server_session_id,
            event.completed_at,
            json.dumps(event.metadata),
        )
        for event in events
    ]
    await pool.execute(UPSERT, *map(list, zip(*rows, strict=True)))
    progress.handled(len(events))


if __name__ == "__main__":
    run(opened)

-- name: clear_incoming
-- Empties where a load lands, inside a transaction.
delete from incoming;
delete from incoming_starts;
delete from incoming_skips;
delete from incoming_showings;

-- name: drop_covered
-- Completions of the load that a correction covers.
delete from incoming
using completion_corrections as correction
where
  incoming.mcp_server_user_id = correction.mcp_server_user_id and incoming.step_id = correction.step_id
  and incoming.completed_at <= correction.covers_until and not incoming.of_correction;

-- name: not_covered
-- Of completions that are given, those that `drop_covered` leaves.
select given.*
from given
where not exists (
  select
  from completion_corrections as correction
  where
    given.mcp_server_user_id = correction.mcp_server_user_id and given.step_id = correction.step_id
    and given.completed_at <= correction.covers_until
);

-- name: drop_recorded
-- Completions of a replay that are rows already, as they are: nothing is left to do for them.
delete from incoming
where exists (
  select
  from (
    select * from walkthrough_step_completions
    where incoming.mcp_server_user_id = mcp_server_user_id and incoming.step_id = step_id
    offset 0 -- by this index: many may have been completed at one moment
  ) as kept
  where
    incoming.id = kept.id and incoming.completed_at = kept.completed_at
    and incoming.walkthrough_id = kept.walkthrough_id and incoming.mcp_server_id = kept.mcp_server_id
    and incoming.mcp_server_session_id = kept.mcp_server_session_id
    and incoming.metadata is not distinct from kept.metadata
);

-- name: upsert_completions
-- The smallest (completed_at, event id) wins; what follows in the order only decides between different
-- contents under one id, so that the table never depends on the order of arrival. Sorted by key, so that
-- two recorders cannot deadlock. Keeps the completions that earlier ones have taken the row from; what a correction
-- says is in its own row already. Returns how many rows changed.
with
changed as (
  insert into walkthrough_step_completions as kept (
    id, mcp_server_user_id, walkthrough_id, step_id, mcp_server_id, mcp_server_session_id, completed_at, metadata
  )
  select distinct on (mcp_server_user_id collate "C", step_id collate "C")
    id,
    mcp_server_user_id,
    walkthrough_id,
    step_id,
    mcp_server_id,
    mcp_server_session_id,
    completed_at,
    metadata
  from incoming
  order by
    mcp_server_user_id collate "C",
    step_id collate "C",
    completed_at,
    id collate "C",
    mcp_server_id collate "C",
    mcp_server_session_id collate "C",
    coalesce(metadata::text, '') collate "C"
  on conflict on constraint wtsc_user_step_unique do update
  set
    id = excluded.id,
    walkthrough_id = excluded.walkthrough_id,
    mcp_server_id = excluded.mcp_server_id,
    mcp_server_session_id = excluded.mcp_server_session_id,
    completed_at = excluded.completed_at,
    metadata = excluded.metadata
  where (
    excluded.completed_at,
    excluded.id collate "C",
    excluded.mcp_server_id collate "C",
    excluded.mcp_server_session_id collate "C",
    coalesce(excluded.metadata::text, '') collate "C"
  ) < (
    kept.completed_at,
    kept.id collate "C",
    kept.mcp_server_id collate "C",
    kept.mcp_server_session_id collate "C",
    coalesce(kept.metadata::text, '') collate "C"
  )
  returning
    id,
    mcp_server_user_id,
    walkthrough_id,
    step_id,
    completed_at,
    old.id as old_id,
    old.walkthrough_id as old_walkthrough_id,
    old.mcp_server_id as old_server_id,
    old.mcp_server_session_id as old_session_id,
    old.completed_at as old_completed_at,
    old.metadata as old_metadata
),
outdone as (
  insert into later_completions as later (
    id, mcp_server_user_id, walkthrough_id, step_id, mcp_server_id, mcp_server_session_id, completed_at, metadata
  )
  select
    changed.old_id,
    changed.mcp_server_user_id,
    changed.old_walkthrough_id,
    changed.step_id,
    changed.old_server_id,
    changed.old_session_id,
    changed.old_completed_at,
    changed.old_metadata
  from changed
  where
    changed.old_id is not null and (changed.old_id, changed.old_completed_at) <> (changed.id, changed.completed_at)
    and not exists (
      select from completion_corrections as correction
      where
        correction.mcp_server_user_id = changed.mcp_server_user_id and correction.step_id = changed.step_id
        and 'wtsc_' || correction.event_id = changed.old_id and correction.completed_at = changed.old_completed_at
    )
  on conflict (mcp_server_user_id, step_id, completed_at, id) do nothing
)
select count(*) from changed;

-- name: names_another_row
-- Whether a completion of the load has the id of another user and step: of those that became rows PostgreSQL says so.
select exists (
  select
  from incoming
  cross join lateral (
    select
      other.mcp_server_user_id,
      other.step_id
    from walkthrough_step_completions as other
    where other.id = incoming.id
    limit 1
  ) as other
  where
    (other.mcp_server_user_id, other.step_id) <> (incoming.mcp_server_user_id, incoming.step_id)
    and not incoming.of_correction
);

-- name: keep_later
-- Completions of the load that do not count because the row is of an earlier one. Sorted as the upsert; row by row,
-- through the index, however large the table is.
insert into later_completions as later (
  id, mcp_server_user_id, walkthrough_id, step_id, mcp_server_id, mcp_server_session_id, completed_at, metadata
)
select distinct on (
  incoming.mcp_server_user_id collate "C", incoming.step_id collate "C", incoming.completed_at, incoming.id collate "C"
)
  incoming.id,
  incoming.mcp_server_user_id,
  incoming.walkthrough_id,
  incoming.step_id,
  incoming.mcp_server_id,
  incoming.mcp_server_session_id,
  incoming.completed_at,
  incoming.metadata
from incoming
cross join lateral (
  select
    kept.id,
    kept.completed_at
  from walkthrough_step_completions as kept
  where incoming.mcp_server_user_id = kept.mcp_server_user_id and incoming.step_id = kept.step_id
  limit 1
) as kept
where (incoming.id, incoming.completed_at) <> (kept.id, kept.completed_at) and not incoming.of_correction
order by
  incoming.mcp_server_user_id collate "C",
  incoming.step_id collate "C",
  incoming.completed_at,
  incoming.id collate "C",
  incoming.mcp_server_id collate "C",
  incoming.mcp_server_session_id collate "C",
  coalesce(incoming.metadata::text, '') collate "C"
on conflict (mcp_server_user_id, step_id, completed_at, id) do update
set
  walkthrough_id = excluded.walkthrough_id,
  mcp_server_id = excluded.mcp_server_id,
  mcp_server_session_id = excluded.mcp_server_session_id,
  metadata = excluded.metadata
where (
  excluded.mcp_server_id collate "C",
  excluded.mcp_server_session_id collate "C",
  coalesce(excluded.metadata::text, '') collate "C"
) < (
  later.mcp_server_id collate "C",
  later.mcp_server_session_id collate "C",
  coalesce(later.metadata::text, '') collate "C"
);

-- name: mark_changed
-- Journeys that a replay changes at offsets which the aggregator has perhaps passed: what `drop_recorded` has left was no
-- row before the upsert; where it is one now, the upsert wrote it. A replay that changes nothing marks nothing.
insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
select distinct
  incoming.mcp_server_user_id,
  incoming.walkthrough_id
from incoming
where incoming.is_replayed and exists (
  select
  from (
    select * from walkthrough_step_completions
    where incoming.mcp_server_user_id = mcp_server_user_id and incoming.step_id = step_id
    offset 0
  ) as kept
  where
    incoming.id = kept.id and incoming.completed_at = kept.completed_at
    and incoming.walkthrough_id = kept.walkthrough_id and incoming.mcp_server_id = kept.mcp_server_id
    and incoming.mcp_server_session_id = kept.mcp_server_session_id
    and incoming.metadata is not distinct from kept.metadata
);

-- name: drop_recorded_starts
-- As `drop_recorded`, for starts.
delete from incoming_starts
where exists (
  select
  from (
    select * from walkthrough_starts
    where incoming_starts.mcp_server_user_id = mcp_server_user_id and incoming_starts.walkthrough_id = walkthrough_id
    offset 0
  ) as kept
  where
    incoming_starts.id = kept.id and incoming_starts.started_at = kept.started_at
    and incoming_starts.mcp_server_id = kept.mcp_server_id
    and incoming_starts.mcp_server_session_id = kept.mcp_server_session_id
    and incoming_starts.metadata is not distinct from kept.metadata
);

-- name: upsert_starts
-- As `upsert_completions`, for starts: the smallest (started_at, event id) of a user and walkthrough wins.
insert into walkthrough_starts as kept (
  id, mcp_server_user_id, walkthrough_id, mcp_server_id, mcp_server_session_id, started_at, metadata
)
select distinct on (mcp_server_user_id collate "C", walkthrough_id collate "C")
  id,
  mcp_server_user_id,
  walkthrough_id,
  mcp_server_id,
  mcp_server_session_id,
  started_at,
  metadata
from incoming_starts
order by
  mcp_server_user_id collate "C",
  walkthrough_id collate "C",
  started_at,
  id collate "C",
  mcp_server_id collate "C",
  mcp_server_session_id collate "C",
  coalesce(metadata::text, '') collate "C"
on conflict on constraint walkthrough_starts_user_unique do update
set
  id = excluded.id,
  mcp_server_id = excluded.mcp_server_id,
  mcp_server_session_id = excluded.mcp_server_session_id,
  started_at = excluded.started_at,
  metadata = excluded.metadata
where (
  excluded.started_at,
  excluded.id collate "C",
  excluded.mcp_server_id collate "C",
  excluded.mcp_server_session_id collate "C",
  coalesce(excluded.metadata::text, '') collate "C"
) < (
  kept.started_at,
  kept.id collate "C",
  kept.mcp_server_id collate "C",
  kept.mcp_server_session_id collate "C",
  coalesce(kept.metadata::text, '') collate "C"
);

-- name: mark_changed_starts
-- As `mark_changed`, for starts.
insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
select distinct
  incoming_starts.mcp_server_user_id,
  incoming_starts.walkthrough_id
from incoming_starts
where incoming_starts.is_replayed and exists (
  select
  from (
    select * from walkthrough_starts
    where incoming_starts.mcp_server_user_id = mcp_server_user_id and incoming_starts.walkthrough_id = walkthrough_id
    offset 0
  ) as kept
  where
    incoming_starts.id = kept.id and incoming_starts.started_at = kept.started_at
    and incoming_starts.mcp_server_id = kept.mcp_server_id
    and incoming_starts.mcp_server_session_id = kept.mcp_server_session_id
    and incoming_starts.metadata is not distinct from kept.metadata
);

-- name: drop_recorded_skips
-- As `drop_recorded`, for skips.
delete from incoming_skips
where exists (
  select
  from (
    select * from walkthrough_step_skips
    where incoming_skips.mcp_server_user_id = mcp_server_user_id and incoming_skips.step_id = step_id
    offset 0
  ) as kept
  where
    incoming_skips.id = kept.id and incoming_skips.skipped_at = kept.skipped_at
    and incoming_skips.walkthrough_id = kept.walkthrough_id and incoming_skips.mcp_server_id = kept.mcp_server_id
    and incoming_skips.mcp_server_session_id = kept.mcp_server_session_id
    and incoming_skips.reason is not distinct from kept.reason
    and incoming_skips.metadata is not distinct from kept.metadata
);

-- name: upsert_skips
-- As `upsert_completions`, for skips: the smallest (skipped_at, event id) of a user and step wins.
insert into walkthrough_step_skips as kept (
  id,
  mcp_server_user_id,
  walkthrough_id,
  step_id,
  mcp_server_id,
  mcp_server_session_id,
  skipped_at,
  reason,
  metadata
)
select distinct on (mcp_server_user_id collate "C", step_id collate "C")
  id,
  mcp_server_user_id,
  walkthrough_id,
  step_id,
  mcp_server_id,
  mcp_server_session_id,
  skipped_at,
  reason,
  metadata
from incoming_skips
order by
  mcp_server_user_id collate "C",
  step_id collate "C",
  skipped_at,
  id collate "C",
  mcp_server_id collate "C",
  mcp_server_session_id collate "C",
  coalesce(reason, '') collate "C",
  coalesce(metadata::text, '') collate "C"
on conflict on constraint walkthrough_step_skips_user_step_unique do update
set
  id = excluded.id,
  walkthrough_id = excluded.walkthrough_id,
  mcp_server_id = excluded.mcp_server_id,
  mcp_server_session_id = excluded.mcp_server_session_id,
  skipped_at = excluded.skipped_at,
  reason = excluded.reason,
  metadata = excluded.metadata
where (
  excluded.skipped_at,
  excluded.id collate "C",
  excluded.mcp_server_id collate "C",
  excluded.mcp_server_session_id collate "C",
  coalesce(excluded.reason, '') collate "C",
  coalesce(excluded.metadata::text, '') collate "C"
) < (
  kept.skipped_at,
  kept.id collate "C",
  kept.mcp_server_id collate "C",
  kept.mcp_server_session_id collate "C",
  coalesce(kept.reason, '') collate "C",
  coalesce(kept.metadata::text, '') collate "C"
);

-- name: mark_changed_skips
-- As `mark_changed`, for skips.
insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
select distinct
  incoming_skips.mcp_server_user_id,
  incoming_skips.walkthrough_id
from incoming_skips
where incoming_skips.is_replayed and exists (
  select
  from (
    select * from walkthrough_step_skips
    where incoming_skips.mcp_server_user_id = mcp_server_user_id and incoming_skips.step_id = step_id
    offset 0
  ) as kept
  where
    incoming_skips.id = kept.id and incoming_skips.skipped_at = kept.skipped_at
    and incoming_skips.walkthrough_id = kept.walkthrough_id and incoming_skips.mcp_server_id = kept.mcp_server_id
    and incoming_skips.mcp_server_session_id = kept.mcp_server_session_id
    and incoming_skips.reason is not distinct from kept.reason
    and incoming_skips.metadata is not distinct from kept.metadata
);

-- name: drop_recorded_showings
-- Showings of a replay that change nothing: they are not before the first of their row, and not after the last.
delete from incoming_showings
where exists (
  select
  from (
    select * from walkthrough_step_showings
    where incoming_showings.mcp_server_user_id = mcp_server_user_id and incoming_showings.step_id = step_id
    offset 0
  ) as kept
  where
    (
      incoming_showings.shown_at,
      incoming_showings.id collate "C",
      incoming_showings.mcp_server_id collate "C",
      incoming_showings.mcp_server_session_id collate "C"
    ) >= (
      kept.first_shown_at,
      kept.first_id collate "C",
      kept.mcp_server_id collate "C",
      kept.mcp_server_session_id collate "C"
    )
    and (
      incoming_showings.shown_at,
      incoming_showings.id collate "C",
      coalesce(incoming_showings.version, '') collate "C"
    ) <= (
      kept.last_shown_at,
      kept.last_id collate "C",
      coalesce(kept.last_version, '') collate "C"
    )
);

-- name: upsert_showings
-- As `upsert_completions`, for showings: of a user and step the smallest (shown_at, event id) gives the row's server
-- and session, the largest its version. What follows in either order only decides between different contents under one
-- id. The walkthrough is the step's, as the newest change found it: of a step that moved, the event names that one.
-- Where neither end changes, nothing is written.
insert into walkthrough_step_showings as kept (
  first_id,
  last_id,
  mcp_server_user_id,
  walkthrough_id,
  step_id,
  mcp_server_id,
  mcp_server_session_id,
  first_shown_at,
  last_shown_at,
  last_version
)
select distinct on (mcp_server_user_id collate "C", step_id collate "C")
  id,
  first_value(id) over from_the_last,
  mcp_server_user_id,
  walkthrough_id,
  step_id,
  mcp_server_id,
  mcp_server_session_id,
  shown_at,
  first_value(shown_at) over from_the_last,
  first_value(version) over from_the_last
from incoming_showings
window from_the_last as (
  partition by mcp_server_user_id collate "C", step_id collate "C"
  order by shown_at desc, id collate "C" desc, coalesce(version, '') collate "C" desc
)
order by
  mcp_server_user_id collate "C",
  step_id collate "C",
  shown_at,
  id collate "C",
  mcp_server_id collate "C",
  mcp_server_session_id collate "C"
on conflict on constraint walkthrough_step_showings_user_step_unique do update
set
  walkthrough_id = excluded.walkthrough_id,
  (first_id, mcp_server_id, mcp_server_session_id, first_shown_at) = (
    select
      one.id,
      one.mcp_server_id,
      one.mcp_server_session_id,
      one.shown_at
    from (
      values
      (kept.first_id, kept.mcp_server_id, kept.mcp_server_session_id, kept.first_shown_at),
      (excluded.first_id, excluded.mcp_server_id, excluded.mcp_server_session_id, excluded.first_shown_at)
    ) as one (id, mcp_server_id, mcp_server_session_id, shown_at)
    order by
      one.shown_at,
      one.id collate "C",
      one.mcp_server_id collate "C",
      one.mcp_server_session_id collate "C"
    limit 1
  ),
  (last_id, last_shown_at, last_version) = (
    select
      one.id,
      one.shown_at,
      one.version
    from (
      values
      (kept.last_id, kept.last_shown_at, kept.last_version),
      (excluded.last_id, excluded.last_shown_at, excluded.last_version)
    ) as one (id, shown_at, version)
    order by one.shown_at desc, one.id collate "C" desc, coalesce(one.version, '') collate "C" desc
    limit 1
  )
where (
  excluded.first_shown_at,
  excluded.first_id collate "C",
  excluded.mcp_server_id collate "C",
  excluded.mcp_server_session_id collate "C"
) < (
  kept.first_shown_at,
  kept.first_id collate "C",
  kept.mcp_server_id collate "C",
  kept.mcp_server_session_id collate "C"
)
or (
  excluded.last_shown_at,
  excluded.last_id collate "C",
  coalesce(excluded.last_version, '') collate "C"
) > (
  kept.last_shown_at,
  kept.last_id collate "C",
  coalesce(kept.last_version, '') collate "C"
);

-- name: mark_changed_showings
-- As `mark_changed`, for showings: replayed ones that are the first or the last of their row now.
insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
select distinct
  incoming_showings.mcp_server_user_id,
  incoming_showings.walkthrough_id
from incoming_showings
where incoming_showings.is_replayed and exists (
  select
  from (
    select * from walkthrough_step_showings
    where incoming_showings.mcp_server_user_id = mcp_server_user_id and incoming_showings.step_id = step_id
    offset 0
  ) as kept
  where
    incoming_showings.id = kept.first_id and incoming_showings.shown_at = kept.first_shown_at
    and incoming_showings.mcp_server_id = kept.mcp_server_id
    and incoming_showings.mcp_server_session_id = kept.mcp_server_session_id
    or incoming_showings.id = kept.last_id and incoming_showings.shown_at = kept.last_shown_at
    and incoming_showings.version is not distinct from kept.last_version
);

-- name: lock_completions
-- Rows of these users and steps that nobody else has locked; locked as the upsert would.
select
  kept.mcp_server_user_id,
  kept.step_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join walkthrough_step_completions as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.step_id = kept.step_id
for update of kept skip locked;

-- name: find_completions
-- The rows of these users and steps, locked or not.
select
  kept.mcp_server_user_id,
  kept.step_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join walkthrough_step_completions as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.step_id = kept.step_id;

-- name: lock_starts
-- As `lock_completions`, for starts.
select
  kept.mcp_server_user_id,
  kept.walkthrough_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, walkthrough_id)
inner join walkthrough_starts as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.walkthrough_id = kept.walkthrough_id
for update of kept skip locked;

-- name: find_starts
-- The rows of these users and walkthroughs, locked or not.
select
  kept.mcp_server_user_id,
  kept.walkthrough_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, walkthrough_id)
inner join walkthrough_starts as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.walkthrough_id = kept.walkthrough_id;

-- name: lock_skips
-- As `lock_completions`, for skips.
select
  kept.mcp_server_user_id,
  kept.step_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join walkthrough_step_skips as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.step_id = kept.step_id
for update of kept skip locked;

-- name: find_skips
-- The rows of these users and steps, locked or not.
select
  kept.mcp_server_user_id,
  kept.step_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join walkthrough_step_skips as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.step_id = kept.step_id;

-- name: lock_showings
-- As `lock_completions`, for showings.
select
  kept.mcp_server_user_id,
  kept.step_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join walkthrough_step_showings as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.step_id = kept.step_id
for update of kept skip locked;

-- name: find_showings
-- The rows of these users and steps, locked or not.
select
  kept.mcp_server_user_id,
  kept.step_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join walkthrough_step_showings as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.step_id = kept.step_id;

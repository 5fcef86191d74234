-- name: unseen_begin
-- Where rows without an event are noted.
create temporary table unseen_rows (
  kind text not null,
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  step_id text
);

-- name: unseen_with_memory
-- Each table is held against what was read at once.
set local work_mem = '128MB';

-- name: unseen_find
-- Rows whose event was not read; what is listed as the row of an event is not listed again. A showing is of two events:
-- it is there once for each that was not read.
with
completions as (
  insert into unseen_rows
  select
    'completion',
    id,
    mcp_server_user_id,
    walkthrough_id,
    step_id
  from walkthrough_step_completions as kept
  where
    not exists (select from seen_completions as seen where seen.id = kept.id)
    and not exists (select from doubted where doubted.row_id = kept.id)
),
skips as (
  insert into unseen_rows
  select
    'skip',
    id,
    mcp_server_user_id,
    walkthrough_id,
    step_id
  from walkthrough_step_skips as kept
  where
    not exists (
      select from seen_skips as seen
      where seen.mcp_server_user_id = kept.mcp_server_user_id and seen.step_id = kept.step_id
    )
    and not exists (
      select from doubted
      where
        doubted.row_id = kept.id and doubted.mcp_server_user_id = kept.mcp_server_user_id
        and doubted.step_id = kept.step_id
    )
),
showings as (
  insert into unseen_rows
  select distinct
    'showing',
    event.id,
    kept.mcp_server_user_id,
    kept.walkthrough_id,
    kept.step_id
  from walkthrough_step_showings as kept
  cross join lateral (values (kept.first_id, true), (kept.last_id, false)) as event (id, is_first)
  where
    not exists (
      select from seen_showings as seen
      where
        seen.mcp_server_user_id = kept.mcp_server_user_id and seen.step_id = kept.step_id
        and seen.is_first = event.is_first
    )
    and not exists (
      select from doubted
      where
        doubted.row_id = event.id and doubted.mcp_server_user_id = kept.mcp_server_user_id
        and doubted.step_id = kept.step_id
    )
)
insert into unseen_rows
select
  'start',
  id,
  mcp_server_user_id,
  walkthrough_id
from walkthrough_starts as kept
where
  not exists (select from seen_starts as seen where seen.id = kept.id)
  and not exists (select from doubted where doubted.row_id = kept.id);

-- name: unseen_count
-- How many rows there are without an event.
select count(distinct (kind, mcp_server_user_id, walkthrough_id, step_id)) from unseen_rows;

-- name: unseen_forget
-- Rows whose event the recorder has passed since are no difference.
delete from unseen_rows as unseen
using unnest($1::text[], $2::text[], $3::text[]) as event (id, mcp_server_user_id, step_id)
where
  unseen.id = event.id
  and unseen.mcp_server_user_id = event.mcp_server_user_id
  and unseen.step_id is not distinct from event.step_id;

-- name: unseen_list
-- The first rows without an event.
select
  kind,
  id,
  mcp_server_user_id,
  walkthrough_id,
  step_id
from unseen_rows
order by kind, id collate "C"
limit $1;

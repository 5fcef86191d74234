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
-- Both tables are held against what was read at once.
set local work_mem = '128MB';

-- name: unseen_find
-- Rows whose event was not read; what is listed as the row of an event is not listed again.
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
select count(*) from unseen_rows;

-- name: unseen_forget
-- Rows whose event the recorder has passed since are no difference.
delete from unseen_rows where id = any($1::text[]);

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

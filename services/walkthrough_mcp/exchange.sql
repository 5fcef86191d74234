-- name: import_server
select
  id,
  organization_id,
  slug
from mcp_servers
where slug = $1;

-- name: import_owner_of_walkthrough
select organization_id from walkthroughs
where id = $1;

-- name: import_step_exists
select exists (select from walkthrough_steps where id = $1);

-- name: import_steps_elsewhere
-- Which of these ids are steps of another walkthrough.
select id from walkthrough_steps
where id = any($1::text[]) and walkthrough_id <> $2;

-- name: import_walkthrough_before
-- Locked as `lock_walkthrough` of the catalogue does it.
select
  title,
  description,
  type::text as type,
  status::text as status,
  estimated_duration_minutes,
  tags,
  metadata,
  created_at,
  updated_at
from walkthroughs
where id = $1
for no key update;

-- name: import_steps_before
select
  id,
  title,
  content_fields,
  display_order,
  next_step_id,
  metadata,
  created_at,
  updated_at
from walkthrough_steps
where walkthrough_id = $1
order by display_order, created_at nulls first, id collate "C";

-- name: import_offer_before
select id from mcp_server_walkthroughs
where mcp_server_id = $1 and walkthrough_id = $2;

-- name: import_walkthrough
-- A second import updates.
insert into walkthroughs (
  id, organization_id, title, description, type, status, estimated_duration_minutes, tags, metadata,
  created_at, updated_at
)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
on conflict (id) do update
set
  title = excluded.title,
  description = excluded.description,
  type = excluded.type,
  status = excluded.status,
  estimated_duration_minutes = excluded.estimated_duration_minutes,
  tags = excluded.tags,
  metadata = excluded.metadata,
  created_at = excluded.created_at,
  updated_at = excluded.updated_at;

-- name: import_step
insert into walkthrough_steps (
  id, walkthrough_id, title, content_fields, display_order, next_step_id, metadata, created_at, updated_at
)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (id) do update
set
  title = excluded.title,
  content_fields = excluded.content_fields,
  display_order = excluded.display_order,
  metadata = excluded.metadata,
  created_at = excluded.created_at,
  updated_at = excluded.updated_at;

-- name: import_link
update walkthrough_steps set next_step_id = $2
where id = $1;

-- name: offer_walkthrough
-- After what the server offers already.
insert into mcp_server_walkthroughs (id, mcp_server_id, walkthrough_id, display_order, created_at)
select
  $1,
  $2,
  $3,
  coalesce(max(display_order) + 1, 0),
  $4
from mcp_server_walkthroughs
where mcp_server_id = $2
on conflict (mcp_server_id, walkthrough_id) do nothing;

-- name: export_walkthrough
select
  id,
  organization_id,
  title,
  description,
  type::text as type,
  status::text as status,
  estimated_duration_minutes,
  tags,
  metadata,
  created_at,
  updated_at,
  (select count(*) from mcp_server_walkthroughs where walkthrough_id = walkthroughs.id) as servers
from walkthroughs
where id = $1;

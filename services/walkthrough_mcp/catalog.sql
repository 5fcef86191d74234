-- name: create_organization
insert into organization (id, name, slug, created_at) values ($1, $2, $3, now())
on conflict (slug) do nothing
returning id;

-- name: list_organizations
-- With how many servers and walkthroughs each has.
select
  id,
  name,
  slug,
  (select count(*) from mcp_servers where organization_id = organization.id) as servers,
  (select count(*) from walkthroughs where organization_id = organization.id) as walkthroughs
from organization
order by name, id;

-- name: find_organization
-- By id or slug; an id first.
select
  id,
  name,
  slug
from organization
where id = $1 or slug = $1
order by id = $1 desc
limit 1;

-- name: create_server
insert into mcp_servers (
  id, organization_id, name, product_platform_or_tool, slug, auth_type, oauth_issuer_url, created_at
)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (slug) do nothing
returning id;

-- name: list_servers
-- Of one organization, or all; with how many walkthroughs each offers.
select
  id,
  organization_id,
  name,
  slug,
  product_platform_or_tool as product,
  auth_type::text as auth_type,
  oauth_issuer_url as issuer,
  (select count(*) from mcp_server_walkthroughs where mcp_server_id = mcp_servers.id and is_enabled = 'true')
    as walkthroughs
from mcp_servers
where ($1::text is null or organization_id = $1) and ($2::text is null or slug = $2)
order by slug;

-- name: create_walkthrough
insert into walkthroughs (
  id, organization_id, title, description, type, status, estimated_duration_minutes, created_at, updated_at
)
values ($1, $2, $3, $4, $5, 'draft', $6, $7, $7);

-- name: list_walkthroughs
-- Of one organization, of one server, that one, or all; people are under way who have begun and not finished.
select
  walkthroughs.id,
  walkthroughs.organization_id,
  walkthroughs.title,
  walkthroughs.status::text as status,
  (select count(*) from walkthrough_steps where walkthrough_id = walkthroughs.id) as steps,
  array(
    select mcp_servers.slug from mcp_server_walkthroughs as offered
    inner join mcp_servers on offered.mcp_server_id = mcp_servers.id
    where offered.walkthrough_id = walkthroughs.id and offered.is_enabled = 'true'
    order by mcp_servers.slug
  ) as servers,
  (
    select count(*) from walkthrough_progress
    where walkthrough_id = walkthroughs.id and started_at is not null and completed_at is null
  ) as under_way
from walkthroughs
where
  ($1::text is null or walkthroughs.organization_id = $1)
  and ($2::text is null or walkthroughs.id = $2)
  and (
    $3::text is null or exists (
      select from mcp_server_walkthroughs as offered
      inner join mcp_servers on offered.mcp_server_id = mcp_servers.id
      where offered.walkthrough_id = walkthroughs.id and mcp_servers.slug = $3
    )
  )
order by walkthroughs.title, walkthroughs.id;

-- name: list_steps
-- In display order; with how many people stand before each.
select
  id,
  title,
  display_order,
  (select count(*) from walkthrough_progress where current_step_id = walkthrough_steps.id and completed_at is null)
    as shown_to,
  step_is_optional(metadata, title) as optional
from walkthrough_steps
where walkthrough_id = $1
order by display_order, created_at nulls first, id collate "C";

-- name: lock_walkthrough
-- So that two who change its steps do so one after the other; events and agents, who keep the row, do not wait.
select id from walkthroughs where id = $1 for no key update;

-- name: walkthrough_of_step
select walkthrough_id from walkthrough_steps where id = $1;

-- name: add_step
-- Behind the last one.
insert into walkthrough_steps (
  id, walkthrough_id, title, content_fields, display_order, created_at, updated_at, metadata
)
select
  $1,
  $2,
  $3,
  $4,
  coalesce(max(display_order) + 1, 0),
  $5,
  $5,
  $6::jsonb
from walkthrough_steps
where walkthrough_id = $2;

-- name: order_steps
-- Numbers the steps of a walkthrough as they are given.
update walkthrough_steps set display_order = given.place - 1, updated_at = $2
from unnest($1::text[]) with ordinality as given (id, place)
where walkthrough_steps.id = given.id and display_order <> given.place - 1;

-- name: touch_walkthrough
update walkthroughs set updated_at = $2
where id = $1;

-- name: set_status
update walkthroughs set status = $2, updated_at = $3
where id = $1;

-- name: list_versions
-- The steps of a walkthrough after each edit, in order.
select
  made_at,
  step_ids,
  titles,
  contents
from walkthrough_versions
where walkthrough_id = $1 and step_ids is not null
order by made_at, id;

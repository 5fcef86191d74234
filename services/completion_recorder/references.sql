-- name: count_references
-- How many of the rows that the load refers to exist and belong together: a session to its server, and to its
-- user where it has one; a server and a walkthrough to one organization; a step to its walkthrough. They stay
-- locked until the commit, so that none vanishes under the foreign keys; `nowait`, because a recorder that
-- waited for a deletion while holding other parents could deadlock with it. A row that somebody else has locked
-- ends the transaction. And whether a completion that does not count because an earlier one does has one of these ids.
with
users as (
  select from mcp_server_user where id = any($1::text[]) for key share nowait
),
sessions as (
  select
  from unnest($2::text[], $3::text[], $4::text[]) as given (session_id, server_id, user_id)
  inner join mcp_server_session as session on given.session_id = session.mcp_server_session_id
  inner join mcp_servers as server on given.server_id = server.id and session.mcp_server_slug = server.slug
  where session.mcp_server_user_id is null or session.mcp_server_user_id = given.user_id
  for key share of session nowait
),
server_walkthroughs as (
  select
  from unnest($5::text[], $6::text[]) as given (server_id, walkthrough_id)
  inner join mcp_servers as server on given.server_id = server.id
  inner join walkthroughs as walkthrough on given.walkthrough_id = walkthrough.id
    and server.organization_id = walkthrough.organization_id
  for key share of server, walkthrough nowait
),
steps as (
  select
  from unnest($7::text[], $8::text[]) as given (step_id, walkthrough_id)
  inner join walkthrough_steps on given.step_id = walkthrough_steps.id
    and given.walkthrough_id = walkthrough_steps.walkthrough_id
  for key share of walkthrough_steps nowait
)
select
  (select count(*) from users) as users,
  (select count(*) from sessions) as sessions,
  (select count(*) from server_walkthroughs) as server_walkthroughs,
  (select count(*) from steps) as steps,
  (select count(*) from erased_users where mcp_server_user_id = any($1::text[])) as erased,
  exists (
    select
    from unnest($9::text[]) as given (id)
    cross join lateral (
      select from later_completions as later
      where later.id = given.id
      limit 1 -- one after another, through the index, however large the table is
    ) as later
  ) as names_later;

-- name: lock_references
-- Those of the rows that nobody else has locked; they are locked until the commit.
with
users as (
  select id from mcp_server_user where id = any($1::text[]) for key share skip locked
),
sessions as (
  select mcp_server_session_id as id from mcp_server_session
  where mcp_server_session_id = any($2::text[])
  for key share skip locked
),
servers as (
  select id from mcp_servers where id = any($3::text[]) for key share skip locked
),
known_walkthroughs as (
  select id from walkthroughs where id = any($4::text[]) for key share skip locked
),
steps as (
  select id from walkthrough_steps where id = any($5::text[]) for key share skip locked
)
select
  array(select id from users) as users,
  array(select id from sessions) as sessions,
  array(select id from servers) as servers,
  array(select id from known_walkthroughs) as walkthroughs,
  array(select id from steps) as steps;

-- name: find_references
-- Which of the rows exist, and what they belong to; asked only when something is missing, or locked.
select 'users' as kind, id, null as one, null as two from mcp_server_user where id = any($1::text[])
union all
select 'sessions', session.mcp_server_session_id, server.id, session.mcp_server_user_id
from mcp_server_session as session
left join mcp_servers as server on session.mcp_server_slug = server.slug
where session.mcp_server_session_id = any($2::text[])
union all
select 'servers', id, organization_id, null from mcp_servers where id = any($3::text[])
union all
select 'walkthroughs', id, organization_id, null from walkthroughs where id = any($4::text[])
union all
select 'steps', id, walkthrough_id, null from walkthrough_steps where id = any($5::text[])
union all
select 'erased', mcp_server_user_id, null, null from erased_users where mcp_server_user_id = any($1::text[]);

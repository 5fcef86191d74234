-- name: find_references
-- All that the events of a batch refer to, as far as it is the organization's ($1), in one round trip: people by its own
-- ids ($2: `people` is the query of that name) and by the platform's ($3: `users`), sessions ($4), servers ($5),
-- walkthroughs ($6), steps ($7); and whose the ids of completions ($8) and starts ($9) are. With $10 also one or two of
-- the servers that may be meant where none is named: of $11, or of all where that is null.
select
  'people' as kind,
  people.distinct_id as id,
  coalesce(people.registered_id, people.known_id) as one,
  null as two,
  null::bigint as at
from people
where
  coalesce(people.registered_id, people.known_id) is not null
  and not exists (
    select from erased_users where mcp_server_user_id = coalesce(people.registered_id, people.known_id)
  )
union all
select
  'users',
  users.id,
  null,
  null,
  null
from users
where not exists (select from erased_users where mcp_server_user_id = users.id)
union all
select
  'sessions',
  session.mcp_server_session_id,
  server.id,
  session.mcp_server_user_id,
  null
from mcp_server_session as session
inner join mcp_servers as server on session.mcp_server_slug = server.slug
where session.mcp_server_session_id = any($4::text[]) and server.organization_id = $1
union all
select
  'servers',
  id,
  slug,
  null,
  null
from mcp_servers
where id = any($5::text[]) and organization_id = $1
union all
(
  select
    'only',
    id,
    slug,
    null,
    null
  from mcp_servers
  where $10::boolean and organization_id = $1 and ($11::text[] is null or id = any($11::text[]))
  limit 2
)
union all
select
  'walkthroughs',
  id,
  null,
  null,
  null
from walkthroughs
where id = any($6::text[]) and organization_id = $1
union all
select
  'steps',
  step.id,
  step.walkthrough_id,
  null,
  null
from walkthrough_steps as step
inner join walkthroughs as walkthrough on step.walkthrough_id = walkthrough.id
where step.id = any($7::text[]) and walkthrough.organization_id = $1
union all
select
  'step-completed',
  completion.id,
  completion.mcp_server_user_id,
  completion.step_id,
  completion.completed_at
from walkthrough_step_completions as completion
inner join mcp_servers as server on completion.mcp_server_id = server.id
where completion.id = any($8::text[]) and server.organization_id = $1
union all
select
  'later',
  later.id,
  later.mcp_server_user_id,
  later.step_id,
  later.completed_at
from later_completions as later
inner join mcp_servers as server on later.mcp_server_id = server.id
where later.id = any($8::text[]) and server.organization_id = $1
union all
select
  'walkthrough-started',
  start.id,
  start.mcp_server_user_id,
  start.walkthrough_id,
  start.started_at
from walkthrough_starts as start
inner join mcp_servers as server on start.mcp_server_id = server.id
where start.id = any($9::text[]) and server.organization_id = $1;

-- name: find_surpassed
-- Those of these events (numbers, types, users, steps or walkthroughs, times, ids of their rows) that change nothing,
-- whatever their ids are: completions that are kept under them already, and starts that an earlier one has beaten.
select given.number
from unnest($1::integer[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[])
  as given (number, type, user_id, of_what, at, id)
where
  given.type = 'step-completed' and exists (
    select from later_completions as own
    where own.mcp_server_user_id = given.user_id and own.step_id = given.of_what and own.id = given.id
  )
  or given.type = 'walkthrough-started' and exists (
    select from walkthrough_starts as own
    where
      own.mcp_server_user_id = given.user_id and own.walkthrough_id = given.of_what
      and (own.started_at, own.id collate "C") < (given.at, given.id collate "C")
  );

-- name: put_in_outbox
-- Events that Kafka has not acknowledged: a relay sends them.
insert into outbox (key, value, headers, type)
select
  key,
  value,
  headers::jsonb,
  type
from unnest($1::text[], $2::text[], $3::text[], $4::text[]) with ordinality as given (key, value, headers, type, number)
order by number;

-- name: count_outbox
-- How many events wait, at most: ids that were given, of which some are gone. Counted where that may be more than $1.
select
  case
    when span.rows <= $1::bigint then span.rows
    else (select count(*) from (select from outbox limit $1 + 1) as counted)
  end
from (select coalesce(max(id) - min(id) + 1, 0) as rows from outbox) as span;

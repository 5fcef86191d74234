-- The least that each service needs, as a role for each. Run it as the owner of the database and of the tables, who may
-- create roles, after `stepstream migrate`, and again after each migration: it is safe to repeat. Of two at once one
-- may end with `tuple concurrently updated`: run it again.
--
--   psql --set ON_ERROR_STOP=1 --file ops/roles.sql
--
-- The roles cannot sign in until they are told to, either themselves or through a login of your own:
--
--   alter role stepstream_recorder login password '...';
--   grant stepstream_recorder to my_login;
--
-- Each service then has its own STEPSTREAM_DATABASE_URL. `stepstream migrate` is for the owner, all other commands
-- are for stepstream_operator. Tables are looked for where the search path of the session says.
--
-- Until this file has run, others may have put functions beside our tables that fit a call better than PostgreSQL's own;
-- so the block looks for names among PostgreSQL's alone.
do $$
declare
  path constant text := pg_catalog.current_setting('search_path');
  this constant text := pg_catalog.current_database();
  our_table constant oid := 'stepstream_migrations'::pg_catalog.regclass;
  roles constant text[] := array[
    'stepstream_recorder', 'stepstream_aggregator', 'stepstream_relay', 'stepstream_mcp', 'stepstream_api',
    'stepstream_operator'
  ];
  schema_id oid;
  ours text;
  role text;
  found text;
begin
  perform pg_catalog.set_config('search_path', 'pg_catalog', true);
  select pg_namespace.oid, nspname into schema_id, ours from pg_namespace
  inner join pg_class on pg_namespace.oid = pg_class.relnamespace
  where pg_class.oid = our_table;

  -- Temporary tables are for those alone whose work needs them, and nobody makes other objects beside our tables.
  foreach role in array roles loop
    if not exists (select from pg_roles where rolname = role) then
      execute format('create role %I nologin', role);
    end if;
    execute format('grant usage on schema %I to %I', ours, role);
    begin
      -- They look nowhere else, not in a schema of their own name either.
      execute format('alter role %I in database %I set search_path = %I', role, this, ours);
    exception when insufficient_privilege then
      raise warning 'role % is somebody else''s to set: let them alter role % in database % set search_path = %',
        role, role, this, ours;
    end;
  end loop;
  execute format('revoke create on schema %I from public', ours);
  execute format('revoke temporary on database %I from public', this);
  execute format(
    'grant temporary on database %I to stepstream_recorder, stepstream_aggregator, stepstream_operator', this
  );

  -- Who operates it can do what the consumers do: a replay of a range does their work.
  if not exists (
    select from pg_auth_members
    where member = 'stepstream_operator'::regrole and roleid = 'stepstream_recorder'::regrole
  ) then
    grant stepstream_recorder, stepstream_aggregator to stepstream_operator;
  end if;

  -- PostgreSQL only warns where somebody revokes who may not.
  if exists (
    select from pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) as held
    where datname = this and held.grantee = 0 and held.privilege_type = 'TEMPORARY'
  ) then
    raise exception 'everybody may still make temporary tables in %: run this as the owner of the database', this;
  end if;
  if exists (
    select from pg_namespace, aclexplode(coalesce(nspacl, acldefault('n', nspowner))) as held
    where nspname = ours and held.grantee = 0 and held.privilege_type = 'CREATE'
  ) then
    raise exception 'everybody may still create objects in schema %: run this as its owner', ours;
  end if;

  -- What was put there before stays: a function that fits a call better than PostgreSQL's own is called.
  select string_agg(format('%s of %s', object.what, pg_get_userbyid(object.owner)), ', ') into found
  from (
    select pg_proc.oid::regprocedure::text as what, proowner as owner from pg_proc
    where
      pronamespace = schema_id
      and proname in (select proname from pg_proc where pronamespace = 'pg_catalog'::regnamespace)
    union all
    select pg_operator.oid::regoperator::text, oprowner from pg_operator
    where oprnamespace = schema_id
  ) as object
  inner join pg_roles on object.owner = pg_roles.oid
  where
    not pg_roles.rolsuper and pg_roles.rolname <> current_user
    and pg_roles.oid <> (select datdba from pg_database where datname = this);
  if found is not null then
    raise exception 'in schema % there is %, in place of PostgreSQL''s own: drop it', ours, found;
  end if;
  perform set_config('search_path', path, true);
end
$$;

-- --- tables ------------------------------------------------------------------------------------------------

-- All at once: what is revoked, to be granted again, is gone at no moment for services that run.
begin;

-- Whether migrations are pending.
grant select on stepstream_migrations to
  stepstream_recorder, stepstream_aggregator, stepstream_relay, stepstream_mcp, stepstream_api, stepstream_operator;

-- The recorder: completions, starts, skips, showings, how far it is; and forgetting who was erased. What an event refers to stays
-- locked until the commit, for which PostgreSQL wants the right to update some column: one that decides nothing.
grant select, insert, update on
  walkthrough_step_completions, walkthrough_starts, walkthrough_step_skips, walkthrough_step_showings, recorded_offsets
to stepstream_recorder;
grant select, insert, update, delete on event_sources, refused_events to stepstream_recorder;
grant select, insert, update (last_at) on source_organizations to stepstream_recorder;
grant delete on walkthrough_step_completions to stepstream_recorder; -- what a correction covers
grant select, insert, update on completion_corrections to stepstream_recorder;
grant select, insert, update, delete on later_completions to stepstream_recorder;
grant select, insert on erased_users to stepstream_recorder;
grant insert on sankey_dirty to stepstream_recorder;
-- Nobody but who operates it reads e-mail addresses and profiles; earlier versions let them read the whole table.
revoke select on mcp_server_user from stepstream_recorder, stepstream_mcp;
grant select (id), update (first_seen_at), delete on mcp_server_user to stepstream_recorder;
grant select, update (connection_timestamp) on mcp_server_session to stepstream_recorder;
grant select, update (created_at) on mcp_servers, walkthroughs, walkthrough_steps to stepstream_recorder;
grant select, delete on outbox, outbox_set_aside to stepstream_recorder;
grant select, insert, update, delete on waiting_events to stepstream_recorder;
grant select, insert on gone_events to stepstream_recorder;
grant select, insert, update, delete on sent_events to stepstream_recorder;
grant select, delete on witnessed_events to stepstream_recorder;
grant select on counted_offsets to stepstream_recorder;
-- People and sessions of sources that may register on first sight.
grant insert (id, first_seen_at) on mcp_server_user to stepstream_recorder;
grant insert on mcp_server_session to stepstream_recorder;

-- The aggregator: journeys, counts and marks.
grant select, insert, update, delete on
  sankey_journeys, sankey_transitions, sankey_endings, sankey_dirty
to stepstream_aggregator;
grant select, insert, update on sankey_freshness to stepstream_aggregator;
grant select on
  recorded_offsets, walkthrough_step_completions, walkthrough_starts, walkthrough_step_skips,
  walkthrough_step_showings
to stepstream_aggregator;
grant select, insert, update on counted_offsets to stepstream_aggregator;
grant select, insert on gone_events to stepstream_aggregator;
grant select on sent_events to stepstream_aggregator;

-- The relay: the outbox.
grant select, update (created_at), delete on outbox to stepstream_relay; -- to lock a row, as above
grant select, update on outbox_shards to stepstream_relay;
grant select on outbox_shards to stepstream_operator;
grant select, insert on outbox_set_aside to stepstream_relay;
grant select, insert, update on sent_events to stepstream_relay;
grant insert on witnessed_events to stepstream_relay;

-- The MCP layer: people, their sessions and progress; events into the outbox, which it does not read.
grant
  select (id, distinct_id, upstream_sub), insert (id, distinct_id, upstream_sub, email, first_seen_at),
  update (first_seen_at)
on mcp_server_user to stepstream_mcp;
grant select, insert on mcp_user_identities to stepstream_mcp;
grant select, insert, update (mcp_server_user_id) on mcp_server_session to stepstream_mcp;
grant select, insert, update on mcp_live_sessions, walkthrough_progress to stepstream_mcp;
grant select, update (created_at) on mcp_servers, walkthroughs, walkthrough_steps to stepstream_mcp;
grant select on mcp_server_walkthroughs to stepstream_mcp;
grant select (id, mcp_server_user_id, walkthrough_id, step_id, completed_at) on walkthrough_step_completions to stepstream_mcp;
grant select (mcp_server_user_id, walkthrough_id, step_id, skipped_at) on walkthrough_step_skips to stepstream_mcp;
-- Its ids and times are the database's: with one of their own a row could take the place of another.
revoke insert on outbox from stepstream_mcp, stepstream_api, stepstream_operator;
grant insert (key, value, headers, type) on outbox to stepstream_mcp, stepstream_api, stepstream_operator;
grant select, insert on mcp_session_clients to stepstream_mcp;
grant select on registered_people to stepstream_mcp;

-- The API and the dashboard read.
grant select on
  organization, mcp_servers, mcp_server_session, mcp_server_walkthroughs, walkthroughs, walkthrough_steps,
  walkthrough_step_completions, walkthrough_starts, walkthrough_step_skips, walkthrough_step_showings, sankey_journeys,
  sankey_transitions, sankey_endings, sankey_freshness, sankey_dirty, api_keys, walkthrough_finish_rules,
  mcp_session_clients
to stepstream_api;
grant insert, update, delete on walkthrough_finish_rules to stepstream_api;
grant select (id, mcp_server_user_id, walkthrough_id) on waiting_events to stepstream_api;
-- Whose an event id is.
grant select (id, mcp_server_user_id, step_id, mcp_server_id, completed_at) on later_completions to stepstream_api;
grant select on recorded_offsets, counted_offsets, gone_events to stepstream_api;
grant select on event_sources, refused_events, source_organizations to stepstream_api;

-- What comes in by HTTP: people and sessions, and the events that Kafka does not take right now.
grant select, insert on registered_people to stepstream_api;
grant select (id, distinct_id), insert (id, first_seen_at) on mcp_server_user to stepstream_api;
grant insert, update (mcp_server_user_id) on mcp_server_session to stepstream_api;
grant select (id) on outbox to stepstream_api; -- how much waits there
grant select on erased_users to stepstream_api;

-- Versions of walkthroughs are read. Triggers write them, whoever edits the steps.
grant select on walkthrough_versions to stepstream_api, stepstream_operator;

-- Who operates it, beside what the consumers may: verify, rebuild, replay, dlq, erase, import, export, keys, backfill,
-- status, and what organizations, servers and walkthroughs there are.
grant select on organization, mcp_server_user, mcp_user_identities, walkthrough_progress to stepstream_operator;
grant select, insert on mcp_server_walkthroughs to stepstream_operator;
grant select, insert, update on api_keys to stepstream_operator;
grant select, insert, update, delete on dead_letters_handled to stepstream_operator;
grant update (acknowledged_at) on gone_events to stepstream_operator;
grant insert on mcp_server_session to stepstream_operator;
grant select, insert on registered_people to stepstream_operator;
grant insert (id, first_seen_at) on mcp_server_user to stepstream_operator;
grant update (mcp_server_user_id) on mcp_server_session to stepstream_operator;
-- `erase` of a person who is a source.
grant delete on source_organizations to stepstream_operator;
grant insert, update on walkthroughs, walkthrough_steps to stepstream_operator;
grant select, insert, update, delete on walkthrough_finish_rules to stepstream_operator;
grant insert on organization, mcp_servers to stepstream_operator;

-- A copy of the database that was made without privileges has them as they are by default.
revoke execute on function
  sankey_mark_deleted(), sankey_mark_inserted(), sankey_mark_updated(), sankey_mark_truncated(),
  walkthrough_version_begin(), walkthrough_version_finish(), walkthrough_versions_remove()
from public;

commit;

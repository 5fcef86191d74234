-- The least that each service needs, as a role for each. Run it as the owner of the tables, who may create roles,
-- after `stepstream migrate`, and again after each migration: it is safe to repeat.
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
do $$
declare
  role name;
begin
  foreach role in array array[
    'stepstream_recorder', 'stepstream_aggregator', 'stepstream_relay', 'stepstream_mcp', 'stepstream_api',
    'stepstream_operator'
  ] loop
    if not exists (select from pg_roles where rolname = role) then
      execute format('create role %I nologin', role);
    end if;
  end loop;
end
$$;

-- Temporary tables are for those alone whose work needs them, and nobody makes other objects beside our tables.
do $$
begin
  execute format('revoke temporary on database %I from public', current_database());
  execute format(
    'grant temporary on database %I to stepstream_recorder, stepstream_aggregator, stepstream_operator',
    current_database()
  );
  execute format('revoke create on schema %I from public', current_schema());
  execute format(
    'grant usage on schema %I to stepstream_recorder, stepstream_aggregator, stepstream_relay, stepstream_mcp, '
    'stepstream_api, stepstream_operator',
    current_schema()
  );
end
$$;

-- --- tables ------------------------------------------------------------------------------------------------

-- Whether migrations are pending.
grant select on stepstream_migrations to
  stepstream_recorder, stepstream_aggregator, stepstream_relay, stepstream_mcp, stepstream_api, stepstream_operator;

-- The recorder: completions, starts, how far it is; and forgetting who was erased. What an event refers to stays
-- locked until the commit, for which PostgreSQL wants the right to update some column: one that decides nothing.
grant select, insert, update on
  walkthrough_step_completions, walkthrough_starts, recorded_offsets
to stepstream_recorder;
grant select, insert on erased_users to stepstream_recorder;
grant insert on sankey_dirty to stepstream_recorder;
grant select, update (first_seen_at), delete on mcp_server_user to stepstream_recorder;
grant select, update (connection_timestamp) on mcp_server_session to stepstream_recorder;
grant select, update (created_at) on mcp_servers, walkthroughs, walkthrough_steps to stepstream_recorder;
grant select, delete on outbox, outbox_set_aside to stepstream_recorder;

-- The aggregator: journeys, counts and marks.
grant select, insert, update, delete on
  sankey_journeys, sankey_transitions, sankey_endings, sankey_dirty
to stepstream_aggregator;
grant select, insert, update on sankey_freshness to stepstream_aggregator;
grant select on recorded_offsets, walkthrough_step_completions, walkthrough_starts to stepstream_aggregator;

-- The relay: the outbox.
grant select, delete on outbox to stepstream_relay;
grant select, insert on outbox_set_aside to stepstream_relay;

-- The MCP layer: people, their sessions and progress; events into the outbox, which it does not read.
grant select, insert, update (first_seen_at) on mcp_server_user to stepstream_mcp;
grant select, insert on mcp_user_identities to stepstream_mcp;
grant select, insert, update (mcp_server_user_id) on mcp_server_session to stepstream_mcp;
grant select, insert, update on mcp_live_sessions, walkthrough_progress to stepstream_mcp;
grant select, update (created_at) on mcp_servers, walkthroughs, walkthrough_steps to stepstream_mcp;
grant select on mcp_server_walkthroughs to stepstream_mcp;
grant insert on outbox to stepstream_mcp;

-- The API and the dashboard read.
grant select on
  organization, mcp_servers, mcp_server_session, mcp_server_walkthroughs, walkthroughs, walkthrough_steps,
  walkthrough_step_completions, walkthrough_starts, sankey_journeys, sankey_transitions, sankey_endings,
  sankey_freshness, sankey_dirty, api_keys
to stepstream_api;

-- Who operates it: verify, rebuild, replay, dlq, erase, import, export, keys, backfill, status. A replay of a range
-- does the work of the consumers.
grant stepstream_recorder, stepstream_aggregator to stepstream_operator;
grant select on organization, mcp_user_identities, walkthrough_progress to stepstream_operator;
grant select, insert on mcp_server_walkthroughs to stepstream_operator;
grant select, insert, update on api_keys to stepstream_operator;
grant select, insert, update, delete on dead_letters_handled to stepstream_operator;
grant insert on outbox, mcp_server_session to stepstream_operator;
grant insert, update on walkthroughs, walkthrough_steps to stepstream_operator;

-- By which client somebody came: an agent tells its name and version, and they are kept with the session.
-- The function takes them as well; who calls it without them, as services of before do, still can.
-- squawk-ignore-file ban-drop-function
set local lock_timeout = '10s';

create table if not exists mcp_session_clients (
  mcp_server_session_id text primary key references mcp_server_session (mcp_server_session_id) on delete cascade,
  name text not null,
  version text,
  constraint mcp_session_clients_are_short check (length(name) between 1 and 100 and length(version) <= 100)
);
comment on table mcp_session_clients is
'The client that a session began with, as it calls itself: nobody has checked that. No row where it told nothing.';

drop function if exists mcp_save(
  text, text, text, text, text, text, boolean, bigint, bigint, text, text, jsonb, jsonb, text, bigint, bigint,
  text [], text [], jsonb [], text []
);

-- With the rights, and the search path, of who calls it, as any statement of theirs.
create or replace function mcp_save(
  who text,
  seen_sessions text,
  seen_progress text,
  server text,
  slug text,
  session text,
  is_session_ours boolean,
  now_ms bigint,
  shown_ms bigint,
  progress text,
  walkthrough text,
  completed jsonb,
  skipped jsonb,
  step text,
  started_ms bigint,
  finished_ms bigint,
  event_keys text [],
  event_values text [],
  event_headers jsonb [],
  event_types text [],
  client_name text default null,
  client_version text default null,
  out outcome text,
  out content jsonb
)
language plpgsql security invoker
as $$
declare
  is_changed boolean;
  is_there boolean;
  is_known boolean;
begin
  -- The calls of one person take turns. Foreign keys may refer to the row meanwhile.
  perform from mcp_server_user as person where person.id = who for no key update nowait;
  if not found then
    outcome := 'changed';
    return;
  end if;
  -- Each statement sees what was committed before it: here, what the lock's last holder wrote.
  select
    (
      select string_agg(live.xmin::text, ' ' order by live.mcp_server_id)
      from mcp_live_sessions as live
      where live.mcp_server_user_id = who
    ) is distinct from seen_sessions
    or (select kept.xmin::text from walkthrough_progress as kept where kept.id = progress) is distinct from seen_progress,
    exists (select from mcp_servers where mcp_servers.id = server)
    and exists (select from walkthroughs where walkthroughs.id = walkthrough),
    seen_progress is not null
    and exists (select from mcp_server_session as known where known.mcp_server_session_id = session)
    and exists (
      select from mcp_live_sessions as live where live.mcp_server_user_id = who and live.mcp_server_id = server
    )
  into is_changed, is_there, is_known;
  if is_changed then
    outcome := 'changed';
    return;
  end if;

  -- At all steps but the first of a session, what refers to server and walkthrough is there. Where it has to be made,
  -- both are locked before, from the outside in, as those lock who delete. All calls would lock the same two rows, and
  -- PostgreSQL writes down each group of those who do.
  if not is_known then
    perform from mcp_servers as offering
    cross join walkthroughs as offered
    where offering.id = server and offered.id = walkthrough
    for key share of offering, offered nowait;
    is_there := found;
  end if;
  if not is_there then
    outcome := 'gone';
    return;
  end if;
  if step is not null then
    select shown.content_fields into content from walkthrough_steps as shown where shown.id = step for key share nowait;
    if not found then
      outcome := 'gone';
      return;
    end if;
  end if;

  if not is_known then
    insert into mcp_server_session (
      mcp_server_session_id, mcp_server_slug, connection_date, connection_timestamp, mcp_server_user_id
    )
    values (session, slug, (to_timestamp(now_ms / 1000.0) at time zone 'utc')::date, now_ms, who)
    on conflict (mcp_server_session_id) do nothing;
    if client_name is not null then
      insert into mcp_session_clients (mcp_server_session_id, name, version)
      values (session, client_name, client_version)
      on conflict (mcp_server_session_id) do nothing;
    end if;
  end if;
  insert into mcp_live_sessions as kept (
    mcp_server_user_id, mcp_server_id, mcp_server_session_id, last_activity_at, shown_at
  )
  values (who, server, session, case when is_session_ours then now_ms else 0 end, shown_ms)
  on conflict (mcp_server_user_id, mcp_server_id) do update
  set
    mcp_server_session_id =
      case when is_session_ours then excluded.mcp_server_session_id else kept.mcp_server_session_id end,
    last_activity_at = greatest(kept.last_activity_at, excluded.last_activity_at),
    shown_at = excluded.shown_at;

  insert into walkthrough_progress as kept (
    id, mcp_server_user_id, walkthrough_id, completed_steps, current_step_id, started_at, completed_at,
    last_activity_at, metadata
  )
  values (
    progress, who, walkthrough, completed, step, started_ms, finished_ms, now_ms,
    case when skipped <> '[]' then jsonb_build_object('skippedSteps', skipped) end
  )
  on conflict (id) do update
  set
    completed_steps = excluded.completed_steps,
    current_step_id = excluded.current_step_id,
    started_at = excluded.started_at,
    completed_at = excluded.completed_at,
    last_activity_at = excluded.last_activity_at,
    -- What else is in it is the platform's; what is no object is kept in one.
    metadata = case
      when excluded.metadata is null and jsonb_typeof(kept.metadata) = 'object' then kept.metadata - 'skippedSteps'
      when excluded.metadata is null then kept.metadata
      when jsonb_typeof(kept.metadata) = 'object' then kept.metadata || excluded.metadata
      when kept.metadata is null or jsonb_typeof(kept.metadata) = 'null' then excluded.metadata
      else jsonb_build_object('before', kept.metadata) || excluded.metadata
    end;

  if cardinality(event_keys) > 0 then
    insert into outbox (key, value, headers, type)
    select event.key, event.value, event.headers, event.type
    from unnest(event_keys, event_values, event_headers, event_types)
      with ordinality as event (key, value, headers, type, number)
    order by event.number;
  end if;
  outcome := 'saved';
end
$$;
comment on function mcp_save is
'Writes progress, session and events of a call together, and returns the content of the step to show. `changed`: '
'another call of the person was committed since the rows were seen whose versions are given, or the person is gone. '
'`gone`: the server, the walkthrough or the step is. Then nothing is written. Raises lock_not_available where somebody '
'else has locked one of them.';

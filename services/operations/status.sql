-- name: status_newest_recorded
-- The newest of each server's, by the index on (server, time).
select max(newest.completed_at) as newest_recorded
from mcp_servers
cross join lateral (
  select completed_at from walkthrough_step_completions as row_
  where row_.mcp_server_id = mcp_servers.id
  order by completed_at desc
  limit 1
) as newest;

-- name: status_newest_counted
select nullif(max(newest_at), 0) as newest_counted from sankey_freshness;

-- name: status_marks
-- And those that wait for a lock, and for which rows, as far as the first say.
select
  count(*) filter (where waits_for is null) as marks,
  count(*) filter (where waits_for is not null) as journeys_waiting,
  coalesce(extract(epoch from clock_timestamp() - min(since)), 0)::double precision as journeys_waiting_seconds,
  array(
    select waits_for
    from (select id, waits_for from sankey_dirty where waits_for is not null order by id limit 1000) as first
    group by waits_for
    order by min(id)
    limit 3
  ) as journeys_wait_for
from sankey_dirty;

-- name: status_count_lockers
-- Whose transaction has locked one of these rows of the counts; a service of ours last, which holds them for a moment.
select
  held.pid,
  coalesce(holder.usename, prepared.owner, '') as role,
  coalesce(holder.application_name, '') as application,
  prepared.gid as prepared
from (
  select xmax from sankey_journeys where mcp_server_user_id = any($1::text[])
  union all
  select xmax from sankey_transitions where walkthrough_id = any($1::text[])
  union all
  select xmax from sankey_endings where walkthrough_id = any($1::text[])
  union all
  select xmax from sankey_freshness where walkthrough_id = any($1::text[])
) as locked
inner join pg_locks as held on locked.xmax = held.transactionid and held.granted and held.mode = 'ExclusiveLock'
left join pg_stat_activity as holder on held.pid = holder.pid
left join pg_prepared_xacts as prepared on locked.xmax = prepared.transaction
group by held.pid, holder.usename, holder.application_name, prepared.owner, prepared.gid
order by coalesce(holder.application_name, '') = 'stepstream sankey-aggregator', held.pid nulls first, prepared.gid
limit 3;

-- name: status_tables
-- Tables that somebody has locked whole for more than a moment; seen without reading them. Since when another role
-- has them PostgreSQL may keep to itself: then those of services are left out, which have them for a moment.
select coalesce(jsonb_agg(to_jsonb(locked) order by locked.name, locked.pid), '[]') as tables_locked
from (
  select
    locked_table.relname as name,
    held.mode,
    held.pid,
    coalesce(holder.usename, prepared.owner) as role,
    holder.application_name as application,
    prepared.gid as prepared,
    extract(epoch from clock_timestamp() - coalesce(holder.xact_start, prepared.prepared))::double precision as seconds
  from pg_locks as held
  inner join pg_class as locked_table on held.relation = locked_table.oid
  left join pg_stat_activity as holder on held.pid = holder.pid
  -- The locks of a prepared transaction have no process; that on its own id says which it is.
  left join pg_locks as own
    on held.pid is null and own.pid is null and own.virtualtransaction = held.virtualtransaction
    and own.locktype = 'transactionid'
  left join pg_prepared_xacts as prepared on own.transactionid = prepared.transaction
  where
    held.granted
    and held.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    and held.database = (select oid from pg_database where datname = current_database())
    and locked_table.relkind = 'r'
    and locked_table.relnamespace = to_regnamespace(current_schema())
    and coalesce(holder.xact_start, prepared.prepared, '-infinity') < clock_timestamp() - interval '1 second'
    and (holder.xact_start is not null or holder.application_name is null or holder.application_name not like 'stepstream %')
) as locked;

-- name: status_prepared
-- Transactions that were prepared, and that nobody has ended for a minute: they belong to no process.
select coalesce(jsonb_agg(to_jsonb(forgotten) order by forgotten.seconds desc), '[]') as prepared_transactions
from (
  select
    gid as prepared,
    owner as role,
    extract(epoch from clock_timestamp() - prepared)::double precision as seconds
  from pg_prepared_xacts
  where database = current_database() and prepared < clock_timestamp() - interval '1 minute'
  order by prepared
  limit 10
) as forgotten;

-- name: status_snapshots
-- Transactions that are open for more than $1 seconds, and keep vacuum from removing what was changed since. Of other
-- roles PostgreSQL shows them to superusers and to members of pg_read_all_stats.
select coalesce(jsonb_agg(to_jsonb(open_) order by open_.seconds desc), '[]') as old_snapshots
from (
  select
    pid,
    usename as role,
    application_name as application,
    extract(epoch from clock_timestamp() - xact_start)::double precision as seconds
  from pg_stat_activity
  where
    datname = current_database()
    and pid <> pg_backend_pid()
    and backend_type = 'client backend'
    and query not ilike 'vacuum%'
    and (backend_xmin is not null or backend_xid is not null)
    and xact_start < clock_timestamp() - make_interval(secs => $1)
  order by xact_start
  limit 10
) as open_;

-- name: status_transactions
-- For how many seconds the oldest transaction has been open, whatever it has read or locked; and of how many that
-- PostgreSQL does not tell, for they are of roles whose activity is not shown. Services have a bound of their own.
select
  coalesce(max(seconds), 0) as oldest_transaction_seconds,
  count(*) filter (where seconds is null)::integer as transactions_not_told
from (
  select extract(epoch from clock_timestamp() - holder.xact_start)::double precision as seconds
  from pg_locks as held
  inner join pg_stat_activity as holder on held.pid = holder.pid
  where
    held.locktype = 'virtualxid'
    and held.mode = 'ExclusiveLock'
    and held.granted
    and held.pid <> pg_backend_pid()
    and holder.usename is not null
    and holder.datname = current_database()
    and (holder.xact_start is not null or holder.application_name not like 'stepstream _%')
  union all
  select extract(epoch from clock_timestamp() - prepared)::double precision
  from pg_prepared_xacts
  where database = current_database()
) as open_;

-- name: status_positions
-- Positions that somebody but the services has locked: their partitions stand still.
select coalesce(jsonb_agg(to_jsonb(locked) order by locked.service, locked.partition), '[]') as positions_locked
from (
  select
    kept.service,
    kept.partition,
    held.pid,
    coalesce(holder.usename, prepared.owner) as role,
    holder.application_name as application,
    prepared.gid as prepared
  from (
    select 'completion-recorder' as service, topic, partition, xmax from recorded_offsets
    union all
    select 'sankey-aggregator', topic, partition, xmax from counted_offsets
  ) as kept
  inner join pg_locks as held on kept.xmax = held.transactionid and held.granted and held.mode = 'ExclusiveLock'
  left join pg_stat_activity as holder on held.pid = holder.pid
  left join pg_prepared_xacts as prepared on kept.xmax = prepared.transaction
  where
    kept.topic = $1
    and holder.application_name is distinct from 'stepstream ' || kept.service
) as locked;

-- name: status_shards
-- Shards of the outbox that somebody but a relay has locked: nobody sends the events in them.
select coalesce(jsonb_agg(to_jsonb(locked) order by locked.pid), '[]') as shards_locked
from (
  select
    count(*) as shards,
    held.pid,
    coalesce(holder.usename, prepared.owner) as role,
    holder.application_name as application,
    prepared.gid as prepared
  from outbox_shards as kept
  inner join pg_locks as held on kept.xmax = held.transactionid and held.granted and held.mode = 'ExclusiveLock'
  left join pg_stat_activity as holder on held.pid = holder.pid
  left join pg_prepared_xacts as prepared on kept.xmax = prepared.transaction
  where holder.application_name is distinct from 'stepstream outbox-relay'
  group by held.pid, holder.usename, prepared.owner, holder.application_name, prepared.gid
) as locked;

-- name: status_outbox
select
  count(*) as outbox,
  coalesce(extract(epoch from clock_timestamp() - min(created_at)), 0)::double precision as outbox_seconds
from outbox;

-- name: status_set_aside
select count(*) as set_aside from outbox_set_aside;

-- name: status_waiting
-- Events that wait for a lock, and for which rows, as far as the oldest say.
select
  count(*) as events_waiting,
  coalesce(extract(epoch from clock_timestamp() - min(since)), 0)::double precision as events_waiting_seconds,
  array(
    select waits_for from (select id, waits_for from waiting_events order by id limit 1000) as oldest
    group by waits_for
    order by min(id)
    limit 3
  ) as waits_for
from waiting_events;

-- name: status_lockers
-- Whose transaction has locked one of these rows. A row that several have locked at once does not say.
select distinct
  held.pid,
  coalesce(holder.usename, prepared.owner, '') as role,
  coalesce(holder.application_name, '') as application,
  prepared.gid as prepared
from (
  select xmax from mcp_server_user where id = any($1::text[])
  union all
  select xmax from mcp_server_session where mcp_server_session_id = any($1::text[])
  union all
  select xmax from mcp_servers where id = any($1::text[])
  union all
  select xmax from walkthroughs where id = any($1::text[])
  union all
  select xmax from walkthrough_steps where id = any($1::text[])
  union all
  select xmax from walkthrough_step_completions where mcp_server_user_id = any($1::text[])
  union all
  select xmax from walkthrough_starts where mcp_server_user_id = any($1::text[])
  union all
  select xmax from walkthrough_step_skips where mcp_server_user_id = any($1::text[])
  union all
  select xmax from walkthrough_step_showings where mcp_server_user_id = any($1::text[])
) as locked
inner join pg_locks as held on locked.xmax = held.transactionid and held.granted and held.mode = 'ExclusiveLock'
left join pg_stat_activity as holder on held.pid = holder.pid
left join pg_prepared_xacts as prepared on locked.xmax = prepared.transaction
order by held.pid nulls first, prepared.gid
limit 3;

-- name: status_handled
select count(*) as handled from dead_letters_handled;

-- name: status_sources
-- Of which sources events were refused within the last day, and which do not partition as they should.
select
  coalesce((
    select jsonb_agg(to_jsonb(refused) order by refused.last_at desc)
    from (
      select
        source,
        sum(events)::bigint as events,
        max(last_at) as last_at,
        array_agg(distinct rejection) as classes
      from refused_events
      where topic = $1 and last_at > clock_timestamp() - interval '1 day'
      group by source
      order by max(last_at) desc
      limit 10
    ) as refused
  ), '[]') as refused_by_source,
  coalesce((
    select jsonb_agg(to_jsonb(odd) order by odd.events desc)
    from (
      select
        source,
        events,
        looked_at,
        elsewhere,
        without_key
      from event_sources
      where topic = $1 and looked_at >= $2::bigint and 100 * (elsewhere + without_key) >= $3::bigint * looked_at
      order by events desc
      limit 10
    ) as odd
  ), '[]') as odd_partitions;

-- name: status_services
-- Who is connected to this database; each service says its name.
select
  substr(application_name, length('stepstream ') + 1) as service,
  count(*)::integer as connections
from pg_stat_activity
where datname = current_database() and application_name like 'stepstream _%'
group by 1;

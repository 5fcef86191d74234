-- name: open_transactions
-- Transactions that others have open in this database: a name of each, and for how many seconds it has been. Of
-- other roles PostgreSQL may keep that to itself; that there is one it tells everybody. Vacuum's own worker is nobody.
select
  held.virtualtransaction as name,
  extract(epoch from clock_timestamp() - holder.xact_start)::double precision as seconds
from pg_locks as held
inner join pg_stat_activity as holder on held.pid = holder.pid
where
  held.locktype = 'virtualxid'
  and held.mode = 'ExclusiveLock'
  and held.granted
  and held.pid <> pg_backend_pid()
  and holder.usename is not null
  and holder.datname = current_database()
union all
select
  gid,
  extract(epoch from clock_timestamp() - prepared)::double precision
from pg_prepared_xacts
where database = current_database();

-- name: say_who
select set_config('application_name', $1, false);

-- name: lock_act
-- One operator at a time, until the connection ends.
select pg_try_advisory_lock($1::bigint);

-- name: holder_of_act
-- Whose connection has the lock. Of other roles' connections PostgreSQL shows not everything to everybody.
select
  holder.pid,
  holder.usename as role,
  holder.application_name,
  host(holder.client_addr) as address,
  holder.backend_start as since
from pg_locks
inner join pg_stat_activity as holder on pg_locks.pid = holder.pid
where
  pg_locks.locktype = 'advisory' and pg_locks.granted and pg_locks.objsubid = 1
  and pg_locks.database = (select oid from pg_database where datname = current_database())
  and pg_locks.classid::bigint = $1::bigint >> 32 and pg_locks.objid::bigint = $1::bigint & 4294967295;

-- name: identity
-- Which database this is: a copy of it, and one that was left behind by a failover, are others.
select
  (select system_identifier from pg_control_system()) as system,
  (select oid::bigint from pg_database where datname = current_database()) as oid,
  case
    when not pg_is_in_recovery() then ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer
  end as timeline;

-- name: search_path
select
  pg_catalog.current_setting('search_path') as setting,
  pg_catalog.current_schemas(false) as schemas;

-- name: set_search_path
select pg_catalog.set_config('search_path', $1, true);

-- name: foreign_objects
-- What others have put into these schemas that would be taken for ours ($2) or for PostgreSQL's own: where a function
-- fits a call better than PostgreSQL's, it is called, with the rights of whoever calls it. Others are all but
-- superusers, the database's owner, and roles that the current user is or is a member of. To be asked with nothing but
-- pg_catalog on the search path.
with
others as (
  select oid as id from pg_roles
  where
    not rolsuper and rolname <> current_user
    and oid <> (select datdba from pg_database where datname = current_database())
    and (
      (select rolsuper from pg_roles where rolname = current_user) or not pg_has_role(current_user, oid, 'member')
    )
),
ours as (
  select oid as id from pg_namespace
  where nspname = any($1::name[])
)
select
  'function ' || pg_proc.oid::regprocedure::text as what,
  pg_get_userbyid(proowner)::text as owner
from pg_proc
where
  pronamespace in (select id from ours) and proowner in (select id from others)
  and (
    proname = any($2::name[])
    or proname in (select proname from pg_proc where pronamespace = 'pg_catalog'::regnamespace)
  )
union all
select
  'operator ' || pg_operator.oid::regoperator::text,
  pg_get_userbyid(oprowner)::text
from pg_operator
where oprnamespace in (select id from ours) and oprowner in (select id from others)
union all
select
  'table ' || pg_class.oid::regclass::text,
  pg_get_userbyid(relowner)::text
from pg_class
where
  relnamespace in (select id from ours) and relowner in (select id from others) and relname = any($2::name[])
order by 1;

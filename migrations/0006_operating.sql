-- What operators need: who was erased, what became of dead letters, API keys, and how fresh the counts are.
set local lock_timeout = '10s';

create table if not exists erased_users (
  mcp_server_user_id text primary key,
  erased_at bigint not null,
  event_id text not null
);
comment on table erased_users is
  'People who were erased: no event of theirs counts any more, whichever order they are read in.';

create table if not exists dead_letters_handled (
  topic text not null,
  partition integer not null,
  "offset" bigint not null,
  action text not null check (action in ('redriving', 'redriven', 'dropped')),
  handled_at timestamptz not null default clock_timestamp(),
  to_partition integer,
  searched_from bigint,
  to_offset bigint,
  primary key (topic, partition, "offset")
);
comment on table dead_letters_handled is
  'What operators did with dead letters, by the topic, partition and offset of the refused record.';
comment on column dead_letters_handled.searched_from is
  'While redriving: where in to_partition the copy can be found, should the operator have been interrupted.';

create table if not exists api_keys (
  id text primary key,
  organization_id text not null references organization (id) on delete cascade,
  name text not null,
  hash bytea not null,
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz,
  revoked_at timestamptz
);
comment on table api_keys is 'Keys of the analytics API, of an organization; the hash is SHA-256 of the secret.';
create index if not exists api_keys_organization_idx on api_keys (organization_id);

create table if not exists sankey_freshness (
  walkthrough_id text primary key,
  newest_at bigint not null
) with (fillfactor = 60);
comment on table sankey_freshness is 'The time of the newest event that was counted, in milliseconds.';
insert into sankey_freshness (walkthrough_id, newest_at)
select
  walkthrough_id,
  max(coalesce(completed_at[cardinality(completed_at)], started_at))
from sankey_journeys
where started_at is not null or cardinality(completed_at) > 0
group by walkthrough_id
on conflict (walkthrough_id) do nothing;

-- A journey that makes no sense would stop the aggregator: it cannot be written. Rows that are there are not
-- looked at, so that no old row stands in the way of a new version.
alter table sankey_journeys add constraint sankey_journeys_make_sense check (
  cardinality(step_ids) = cardinality(completed_at)
  and (mcp_server_id is null) = (cardinality(step_ids) = 0 and started_at is null)
  and array_position(step_ids, null) is null
  and array_position(completed_at, null) is null
  and started_at between 0 and 253402300799999
  and 0 <= all(completed_at)
  and 253402300799999 >= all(completed_at)
) not valid;

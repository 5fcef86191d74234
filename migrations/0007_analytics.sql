-- What the analytics API reads by: the journeys of a walkthrough, and whether its counts have changed.
set local lock_timeout = '10s';

-- Journeys insert into it once; equal keys share their entry, so that it takes some 7 bytes a journey.
-- squawk-ignore require-concurrent-index-creation
create index if not exists sankey_journeys_walkthrough_idx on sankey_journeys (walkthrough_id);

alter table sankey_freshness add column if not exists changes bigint not null default 0;
comment on column sankey_freshness.changes is
  'How often the counts of this walkthrough were changed: whoever saw the same number saw the same counts.';
comment on table sankey_freshness is
  'By walkthrough: the time of the newest event that was counted, in milliseconds (0: none), and a change number.';

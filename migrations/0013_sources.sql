-- Who sends what: events by source, and what of them is refused, so that each producer can be told.
set local lock_timeout = '10s';

create table if not exists event_sources (
  topic text not null,
  source text not null,
  events bigint not null default 0,
  refused bigint not null default 0,
  looked_at bigint not null default 0,
  elsewhere bigint not null default 0,
  without_key bigint not null default 0,
  known boolean not null default false,
  first_at timestamptz not null default clock_timestamp(),
  last_at timestamptz not null default clock_timestamp(),
  primary key (topic, source)
);
comment on table event_sources is
  'Events by source, each counted when it is read for the first time; those of the last seconds before a crash may be missing.';
comment on column event_sources.known is 'Enough of its events were recorded: this database belongs to the topic.';
comment on column event_sources.elsewhere is
  'Of the looked_at events, a sample, those that are in another partition than Kafka''s default partitioner chooses for their key.';
comment on column event_sources.without_key is 'Of the looked_at events, those without a key.';

create table if not exists refused_events (
  topic text not null,
  source text not null,
  organization_id text not null,
  rejection text not null,
  events bigint not null,
  first_at timestamptz not null default clock_timestamp(),
  last_at timestamptz not null default clock_timestamp(),
  partition integer not null,
  last_offset bigint not null,
  message text not null,
  fields jsonb not null,
  primary key (topic, source, organization_id, rejection)
);
comment on table refused_events is
  'Dead letters by source, organization and class, counted when each event is read for the first time; with the last one as an example.';
comment on column refused_events.organization_id is
  'Whose server, or walkthrough, the events name; empty where they name none that exists.';
comment on column refused_events.fields is 'What the example looks like: the names of its fields with their types, and no content.';
create index if not exists refused_events_organization_idx on refused_events (organization_id);

create table if not exists source_organizations (
  topic text not null,
  source text not null,
  organization_id text not null references organization (id) on delete cascade,
  last_at timestamptz not null default clock_timestamp(),
  primary key (topic, source, organization_id)
);
comment on table source_organizations is
  'Of which organizations'' servers events of a source were recorded.';
create index if not exists source_organizations_organization_idx on source_organizations (organization_id);

-- A database that holds completions has recorded them from the topics that it knows.
insert into event_sources (topic, source, known)
select distinct
  recorded_offsets.topic,
  '(no source)',
  true
from recorded_offsets
where exists (select from walkthrough_step_completions)
on conflict do nothing;

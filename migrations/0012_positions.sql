-- The position is with the data: where recorder and aggregator read on is written with what it covers, and says
-- which log it is of. Kafka's committed offsets are a copy for tools.
set local lock_timeout = '10s';

alter table recorded_offsets add column if not exists reads_from bigint;
alter table recorded_offsets add column if not exists marks_until bigint not null default 0;
alter table recorded_offsets add column if not exists cluster_id text not null default '';
alter table recorded_offsets add column if not exists topic_id text not null default '';
alter table recorded_offsets add column if not exists leader_epoch integer;
alter table recorded_offsets add column if not exists last_offset bigint;
alter table recorded_offsets add column if not exists last_timestamp bigint;
alter table recorded_offsets add column if not exists last_checksum bigint;
alter table recorded_offsets add column if not exists digest bigint not null default 0;
alter table recorded_offsets add column if not exists digest_events bigint not null default 0;
alter table recorded_offsets add column if not exists digest_from bigint;
comment on table recorded_offsets is
  'How far the recorder has come: every offset below next_offset has been judged, and what it changed is committed.';
comment on column recorded_offsets.reads_from is
  'Where the recorder reads on: below next_offset while events are read again. Null is next_offset.';
comment on column recorded_offsets.marks_until is
  'What events below this offset change leaves marks, as below next_offset: a log before this one went so far.';
comment on column recorded_offsets.cluster_id is 'Of the Kafka cluster that these offsets are of.';
comment on column recorded_offsets.topic_id is 'Of the topic that these offsets are of: another one when it is made anew.';
comment on column recorded_offsets.leader_epoch is 'The partition''s leader epoch up to which the log is known to be the same.';
comment on column recorded_offsets.last_offset is 'Of the last record below next_offset; with its time and a checksum of key and value.';
comment on column recorded_offsets.digest is 'Of the records from digest_from to next_offset, digest_events of them: a sum of a hash of each.';

create table if not exists counted_offsets (
  topic text not null,
  partition integer not null,
  next_offset bigint not null,
  reads_from bigint,
  marks_until bigint not null default 0,
  cluster_id text not null default '',
  topic_id text not null default '',
  leader_epoch integer,
  last_offset bigint,
  last_timestamp bigint,
  last_checksum bigint,
  digest bigint not null default 0,
  digest_events bigint not null default 0,
  digest_from bigint,
  primary key (topic, partition)
);
comment on table counted_offsets is
  'As recorded_offsets, of the aggregator: the journeys of every event below next_offset are counted.';

create table if not exists gone_events (
  id bigint generated always as identity primary key,
  noticed_at timestamptz not null default clock_timestamp(),
  topic text not null,
  partition integer not null,
  cause text not null check (cause in ('expired', 'cut', 'topic-made-anew', 'moved', 'skipped')),
  from_offset bigint not null,
  until_offset bigint,
  judged_until bigint,
  before_at bigint,
  after_at bigint,
  acknowledged_at timestamptz,
  check (until_offset > from_offset)
);
comment on table gone_events is
  'Offsets whose events Kafka has no more, or that an operator left behind: what they held is not in the tables, unless it was judged before.';
comment on column gone_events.cause is
  'expired: by retention, before they were read. cut: the log lost its end, after which other events came. topic-made-anew: what followed in the old topic. moved: what followed in another cluster. skipped: by an operator.';
comment on column gone_events.until_offset is 'Exclusive; null is not known.';
comment on column gone_events.judged_until is
  'Up to this offset, exclusively, they had been judged before they were gone: what they held is in the tables.';
comment on column gone_events.before_at is
  'When the last event before them came to Kafka, in milliseconds since the epoch; after_at is when the first after them did.';

create index if not exists gone_events_open_idx on gone_events (id) where acknowledged_at is null;

create table if not exists sent_events (
  topic text not null,
  partition integer not null,
  last_offset bigint not null,
  last_timestamp bigint not null,
  last_checksum bigint not null,
  contested boolean not null default false,
  primary key (topic, partition)
);
comment on column sent_events.contested is
  'A later event was acknowledged at an earlier offset: this one stays until a recorder has looked whether it is there.';
comment on table sent_events is
  'The last event of each partition that Kafka has acknowledged to a relay: if it is not there after an election, the log was cut.';

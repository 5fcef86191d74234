-- What relays know to be in Kafka, for a database that has forgotten it.
set local lock_timeout = '10s';

create table if not exists witnessed_events (
  topic text not null,
  topic_id text not null,
  partition integer not null,
  leader_epoch integer not null,
  last_offset bigint not null,
  last_timestamp bigint not null,
  last_checksum bigint not null,
  primary key (topic, topic_id, partition, leader_epoch, last_offset)
);
comment on table witnessed_events is
  'Events that Kafka had acknowledged to a relay before this database took the place of another: the recorder looks whether they are there, and removes the row.';
comment on column witnessed_events.leader_epoch is
  'Of the partition when the event was sent, or an earlier one: a cut that took the event away is where it ends.';
comment on column witnessed_events.last_timestamp is
  'When the event came to Kafka, in milliseconds since the epoch.';

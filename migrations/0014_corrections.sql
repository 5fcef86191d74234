-- What operators decided about completions, and the completions that count once an earlier one does not.
set local lock_timeout = '10s';

create table if not exists completion_corrections (
  mcp_server_user_id text not null references mcp_server_user (id) on delete cascade,
  step_id text not null references walkthrough_steps (id) on delete cascade,
  event_id text not null,
  walkthrough_id text not null references walkthroughs (id) on delete cascade,
  mcp_server_id text not null references mcp_servers (id) on delete cascade,
  mcp_server_session_id text not null references mcp_server_session (mcp_server_session_id) on delete cascade,
  corrected_at bigint not null,
  covers_until bigint not null,
  completed_at bigint,
  primary key (mcp_server_user_id, step_id)
);
comment on table completion_corrections is
  'For each user and step the correction that decides: the event with the largest (corrected_at, event id).';
comment on column completion_corrections.covers_until is
  'No completion up to this time counts, in milliseconds: the largest of all corrections of the user and step.';
comment on column completion_corrections.completed_at is
  'The completion that the correction says there was, in milliseconds; null is none.';
create index if not exists completion_corrections_step_idx on completion_corrections (step_id);
create index if not exists completion_corrections_walkthrough_idx on completion_corrections (walkthrough_id);
create index if not exists completion_corrections_server_idx on completion_corrections (mcp_server_id);
create index if not exists completion_corrections_session_idx on completion_corrections (mcp_server_session_id);

create table if not exists later_completions (
  id text not null,
  mcp_server_user_id text not null references mcp_server_user (id) on delete cascade,
  walkthrough_id text not null references walkthroughs (id) on delete cascade,
  step_id text not null references walkthrough_steps (id) on delete cascade,
  mcp_server_id text not null references mcp_servers (id) on delete cascade,
  mcp_server_session_id text not null references mcp_server_session (mcp_server_session_id) on delete cascade,
  completed_at bigint not null,
  metadata jsonb,
  primary key (mcp_server_user_id, step_id, completed_at, id)
);
comment on table later_completions is
  'Completions of a user and step that do not count because an earlier one does: the next counts once a correction covers that.';
create index if not exists later_completions_step_idx on later_completions (step_id);
create index if not exists later_completions_walkthrough_idx on later_completions (walkthrough_id);
create index if not exists later_completions_server_idx on later_completions (mcp_server_id);
create index if not exists later_completions_session_idx on later_completions (mcp_server_session_id);

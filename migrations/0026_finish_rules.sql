-- When a journey of a walkthrough is finished, where that is not by passing every step; and which API keys may set it.
set local lock_timeout = '10s';

create table if not exists walkthrough_finish_rules (
  walkthrough_id text primary key references walkthroughs (id) on delete cascade,
  goal_step_ids text [] not null default '{}',
  optional_step_ids text [] not null default '{}',
  end_step_ids text [] not null default '{}',
  changed_at timestamptz not null default clock_timestamp(),
  constraint walkthrough_finish_rules_make_sense check (
    array_position(goal_step_ids, null) is null
    and array_position(optional_step_ids, null) is null
    and array_position(end_step_ids, null) is null
    and cardinality(goal_step_ids) + cardinality(optional_step_ids) + cardinality(end_step_ids) > 0
  )
);
comment on table walkthrough_finish_rules is
'When journeys of a walkthrough count as finished; without a row, when every step that is not optional is completed or '
'skipped. Steps that are gone do not count.';
comment on column walkthrough_finish_rules.goal_step_ids is
'Where there are any, a journey is finished that completed one of these, and no other.';
comment on column walkthrough_finish_rules.optional_step_ids is
'Steps that need not be passed, beside those that are optional for agents.';
comment on column walkthrough_finish_rules.end_step_ids is
'A journey whose last step is one of these is finished as well.';

alter table api_keys add column if not exists may_edit boolean not null default false;
comment on column api_keys.may_edit is
'Whether it may set finish rules, beside reading.';

-- A journey passes a step by completing or by skipping it, and something stood before the person when they stopped.
-- The columns that are computed are virtual: no table is written anew. The unique constraints are of the tables of counts,
-- which are small; they keep their names. The function has another name, so that an aggregator of before cannot go on: it
-- would pass over what is skipped and shown. What it has passed over all the same the first one of this version looks at.
-- squawk-ignore-file adding-field-with-default, ban-drop-constraint, constraint-missing-not-valid
-- squawk-ignore-file disallowed-unique-constraint, ban-drop-function
set local lock_timeout = '10s';

alter table sankey_journeys
add column if not exists skipped boolean [],
add column if not exists shown_at bigint [],
add column if not exists shown_step_id text,
add column if not exists first_shown_at bigint,
add column if not exists began_at bigint generated always as (
  coalesce(started_at, completed_at[1], first_shown_at)
) virtual,
add column if not exists last_active_at bigint generated always as (
  coalesce(completed_at[cardinality(completed_at)], started_at, first_shown_at)
) virtual,
add column if not exists steps_skipped integer generated always as (
  coalesce(cardinality(array_positions(skipped, true)), 0)
) virtual;
comment on table sankey_journeys is
'What has been counted of each journey: its server, when it was opened, and the steps that were passed, in order.';
comment on column sankey_journeys.step_ids is
'The steps that were completed, and those that were skipped and not completed.';
comment on column sankey_journeys.completed_at is
'When each of them was completed or skipped, in milliseconds.';
comment on column sankey_journeys.skipped is
'Which of them were skipped; null where none was.';
comment on column sankey_journeys.shown_at is
'When each of them was shown last, or, where that was later than it was passed, first; null where it was not shown by '
'then, and instead of the array where that is so of all.';
comment on column sankey_journeys.shown_step_id is
'What was shown last of the steps that are not passed; null where that is not known, or there is none.';
comment on column sankey_journeys.first_shown_at is
'When anything was shown first, in milliseconds; null where the journey has a start or a step.';

alter table sankey_journeys drop constraint if exists sankey_journeys_make_sense;
alter table sankey_journeys add constraint sankey_journeys_make_sense check (
  cardinality(step_ids) = cardinality(completed_at)
  and (mcp_server_id is null) = (cardinality(step_ids) = 0 and started_at is null and first_shown_at is null)
  and array_position(step_ids, null) is null
  and array_position(completed_at, null) is null
  and started_at between 0 and 253402300799999
  and first_shown_at between 0 and 253402300799999
  and 0 <= all(completed_at)
  and 253402300799999 >= all(completed_at)
  and cardinality(skipped) = cardinality(step_ids)
  and array_position(skipped, null) is null
  and cardinality(shown_at) = cardinality(step_ids)
) not valid;

alter table counted_offsets add column if not exists follows_showings boolean not null default false;
alter table counted_offsets alter column follows_showings set default true;
comment on column counted_offsets.follows_showings is
'Whether an aggregator that counts skips and showings was here: the first one marks all journeys that have any.';

alter table sankey_transitions
add column if not exists skipped boolean not null default false,
add column if not exists active_ms numeric not null default 0,
add column if not exists active_journeys bigint not null default 0;
comment on column sankey_transitions.skipped is
'Whether to_step_id was skipped.';
comment on column sankey_transitions.active_ms is
'The sum of the milliseconds from when to_step_id was shown to when it was completed or skipped, over active_journeys.';
alter table sankey_transitions drop constraint if exists sankey_transitions_unique;
alter table sankey_transitions add constraint sankey_transitions_unique unique nulls not distinct (
  walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id, skipped
);

alter table sankey_endings
add column if not exists steps_skipped integer not null default 0,
add column if not exists shown_step_id text;
comment on table sankey_endings is
'Where journeys stand now: steps completed and skipped, the last of them, what is shown to them, the UTC day of their '
'last activity.';
alter table sankey_endings drop constraint if exists sankey_endings_unique;
alter table sankey_endings add constraint sankey_endings_unique unique nulls not distinct (
  walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on, steps_skipped, shown_step_id
);

drop function if exists sankey_journey_of_rows(text, text);
create or replace function sankey_journey_from_rows(of_user text, of_walkthrough text)
returns table (
  mcp_server_id text,
  started_at bigint,
  first_shown_at bigint,
  step_ids text [],
  completed_at bigint [],
  skipped boolean [],
  shown_at bigint [],
  shown_step_id text
)
language sql
stable
parallel safe
begin atomic
  select
    coalesce(start.mcp_server_id, passed.mcp_server_id, seen.mcp_server_id),
    start.started_at,
    case when start.started_at is null and passed.step_ids is null then seen.first_shown_at end,
    coalesce(passed.step_ids, '{}'),
    coalesce(passed.completed_at, '{}'),
    case when passed.any_skipped then passed.skipped end,
    case when passed.any_shown then passed.shown_at end,
    seen.shown_step_id
  from (
    select
      (array_agg(pass.mcp_server_id order by pass.passed_at, pass.id collate "C"))[1] as mcp_server_id,
      array_agg(pass.step_id order by pass.passed_at, pass.id collate "C") as step_ids,
      array_agg(pass.passed_at order by pass.passed_at, pass.id collate "C") as completed_at,
      array_agg(pass.is_skip order by pass.passed_at, pass.id collate "C") as skipped,
      array_agg(pass.shown_at order by pass.passed_at, pass.id collate "C") as shown_at,
      bool_or(pass.is_skip) as any_skipped,
      bool_or(pass.shown_at is not null) as any_shown
    from (
      select
        row_.id,
        row_.step_id,
        row_.mcp_server_id,
        row_.passed_at,
        row_.is_skip,
        case
          when showing.last_shown_at <= row_.passed_at then showing.last_shown_at
          when showing.first_shown_at <= row_.passed_at then showing.first_shown_at
        end as shown_at
      from (
        select
          done.id,
          done.step_id,
          done.mcp_server_id,
          done.completed_at as passed_at,
          false as is_skip
        from walkthrough_step_completions as done
        where done.mcp_server_user_id = of_user and done.walkthrough_id = of_walkthrough
        union all
        select
          skip.id,
          skip.step_id,
          skip.mcp_server_id,
          skip.skipped_at,
          true
        from walkthrough_step_skips as skip
        where
          skip.mcp_server_user_id = of_user and skip.walkthrough_id = of_walkthrough
          and not exists (
            select from walkthrough_step_completions as done
            where
              done.mcp_server_user_id = of_user and done.step_id = skip.step_id
              and done.walkthrough_id = of_walkthrough
          )
      ) as row_
      left join walkthrough_step_showings as showing on showing.mcp_server_user_id = of_user
        and row_.step_id = showing.step_id and showing.walkthrough_id = of_walkthrough
    ) as pass
  ) as passed
  cross join lateral (
    select
      (array_agg(showing.mcp_server_id order by showing.first_shown_at, showing.first_id collate "C"))[1] as mcp_server_id,
      min(showing.first_shown_at) as first_shown_at,
      (
        array_agg(showing.step_id order by showing.last_shown_at desc, showing.last_id collate "C" desc)
        filter (where showing.step_id <> all(coalesce(passed.step_ids, '{}')))
      )[1] as shown_step_id
    from walkthrough_step_showings as showing
    where showing.mcp_server_user_id = of_user and showing.walkthrough_id = of_walkthrough
  ) as seen
  left join walkthrough_starts as start on start.mcp_server_user_id = of_user
    and start.walkthrough_id = of_walkthrough
    and start.started_at <= coalesce(passed.completed_at[1], start.started_at);
end;

comment on function sankey_journey_from_rows is
'What the rows of a person in a walkthrough come to: the steps that they completed, or skipped and did not complete, in '
'the order (time, id); and what was shown to them. A start counts where it is not later than the first of these; the '
'journey then has its server, else that of the first step, else that of the first showing. One row, always; the server '
'is null where there is nothing. PostgreSQL inlines it, so that it costs what its text costs.';

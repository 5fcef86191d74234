-- name: survey_nodes
-- Conservation: at every node of every cohort, journeys in = journeys out + journeys that ended there. It is
-- looked at where all cells are right, as a check of the check.
with flows as (
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    position + 1 as steps_passed,
    to_step_id as step_id,
    journeys as arrived,
    0 as went_on_or_ended
  from sankey_transitions
  union all
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    position,
    from_step_id,
    0,
    journeys
  from sankey_transitions
  where position > 0
  union all
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    steps_done + steps_skipped,
    step_id,
    0,
    journeys
  from sankey_endings
  where steps_done + steps_skipped > 0
)
select
  walkthrough_id,
  mcp_server_id,
  began_on,
  steps_passed - 1 as position,
  step_id,
  sum(arrived)::bigint as arrived,
  sum(went_on_or_ended)::bigint as went_on_or_ended
from flows
group by walkthrough_id, mcp_server_id, began_on, steps_passed, step_id
having sum(arrived) <> sum(went_on_or_ended)
order by walkthrough_id, mcp_server_id, began_on, steps_passed, step_id
limit $1;

-- name: triggers
-- Whether the triggers that leave marks are there and on.
select
  relation.relname as table_name,
  wanted.name as trigger_name
from unnest(
  array[
    'walkthrough_step_completions', 'walkthrough_starts', 'walkthrough_step_skips', 'walkthrough_step_showings'
  ]
) as relation (relname)
cross join unnest(
  array['sankey_deleted', 'sankey_inserted', 'sankey_truncated', 'sankey_updated']
) as wanted (name)
where not exists (
  select from pg_trigger
  inner join pg_proc on pg_trigger.tgfoid = pg_proc.oid
  inner join pg_class as marks on pg_proc.pronamespace = marks.relnamespace and pg_proc.proowner = marks.relowner
  where
    pg_trigger.tgrelid = relation.relname::regclass and pg_trigger.tgname = wanted.name
    and pg_trigger.tgenabled in ('O', 'A')
    -- Somebody may have put another function in its place.
    and pg_proc.proname = replace(wanted.name, 'sankey_', 'sankey_mark_') and marks.oid = 'sankey_dirty'::regclass
)
order by 1, 2;

-- name: totals
select
  (select count(*) from walkthrough_step_completions) as completions,
  (select count(*) from walkthrough_starts) as starts,
  (select count(*) from walkthrough_step_skips) as skips,
  (select count(*) from walkthrough_step_showings) as showings,
  (select count(*) from sankey_journeys) as journeys,
  (select count(*) from sankey_transitions) as transition_cells,
  (select count(*) from sankey_endings) as ending_cells,
  (select count(*) from sankey_dirty) as marks;

-- name: events_waiting
select count(*) from waiting_events;

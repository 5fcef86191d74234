-- The truth, independent of how the project counts: window functions over completions, skips, showings and starts.

-- name: differing_transitions
-- What the transitions must be, by one walk over the completions, beside what is counted. A journey begins
-- at its start where that is not later than its first completion.
with
passed as (
  -- What was completed; and what was skipped, where that person did not complete it in that walkthrough.
  select mcp_server_user_id, walkthrough_id, step_id, id, mcp_server_id, completed_at as passed_at, false as skipped
  from walkthrough_step_completions
  union all
  select
    skip.mcp_server_user_id, skip.walkthrough_id, skip.step_id, skip.id, skip.mcp_server_id, skip.skipped_at, true
  from walkthrough_step_skips as skip
  left join walkthrough_step_completions as done using (mcp_server_user_id, walkthrough_id, step_id)
  where done.id is null
),
done as (
  select
    mcp_server_user_id,
    walkthrough_id,
    step_id,
    skipped,
    passed_at,
    row_number() over journey - 1 as position,
    lag(step_id) over journey as from_step_id,
    lag(passed_at) over journey as from_at,
    first_value(mcp_server_id) over journey as first_server_id,
    first_value(passed_at) over journey as first_at,
    (
      -- The last time that it was shown before that is known.
      select max(shown.at)
      from walkthrough_step_showings as showing
      cross join lateral (values (showing.first_shown_at), (showing.last_shown_at)) as shown (at)
      where
        showing.mcp_server_user_id = passed.mcp_server_user_id
        and showing.walkthrough_id = passed.walkthrough_id
        and showing.step_id = passed.step_id
        and shown.at <= passed.passed_at
    ) as shown_at
  from passed
  window journey as (
    partition by mcp_server_user_id, walkthrough_id
    order by passed_at, id collate "C"
  )
),
cells as (
  select
    done.walkthrough_id,
    coalesce(start.mcp_server_id, done.first_server_id) as mcp_server_id,
    date '1970-01-01' + (coalesce(start.started_at, done.first_at) / 86400000)::integer as began_on,
    done.position,
    done.from_step_id,
    done.step_id as to_step_id,
    done.skipped,
    1 as expected_journeys,
    coalesce(done.passed_at - coalesce(done.from_at, start.started_at), 0) as expected_elapsed_ms,
    (coalesce(done.from_at, start.started_at) is not null)::integer as expected_timed_journeys,
    coalesce(done.passed_at - done.shown_at, 0) as expected_active_ms,
    (done.shown_at is not null)::integer as expected_active_journeys,
    0 as counted_journeys,
    0 as counted_elapsed_ms,
    0 as counted_timed_journeys,
    0 as counted_active_ms,
    0 as counted_active_journeys
  from done
  left join walkthrough_starts as start on done.mcp_server_user_id = start.mcp_server_user_id
    and done.walkthrough_id = start.walkthrough_id
    and start.started_at <= done.first_at
  union all
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    position,
    from_step_id,
    to_step_id,
    skipped,
    0,
    0,
    0,
    0,
    0,
    journeys,
    elapsed_ms,
    timed_journeys,
    active_ms,
    active_journeys
  from sankey_transitions
)
select
  walkthrough_id,
  mcp_server_id,
  began_on,
  position,
  from_step_id,
  to_step_id,
  skipped,
  sum(expected_journeys)::bigint as expected_journeys,
  sum(counted_journeys)::bigint as counted_journeys,
  sum(expected_elapsed_ms)::bigint as expected_elapsed_ms,
  sum(counted_elapsed_ms)::bigint as counted_elapsed_ms,
  sum(expected_timed_journeys)::bigint as expected_timed_journeys,
  sum(counted_timed_journeys)::bigint as counted_timed_journeys,
  sum(expected_active_ms)::bigint as expected_active_ms,
  sum(counted_active_ms)::bigint as counted_active_ms,
  sum(expected_active_journeys)::bigint as expected_active_journeys,
  sum(counted_active_journeys)::bigint as counted_active_journeys
from cells
group by walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id, skipped
having
  sum(expected_journeys) <> sum(counted_journeys)
  or sum(expected_elapsed_ms) <> sum(counted_elapsed_ms)
  or sum(expected_timed_journeys) <> sum(counted_timed_journeys)
  or sum(expected_active_ms) <> sum(counted_active_ms)
  or sum(expected_active_journeys) <> sum(counted_active_journeys)
order by walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id, skipped;

-- name: differing_endings
with
passed as (
  -- What was completed; and what was skipped, where that person did not complete it in that walkthrough.
  select mcp_server_user_id, walkthrough_id, step_id, id, mcp_server_id, completed_at as passed_at, false as skipped
  from walkthrough_step_completions
  union all
  select
    skip.mcp_server_user_id, skip.walkthrough_id, skip.step_id, skip.id, skip.mcp_server_id, skip.skipped_at, true
  from walkthrough_step_skips as skip
  left join walkthrough_step_completions as done using (mcp_server_user_id, walkthrough_id, step_id)
  where done.id is null
),
everybody as (
  select mcp_server_user_id, walkthrough_id from passed
  union
  select mcp_server_user_id, walkthrough_id from walkthrough_starts
  union
  select mcp_server_user_id, walkthrough_id from walkthrough_step_showings
),
journeys as (
  select
    everybody.walkthrough_id,
    coalesce(start.mcp_server_id, first.mcp_server_id, shown.mcp_server_id) as mcp_server_id,
    coalesce(start.started_at, first.passed_at, shown.first_shown_at) as began_at,
    (
      select count(*) from passed
      where
        passed.mcp_server_user_id = everybody.mcp_server_user_id
        and passed.walkthrough_id = everybody.walkthrough_id and not passed.skipped
    ) as steps_done,
    (
      select count(*) from passed
      where
        passed.mcp_server_user_id = everybody.mcp_server_user_id
        and passed.walkthrough_id = everybody.walkthrough_id and passed.skipped
    ) as steps_skipped,
    last.step_id,
    coalesce(last.passed_at, start.started_at, shown.first_shown_at) as last_active_at,
    waiting.step_id as shown_step_id
  from everybody
  left join lateral (
    select * from passed
    where
      passed.mcp_server_user_id = everybody.mcp_server_user_id and passed.walkthrough_id = everybody.walkthrough_id
    order by passed_at, id collate "C"
    limit 1
  ) as first on true
  left join lateral (
    select * from passed
    where
      passed.mcp_server_user_id = everybody.mcp_server_user_id and passed.walkthrough_id = everybody.walkthrough_id
    order by passed_at desc, id collate "C" desc
    limit 1
  ) as last on true
  left join lateral (
    select * from walkthrough_step_showings as showing
    where
      showing.mcp_server_user_id = everybody.mcp_server_user_id
      and showing.walkthrough_id = everybody.walkthrough_id
    order by first_shown_at, first_id collate "C"
    limit 1
  ) as shown on true
  left join lateral (
    select step_id from walkthrough_step_showings as showing
    where
      showing.mcp_server_user_id = everybody.mcp_server_user_id
      and showing.walkthrough_id = everybody.walkthrough_id
      and (showing.mcp_server_user_id, showing.walkthrough_id, showing.step_id) not in (
        select mcp_server_user_id, walkthrough_id, step_id from passed
      )
    order by last_shown_at desc, last_id collate "C" desc
    limit 1
  ) as waiting on true
  left join walkthrough_starts as start on everybody.mcp_server_user_id = start.mcp_server_user_id
    and everybody.walkthrough_id = start.walkthrough_id
    and (first.passed_at is null or start.started_at <= first.passed_at)
),
cells as (
  select
    walkthrough_id,
    mcp_server_id,
    date '1970-01-01' + (began_at / 86400000)::integer as began_on,
    steps_done,
    step_id,
    date '1970-01-01' + (last_active_at / 86400000)::integer as last_active_on,
    steps_skipped,
    shown_step_id,
    1 as expected_journeys,
    0 as counted_journeys
  from journeys
  union all
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    steps_done,
    step_id,
    last_active_on,
    steps_skipped,
    shown_step_id,
    0,
    journeys
  from sankey_endings
)
select
  walkthrough_id,
  mcp_server_id,
  began_on,
  steps_done,
  step_id,
  last_active_on,
  steps_skipped,
  shown_step_id,
  sum(expected_journeys)::bigint as expected_journeys,
  sum(counted_journeys)::bigint as counted_journeys
from cells
group by
  walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on, steps_skipped, shown_step_id
having sum(expected_journeys) <> sum(counted_journeys)
order by walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on;

-- name: steps
select
  walkthrough_steps.id,
  walkthrough_steps.title,
  walkthroughs.title as walkthrough
from walkthrough_steps
inner join walkthroughs on walkthrough_steps.walkthrough_id = walkthroughs.id
where walkthrough_steps.walkthrough_id = $1
order by walkthrough_steps.display_order;

-- name: transitions
select
  position,
  from_step_id,
  to_step_id,
  sum(journeys)::bigint as journeys,
  sum(elapsed_ms) / nullif(sum(timed_journeys), 0) as mean_ms
from sankey_transitions
where walkthrough_id = $1
group by position, from_step_id, to_step_id
having sum(journeys) > 0
order by journeys desc, position, from_step_id, to_step_id;

-- name: endings
-- Finished: every current step is done. In progress: active within 7 days. Else dropped.
select
  step_id,
  case
    when steps_done > 0 and steps_done = $2::integer then 'finished'
    when last_active_on > date '1970-01-01' + ($3::bigint / 86400000)::integer - 7 then 'in progress'
    else 'dropped'
  end as outcome,
  sum(journeys)::bigint as journeys
from sankey_endings
where walkthrough_id = $1
group by 1, 2
having sum(journeys) > 0;

-- name: finish_steps
-- The steps of a walkthrough in display order, which of them are optional for agents, and which were added by an edit.
select
  id,
  title,
  step_is_optional(metadata, title) as optional,
  exists (
    select from walkthrough_versions as edit
    where edit.walkthrough_id = $1 and walkthrough_steps.id <> all(edit.step_ids)
  ) as added
from walkthrough_steps
where walkthrough_id = $1
order by display_order, created_at nulls first, id collate "C";

-- name: finish_rule
select
  goal_step_ids,
  optional_step_ids,
  end_step_ids
from walkthrough_finish_rules
where walkthrough_id = $1;

-- name: set_finish_rule
-- What is the same already is not written: answers that are kept stay good.
insert into walkthrough_finish_rules as rule (walkthrough_id, goal_step_ids, optional_step_ids, end_step_ids)
values ($1, $2, $3, $4)
on conflict (walkthrough_id) do update set
  goal_step_ids = excluded.goal_step_ids,
  optional_step_ids = excluded.optional_step_ids,
  end_step_ids = excluded.end_step_ids,
  changed_at = clock_timestamp()
where
  (rule.goal_step_ids, rule.optional_step_ids, rule.end_step_ids)
  is distinct from (excluded.goal_step_ids, excluded.optional_step_ids, excluded.end_step_ids);

-- name: drop_finish_rule
delete from walkthrough_finish_rules
where walkthrough_id = $1;

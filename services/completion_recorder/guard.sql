-- name: belongs_to_topic
-- Whether this database holds what was recorded of the topic, and some of it is still there; or a server or
-- walkthrough that events name which cannot be read.
select
  (
    ($4::boolean or exists (select from event_sources where topic = $1 and known))
    and (
      exists (select from walkthrough_step_completions)
      or exists (select from walkthrough_starts)
      or exists (select from walkthrough_step_skips)
      or exists (select from walkthrough_step_showings)
    )
  )
  or exists (select from mcp_servers where id = any($2::text[]))
  or exists (select from walkthroughs where id = any($3::text[]));

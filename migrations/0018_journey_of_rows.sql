-- How rows become a journey, written once: the aggregator counts by it, and verify and rebuild hold its counts against it.
set local lock_timeout = '10s';

create or replace function sankey_journey_of_rows(of_user text, of_walkthrough text)
returns table (mcp_server_id text, started_at bigint, step_ids text [], completed_at bigint [])
language sql
stable
parallel safe
begin atomic
  select
    coalesce(start.mcp_server_id, done.mcp_server_id),
    start.started_at,
    coalesce(done.step_ids, '{}'),
    coalesce(done.completed_at, '{}')
  from (
    select
      (array_agg(row_.mcp_server_id order by row_.completed_at, row_.id collate "C"))[1] as mcp_server_id,
      array_agg(row_.step_id order by row_.completed_at, row_.id collate "C") as step_ids,
      array_agg(row_.completed_at order by row_.completed_at, row_.id collate "C") as completed_at
    from walkthrough_step_completions as row_
    where row_.mcp_server_user_id = of_user and row_.walkthrough_id = of_walkthrough
  ) as done
  left join walkthrough_starts as start on start.mcp_server_user_id = of_user
    and start.walkthrough_id = of_walkthrough
    and start.started_at <= coalesce(done.completed_at[1], start.started_at);
end;

comment on function sankey_journey_of_rows is
'What the rows of a person in a walkthrough come to: steps in the order (completed_at, id). A start counts where it is
not later than the first completion; the journey then has its server, else that of the first completion. One row,
always; the server is null where there is nothing. PostgreSQL inlines it, so that it costs what its text costs.';

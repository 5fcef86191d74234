-- What analytics-api needs and no more: psql -v role=analytics -f ops/analytics-reader.sql
-- The role is made before: create role analytics login password '...';
grant select on
  organization, mcp_servers, mcp_server_session, mcp_server_walkthroughs,
  walkthroughs, walkthrough_steps, walkthrough_step_completions, walkthrough_starts,
  sankey_journeys, sankey_transitions, sankey_endings, sankey_freshness, sankey_dirty,
  api_keys, stepstream_migrations
to :"role";

-- Calls that name no step: which of them can have seen the step that is current now.
set local lock_timeout = '10s';

alter table mcp_live_sessions add column if not exists shown_at bigint;
comment on table mcp_live_sessions is
'A user at a server: the session where the transport has none, when that was last used, in milliseconds (0 where it is '
'the transport''s), and when what is current now was shown.';
comment on column mcp_live_sessions.shown_at is
'No answer that shows the step that is current now goes out before this time, in milliseconds of the database. A call '
'that arrived earlier cannot have seen it.';

-- What others than the relay have to know of the outbox: in which shard a key is, and whose an event is.
set local lock_timeout = '10s';

create or replace function outbox_shard(key text) returns integer
language sql immutable parallel safe
return (hashtextextended(key, 0) & 63)::integer;
comment on function outbox_shard (text) is
'The shard of a key, as the generated column outbox.shard has it: for those who look for a key by the index.';

-- In PL/pgSQL, whose branches are planned when they are reached: PostgreSQL may work out a cast of SQL's `case` before
-- its condition.
create or replace function is_event_of(person text, id_pattern text, key text, value text) returns boolean
language plpgsql stable parallel safe
set search_path to 'pg_catalog', 'pg_temp'
as $$
begin
  if key = person then
    return true;
  end if;
  if position(person in value) = 0 and position('\u' in value) = 0 then  -- JSON may write any character as \u…
    return false;
  end if;
  -- Where brackets are nested some thousands deep, PostgreSQL raises an error: with so many it cannot be read.
  if regexp_count(value, '[[{]') < 2000 and pg_input_is_valid(value, 'jsonb')
    and value::jsonb ->> 'mcp_server_user_id' is not null
  then
    return value::jsonb ->> 'mcp_server_user_id' = person;
  end if;
  return value ~ id_pattern;
end
$$;
comment on function is_event_of (text, text, text, text) is
'Whether an event is a person''s: by its key, or by what its value says. One that does not say whose it is, or cannot '
'be read, is theirs if it holds their id, which the pattern finds as a whole word.';

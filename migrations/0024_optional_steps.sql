-- Which steps people may leave out, said once for whoever reads steps.
set local lock_timeout = '10s';

create or replace function step_is_optional(metadata jsonb, title text) returns boolean
language sql immutable parallel safe
return coalesce(metadata -> 'optional' = 'true'::jsonb, false) or title ilike '%(optional)%';
comment on function step_is_optional is
'Whether a step is optional: its metadata says so, or its title does.';

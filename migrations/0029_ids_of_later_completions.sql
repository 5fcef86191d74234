-- An event id is taken also by a completion that does not count because an earlier one does: it is looked up by it.
set local lock_timeout = '10s';

create index if not exists later_completions_id_idx on later_completions (id);

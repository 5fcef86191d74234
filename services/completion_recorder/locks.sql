-- name: wait_at_most
-- How long statements wait for a lock, until the transaction ends.
select set_config('lock_timeout', $1, true);

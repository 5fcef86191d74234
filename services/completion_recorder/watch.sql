-- name: count_gone
-- How many ranges of events are gone, or were left behind, and nobody has acknowledged that.
select count(*) from gone_events where acknowledged_at is null;

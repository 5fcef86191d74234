-- name: find_people
-- Who has this id, tracking id or e-mail address. Addresses are compared without case: nobody gives two of them to
-- two people that differ in no more, and people write theirs in several ways.
select id from mcp_server_user
where id = $1 or distinct_id = $1 or lower(email) = lower($1)
order by id;

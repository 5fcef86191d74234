-- name: find_people
-- Who has this id, tracking id or e-mail address.
select id from mcp_server_user
where id = $1 or distinct_id = $1 or email = $1
order by id;

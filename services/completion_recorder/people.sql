-- name: find_people
select id from mcp_server_user
where id = $1 or distinct_id = $1 or email = $1
order by id;

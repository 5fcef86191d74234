-- name: forget_handled
delete from dead_letters_handled where topic = $1;

-- This number belongs to another change: its file replaces this one.
select 1;

-- A number that another change has: this file gives way to it.
select 1;

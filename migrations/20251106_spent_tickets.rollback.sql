-- Tickets that have not run out may then be spent again: wait ten minutes, or change GENCTL_SECRET.
drop table if exists spent_tickets;

-- Drops the guards, and no data.
drop function if exists genctl_refuse() cascade;

-- Drops the guards, and no data.
drop function if exists genctl_refuse() cascade;
drop function if exists genctl_movement_fits() cascade;

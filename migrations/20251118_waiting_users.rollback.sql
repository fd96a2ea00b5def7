-- genctl: no transaction
drop index concurrently if exists genctl_sessions_waiting_users;

-- genctl: no transaction
drop index concurrently if exists genctl_sessions_idempotency;
drop index concurrently if exists genctl_sessions_version;
drop index concurrently if exists genctl_sessions_user;
drop index concurrently if exists genctl_sessions_created;
drop index concurrently if exists genctl_sessions_owed;
drop index concurrently if exists genctl_sessions_waiting;
drop index concurrently if exists genctl_sessions_unrefunded;
drop index concurrently if exists genctl_sessions_processing;
drop index concurrently if exists genctl_sessions_copy_owed;
drop index concurrently if exists genctl_sessions_failed;
drop index concurrently if exists genctl_sessions_client_key;
drop index concurrently if exists genctl_sessions_request;
drop index concurrently if exists genctl_sessions_reservation;
drop index concurrently if exists genctl_reservations_run;
drop index concurrently if exists genctl_reservations_held;

-- genctl: no transaction
drop index concurrently if exists generation_sessions_idempotency;
drop index concurrently if exists generation_sessions_version;
drop index concurrently if exists generation_sessions_user;
drop index concurrently if exists generation_sessions_created;
drop index concurrently if exists generation_sessions_owed;
drop index concurrently if exists generation_sessions_waiting;
drop index concurrently if exists generation_sessions_unrefunded;
drop index concurrently if exists generation_sessions_processing;
drop index concurrently if exists generation_sessions_copy_owed;
drop index concurrently if exists generation_sessions_failed;
drop index concurrently if exists generation_sessions_client_key;
drop index concurrently if exists generation_sessions_request;
drop index concurrently if exists generation_sessions_reservation;
drop index concurrently if exists credit_reservations_run;
drop index concurrently if exists credit_reservations_held;

-- genctl: no transaction
-- A renewal writes lease_until and nothing else, every 10 s for each run in hand. While an index had that column, each
-- renewal wrote a new entry into every index of the row. This index finds the same rows, which are never more than all
-- workers have in hand, and no renewal changes it.
create index concurrently if not exists genctl_sessions_in_hand
  on generation_sessions (id) where status = 'processing';

drop index concurrently if exists genctl_sessions_processing;

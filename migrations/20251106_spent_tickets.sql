-- Sign-in tickets are signed and need no row until they are spent; a spent one stays until it has run out.
create table if not exists spent_tickets (
  id uuid primary key,
  expires_at timestamptz not null
);

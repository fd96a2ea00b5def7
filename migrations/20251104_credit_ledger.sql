-- Every movement of credits is one row. A file of its own: the opening rows of many accounts take a while,
-- and nothing but the accounts is read meanwhile.

do $$
begin
  if obj_description(to_regclass(format('%I.credit_ledger', current_schema())), 'pg_class')
      is distinct from 'made by genctl' then
    create table credit_ledger (
      id bigint generated always as identity primary key,
      user_id text not null,
      delta bigint not null,
      kind text not null check (kind in ('opening', 'grant', 'reserve', 'release', 'capture', 'fix')),
      reservation_id uuid,
      reason text,
      created_at timestamptz not null default now()
    );
    comment on table credit_ledger is 'made by genctl';
  end if;
end
$$;
-- "One, ever" is an index.
create unique index if not exists credit_ledger_one_reserve on credit_ledger (reservation_id)
  where kind = 'reserve';
create unique index if not exists credit_ledger_one_end on credit_ledger (reservation_id)
  where kind in ('release', 'capture');
create index if not exists credit_ledger_user on credit_ledger (user_id, id);

-- Nothing can be added to null; an account without a balance has none.
update credit_accounts set balance = 0 where balance is null;

insert into credit_ledger (user_id, delta, kind, reason)
select user_id, balance, 'opening', 'balance as found'
from credit_accounts a
where balance <> 0 and not exists (select from credit_ledger l where l.user_id = a.user_id);

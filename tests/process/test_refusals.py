"""A database that says no, waits, or is away: no answer of the provider is lost, and nobody else waits.

Each user has a trouble of its own, named as the user is; the quiet ones have none.
"""

import asyncio
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from tests.kit import until_sync
from tests.process.place import Place

from genctl.edges.db import Database
from genctl.edges.sqs import Sqs
from genctl.enqueue import enqueue
from genctl.ops.enqueue import EnqueueOptions
from genctl.tools.found import Tools

USUAL_S = 12.0  # of a job that nobody holds up, on a machine that has much to do
LOCKED = 10  # jobs of one user, and places of the worker
MOST_WAITING = 8  # connections of a worker that wait for others

LIMITS = """
do $$ declare name text; begin
  foreach name in array
    array['lock_timeout', 'statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout'] loop
    execute format('alter database %I set %I = 500', current_database(), name);
  end loop;
end $$
"""
UNLIMITED = "-c lock_timeout=0 -c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c transaction_timeout=0"
ACTIVE = (
    "select count(*) as n from pg_stat_activity where datname = current_database()"
    " and application_name = 'genctl' and state = 'active'"
)
TROUBLES = """
create table troubles (name text primary key);
create function trouble() returns trigger language plpgsql as $$ begin
  if not exists (select from troubles where name = new.user_id) then return new; end if;
  if new.user_id = 'each update' then raise exception 'no update'; end if;
  if new.status not in ('completed', 'failed') then return new; end if;
  case
    when new.user_id = 'hangs' then
      while exists (select from troubles where name = 'hangs') loop perform pg_sleep(0.05); end loop;
    when new.user_id = 'tells the row' then perform pg_notify('rows', to_jsonb(new)::text);
    else raise exception 'no end' using errcode = right(new.user_id, 5);
  end case;
  return new;
end $$;
create trigger trouble before update on generation_sessions for each row execute function trouble();
"""


def troubled(place: Place, users: Sequence[str]) -> None:
    """From now on these have trouble."""
    place.sql("insert into troubles select unnest(%s::text[])", list(users))


def order(place: Place, users: Iterable[str], scenarios: Sequence[str] = ("success", "sensitive")) -> None:
    """A job of each scenario for each of these users, all as one message."""

    async def ordered() -> None:
        settings = place.settings
        tool = Tools.of(settings).named(settings.tool)
        wanted = [EnqueueOptions(prompt="a", user=u, scenario=what) for u in users for what in scenarios]
        orders = [one for options in wanted for one in options.orders(tool)]
        async with Database.open(place.dsn, size=1) as db, await Sqs.connect(settings) as sqs:
            queue = await sqs.queue(settings.queue)
            await enqueue(orders, db=db, queue=queue, tool=tool.name, opening=1000)

    asyncio.run(ordered())


@contextmanager
def locked(place: Place, *statements: str) -> Iterator[None]:
    """What somebody's transaction holds for as long as the body runs."""
    with psycopg.connect(place.dsn, options=UNLIMITED) as conn:
        for statement in statements:
            conn.execute(statement.encode())
        yield
        conn.commit()


def calls(place: Place) -> Counter[str]:
    """The provider calls of each session of this place."""
    ours = {str(row["id"]) for row in place.sql("select id from generation_sessions")}
    asked = (event["clientRequestId"][:36] for event in place.simulator.events("simulator.asked"))
    return Counter(session for session in asked if session in ours)


def open_of(place: Place, users: str) -> list[dict[str, Any]]:
    """The runs of users whose name is like that, which have not ended."""
    return place.sql(
        "select id, user_id, status, attempts from generation_sessions"
        " where completed_at is null and user_id like %s",
        users,
    )


def ended_right(place: Place) -> None:
    """One call for each job, its answer stored, credits moved once."""
    rows = place.sql(
        "select s.id::text, s.user_id, s.status, s.attempts, s.prompt, r.status as held_as, s.result,"
        " s.error_details ->> 'code' as code from generation_sessions s"
        " join credit_reservations r on r.id = s.reservation_id where s.user_id <> 'long'"
    )
    asked = calls(place)
    found = {
        row["id"]: (row["user_id"], row["status"], row["held_as"], row["attempts"], asked[row["id"]])
        for row in rows
    }
    expected = {
        row["id"]: (
            row["user_id"],
            *(("failed", "released") if "success" not in row["prompt"] else ("completed", "captured")),
            1,
            1,
        )
        for row in rows
    }
    assert found == expected
    assert {row["code"] for row in rows} <= {None, "OutputImageSensitiveContentDetected", "InvalidParameter"}
    assert all(row["result"]["images"] for row in rows if row["status"] == "completed")
    assert place.violations() == []


# Locked


@pytest.mark.parametrize("limit", ["none", "500 ms for each statement, lock and transaction"])
def test_whoever_holds_what_one_user_needs_holds_up_nobody_else(place: Place, limit: str) -> None:
    """Account, session, reservation, an account that is not committed yet, the gate; a trigger that hangs."""
    if limit != "none":
        place.sql(LIMITS)
    place.say("pause")
    place.say("resume")
    order(place, ["reservation", "no account", "hangs", "waits 57014", "waits 55P03", "waits 40001"])
    order(place, ["account"] * (LOCKED // 2))
    session = place.enqueue("slow-success", user="session")
    long = place.enqueue("hang", user="long")
    with psycopg.connect(place.dsn, autocommit=True) as conn:
        conn.execute(TROUBLES.encode())
    troubled(place, ["hangs", "waits 57014", "waits 55P03", "waits 40001"])
    place.sql(
        "set session_replication_role = replica; delete from credit_accounts where user_id = 'no account'"
    )
    with ExitStack() as troubles:
        troubles.enter_context(
            locked(
                place,
                "select from credit_accounts where user_id = 'account' for update",
                "select from credit_reservations where user_id = 'reservation' for update",
                "insert into credit_accounts (user_id, balance) values ('no account', 992)",
                "select from tool_gates for update",
            )
        )
        with place.worker(
            "--no-sweep", "--concurrency", str(LOCKED)
        ) as worker:  # answers that wait take no place
            place.until_called(session)
            troubles.enter_context(
                locked(place, "select from generation_sessions where user_id = 'session' for update")
            )
            order(place, [f"quiet {n}" for n in range(5)])
            waiting = list[int]()

            def are_quiet_over() -> bool:
                waiting.append(place.sql(ACTIVE)[0]["n"])
                return not open_of(place, "quiet%")

            until_sync(are_quiet_over, USUAL_S)
            assert max(waiting) <= MOST_WAITING
            renewed(place, long)
            assert len(open_of(place, "account")) == LOCKED
            until_sync(lambda: [e for e in worker.events("worker.answers.waiting") if e["answers"] >= LOCKED])
            place.sql("delete from troubles")
            troubles.close()
            until_sync(
                lambda: len(place.sql("select from generation_sessions where completed_at is null")) == 1
            )
            assert worker.events("job.bug") == []
    ended_right(place)


def renewed(place: Place, session: str) -> None:
    """Wait until its lease is."""
    was = place.row(session)["lease_until"]
    until_sync(lambda: place.row(session)["lease_until"] > was)


# Refused

ALWAYS = (
    "ends P0001",
    "ends 08006",
    "ends 53100",
    "ends 53200",
    "ends 53300",
    "ends 54000",
    "ends 54001",
    "ends 57P01",
    "ends 42501",
)


def test_what_the_database_refuses_waits_with_its_answer_also_across_a_kill(place: Place) -> None:
    with psycopg.connect(place.dsn, autocommit=True) as conn:
        conn.execute(TROUBLES.encode())
    users = [*ALWAYS, "each update", "tells the row"]
    order(place, users)
    order(place, ["tells the row"], ["large-error"])
    troubled(place, users)
    with place.worker("--no-sweep", "--concurrency", "60") as worker:
        order(place, [f"quiet {n}" for n in range(10)])
        until_sync(lambda: not open_of(place, "quiet%"), USUAL_S)
        until_sync(lambda: not open_of(place, "tells%"), USUAL_S)
        kept = "select distinct session_id from session_events where kind = 'answered'"
        until_sync(lambda: len(place.sql(kept)) == 2 * len(ALWAYS))
        assert worker.events("job.bug") == []
        assert worker.end(signal.SIGKILL) == -signal.SIGKILL
    with place.worker("--concurrency", "60") as second:
        place.sql(
            "set session_replication_role = replica; update generation_sessions set lease_until = now() - interval '1 s'"
            " where status = 'processing'"
        )
        for row in open_of(place, "%"):
            place.send(place.body(str(row["id"])))
        taken = "select from session_events where kind = 'claimed' and data @> '{\"lease\": 2}'"
        until_sync(lambda: len(place.sql(taken)) == 2 * len(ALWAYS))
        assert calls(place).total() == 20 + 3 + 2 * len(ALWAYS)
        place.sql("delete from troubles")
        for row in open_of(place, "each update"):
            place.send(place.body(str(row["id"])))
        until_sync(lambda: not open_of(place, "%"), 30.0)
        assert second.events("job.bug") == []
    ended_right(place)


def test_a_worker_that_is_told_to_stop_says_which_answers_it_leaves_and_keeps_them(place: Place) -> None:
    """The next one settles by them; where even the trace is refused, the log names the provider's request."""
    with psycopg.connect(place.dsn, autocommit=True) as conn:
        conn.execute(TROUBLES.encode())
    sessions = [place.enqueue(scenario, user="ends P0001") for scenario in ("success", "sensitive")]
    troubled(place, ["ends P0001"])
    with place.worker("--no-sweep", "--drain", "--grace", "1s") as worker:
        until_sync(lambda: len(worker.events("session.settle.refused")) == 2)
        assert worker.process.poll() is None, "it has answers in its hands"
        assert worker.end(signal.SIGTERM, within_s=11.0) == 0
        left = {event["sessionId"]: event for event in worker.events("session.answer.unsettled")}
    assert set(left) == set(sessions)
    assert all(event["requestId"] and event["why"] for event in left.values())
    assert worker.events("worker.stopping")[0]["answers"] == 2
    place.sql("delete from troubles")
    for session in sessions:
        assert place.row(session)["lease_until"] <= place.row(session)["now"]
        place.send(place.body(session))
    with place.worker("--no-sweep") as second:
        until_sync(lambda: not open_of(place, "%"))
        assert second.events("job.bug") == []
    ended_right(place)

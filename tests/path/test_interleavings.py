"""Any order of events, on the pipeline's own steps and a real database: after each, everything holds.

Hypothesis picks what happens next. Only the edges are stand-ins, and they are worse than the real ones: a
message may be delivered at any time, any number of times, again after it was deleted; a send may fail or
lose its answer; an answer of the provider comes when nobody waits for it any more. A worker that crashed
is one whose lease has run out and whose answer never comes; one that slept is answered later.
"""

import asyncio
import json
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from psycopg.rows import dict_row
from tests.kit import redrive

from genctl import credits
from genctl.base.settings import Settings
from genctl.domain import decide
from genctl.domain.classify import OURS
from genctl.domain.deadletters import Choice, Terms
from genctl.domain.model import Answer, GenctlError, NoAnswer, Session, Status
from genctl.domain.orders import Order
from genctl.edges.db import Database, as_json
from genctl.edges.db_errors import LockedError
from genctl.edges.sqs import Queue
from genctl.edges.sqs_shapes import Attribute, EntryResult, Message, Outgoing, System
from genctl.enqueue import enqueue
from genctl.pipeline import Hear, Pipeline, at_once, carry
from genctl.sweep import sweep
from genctl.tools.seedream4 import TOOL
from genctl.tools.wire import Wire

T = TypeVar("T")

EXAMPLES = int(os.environ.get("GENCTL_TEST_INTERLEAVINGS", "3"))
USERS = ("ann", "bob")
OPENING = 20
LIMITS = decide.Limits(attempts=3, unknowns=1)
SETTINGS = Settings()
TABLES = ("generation_sessions", "credit_accounts", "credit_reservations", "credit_ledger", "session_events")

PICK = st.integers(0, 15)
MOOD = st.sampled_from(["well", "well", "refuses", "silent"])
KINDS = ("success", "fatal", "transient", "unknown")
KIND = st.sampled_from(KINDS)


class Mailbox(Queue):
    """A queue in memory. `mood`: well; refuses (each entry); silent (does it, and the answer is lost)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mood = "well"
        self.waiting: dict[str, Message] = {}
        self.sent: list[Message] = []

    async def send(self, out: Sequence[Outgoing]) -> list[EntryResult]:
        if self.mood == "refuses":
            return [EntryResult("refused") for _ in out]
        fates = []
        for one in out:
            texts = {k: v for k, v in one.attributes.items() if isinstance(v, str)}
            sent = {name: Attribute(string_value=text) for name, text in texts.items()}
            fates.append(EntryResult(None, self.put(one.body, sent)))
        self._lose_the_answer()
        return fates

    def put(self, body: str, sent: dict[str, Attribute]) -> str:
        name = f"{self.name}-{len(self.sent)}"
        self.waiting[name] = Message(
            name, name, body, sent, System(0, round(datetime.now(UTC).timestamp() * 1000))
        )
        self.sent.append(self.waiting[name])
        return name

    def deliver(self, pick: int) -> Message:
        """One of those that wait; it stays until it is deleted."""
        message = nth(list(self.waiting.values()), pick)
        message = msgspec.structs.replace(
            message, system=System(message.system.receive_count + 1, message.system.sent_ms)
        )
        self.waiting[message.receipt] = message
        return message

    async def delete(self, receipts: Sequence[str]) -> list[str | None]:
        if self.mood == "refuses":
            return ["refused" for _ in receipts]
        for receipt in receipts:
            self.waiting.pop(receipt, None)
        self._lose_the_answer()
        return [None for _ in receipts]

    async def hide(self, items: Sequence[tuple[str, int]]) -> list[str | None]:
        return [None for _ in items]

    def _lose_the_answer(self) -> None:
        if self.mood == "silent":
            raise GenctlError("QueueUnreachable", "the answer was lost")

    def has(self, session_id: UUID, run: int) -> bool:
        jobs = (decide.read_job(message.body) for message in self.waiting.values())
        return any((job.session_id, job.run) == (session_id, run) for job in jobs)


class Call(msgspec.Struct, eq=False):
    """A provider call under way, and the task of the worker that waits for it."""

    session: Session
    answer: asyncio.Future[Answer | NoAnswer]
    task: asyncio.Task[Any] | None


class Provider(Wire):
    """Answers when the machine says so. `slow_to_send`: the request leaves only then."""

    def __init__(self) -> None:
        self.slow_to_send = False
        self.calls: list[Call] = []
        self.sent: list[Session] = []
        self.given: list[tuple[Call, Answer | NoAnswer]] = []

    async def generate(self, session: Session, on_send: Callable[[], None]) -> Answer | NoAnswer:
        call = Call(session, asyncio.get_running_loop().create_future(), asyncio.current_task())
        sent = not self.slow_to_send
        if sent:
            self._send(session, on_send)
        self.calls.append(call)
        try:
            answer = await call.answer
        finally:
            self.calls.remove(call)
        if not sent:
            self._send(session, on_send)
        self.given.append((call, answer))
        return answer

    def _send(self, session: Session, on_send: Callable[[], None]) -> None:
        on_send()
        self.sent.append(session)


def words(lease: int) -> str:
    """What the provider says to the owner of a lease: it is found again in what was stored."""
    return f"to lease {lease}"


def answer_of(kind: str, lease: int) -> Answer | NoAnswer:
    if kind == "unknown":
        return NoAnswer("Timeout", words(lease), sent=True)
    if kind == "success":
        body: dict[str, Any] = {"data": [{"url": f"https://images.example/{lease}"}]}
        return Answer(200, {}, msgspec.json.encode(body))
    status, code = {"fatal": (400, "InvalidParameter"), "transient": (500, "InternalServiceError")}[kind]
    return Answer(status, {}, msgspec.json.encode({"error": {"code": code, "message": words(lease)}}))


def nth(items: Sequence[T], pick: int) -> T:
    return items[pick % len(items)]


class World:
    """What outlives an example: the loop, the database, a connection that listens."""

    def __init__(self, loop: asyncio.Runner, db: Database, conn: psycopg.Connection[dict[str, Any]]) -> None:
        self.loop = loop
        self.db = db
        self.conn = conn
        self.told: set[str] = set()  # users of whom a NOTIFY spoke
        conn.add_notify_handler(lambda notify: self.told.add(msgspec.json.decode(notify.payload)["user_id"]))
        for statement in (
            "listen session_completed",
            "listen session_requeued",
            "create table refusals ()",
            """create function refuse() returns trigger language plpgsql as $$ begin
              if exists (select from refusals) then raise exception 'not today'; end if; return new; end $$""",
            """create trigger refuse before update on credit_reservations for each row
              when (new.status = 'released') execute function refuse()""",
        ):
            conn.execute(statement)

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(step)

    def rows(self, text: str, *params: object) -> list[dict[str, Any]]:
        return self.conn.execute(text, params).fetchall()

    def change(self, values: str, which: str = "true") -> None:
        """What time does to sessions; to one that somebody has locked it does nothing."""
        free = f"select id from generation_sessions where {which} for update skip locked"
        self.conn.execute(f"update generation_sessions set {values} where id = any(array({free}))")

    def wipe(self) -> None:
        """A new history: what guards the old one is told to look away."""
        self.conn.execute("set session_replication_role = replica")
        for table in (*TABLES, "refusals"):
            self.conn.execute(f"delete from {table}")
        self.conn.execute("set session_replication_role = origin")
        self.told.clear()


class Interleavings(RuleBasedStateMachine):
    """The events, and after each of them what must hold.

    What is drawn never hangs on what has happened, which is not the same each time: no preconditions.
    """

    world: World
    limits = LIMITS

    def __init__(self) -> None:
        super().__init__()
        self.world.wipe()
        self.ids = count(1)
        self.queue, self.dlq, self.provider = Mailbox("jobs"), Mailbox("jobs-dlq"), Provider()
        self.pipeline = self._pipeline()  # of sweepers and redrivers
        self.workers: list[Pipeline] = []
        self.given: Counter[str] = Counter()
        self.outcomes: dict[tuple[UUID, int], object] = {}
        self.followed: dict[str, int] = {}
        self.seen: dict[UUID, Session] = {}

    # -- what happens ---------------------------------------------------------------------------------

    @initialize(users=st.lists(st.sampled_from(USERS), min_size=2, max_size=3))
    def some_jobs_are_there(self, users: list[str]) -> None:
        self.enqueue(users, cost=4)

    @rule(users=st.lists(st.sampled_from(USERS), min_size=1, max_size=3), cost=st.integers(3, 6))
    def enqueue(self, users: list[str], cost: int) -> None:
        orders = [
            Order(session_id=UUID(int=next(self.ids)), reservation_id=UUID(int=next(self.ids)), user_id=user,
                  prompt="a test", model=TOOL.default_model, cost=cost)
            for user in users
        ]  # fmt: skip
        fresh = set(users) - self.given.keys()
        for user in fresh:
            self.given[user] = OPENING  # also where the credits turn out to be short
        try:
            self.world.run(
                enqueue(orders, db=self.world.db, queue=self.queue, tool=TOOL.name, opening=OPENING)
            )
        except GenctlError as error:
            assert error.code in {"CreditsShort", "AccountLocked", "Locked"}
            if error.code != "CreditsShort":  # it may have made the accounts that were not locked
                made = {row["user_id"] for row in self.world.rows("select user_id from credit_accounts")}
                self.given -= Counter(dict.fromkeys(fresh - made, OPENING))

    @rule(user=st.sampled_from(USERS), amount=st.integers(1, 9))
    def grant(self, user: str, amount: int) -> None:
        with suppress(LockedError):
            self.world.run(credits.grant(self.world.db, [user], amount, "a test", opening=OPENING))
            self.given[user] += amount if user in self.given else OPENING + amount

    @rule(pick=PICK, slow=st.booleans(), kind=st.none() | KIND)
    def deliver(self, pick: int, slow: bool, kind: str | None) -> None:
        """A worker takes it; if it calls, the provider answers at once with a `kind`, or later."""
        if not self.queue.waiting:
            return
        self.provider.slow_to_send = slow
        self.world.run(self._begin(self.queue.deliver(pick), kind))

    @rule(pick=PICK, kind=KIND)
    def work(self, pick: int, kind: str) -> None:
        """The usual case: a delivery when the job is due, an answer at once."""
        self.world.change("due_at = null")
        self.deliver(pick, slow=False, kind=kind)

    @rule(box=st.sampled_from(["queue", "dlq"]), pick=PICK)
    def a_message_comes_again(self, box: str, pick: int) -> None:
        """A duplicate, or one that was deleted long ago."""
        mailbox: Mailbox = getattr(self, box)
        if mailbox.sent:
            message = nth(mailbox.sent, pick)
            mailbox.put(message.body, message.sent)

    @rule(pick=PICK, kind=KIND)
    def answer(self, pick: int, kind: str) -> None:
        if self.provider.calls:
            self.world.run(self._answer(nth(self.provider.calls, pick), kind))

    @rule(pick=PICK)
    def stop(self, pick: int) -> None:
        """SIGTERM: what was not sent goes back, what was sent is let go."""
        if self.provider.calls:
            self.world.run(self._stop(nth(self.provider.calls, pick)))

    @rule(pick=PICK, second=st.sampled_from(["nobody", "calls", "calls", *KINDS]), late=st.none() | KIND)
    def a_worker_sleeps(self, pick: int, second: str, late: str | None) -> None:
        """Past its lease; another gets a second delivery, and may still call when the first wakes up."""
        self.deliver(pick, slow=False, kind=None)
        if not self.provider.calls:
            return
        call = nth(self.provider.calls, pick)
        self._end_lease(call.session.id)
        if second != "nobody":
            receipt = self.queue.put(decide.job_body(call.session, TOOL.name), {})
            kind = None if second == "calls" else second
            self.world.run(self._begin(self.queue.waiting[receipt], kind))
        if late:
            self.world.run(self._answer(call, late))

    @rule(a_day_for_the_oldest=st.booleans())
    def time_passes(self, a_day_for_the_oldest: bool) -> None:
        self.world.change("""
            due_at = due_at - interval '10 min', queued_at = queued_at - interval '10 min',
            completed_at = completed_at - interval '10 min', offered_at = offered_at - interval '10 min'""")
        if a_day_for_the_oldest:
            oldest = (
                "id = (select id from generation_sessions where status = 'queued' order by queued_at limit 1)"
            )
            self.world.change("queued_at = queued_at - interval '25 h'", oldest)

    @rule()
    def sweep(self) -> None:
        self.world.run(sweep(self.pipeline, SETTINGS))

    @rule()
    def fix(self) -> None:
        self.world.run(self._fix())

    @rule(most=st.integers(1, 3))
    def redrive(self, most: int) -> None:
        self.world.run(self._redrive(most))

    @rule(queue=MOOD, dlq=MOOD, refused=st.booleans())
    def trouble_comes_and_goes(self, queue: str, dlq: str, refused: bool) -> None:
        """Of either queue; and the database refuses to release reservations."""
        self.queue.mood, self.dlq.mood = queue, dlq
        self.world.conn.execute("insert into refusals default values" if refused else "delete from refusals")

    @rule(picks=st.tuples(PICK, PICK, PICK), kinds=st.tuples(*[st.sampled_from(["success", "fatal"])] * 2))
    def all_at_once(self, picks: tuple[int, int, int], kinds: tuple[str, str]) -> None:
        """Two answers, a delivery, two sweeps, two redrives and a fix, as chance has it."""
        self.deliver(picks[0], slow=False, kind=None)
        if not self.queue.waiting or not self.provider.calls:
            return
        calls = {id(call): call for call in (nth(self.provider.calls, pick) for pick in picks[:2])}
        steps: list[Coroutine[Any, Any, Any]] = [
            self._answer(call, kind) for call, kind in zip(calls.values(), kinds, strict=False)
        ]
        steps += [sweep(self.pipeline, SETTINGS) for _ in range(2)]
        steps += [self._redrive(3) for _ in range(2)] + [self._fix()]

        async def together() -> None:
            await asyncio.gather(self._begin(self.queue.deliver(picks[2]), None), *steps)

        self.world.run(together())

    # -- how it happens -------------------------------------------------------------------------------

    def _end_lease(self, session_id: UUID) -> None:
        ended = "lease_until = now() - interval '1 s'"
        self.world.change(ended, f"id = '{session_id}' and status = 'processing'")

    async def _begin(self, message: Message, kind: str | None) -> None:
        """A worker takes the message, up to its call or to its end."""
        task = asyncio.create_task(self._carry(message))
        await self._until_it_rests(task)
        if (call := self._call_of(task)) and kind:
            await self._answer(call, kind)

    async def _until_it_rests(self, task: asyncio.Task[Any]) -> None:
        while not self._rests(task):
            await asyncio.sleep(0.0005)

    def _rests(self, task: asyncio.Task[Any]) -> bool:
        """It has ended, or waits for the provider."""
        return task.done() or self._call_of(task) is not None

    def _call_of(self, task: asyncio.Task[Any]) -> Call | None:
        return next((call for call in self.provider.calls if call.task is task), None)

    def _pipeline(self) -> Pipeline:
        return Pipeline(
            db=self.world.db,
            queue=self.queue,
            dlq=self.dlq,
            limits=self.limits,
            tool=TOOL,
            wire=self.provider,
        )

    async def _carry(self, message: Message) -> None:
        worker = self._free(decide.read_job(message.body).session_id)
        with suppress(GenctlError):  # the lease is lost, or a queue is away: the message comes back
            await carry(message, worker, self._turn)

    async def _turn(self) -> Hear:
        return await at_once()

    def _free(self, session_id: UUID) -> Pipeline:
        """A worker that does not have the session in its hands already."""
        free = [worker for worker in self.workers if session_id not in worker.runs]
        if not free:
            self.workers += (free := [self._pipeline()])
        return free[0]

    async def _answer(self, call: Call, kind: str) -> None:
        assert call.task
        call.answer.set_result(answer_of(kind, call.session.lease))
        while call in self.provider.calls:
            await asyncio.sleep(0)
        await self._until_it_rests(call.task)

    async def _stop(self, call: Call) -> None:
        assert call.task
        call.task.cancel()
        await asyncio.wait([call.task])

    async def _redrive(self, most: int) -> None:
        terms = Terms(max_redrives=2)
        with suppress(GenctlError):  # ended early: the next one finishes it
            await redrive(list(self.dlq.waiting.values()), self.pipeline, Choice(), terms, most=most)

    async def _fix(self) -> None:
        with suppress(GenctlError):  # the database refuses the release still
            await credits.fix_all(self.world.db, (await credits.audit(self.world.db)).violations)

    # -- what must hold -------------------------------------------------------------------------------

    @invariant()
    def everything_holds(self) -> None:
        rows = self.world.rows("""
            select s.*, r.amount as reserved, r.status as held_as
            from generation_sessions s left join credit_reservations r on r.id = s.reservation_id
            order by s.id""")
        sessions = [Session.of(row) for row in rows]
        self._credits_are_conserved()
        self._the_audit_finds_what_is_pending_and_no_more(rows)
        self._each_run_has_one_outcome(sessions)
        for session in sessions:
            assert session.attempts <= self.limits.attempts
            self._whose_result_it_is(session)
            self._nothing_is_lost(session)
        self._the_follower_sees_it(sessions)

    def _credits_are_conserved(self) -> None:
        found = self.world.rows("""
            select user_id, (balance + coalesce((
              select sum(amount) from credit_reservations r
              where r.user_id = a.user_id and r.status in ('held', 'captured')), 0))::bigint as credits
            from credit_accounts a""")
        assert {row["user_id"]: row["credits"] for row in found} == dict(self.given)

    def _the_audit_finds_what_is_pending_and_no_more(self, rows: list[dict[str, Any]]) -> None:
        kinds = {"failed": "refund_pending", "completed": "terminal_holds"}  # the sweeper mends both
        pending = sorted(
            (kinds[row["status"]], row["id"])
            for row in rows
            if row["held_as"] == "held" and row["status"] in kinds
        )
        found = self.world.run(credits.audit(self.world.db)).violations
        assert sorted((violation.kind, violation.session_id) for violation in found) == pending

    def _each_run_has_one_outcome(self, sessions: list[Session]) -> None:
        """The first that is seen is the last, but for its refund; and the trace tells of one only."""
        for session in sessions:
            if session.status in {Status.COMPLETED, Status.FAILED}:
                outcome = (session.status, session.lease, session.result, session.details.get("code"))
                assert self.outcomes.setdefault((session.id, session.run), outcome) == outcome
        twice = self.world.rows("""
            select session_id, run from session_events where kind in ('completed', 'failed')
            group by 1, 2 having count(*) > 1""")
        assert twice == []
        calls = Counter((session.id, session.run) for session in self.provider.sent)
        assert max(calls.values(), default=0) <= self.limits.attempts, calls

    def _whose_result_it_is(self, session: Session) -> None:
        leases = self._who_may_have_asked(session)
        if session.status is Status.COMPLETED:
            assert session.result["images"][0]["url"] in {f"https://images.example/{n}" for n in leases}
        if session.status is Status.FAILED and session.details["code"] not in OURS:
            assert session.details["providerMessage"] in {words(n) for n in leases}

    def _who_may_have_asked(self, session: Session) -> set[int]:
        """The leases whose answer the row may hold."""
        return {session.lease}

    def _nothing_is_lost(self, session: Session) -> None:
        """A queued run has its message, a failed one its DLQ copy; or the row says that it owes it."""
        if session.status is Status.QUEUED and not session.job_owed:
            assert self.queue.has(session.id, session.run)
        if session.status is Status.FAILED and not session.copy_owed:
            assert self.dlq.has(session.id, session.run)

    def _the_follower_sees_it(self, sessions: list[Session]) -> None:
        """One that looks, by version, only at users of whom a NOTIFY spoke has the state of the database."""
        while self.world.told:
            user = self.world.told.pop()
            after = self.followed.get(user, 0)
            asked = as_json([{"user_id": user, "after": after}])
            rows = self.world.run(self.world.db.rows("changes", asked=asked, limit=2))
            for row in rows:
                _, head, version, changed, *_ = json.loads(row["facts"])
                if changed:
                    assert after < version <= head
                    after = version
                    (now,) = self.world.run(self.world.db.rows("sessions", ids=[UUID(changed)]))
                    self.seen[UUID(changed)] = Session.of(now)
                    self.world.told.add(user)  # there may be more
            self.followed[user] = after
        for session in sessions:
            seen = self.seen.get(session.id)
            if session.status in {Status.COMPLETED, Status.FAILED}:
                assert seen
                assert (seen.status, seen.run) == (session.status, session.run)
                assert (seen.result, seen.error_details) == (session.result, session.error_details)
            else:
                assert (seen.run if seen else 1) == session.run
                assert seen is None or seen.status in {Status.QUEUED, Status.PROCESSING}

    def teardown(self) -> None:
        """When all is well again everything comes to its end by itself."""
        try:
            self.trouble_comes_and_goes("well", "well", refused=False)
            self.world.change(
                "lease_until = now() - interval '1 s'", "status = 'processing'"
            )  # nobody comes back
            for _ in range(10 * len(self.world.rows("select from generation_sessions"))):
                if not self._is_open():
                    break
                self.time_passes(a_day_for_the_oldest=False)
                self.sweep()
                for pick in range(len(self.queue.waiting)):
                    if self.queue.waiting:
                        self.deliver(pick, slow=False, kind="success")
            assert not self._is_open()
            self.everything_holds()
            assert self.world.run(credits.audit(self.world.db)).violations == []
        finally:
            for call in list(self.provider.calls):
                self.stop(self.provider.calls.index(call))

    def _is_open(self) -> bool:
        return bool(self.queue.waiting) or bool(
            self.world.rows("""
                select from generation_sessions s join credit_reservations r on r.id = s.reservation_id
                where s.status in ('queued', 'processing') or s.status = 'failed' and s.dlq_sent_at is null
                  or s.status in ('failed', 'completed') and r.status = 'held'""")
        )


@pytest.fixture
def world(dsn: str) -> Iterator[World]:
    with asyncio.Runner() as loop, psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as conn:
        opening = Database.open(dsn, size=8)
        db = loop.run(opening.__aenter__())
        try:
            yield World(loop, db, conn)
        finally:
            loop.run(opening.__aexit__(None, None, None))


def play(kind: type[Interleavings], world: World, *, shrink: bool = True) -> None:
    """Examples of histories, each in a database without another. To `shrink` one may take many minutes."""
    kept = [phase for phase in settings().phases if shrink or phase not in {Phase.shrink, Phase.explain}]
    machine = type(kind.__name__, (kind,), {"world": world})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            phases=kept,
            stateful_step_count=50,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_whatever_happens_in_whatever_order_everything_holds(world: World) -> None:
    play(Interleavings, world)

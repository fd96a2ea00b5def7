"""The same machine in trouble: a database that says no, waits, or is away, and workers that freeze and die.

Each worker has a line of its own to the database, which can be cut, lose answers, or stand still between two
statements while leases run out. Somebody else's transaction holds an account, a session or a reservation over
several steps. A trigger of the product's own refuses ends of some sessions, and NOTIFY is refused as by a full
queue. An answer that cannot be stored waits; the machine runs until each task has ended, waits for the
provider, or has a reason to wait, so that whoever waits without one is found.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule
from psycopg.rows import dict_row
from tests.path.test_interleavings import EXAMPLES, KIND, PICK, USERS, Call, Interleavings, World, nth, play

from genctl import answers, credits, ledger, nets, pipeline, run
from genctl import enqueue as enqueueing
from genctl import redrive as redriving
from genctl.domain import decide
from genctl.domain.model import Answer, NotYetError, Session
from genctl.edges.db import LOCK_S, Database, Row, Statement
from genctl.edges.db_errors import DatabaseGoneError
from genctl.pipeline import Hear, Pipeline, at_once
from genctl.tools.seedream4 import TOOL

SHORT_S = 0.02  # what anybody waits for a lock here
NEWEST = -1
STUCK_S = 20.0  # who waits so long without a reason has found a bug
ENDS = ("retried", "completed", "failed", "answered", "late_result")  # where an answer may end up

LOCKS = {
    "account": "select user_id as what from credit_accounts where user_id = %(user_id)s for update",
    "session": "select id as what from generation_sessions where id = %(id)s for update",
    "reservation": "select id as what from credit_reservations where id = %(reservation_id)s for update",
}
REFUSALS = """
    create schema troubles;
    create table troubles.no_notify ();
    create function troubles.pg_notify(channel text, payload text) returns void language plpgsql as $$ begin
      if exists (select from troubles.no_notify) then
        raise exception 'too many notifications in the NOTIFY queue' using errcode = 'program_limit_exceeded';
      end if;
      perform pg_catalog.pg_notify(channel, payload);
    end $$;
    create table troubles.no_end (session_id uuid);
    create function troubles.say_no() returns trigger language plpgsql as $$ begin
      if exists (select from troubles.no_end where session_id = new.id) then
        raise exception 'the product says no';
      end if;
      return new;
    end $$;
    create trigger say_no before update on generation_sessions for each row
      when (new.status in ('completed', 'failed') and old.status = 'processing')
      execute function troubles.say_no();
    -- so that ours is found before PostgreSQL's
    do $$ begin execute format('alter database %I set search_path = troubles, pg_catalog, public',
      current_database()); end $$"""

TROUBLE = st.sampled_from([*LOCKS, "refusal", "cut", "unheard", "frozen", "killed"])


class Line(Database):
    """The way of one worker to the database.

    `away`: nothing gets through. `unheard`: of so many statements the answer is lost, though they are done.
    `steps`: so many more are sent, and then it stands still. `fresh`: it was away for longer than a lease.
    """

    def __init__(self, db: Database) -> None:
        super().__init__(db.dsn, db._pool)
        self.away = self.fresh = False
        self.unheard = 0
        self.steps: int | None = None
        self.standing = 0
        self.goes = asyncio.Event()

    @property
    def is_well(self) -> bool:
        return not self.away and not self.unheard and self.steps is None

    def heal(self) -> None:
        self.away, self.unheard, self.steps = False, 0, None
        self.goes.set()
        self.goes = asyncio.Event()

    def back_since_s(self) -> float:
        return 0.0 if self.fresh else 3600.0

    async def patiently(
        self, *steps: Statement, patience_s: float = 0.0, lock_s: float | None = None
    ) -> list[list[Row]]:
        """Twice: what is patient above it is what is tried here."""
        with suppress(DatabaseGoneError):
            return await self.transact(*steps, lock_s=lock_s)
        return await self.transact(*steps, lock_s=lock_s)

    async def _transact(self, steps: Any, timeout_s: float, lock_s: float | None) -> list[list[Row]]:
        if self.steps == 0:
            self.standing += 1
            await self.goes.wait()
            self.standing -= 1
        elif self.steps:
            self.steps -= 1
        if self.away:
            raise DatabaseGoneError("DatabaseUnreachable", "it is away")
        rows = await super()._transact(steps, timeout_s, min(lock_s or LOCK_S, SHORT_S))
        if self.unheard:
            self.unheard -= 1
            raise DatabaseGoneError("DatabaseUnreachable", "its answer was lost")
        return rows


class TroubledWorld(World):
    """Also somebody else's connection, which holds locks."""

    def __init__(self, loop: asyncio.Runner, db: Database, conn: psycopg.Connection[dict[str, Any]]) -> None:
        super().__init__(loop, db, conn)
        self.other = psycopg.connect(db.dsn, row_factory=dict_row)
        self.unsettled: set[tuple[UUID, int, int]] = set()  # what the log named of those who had to stop

    def wipe(self) -> None:
        super().wipe()
        self.conn.execute("delete from troubles.no_notify; delete from troubles.no_end")
        self.unsettled.clear()


class Troubles(Interleavings):
    """What troubles a run's way to its end, and who must not notice."""

    world: TroubledWorld
    limits = decide.Limits(attempts=2, unknowns=1)

    def __init__(self) -> None:
        self.lines: dict[Pipeline, Line] = {}
        self.owners: dict[asyncio.Task[Any], Pipeline] = {}
        self.dead: set[Pipeline] = set()
        self.locked: set[object] = set()  # users, sessions, reservations
        self.refused: set[UUID] = set()
        self.kept: dict[tuple[UUID, int], int] = {}  # runs with a kept answer; the lease when that was seen
        self.no_notify = self.far_off = False
        super().__init__()

    # -- what happens ---------------------------------------------------------------------------------

    @rule(
        user=st.sampled_from(USERS),
        trouble=TROUBLE,
        steps=st.integers(0, 3),
        kind=KIND,
        then=st.sampled_from(["nothing", "lapses", "sweep", "another", "stop"]),
        other=KIND,
        ends=st.booleans(),
    )
    def an_answer_meets(
        self, user: str, trouble: str, steps: int, kind: str, then: str, other: str, ends: bool
    ) -> None:
        """A worker calls, the trouble sets in, the answer comes; others act on what they see; it may end."""
        self.grant(user, 3)
        self.enqueue([user], cost=3)
        self.work_begins(NEWEST)
        if not self.provider.calls:
            return
        call = nth(self.provider.calls, NEWEST)
        worker = self._owner(call.task)
        self._befall(trouble, call.session, worker, steps=steps)
        if trouble != "killed":
            self.world.run(self._answer(call, kind))
        if then == "stop" and call.task and self._held(call.task) and not self._stands(call.task):
            self.world.run(self._cancel(call.task))
        self._others_act(call, then, other)
        if ends:
            self._all_is_well(worker)

    def _others_act(self, call: Call, then: str, other: str) -> None:
        if then == "nothing":
            return
        self._end_lease(call.session.id)
        if then == "sweep":
            self.sweep()
        elif then == "another":
            receipt = self.queue.put(decide.job_body(call.session, TOOL.name), {})
            self.world.run(self._begin(self.queue.waiting[receipt], other))

    def _all_is_well(self, worker: Pipeline | None) -> None:
        self._unlock()
        self._allow()
        if worker in self.workers:
            self.lines[worker].heal()
        self.world.run(self._until_all_rest())

    def work_begins(self, pick: int) -> None:
        self.world.change("due_at = null")
        self.deliver(pick, slow=False, kind=None)

    @rule(pick=PICK, what=st.sampled_from(sorted(LOCKS)))
    def somebody_locks(self, pick: int, what: str) -> None:
        if sessions := self._sessions():
            self._befall(what, nth(sessions, pick), None)

    @rule(pick=PICK)
    def a_trigger_says_no(self, pick: int) -> None:
        if sessions := self._sessions():
            self._befall("refusal", nth(sessions, pick), None)

    @rule(yes=st.booleans())
    def notify_is_refused(self, yes: bool) -> None:
        self.world.told |= set(USERS)  # the backstop of the streams, which needs no NOTIFY
        self.no_notify = yes
        self.world.conn.execute(
            "insert into troubles.no_notify default values" if yes else "delete from troubles.no_notify"
        )

    @rule(pick=PICK, trouble=st.sampled_from(["cut", "unheard", "frozen", "killed"]), lapse=st.booleans())
    def a_worker_is_in_trouble(self, pick: int, trouble: str, lapse: bool) -> None:
        """Whatever it has in its hands."""
        if self.workers:
            worker = nth(self.workers, pick)
            held = [hold.session for hold in worker.runs]
            self._befall(trouble, None, worker, steps=pick % 4)
            for session in held if lapse else []:
                self._end_lease(session.id)

    @rule(pick=PICK)
    def one_whose_answer_is_kept_dies(self, pick: int) -> None:
        """Its answer is in the trace; what it has in its hands is gone."""
        if found := [w for w in self.workers if any(held.kept for held in w.answers.waiting)]:
            held = [hold.session for hold in nth(found, pick).runs]
            self._befall("killed", None, nth(found, pick))
            for session in held:
                self._end_lease(session.id)

    @rule(pick=PICK, which=st.sampled_from(["locks", "refusals", "worker", "worker"]), long=st.booleans())
    def a_trouble_ends(self, pick: int, which: str, long: bool) -> None:
        """`long`: it was an outage after which those who hold runs get the first turn at them."""
        if which == "locks":
            self._unlock()
        elif which == "refusals":
            self._allow()
        else:
            ill = [worker for worker in self.workers if not self.lines[worker].is_well]
            if ill:
                self.lines[nth(ill, pick)].fresh = long
                self.lines[nth(ill, pick)].heal()
        self.world.run(self._until_all_rest())

    @rule()
    def outages_are_over_for_long(self) -> None:
        for line in self.lines.values():
            line.fresh = False

    @rule(pick=PICK)
    def a_worker_renews(self, pick: int) -> None:
        """All that it holds, as its keeper does."""
        if able := [worker for worker in self.workers if self.lines[worker].is_well]:
            worker = nth(able, pick)
            for hold in self.world.run(worker.runs.extend(list(worker.runs))):
                hold.lose()
            self.world.run(self._until_all_rest())

    @rule(pick=PICK)
    def a_turn_is_far_off(self, pick: int) -> None:
        """Whoever gets this job now gives it back, without a call."""
        self.far_off = True
        calls = len(self.provider.sent)
        self.work_begins(pick)
        self.far_off = False
        assert len(self.provider.sent) == calls

    @rule(pick=PICK)
    def one_whose_answer_waits_is_stopped(self, pick: int) -> None:
        """SIGTERM: the answer goes to the trace, or, when nothing gets through, to the log."""
        tasks = [task for task in self.owners if self._held(task) and not self._stands(task)]
        if tasks:
            self.world.run(self._cancel(nth(tasks, pick)))

    # -- how it happens -------------------------------------------------------------------------------

    def _befall(
        self, trouble: str, session: Session | None, worker: Pipeline | None, *, steps: int = 0
    ) -> None:
        if trouble in LOCKS and session:
            self._lock(trouble, session)
        elif trouble == "refusal" and session:
            self.refused.add(session.id)
            self.world.conn.execute("insert into troubles.no_end values (%s)", [session.id])
        elif worker and worker not in self.dead:
            self._trouble_a_worker(trouble, worker, steps)

    def _lock(self, what: str, session: Session) -> None:
        facts = {"user_id": session.user_id, "id": session.id, "reservation_id": session.reservation_id}
        self.locked |= {row["what"] for row in self.world.other.execute(LOCKS[what], facts)}

    def _unlock(self) -> None:
        self.world.other.rollback()
        self.locked.clear()

    def _allow(self) -> None:
        self.world.conn.execute("delete from troubles.no_end")
        self.refused.clear()

    def _trouble_a_worker(self, trouble: str, worker: Pipeline, steps: int) -> None:
        line = self.lines[worker]
        if trouble == "unheard":
            line.unheard = steps
        elif trouble == "frozen":
            line.steps = steps
            for hold in worker.runs:
                hold.renewed_at -= run.LEASE_S
        else:
            line.away = True
        if trouble == "killed":
            line.heal()
            line.away = True
            self.dead.add(worker)
            self.workers.remove(worker)

    def _sessions(self) -> list[Session]:
        return [Session.of(row) for row in self.world.rows("select * from generation_sessions order by id")]

    def _pipeline(self) -> Pipeline:
        line = Line(self.world.db)
        pipeline = Pipeline(
            db=line, queue=self.queue, dlq=self.dlq, limits=self.limits, tool=TOOL, wire=self.provider
        )
        self.lines[pipeline] = line
        return pipeline

    async def _turn(self) -> Hear:
        if self.far_off:
            raise NotYetError(30.0)
        return await at_once()

    def _free(self, session_id: UUID) -> Pipeline:
        worker = (
            next((w for w in self.workers if session_id not in w.runs and self.lines[w].is_well), None)
            or self._pipeline()
        )
        if worker not in self.workers:
            self.workers.append(worker)
        if task := asyncio.current_task():
            self.owners[task] = worker
        return worker

    def _owner(self, task: asyncio.Task[Any] | None) -> Pipeline | None:
        return self.owners.get(task) if task else None

    def _held(self, task: asyncio.Task[Any]) -> answers.Held | None:
        """The answer of a task that waits for its row."""
        worker = self.owners[task]
        sessions = {hold.session.id for hold in worker.runs if hold.task is task}
        return next((held for held in worker.answers.waiting if held.session.id in sessions), None)

    def _stands(self, task: asyncio.Task[Any]) -> bool:
        line = self.lines[self.owners[task]]
        return line.steps == 0 and line.standing > 0

    def _rests(self, task: asyncio.Task[Any]) -> bool:
        """Only the locked, the refused and those of a worker in trouble may wait."""
        if super()._rests(task) or self._stands(task):
            return True
        held, line = self._held(task), self.lines[self.owners[task]]
        if held is None:
            return False
        session = held.session
        troubles = {session.user_id, session.id, session.reservation_id} & self.locked
        return bool(troubles) or session.id in self.refused or line.away

    async def _until_it_rests(self, task: asyncio.Task[Any]) -> None:
        if task not in self.owners:
            await asyncio.sleep(0)  # it has not begun
        try:
            async with asyncio.timeout(STUCK_S):
                await super()._until_it_rests(task)
        except TimeoutError:
            raise AssertionError(f"it waits without a reason: {self._held(task)}") from None

    async def _until_all_rest(self) -> None:
        for worker in self.workers:
            for held in worker.answers.waiting:
                held.why = None  # until it is tried again
        for task in [task for task in self.owners if not task.done()]:
            await self._until_it_rests(task)

    async def _stop(self, call: Call) -> None:
        if call.task and not self._stands_still(call.task):
            await super()._stop(call)

    def _stands_still(self, task: asyncio.Task[Any]) -> bool:
        return self.lines[self.owners[task]].steps is not None

    async def _cancel(self, task: asyncio.Task[Any]) -> None:
        held, reaches = self._held(task), self.lines[self.owners[task]].is_well
        task.cancel()
        await asyncio.wait([task])
        if held and reaches and isinstance(held.item, run.Settlement):
            given = (held.session.id, held.session.run, held.session.lease)
            assert given in self._ends(), f"only the log has the answer to {given}"

    # -- what must hold -------------------------------------------------------------------------------

    def _who_may_have_asked(self, session: Session) -> set[int]:
        return {session.lease} | {
            lease
            for (id_, n, lease), kinds in self._ends().items()
            if (id_, n) == (session.id, session.run) and "answered" in kinds
        }

    def _ends(self) -> Mapping[tuple[UUID, int, int], set[str]]:
        """Where the trace tells of the answer to each lease of each run."""
        found: dict[tuple[UUID, int, int], set[str]] = {}
        rows = self.world.rows(
            "select session_id, run, (data ->> 'lease')::bigint as lease, kind from session_events where kind = any(%s)",
            list(ENDS),
        )
        for row in rows:
            found.setdefault((row["session_id"], row["run"], row["lease"]), set()).add(row["kind"])
        return found

    def _each_run_has_one_outcome(self, sessions: list[Session]) -> None:
        super()._each_run_has_one_outcome(sessions)
        ends = self._ends()
        self._no_answer_is_thrown_away(ends)
        self._no_call_where_an_answer_is_kept(sessions, ends)

    def _no_answer_is_thrown_away(self, ends: Mapping[tuple[UUID, int, int], set[str]]) -> None:
        leases = {
            row["id"]: row["lease"] for row in self.world.rows("select id, lease from generation_sessions")
        }
        for call, answer in self.provider.given:
            given = (call.session.id, call.session.run, call.session.lease)
            if call.task and call.task.done() and self.owners[call.task] not in self.dead:
                assert given in ends or given in self.world.unsettled, f"the answer to {given} is lost"
            if ends.get(given) == {"late_result"} and isinstance(answer, Answer) and answer.status < 500:
                assert leases[call.session.id] > call.session.lease, f"nobody has claimed it since {given}"

    def _no_call_where_an_answer_is_kept(
        self, sessions: list[Session], ends: Mapping[tuple[UUID, int, int], set[str]]
    ) -> None:
        for call in self.provider.sent:
            last = self.kept.get((call.id, call.run), call.lease)
            assert call.lease <= last, f"called, though its answer is kept: {call}"
        leases = {(session.id, session.run): session.lease for session in sessions}
        for (id_, n, _), kinds in ends.items():
            if "answered" in kinds and (id_, n) in leases:
                self.kept.setdefault((id_, n), leases[id_, n])

    def _the_follower_sees_it(self, sessions: list[Session]) -> None:
        if self.no_notify:
            self.world.told |= set(USERS)
        super()._the_follower_sees_it(sessions)

    def teardown(self) -> None:
        """All is well again; only the dead stay dead."""
        try:
            self._unlock()
            self._allow()
            self.notify_is_refused(yes=False)
            for worker in self.workers:
                self.lines[worker].heal()
            for line in self.lines.values():
                line.fresh = False
            self.world.run(self._until_all_rest())
            for worker in self.workers:
                assert worker.answers.waiting == []
            super().teardown()
        finally:
            self.world.run(self._bury())

    async def _bury(self) -> None:
        self._unlock()
        for line in self.lines.values():
            line.heal()
            line.away = True
        for task in [task for task in self.owners if not task.done()]:
            await self._cancel(task)


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long: no pause decides what happens."""
    for module, name, value in (
        (answers, "FIRST_PAUSE_S", 0.001),
        (answers, "LOCKED_PAUSE_S", 0.005),
        (answers, "REFUSED_PAUSE_S", 0.005),
        (answers, "STOP_S", 0.05),
        (run, "BRIEFLY_S", SHORT_S),
        (ledger, "BRIEFLY_S", SHORT_S),
        (nets, "BRIEFLY_S", SHORT_S),
        (pipeline, "LOCKED_PAUSES_S", (0.001,)),
    ):
        monkeypatch.setattr(module, name, value)

    async def moved(*args: Any, wait_s: float | None = None, **more: Any) -> ledger.Moved:
        return await ledger.movement(*args, wait_s=wait_s and SHORT_S, **more)

    for user in (credits, enqueueing, redriving):
        monkeypatch.setattr(user, "movement", moved)


@pytest.fixture
def world(dsn: str, hurry: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[TroubledWorld]:
    with asyncio.Runner() as loop:
        with psycopg.connect(dsn, autocommit=True) as owner:
            owner.execute(REFUSALS)
        opening = Database.open(dsn, size=8)
        db = loop.run(opening.__aenter__())
        try:
            with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as conn:
                world = TroubledWorld(loop, db, conn)
                tell = answers._tell_unsettled

                def told(held: answers.Held) -> None:
                    world.unsettled.add((held.session.id, held.session.run, held.session.lease))
                    tell(held)

                monkeypatch.setattr(answers, "_tell_unsettled", told)
                yield world
                world.other.close()
        finally:
            loop.run(opening.__aexit__(None, None, None))


def test_no_answer_is_lost_and_only_who_is_in_trouble_waits(world: TroubledWorld) -> None:
    play(Troubles, world, shrink=False, examples=max(1, EXAMPLES // 2))

"""Carry a job from its message to a settled session.

`enqueue.py` turns a client's order into a reservation, a row and a message. A worker gives each message to
`carry`. `process` claims the session, calls the provider and classifies the answer. It settles a success and
captures the reservation; it retries a failure that may pass; it settles any other as failed, and releases the
reservation and notifies `session_completed` in the same transaction. Then `dispose` deletes the message,
hides it, or copies it to the DLQ and deletes it.

The row decides what to do; a message only says that there is something to do. The lease, a number that grows
with each claim, proves whose session it is.
"""

import asyncio
import os
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Literal, Self
from uuid import UUID

import structlog

from genctl.answers import Answers, Refusal, kept_answer, last_words
from genctl.base import log as lines
from genctl.base.batch import Together
from genctl.base.others import rules_of_others
from genctl.base.settings import Settings
from genctl.domain import decide, details
from genctl.domain.classify import backoff_s, ours
from genctl.domain.model import (
    Category,
    ErrorDetails,
    Failure,
    GenctlError,
    Job,
    JobProcessingError,
    LeaseLostError,
    MalformedMessageError,
    NotYetError,
    Outcome,
    Session,
    Status,
    Success,
)
from genctl.edges import spans
from genctl.edges.db import Database
from genctl.edges.db_errors import DatabaseGoneError, LockedError
from genctl.edges.sqs import Queue, Sqs
from genctl.edges.sqs_shapes import BATCH, Message, Outgoing
from genctl.run import Backoff, Claim, Hold, Mark, Runs, Settlement
from genctl.tools import Tool
from genctl.tools.found import Tools
from genctl.tools.wire import Classifier, Wire

Hear = Callable[[Success | Failure, Session], None]  # takes the outcome of a call for a session
Turn = Callable[[], Awaitable[Hear]]  # waits until a job may call the provider

# deliveries without a claim, calls that nobody waits for any more, DLQ copies, settles without NOTIFY
Counted = Literal["repeated", "orphaned", "copied", "unnotified"]

PUT_OFF_PAUSE_S = 0.5  # between tries to give a job back
LOCKED_PAUSES_S = (0.005, 0.02, 0.1)  # between looks at a row that somebody has locked
MARK_PAUSES_S = (0.1, 0.5, 2.0, 5.0)  # between tries to mark a copy, as the sweeper sends another without
MOST_TOLD = 100  # tools and models whose messages we log as left for others

log = structlog.stdlib.get_logger()


async def at_once() -> Hear:
    """Let the job call the provider now."""
    return lambda *_: None


class Meters:
    """Count what happens to jobs; this class counts nothing, so that commands need no metrics library."""

    def called(self, result: Success | Failure, seconds: float) -> None:
        """Count a provider call."""

    def retried(self, failure: Failure) -> None:
        """Count a run that went back to the queue after a failure."""

    def settled(self, details: ErrorDetails | None, seconds: float) -> None:
        """Count a run that has ended, with details if it failed, and how long the settle took."""

    def refused(self, kind: Refusal) -> None:
        """Count a settle that the database refused."""

    def count(self, what: Counted) -> None:
        """Count one event of this kind."""


WITHOUT_METERS = Meters()


Queues = Callable[[], Awaitable[tuple[Queue, Queue]]]  # looks the job queue and its DLQ up


class Pipeline:
    """Take the runs of one tool through their steps; `runs` are those that this process has claimed.

    There are `queue` and `dlq` once reach() has looked them up.
    """

    queue: Queue
    dlq: Queue

    def __init__(  # noqa: PLR0913 - its parts
        self,
        *,
        db: Database,
        limits: decide.Limits,
        tool: Tool,
        queue: Queue | None = None,
        dlq: Queue | None = None,
        queues: Queues | None = None,
        others: Sequence[str] = (),
        wire: Wire | None = None,
        worker: str = "",
        lifeline: Database | None = None,
        meters: Meters = WITHOUT_METERS,
    ) -> None:
        """Take the parts; `queues` looks queue and DLQ up, if they are not given.

        `others` are LIKE patterns of the other tools' models, `lifeline` is a connection for renewals alone,
        which then never wait behind settles.
        """
        self.db = db
        if queue and dlq:
            self._have(queue, dlq)
        self._queues = queues
        self._looking: asyncio.Future[tuple[Queue, Queue]] | None = None
        self.limits = limits
        self.tool = tool
        self.others = list(others)
        self.wire = wire
        self.worker = worker
        self.meters = meters
        self.runs = Runs(db, worker, tool.like, most_attempts=limits.attempts, lifeline=lifeline)
        self.answers = Answers(self.runs, refused=meters.refused)
        # a gateway may send the codes of other providers behind ours
        self._classify = Classifier(tool.provider, verdicts=limits.verdicts, others=rules_of_others())
        self._left = set[tuple[str, str | None]]()  # tool and model of messages that are left for others
        self._claiming: set[asyncio.Task[Any]] = set()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        *,
        size: int = 4,
        calls: bool = True,
        meters: Meters = WITHOUT_METERS,
        reached: bool = True,
    ) -> AsyncIterator[Self]:
        """Open a pipeline over what the settings name; without `calls` it cannot call the provider.

        Unless the queues are to be `reached` now, whoever needs them calls reach(). Raises GenctlError:
        exit 3 when the tool, database or queue cannot be used, 2 for no such tool.
        """
        tools = Tools.of(settings)
        tool = tools.named(settings.tool) if calls else tools.about(settings.tool)
        async with AsyncExitStack() as stack:
            wire = None
            if calls:  # first, as it raises without key or address
                wire = await stack.enter_async_context(Wire(tool, longest_s=settings.provider_timeout_s))
            db = await stack.enter_async_context(Database.open(settings.dsn(), size=size))
            lifeline = db
            if calls:  # the database is there, as we have just seen
                one = Database.open(settings.dsn(), size=1, checked=False)
                lifeline = await stack.enter_async_context(one)

            sqs: Sqs | None = None

            async def queues() -> tuple[Queue, Queue]:
                nonlocal sqs  # a look in vain leaves its connection to the next one
                if sqs is None:
                    sqs = await stack.enter_async_context(await Sqs.connect(settings))
                queue = await sqs.queue(settings.queue)
                return queue, await queue.dead_letter_queue(settings.dlq)

            pipeline = cls(
                db=db,
                lifeline=lifeline,
                queues=queues,
                limits=decide.Limits(settings.max_attempts, settings.max_unknown_retries, settings.verdicts),
                tool=tool,
                others=[like for other in tools if other.name != tool.name for like in other.like],
                wire=wire,
                worker=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}",
                meters=meters,
            )
            if reached:
                await pipeline.reach()
            yield pipeline

    def _have(self, queue: Queue, dlq: Queue) -> None:
        self.queue, self.dlq = queue, dlq
        # calls for many messages at the same moment become one
        self._copies = Together(dlq.send, most=BATCH)
        self._deletes = Together(queue.delete, most=BATCH)
        self._hides = Together(queue.hide, most=BATCH)

    async def reach(self) -> None:
        """Look the queues up, unless we have them; all who come meanwhile wait for one look.

        Raises GenctlError (exit 3).
        """
        if self._queues is None:
            return
        looking = self._looking = self._looking or asyncio.ensure_future(self._queues())
        try:
            self._have(*await looking)
        except GenctlError:
            self._looking = None
            raise
        self._queues = None

    def unsent(self) -> set[asyncio.Task[Any]]:
        """Return the tasks of jobs whose request is not sent; cancelled, they give their session back."""
        return self._claiming | {hold.task for hold in self.runs if hold.task and hold.waiting}

    async def claim(self, session_id: UUID, run: int | None, *, lapsed: bool = False) -> Session | None:
        """Take the session if it is queued and due, or its owner fell silent; else return None.

        `lapsed`: take also a session that is processing without a lease, as before adoption.
        """
        for pause_s in LOCKED_PAUSES_S:
            if session_id in self.runs:  # ours already: its lease has lapsed, but we still store its answer
                return None
            if session := await self.runs.claim(Claim(session_id, run, lapsed)):
                if session.from_dead_lease:
                    self.meters.count("orphaned")
                return session
            row = await self.runs.read(session_id)
            if row is None or not self.tool.serves(row.model) or not decide.is_free(row, run):
                return None
            await asyncio.sleep(pause_s)
        return None

    async def take(self, job: Job) -> Session | None:
        """Claim the job's session. If cancelled while the claim commits, give the session back."""
        claiming, task = asyncio.create_task(self.claim(job.session_id, job.run)), asyncio.current_task()
        self._claiming |= {task} if task else set()
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            if session := await last_words(claiming):
                await self.runs.step_aside(Hold(session, 0.0))
            raise
        finally:
            self._claiming -= {task}

    async def attempt(self, hold: Hold, turn: Turn) -> Success | Failure:
        """Call the provider once, when its turn has come.

        Raises LeaseLostError: the run is ours no more; NotYetError, also when nobody can tell whether it is.
        """
        assert self.wire  # noqa: S101 - whoever works has opened one
        with hold.call():
            hear = await turn()
            if hold.stale:
                with suppress(DatabaseGoneError, LockedError):
                    if await self.runs.extend([hold]):
                        raise LeaseLostError(hold.session.id)
            if hold.stale:
                raise NotYetError(0.0)
            began_at = time.monotonic()
            with spans.span("genctl.call", attempt=hold.session.attempts, model=hold.session.model):
                answer = await self.wire.generate(hold.session, hold.on_send)
        result = self._classify(answer, now=datetime.now(UTC))
        self.meters.called(result, time.monotonic() - began_at)
        hear(result, hold.session)
        return result

    async def put_off(self, hold: Hold, wait_s: float) -> Session:
        """Give the job back until its turn comes; this uses no attempt. Raises LeaseLostError.

        Tries until the row has it: a lease that lapses counts as a call of which nobody knows the outcome.
        """
        session = hold.session
        log.info("session.put_off", sessionId=session.id, userId=session.user_id, waitS=round(wait_s, 1))
        while True:
            with suppress(DatabaseGoneError, LockedError):
                return Session.of(await self.runs.step_aside(hold, delay_s=wait_s))
            await asyncio.sleep(PUT_OFF_PAUSE_S)

    async def retry(self, session: Session, failure: Failure) -> Session:
        """Send the run back to the queue, due after the backoff. Raises LeaseLostError."""
        delay_s = backoff_s(failure, session.attempts, random=random.random())  # noqa: S311 - jitter
        item = Backoff(
            session_id=session.id,
            lease=session.lease,
            delay_s=delay_s,
            unknown=int(failure.outcome is Outcome.UNKNOWN),
            trace=_trace(session, failure) | {"delayS": delay_s},
        )
        row = await self.answers.retry(session, item)
        if row["status"] != Status.QUEUED:  # we have ended it
            raise LeaseLostError(session.id)
        self.meters.retried(failure)
        whose = {"sessionId": session.id, "userId": session.user_id}
        facts = {"code": failure.code, "attempt": session.attempts, "delayS": round(delay_s, 1)}
        log.info("session.retried", **whose, **facts)
        return Session.of(row)

    async def settle(self, session: Session, result: Success | Failure, *, calls: int) -> Session:
        """End the run in one transaction: reservation, ledger, balance, session, trace, NOTIFY.

        `calls` is the number of provider calls of this run. Tries until the row has the answer. When the
        database refuses to move the reservation, the session ends with the reservation still held; a failed
        one gets `refundError`, and the sweeper refunds later. Raises LeaseLostError when the session is no
        longer ours; the trace keeps the answer.
        """
        return await self.end(session, self._settlement(session, result, calls))

    async def end(self, session: Session, settlement: Settlement, *, patient: bool = True) -> Session:
        """Settle the session by this settlement; unless `patient`, raise GenctlError instead of trying again.

        Returns the columns of the row that dispose() needs, without the prompt and the provider's words.
        """
        began_at = time.monotonic()
        settle = self.answers.settle if patient else self.answers.settle_now
        code = settlement.details.code if settlement.details else None
        with spans.span("genctl.settle", parent=session.traceparent, status=settlement.status, code=code):
            stored = await settle(session, settlement)
        row, notified = Session.of(stored), stored.get("notified", True)
        self.meters.settled(settlement.details, time.monotonic() - began_at)
        if not notified:
            self.meters.count("unnotified")
        _log_settled(row, notified=notified)
        return row

    async def give_up(self, session: Session, code: str) -> Session:
        """End a claimed run without a call: by an answer that the trace keeps, else as failed with our code.

        Raises LeaseLostError. Gives the session back and raises GenctlError when it cannot settle now.
        """
        settlement = kept_answer(session) or self._settlement(session, ours(code), session.calls_before)
        try:
            return await self.end(session, settlement, patient=False)
        except LeaseLostError:
            raise
        except GenctlError:
            await self.runs.step_aside(Hold(session, 0.0))
            raise

    def _settlement(self, session: Session, result: Success | Failure, calls: int) -> Settlement:
        return Settlement(
            session_id=session.id,
            user_id=session.user_id,
            run=session.run,
            lease=session.lease,
            attempts=calls,
            status=Status.FAILED if isinstance(result, Failure) else Status.COMPLETED,
            trace=_trace(session, result),
            details=self._details(session, result, calls) if isinstance(result, Failure) else None,
            result=details.result(result, self.tool.provider.key_shape)
            if isinstance(result, Success)
            else None,
        )

    def _details(self, session: Session, failure: Failure, calls: int) -> ErrorDetails:
        return details.build(
            failure,
            attempts=calls,
            max_attempts=self.limits.attempts,
            first_attempt_at=session.started_at,
            provider=self.tool.provider,
        )

    async def dispose(self, message: Message, job: Job, processed: Session | None = None) -> None:
        """Delete the message, hide it, or copy it to the DLQ and delete it, as the row says.

        `processed` is the row as our own attempt left it. Deletes a failed job's message only after it has
        marked the copy. Raises GenctlError when SQS or the database is away: the message comes back.
        """
        row, ours = processed, True
        if row is None:
            row = await self.runs.read(job.session_id)
            ours = self.tool.serves(row.model) if row else job.tool == self.tool.name
        if not ours:
            self._tell_left(job, row)
        match decide.dispose(job, row, message.system.receive_count, ours=ours):
            case decide.Delete():
                pass
            case decide.Hide(seconds):
                await self.hide(message, seconds)
                return
            case decide.Copy(code, mark=True) if row is not None:
                await self.copy(row, body=message.body, code=code)
            case decide.Copy(code):
                await self.send_copy(message.body, code, session_id=job.session_id)
        await self._delete(message)

    def _tell_left(self, job: Job, row: Session | None) -> None:
        """Log once for each tool and model that we leave its messages for others."""
        what = (job.tool, row.model if row else None)
        if what not in self._left and len(self._left) < MOST_TOLD:
            self._left.add(what)
            facts = {"tool": job.tool, "model": what[1], "ours": self.tool.name}
            log.warning("message.left", **facts, sessionId=job.session_id)

    async def refuse(self, message: Message, why: str) -> None:
        """Copy a message that is no job of ours to the DLQ as it is, and delete it."""
        log.warning("message.malformed", messageId=message.message_id, why=why)
        await self.send_copy(message.body, "MalformedMessage")
        await self._delete(message)

    async def copy(self, row: Session, *, body: str, code: str) -> None:
        """Send the DLQ copy that a failed row owes, and mark it."""
        with spans.span("genctl.copy", parent=row.traceparent, session=row.id, run=row.run, code=code):
            message_id = await self.send_copy(body, code, row=row)
            await self._mark(Mark(row.id, row.run, message_id))
        lines.info("session.dlq.sent", sessionId=row.id, userId=row.user_id, code=code, messageId=message_id)

    async def _mark(self, mark: Mark) -> None:
        """Mark the copy as sent; wait a while if another transaction has locked the row."""
        for pause_s in MARK_PAUSES_S:
            with suppress(LockedError):
                await self.runs.mark(mark)
                return
            await asyncio.sleep(pause_s)
        await self.runs.mark(mark)

    async def send_copy(
        self, body: str, code: str, *, row: Session | None = None, session_id: UUID | None = None
    ) -> str:
        """Put a copy into the DLQ and return its message id. Raises GenctlError when SQS did not take it."""
        category = row.details.get("category") if row else None
        attributes = decide.copy_attributes(
            row,
            code=code,
            category=str(category or Category.INTERNAL),
            source_queue=self.queue.name,
            session_id=str(session_id) if session_id else None,
        )
        sent = await self._copies(Outgoing(body, attributes, user=row.user_id if row else None))
        if sent.error is not None:
            raise GenctlError("CopyNotSent", f"DLQ {self.dlq.name} refused the copy: {sent.error}", sent.fix)
        self.meters.count("copied")
        return sent.message_id

    async def hide(self, message: Message, seconds: int) -> None:
        """Hide the message for so long; 0 shows it at once. Raises GenctlError."""
        if error := await self._hides((message.receipt, seconds)):
            log.warning("message.hide.failed", messageId=message.message_id, error=error)

    async def _delete(self, message: Message) -> None:
        """Delete the message; if SQS does not, it comes back, and dispose() deletes it then."""
        if error := await self._deletes(message.receipt):
            log.warning("message.delete.failed", messageId=message.message_id, error=error)


async def process(job: Job, pipeline: Pipeline, turn: Turn = at_once) -> Session | None:
    """Carry one job from claim to the end of its attempt; await `turn` before the provider call.

    Returns the row as the attempt left it (completed, or queued again), or None when we cannot claim the
    session: another worker has it, or it has ended. Raises JobProcessingError once it has settled a failed
    run, LeaseLostError when the run is no longer ours.
    """
    claimed_at = time.monotonic()
    with spans.span("genctl.claim"):
        session = await pipeline.take(job)
    if session is None:
        return None
    with spans.span("genctl.run", parent=session.traceparent, session=session.id, run=session.run):
        return await _attempted(session, claimed_at, pipeline, turn)


async def _attempted(session: Session, claimed_at: float, pipeline: Pipeline, turn: Turn) -> Session:
    """Make the attempt of a claimed run. Raises as process() does."""
    async with pipeline.runs.keep(session, claimed_at) as hold:
        if answer := kept_answer(session):
            return ended(await pipeline.end(session, answer))
        if code := decide.exhausted(session, pipeline.limits):
            return ended(await pipeline.settle(session, ours(code), calls=session.calls_before))
        try:
            result = await pipeline.attempt(hold, turn)
        except NotYetError as later:
            return await pipeline.put_off(hold, later.wait_s)
        if isinstance(result, Failure) and decide.may_retry(session, result, pipeline.limits):
            return await pipeline.retry(session, result)
        return ended(await pipeline.settle(session, result, calls=session.attempts))


def ended(row: Session) -> Session:
    """Return a completed row. Raises JobProcessingError for a failed one."""
    if row.status is Status.FAILED:
        raise JobProcessingError(f"DLQ:{decide.error_code(row)}", permanent=True, session=row)
    return row


async def carry(message: Message, pipeline: Pipeline, turn: Turn = at_once) -> Session | None:
    """Carry one delivery from its message to its end: process the job, then dispose of the message.

    Returns the row as the attempt left it. Raises LeaseLostError, and leaves the message alone then;
    GenctlError when a dependency is away: the message comes back.
    """
    try:
        job = decide.read_job(message.body)
    except MalformedMessageError as error:
        await pipeline.refuse(message, error.message)
        return None
    context = message.sent.get(spans.HEADER)
    parent = context.string_value if context else None
    with spans.span("genctl.job", parent=parent, session=job.session_id, run=job.run):
        try:
            row = await process(job, pipeline, turn)
        except JobProcessingError as error:
            row = error.session
        if row is None:
            pipeline.meters.count("repeated")
        await pipeline.dispose(message, job, row)
    return row


async def carry_unasked(job: Job, pipeline: Pipeline, turn: Turn = at_once) -> Session | None:
    """Carry a run whose message is not in our hands: that one finds it taken or ended.

    Returns the row as the attempt left it; raises as carry() does. A failed run owes its DLQ copy, which we
    make from the row.
    """
    try:
        return await process(job, pipeline, turn)
    except JobProcessingError as error:
        row = error.session
    if row and row.copy_owed:
        await pipeline.copy(row, body=decide.job_body(row, pipeline.tool.name), code=decide.error_code(row))
    return row


def _log_settled(row: Session, *, notified: bool) -> None:
    whose = {"sessionId": row.id, "userId": row.user_id, "run": row.run}
    if not notified:
        log.warning("session.notify.refused", **whose, fix="genctl status")
    if row.status is Status.COMPLETED:
        lines.info("session.completed", **whose)
        return
    stored = row.details
    facts = {name: stored.get(name) for name in ("code", "refundedCredits")}  # triggers may change them
    lines.info("session.failed.updated", **whose, **facts)
    if notified:
        lines.info("session.failed.notify.sent", **whose)


def _trace(session: Session, result: Success | Failure) -> dict[str, Any]:
    found: dict[str, Any] = {"attempt": session.attempts, "lease": session.lease}
    if isinstance(result, Failure):
        found |= {"code": result.code, "category": result.category, "outcome": result.outcome}
        found |= {"providerStatus": result.provider_status}
    return found | {"requestId": result.request_id}

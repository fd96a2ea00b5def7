"""The pipeline, from a job message to a settled session.

A client's order becomes a reservation, a row and a message in `enqueue.py`. A worker gives each
message to `process`: claim the session, call the provider, classify what came; a success is settled
with its reservation captured; a failure that may pass is retried; any other is settled as failed,
its reservation released and `session_completed` notified, all in one transaction. Then `dispose`
ends the message: deleted, hidden, or copied to the DLQ and deleted.

The row decides, the message is a doorbell; the lease (a number that grows with each claim) proves
whose session it is.
"""

import asyncio
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Self
from uuid import UUID

import msgspec
import structlog

from genctl.answers import Answers, kept_answer, last_words
from genctl.base.hidden import hide
from genctl.base.meters import Meters
from genctl.base.settings import Settings
from genctl.domain import decide, details
from genctl.domain.classify import backoff_s, classify, ours
from genctl.domain.model import (
    Category,
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
from genctl.edges.db import Database
from genctl.edges.db_errors import LockedError
from genctl.edges.sqs import Message, Outgoing, Queue, Sqs
from genctl.messages import Messages
from genctl.run import Claim, Ending, Hold, Mark, Retry, Runs
from genctl.tools import Tool
from genctl.tools.found import Tools
from genctl.tools.wire import Wire

Hear = Callable[[Success | Failure], None]  # what a provider call came to

LOCKED_PAUSES_S = (0.005, 0.02, 0.1)  # a claim passes over a row that is locked, and looks again
MOST_TOLD = 100
MARK_PAUSES_S = (0.1, 0.5, 2.0, 5.0)

log = structlog.stdlib.get_logger()


async def at_once() -> Hear:
    """A turn to call the provider, for whoever need not wait for one."""
    return lambda _: None


class Pipeline:
    """The steps of a run of one tool, and what they need. `runs` are those that are ours now.

    `turn` is awaited before each provider call; what it gives is told what the call came to.
    """

    def __init__(  # noqa: PLR0913 - its parts
        self,
        *,
        db: Database,
        queue: Queue,
        dlq: Queue,
        limits: decide.Limits,
        tool: Tool,
        others: Sequence[str] = (),
        wire: Wire | None = None,
        worker: str = "",
        lifeline: Database | None = None,
    ) -> None:
        self.db = db
        self.queue = queue
        self.dlq = dlq
        self.limits = limits
        self.tool = tool
        self.others = list(others)  # patterns of LIKE: the models of the other tools
        self.wire = wire
        self.worker = worker
        self.turn: Callable[[], Awaitable[Hear]] = at_once
        self.meters = Meters()
        # renewals have a connection of their own: never behind settles that wait
        self.runs = Runs(db, worker, tool.like, most_attempts=limits.attempts, lifeline=lifeline)
        self.answers = Answers(self.runs, lambda: self.meters)
        self._messages = Messages(queue, dlq)
        self._left = set[tuple[str, str | None]]()  # tool and model of messages that are left for others
        self._claiming: set[asyncio.Task[Any]] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, *, size: int = 4, calls: bool = True) -> AsyncIterator[Self]:
        """A pipeline over what the settings name; without `calls` it cannot call the provider.

        Raises GenctlError: exit 3 when the tool, database or queue cannot be used, 2 for no such tool.
        """
        tools = Tools.of(settings)
        tool = tools.named(settings.tool) if calls else tools.about(settings.tool)
        async with AsyncExitStack() as stack:
            wire = None
            if calls:  # first: without it nothing is to be opened
                wire = await stack.enter_async_context(Wire(tool, longest_s=settings.provider_timeout_s))
            db = await stack.enter_async_context(Database.open(settings.dsn(), size=size))
            lifeline = await stack.enter_async_context(Database.open(settings.dsn(), size=1)) if calls else db
            sqs = await stack.enter_async_context(await Sqs.connect(settings))
            queue = await sqs.queue(settings.queue)
            yield cls(
                db=db,
                lifeline=lifeline,
                queue=queue,
                dlq=await queue.dead_letter_queue(settings.dlq),
                limits=decide.Limits(settings.max_attempts, settings.max_unknown_retries, settings.verdicts),
                tool=tool,
                others=[like for other in tools if other.name != tool.name for like in other.like],
                wire=wire,
                worker=f"{socket.gethostname()}:{os.getpid()}",
            )

    def unsent(self) -> set[asyncio.Task[Any]]:
        """The tasks of jobs whose request is not out yet: cancelled, they go back and no attempt is used."""
        return self._claiming | {hold.task for hold in self.runs if hold.task and hold.waiting}

    async def read(self, session_id: UUID) -> Session | None:
        """The session's row as it is now."""
        return await self.runs.read(session_id)

    async def claim(self, session_id: UUID, run: int | None, *, lapsed: bool = False) -> Session | None:
        """Take the session if it is queued and due, or its owner fell silent; else None.

        `lapsed`: one that is processing without a lease, as before adoption, counts as silent too.
        """
        for pause_s in LOCKED_PAUSES_S:
            if session_id in self.runs:  # ours already: its lease has lapsed, and its answer is in our hands
                return None
            if session := await self.runs.claim(Claim(session_id, run, lapsed)):
                if session.from_dead_lease:
                    self.meters.orphaned()
                return session
            row = await self.read(session_id)
            if row is None or not self.tool.serves(row.model) or not decide.is_free(row, run):
                return None
            await asyncio.sleep(pause_s)
        return None

    async def take(self, job: Job) -> Session | None:
        """Claim the job's session; one that we get while we are told to stop is given back at once."""
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

    async def attempt(self, hold: Hold) -> Success | Failure:
        """One provider call, when its turn has come. Raises LeaseLostError: no longer ours."""
        hold.calling = True
        try:
            hear = await self.turn()
            if hold.stale:
                await self.runs.extend([hold])
            if hold.stale:  # lost, or its row is locked: nobody can say whose it is
                raise LeaseLostError(hold.session.id)
            began_at = time.monotonic()
            assert self.wire  # noqa: S101 - whoever works has opened one
            answer = await self.wire.generate(hold.session, hold.on_send)
        finally:
            hold.calling = False
        now, verdicts = datetime.now(UTC), self.limits.verdicts
        said = classify(answer, self.tool.provider, now=now, verdicts=verdicts)
        result = details.without_secrets(said, hide)
        self.meters.called(result, time.monotonic() - began_at)
        hear(result)
        return result

    async def put_off(self, hold: Hold, wait_s: float) -> Session:
        """Back to the queue, as its turn is so far away; no attempt is used. Raises LeaseLostError."""
        session = hold.session
        log.info("session.put_off", sessionId=session.id, userId=session.user_id, waitS=round(wait_s, 1))
        return Session.of(await self.runs.step_aside(hold, delay_s=wait_s))

    async def retry(self, session: Session, failure: Failure) -> Session:
        """Back to the queue, due after the backoff. Raises LeaseLostError."""
        delay_s = backoff_s(failure, session.attempts, random=random.random())  # noqa: S311 - jitter
        item = Retry(
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
        log.info(
            "session.retried",
            sessionId=session.id,
            userId=session.user_id,
            code=failure.code,
            attempt=session.attempts,
            delayS=round(delay_s, 1),
        )
        return Session.of(row)

    async def settle(self, session: Session, result: Success | Failure, *, calls: int) -> Session:
        """End the run in one transaction: reservation, ledger, balance, session, trace, NOTIFY.

        `calls` is the number of provider calls of this run. It is tried until the row has it, for as long as
        that takes. When the database refuses to move the reservation the session ends all the same, the
        reservation still held: a failed one with `refundError`, and the sweeper refunds later. Raises
        LeaseLostError when the session is no longer ours; what came is kept in the trace.
        """
        return await self.end(session, self._ending(session, result, calls))

    async def end(self, session: Session, ending: Ending, *, patient: bool = True) -> Session:
        """As `settle`, by an ending that is known; without patience GenctlError is raised as well.

        What it gives says enough to dispose of the message, and neither the prompt nor the provider's words.
        """
        began_at = time.monotonic()
        settle = self.answers.settle if patient else self.answers.settle_now
        stored = await settle(session, ending)
        row, notified = Session.of(stored), stored.get("notified", True)
        self.meters.settled(ending.details, time.monotonic() - began_at)
        if not notified:
            self.meters.unnotified()
        _log_settled(row, notified=notified)
        return row

    async def give_up(self, session: Session, code: str) -> Session:
        """End a claimed run without a call: by an answer that was kept for it, else as failed with our code.

        Raises LeaseLostError, and GenctlError when it cannot be done now: the session is given back then.
        """
        ending = kept_answer(session) or self._ending(session, ours(code), session.calls_before)
        try:
            return await self.end(session, ending, patient=False)
        except LeaseLostError:
            raise
        except GenctlError:
            await self.runs.step_aside(Hold(session, 0.0))
            raise

    def _ending(self, session: Session, result: Success | Failure, calls: int) -> Ending:
        ending = Ending(
            session_id=session.id,
            user_id=session.user_id,
            run=session.run,
            lease=session.lease,
            attempts=calls,
            status=Status.FAILED,
            trace=_trace(session, result),
        )
        if isinstance(result, Success):
            images = {"images": result.images}
            return msgspec.structs.replace(ending, status=Status.COMPLETED, result=images)
        told = details.build(
            result,
            attempts=calls,
            max_attempts=self.limits.attempts,
            first_attempt_at=session.started_at,
            provider=self.tool.provider,
        )
        return msgspec.structs.replace(ending, details=told)

    async def dispose(self, message: Message, job: Job, row: Session | None = None) -> None:
        """End the message by what the row says: delete it, hide it, or copy it to the DLQ and delete it.

        Never deletes a failed job's message before its copy is marked. Raises GenctlError when SQS or the
        database is away: the message comes back.
        """
        row = row or await self.read(job.session_id)
        ours = self.tool.serves(row.model) if row else job.tool == self.tool.name
        if not ours:
            self._tell_left(job, row)
        match decide.dispose(job, row, message.receive_count, ours=ours):
            case decide.Delete():
                pass
            case decide.Hide(seconds):
                await self._messages.hide(message, seconds)
                return
            case decide.Copy(code, mark=True) if row is not None:
                await self.copy(row, body=message.body, code=code)
            case decide.Copy(code):
                await self.send_copy(message.body, code, session_id=job.session_id)
        await self._messages.delete(message)

    def _tell_left(self, job: Job, row: Session | None) -> None:
        """Say once of each kind that its messages are left for others."""
        what = (job.tool, row.model if row else None)
        if what not in self._left and len(self._left) < MOST_TOLD:
            self._left.add(what)
            log.warning(
                "message.left", tool=job.tool, model=what[1], ours=self.tool.name, sessionId=job.session_id
            )

    async def refuse(self, message: Message, why: str) -> None:
        """A message that is no job of ours goes to the DLQ as it is."""
        log.warning("message.malformed", messageId=message.message_id, why=why)
        await self.send_copy(message.body, "MalformedMessage")
        await self._messages.delete(message)

    async def copy(self, row: Session, *, body: str, code: str) -> None:
        """Send the DLQ copy that a failed row owes, and mark it."""
        message_id = await self.send_copy(body, code, row=row)
        await self._mark(Mark(row.id, row.run, message_id))
        log.info("session.dlq.sent", sessionId=row.id, userId=row.user_id, code=code, messageId=message_id)

    async def _mark(self, mark: Mark) -> None:
        """Each copy whose mark is missing is followed by another one: so a lock is worth some waiting."""
        for pause_s in MARK_PAUSES_S:
            with suppress(LockedError):
                await self.runs.mark(mark)
                return
            await asyncio.sleep(pause_s)
        await self.runs.mark(mark)

    async def send_copy(
        self, body: str, code: str, *, row: Session | None = None, session_id: UUID | None = None
    ) -> str:
        """Put a copy into the DLQ; its message id. Raises GenctlError when it could not be sent."""
        category = row.details.get("category") if row else None
        attributes = decide.copy_attributes(
            row,
            code=code,
            category=str(category or Category.INTERNAL),
            source_queue=self.queue.name,
            session_id=str(session_id) if session_id else None,
        )
        message_id = await self._messages.copy(Outgoing(body, attributes))
        self.meters.copied()
        return message_id

    async def show(self, message: Message) -> None:
        """Let the message be received again at once. Raises GenctlError."""
        await self._messages.hide(message, 0)


async def process(job: Job, at: Pipeline) -> Session | None:
    """Carry one job from claim to the end of its attempt; its message is disposed of afterwards.

    Returns the row as it was left (completed, or queued again), or None when it could not be
    claimed: someone else's, or over. Raises JobProcessingError once a failed run is settled,
    LeaseLostError when it is no longer ours.
    """
    claimed_at = time.monotonic()
    session = await at.take(job)
    if session is None:
        at.meters.repeated()
        return None
    async with at.runs.keep(session, claimed_at) as hold:
        if answer := kept_answer(session):
            return ended(await at.end(session, answer))
        if code := decide.exhausted(session, at.limits):
            return ended(await at.settle(session, ours(code), calls=session.calls_before))
        try:
            result = await at.attempt(hold)
        except NotYetError as later:
            return await at.put_off(hold, later.wait_s)
        if isinstance(result, Failure) and decide.may_retry(session, result, at.limits):
            return await at.retry(session, result)
        return ended(await at.settle(session, result, calls=session.attempts))


def ended(row: Session) -> Session:
    """The completed row. Raises JobProcessingError for a failed one."""
    if row.status is Status.FAILED:
        raise JobProcessingError(f"DLQ:{decide.error_code(row)}", permanent=True, session=row)
    return row


async def carry(message: Message, at: Pipeline) -> Session | None:
    """Carry one delivery from its message to its end: process the job, then dispose of the message.

    Returns the row as its attempt left it. Raises LeaseLostError (the message is left alone) and
    GenctlError when a dependency is away (it comes back).
    """
    try:
        job = decide.read_job(message.body)
    except MalformedMessageError as error:
        await at.refuse(message, error.message)
        return None
    try:
        row = await process(job, at)
    except JobProcessingError as error:
        row = error.session
    await at.dispose(message, job, row)
    return row


def _log_settled(row: Session, *, notified: bool) -> None:
    whose = {"sessionId": row.id, "userId": row.user_id, "run": row.run}
    if not notified:
        log.warning("session.notify.refused", **whose, fix="genctl status")
    if row.status is Status.COMPLETED:
        log.info("session.completed", **whose)
        return
    stored = row.details
    told = {name: stored.get(name) for name in ("code", "refundedCredits")}  # a trigger may have changed them
    log.info("session.failed.updated", **whose, **told)
    if notified:
        log.info("session.failed.notify.sent", **whose)


def _trace(session: Session, result: Success | Failure) -> dict[str, Any]:
    found: dict[str, Any] = {"attempt": session.attempts, "lease": session.lease}
    if isinstance(result, Failure):
        found |= {"code": result.code, "category": result.category, "outcome": result.outcome}
        found |= {"providerStatus": result.provider_status}
    return found | {"requestId": result.request_id}

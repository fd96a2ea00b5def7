"""Keep the provider's answers and try each until its row has it, or until somebody else claims the run.

We have paid for an answer. The number of the lease proves that the run is ours, not the time of the lease: we
try the settle again until another worker claims the run, however long the database is away, holds a lock on
the row, or refuses the settle.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Literal, TypeVar

import msgspec
import structlog

from genctl.domain import details
from genctl.domain.model import GenctlError, LeaseLostError, Session, Status
from genctl.edges.db import Row, as_json
from genctl.edges.db_errors import ConflictError, DatabaseGoneError, DatabaseSilentError, LockedError
from genctl.run import STOP_S, Backoff, Left, Runs, Settlement

I = TypeVar("I", Settlement, Backoff)  # noqa: E741 - an item
T = TypeVar("T")

FIRST_PAUSE_S = 0.02
LOCKED_PAUSE_S = 0.5  # at most, while somebody holds a lock or the database is away
REFUSED_PAUSE_S = 20.0  # at most, while the database refuses the settle
LAST_TRY_S = 1.2  # how long a stop waits for the row to have an answer
KEEP_WITHIN_S = 0.5  # how long it may then take to keep the answer in the trace
ROW_LOCKED = "its row is locked by another transaction"
Refusal = Literal["reservation", "words", "other"]  # the part of a settle that the database refuses
SENT_BACK = "its lease had lapsed, and the sweeper had sent the job back"
RELEASE_REFUSED = "the database refused the release; it will be tried again"

log = structlog.stdlib.get_logger()


class Held(msgspec.Struct, eq=False):
    """Hold an answer whose row does not have it yet; after a try `why` says what keeps it from its row."""

    session: Session
    item: Settlement | Backoff
    why: str | None = None
    kept: bool = False  # in the trace, for the next owner of the run


class Answers:
    """Hold the answers of one worker until their rows have them."""

    def __init__(self, runs: Runs, refused: Callable[[Refusal], None]) -> None:
        """Tell `refused` of each settle that the database refuses, and which part it refuses."""
        self._runs = runs
        self._refused = refused
        self._held: set[Held] = set()

    @property
    def waiting(self) -> list[Held]:
        """List the answers that a lock, an outage or a refusal keeps from their rows."""
        return [held for held in self._held if held.why is not None]

    async def settle(self, session: Session, settlement: Settlement) -> Row:
        """End the run and return its row. Raises LeaseLostError when it is over, or another worker's."""
        held = Held(session, settlement)
        return await self._store(held, self._persist(held, settlement, self._runs.settle, self._settle_alone))

    async def settle_now(self, session: Session, settlement: Settlement) -> Row:
        """End the run in one try, as there is no answer to lose. Raises GenctlError."""
        left = await self._left(session, await self._settle_alone(settlement))
        if left.row is None:
            raise LockedError(ROW_LOCKED) if left.is_ours else LeaseLostError(session.id)
        return left.row

    async def retry(self, session: Session, item: Backoff) -> Row:
        """Send the run back to the queue and return its row. Raises LeaseLostError."""
        held = Held(session, item)
        return await self._store(held, self._persist(held, item, self._runs.retry, self._runs.retry_alone))

    def tell_unsettled(self) -> None:
        """Log the answers that are not stored as the process ends: their request ids claim billed images."""
        for held in self._held:
            _tell_unsettled(held)

    async def _store(self, held: Held, persisting: Coroutine[Any, Any, Row]) -> Row:
        """Store the answer. If cancelled meanwhile, try for a moment more, then keep it in the trace."""
        self._held.add(held)
        storing = asyncio.create_task(persisting)
        try:
            return await asyncio.shield(storing)
        except asyncio.CancelledError:
            if await last_words(storing, LAST_TRY_S) is None and not _is_lost(storing):
                await self._give_up(held)
            raise
        finally:
            self._held.remove(held)

    async def _persist(
        self,
        held: Held,
        item: I,
        together: Callable[[I], Awaitable[Row | None]],
        alone: Callable[[I], Awaitable[Row | None]],
    ) -> Row:
        """Store it in one statement with others, at first and after an outage; alone once it held them up."""
        step, pause_s = together, FIRST_PAUSE_S
        while True:
            try:
                left = await self._left(held.session, await step(item))
                if left.row:
                    return left.row
                if not left.is_ours:
                    raise await self._lost(held, left)
                held.why, step, most_s = ROW_LOCKED, alone, LOCKED_PAUSE_S
            except LeaseLostError:
                raise
            except (LockedError, DatabaseSilentError) as error:
                held.why, step, most_s = error.message, alone, LOCKED_PAUSE_S
            except DatabaseGoneError as error:
                held.why, step, most_s = error.message, together, LOCKED_PAUSE_S
            except GenctlError as error:
                if step is alone:
                    await self._keep(held, error)
                held.why, step, most_s = error.message, alone, REFUSED_PAUSE_S
            await asyncio.sleep(pause_s * (0.5 + random.random() / 2))  # noqa: S311 - jitter is no secret
            pause_s = min(pause_s * 2, most_s)

    async def _left(self, session: Session, row: Row | None) -> Left:
        """Return the row if we have ended it or sent it back; else find out what has become of it."""
        return Left(row) if row else await self._runs.left(session)

    async def _settle_alone(self, settlement: Settlement) -> Row | None:
        """Settle alone; where the database refuses that, leave out the part that it refuses.

        Tries find that part: the settle without the release, then with fewer of the provider's words. Raises
        the first refusal when the database takes none of these.
        """
        refused = await self._tried(settlement)
        if not isinstance(refused, GenctlError):
            return refused
        for variant in variants(settlement):
            if isinstance(await self._tried(variant, dry=True), GenctlError):
                continue
            for item in (settlement, variant):  # the refusal may be over by now: try the whole first
                row = await self._tried(item)
                if not isinstance(row, GenctlError):
                    if item is variant:
                        log.warning(
                            "session.settle.reduced", sessionId=settlement.session_id, error=refused.message
                        )
                        is_whole = variant.details == settlement.details
                        self._refused("reservation" if is_whole else "words")
                    return row
        self._refused("other")
        raise refused

    async def _tried(self, settlement: Settlement, *, dry: bool = False) -> Row | GenctlError | None:
        """Return the row, or the refusal. Raises errors that do not speak of the settlement itself."""
        try:
            return await self._runs.settle_alone(settlement, dry=dry)
        except (DatabaseGoneError, LockedError, ConflictError):
            raise
        except GenctlError as error:
            return error

    async def _keep(self, held: Held, refused: GenctlError) -> None:
        """Keep a refused answer in the trace, once: the next owner of the run settles it without a call."""
        if held.kept or not isinstance(held.item, Settlement):
            return
        log.warning("session.settle.refused", **_whose(held), error=refused.message, fix=refused.fix)
        try:
            await self._note(held, "answered", _kept(held.item, refused.message))
            held.kept = True
        except GenctlError as error:
            log.warning("session.answer.not_kept", **_whose(held), error=error.message)

    async def _give_up(self, held: Held) -> None:
        """Log an answer that we cannot store before we stop and, if we can, keep it in the trace."""
        _tell_unsettled(held)
        try:
            async with asyncio.timeout(KEEP_WITHIN_S):
                await self._keep(held, GenctlError("Stopped", held.why or "the worker was stopped"))
        except TimeoutError:
            log.warning("session.answer.not_kept", **_whose(held), error="no answer in time")

    async def _lost(self, held: Held, left: Left) -> LeaseLostError:
        """Note an answer that came too late. If the sweeper took the run from us and nobody has claimed it
        since, keep the answer: the next owner of the run settles it by that.
        """
        log.warning("session.late_result", **_whose(held))
        if left.is_unclaimed and isinstance(held.item, Settlement):
            await self._note(held, "answered", _kept(held.item, SENT_BACK))
            return LeaseLostError(held.session.id)
        data = dict(held.item.trace)
        if isinstance(held.item, Settlement) and held.item.result:
            data["result"] = held.item.result
        await self._note(held, "late_result", data)
        return LeaseLostError(held.session.id)

    async def _note(self, held: Held, kind: str, data: object) -> None:
        session = held.session
        await self._runs.db.rows("note", session=session.id, run=session.run, kind=kind, data=as_json(data))


def _kept(settlement: Settlement, refused: str) -> dict[str, object]:
    """Write a settlement as kept_answer() reads it; `refused` says why the trace keeps it."""
    kept: dict[str, object] = msgspec.to_builtins(settlement)
    return kept | {"refused": refused}


def kept_answer(session: Session) -> Settlement | None:
    """Return the answer that an earlier owner could not settle, under the lease of this claim; or None."""
    try:
        settlement = msgspec.convert(session.kept, Settlement)
    except msgspec.ValidationError:  # there is none, or another version wrote it
        return None
    return msgspec.structs.replace(settlement, lease=session.lease)


def variants(settlement: Settlement) -> Iterator[Settlement]:
    """Yield what is left of a settlement when the database refuses a part of it."""
    yield _unreleased(settlement)
    if settlement.details and settlement.details != (lean := details.lean(settlement.details)):
        trace = settlement.trace | {"details": settlement.details}
        short = msgspec.structs.replace(settlement, details=lean, trace=trace)
        yield short
        yield _unreleased(short)


def _unreleased(settlement: Settlement) -> Settlement:
    return msgspec.structs.replace(settlement, release=False, refund_error=RELEASE_REFUSED)


async def last_words(step: asyncio.Future[T], within_s: float = STOP_S) -> T | None:
    """Wait a moment for a step that goes on although its caller was cancelled; return its result, if any."""
    done, _ = await asyncio.wait([step], timeout=within_s)
    if not done:
        step.cancel()
    return step.result() if done and not step.cancelled() and step.exception() is None else None


def _is_lost(step: asyncio.Future[T]) -> bool:
    return step.done() and not step.cancelled() and isinstance(step.exception(), LeaseLostError)


def _whose(held: Held) -> dict[str, object]:
    session = held.session
    return {"sessionId": session.id, "userId": session.user_id, "run": session.run}


def _tell_unsettled(held: Held) -> None:
    settlement = held.item if isinstance(held.item, Settlement) else None
    known = {name: held.item.trace.get(name) for name in ("attempt", "requestId", "code")}
    status = settlement.status if settlement else Status.QUEUED
    log.warning("session.answer.unsettled", **_whose(held), **known, status=status, why=held.why)

"""Claim runs, renew, retry, give back, let go and settle them: the statements of the protocol.

One statement serves many jobs that ask at the same moment. The lease gates every step but the claim, so a
step may run again: it changes nothing once another worker has claimed the run.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import msgspec

from genctl.base.batch import Together, attempted
from genctl.domain.model import (
    ErrorDetails,
    GenctlError,
    LeaseLostError,
    NotYetError,
    Result,
    Session,
    Status,
)
from genctl.edges.db import Database, Row, Statement, as_json
from genctl.edges.db_errors import DatabaseGoneError, DatabaseSilentError, LockedError
from genctl.ledger import BRIEFLY_S, AccountLockedError, movement

T = TypeVar("T")
A = TypeVar("A")

LEASE_S = 30  # after such a silence a worker has lost its sessions; also the messages' visibility
RENEW_S = 10
STALE_S = 20  # we send no request when the last renewal is older
STOP_S = 5.0  # how long a cancelled step of the database may take to end
CLAIM_PATIENCE_S = 15.0  # shorter than a lease: nobody claims over a claim whose answer was lost
SETTLE_PATIENCE_S = 10.0  # of one try
TOGETHER_S = 3.0  # of a statement for many jobs, and of renewals: one that hangs delays the others so long
ALONE_LANES = 4  # connections for steps that run again by themselves


class Claim(msgspec.Struct, frozen=True):
    """Ask for a session in this run (None: its current one); `lapsed` as for Pipeline.claim."""

    session_id: UUID
    run: int | None
    lapsed: bool


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """Say how a run ends. `attempts` are its provider calls; a failure has `details`, a success `result`.

    Without `release` the reservation stays as it is, and `refund_error` says why. `waits`: nobody has claimed
    the run, and the lease is that of its last claim.
    """

    session_id: UUID
    user_id: str
    run: int
    lease: int
    status: Status
    attempts: int
    trace: dict[str, Any]
    details: ErrorDetails | None = None
    result: Result | None = None
    release: bool = True
    refund_error: str | None = None
    waits: bool = False


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """Send a run back to the queue for `delay_s` seconds; `unknown` is 1 after an unknown outcome."""

    session_id: UUID
    lease: int
    delay_s: float
    unknown: int
    trace: dict[str, Any]


class Mark(msgspec.Struct, frozen=True):
    """Say that we have sent the DLQ copy of this run, under this message id."""

    session_id: UUID
    run: int
    message_id: str


class Left(NamedTuple):
    """Say what has become of a run; `row` is set if we have ended it or sent it back."""

    row: Row | None
    is_ours: bool = False  # it is processing under our lease, lapsed or not
    is_unclaimed: bool = False  # it is queued, and nobody has claimed it after us


class Hold:
    """Hold a claimed session: the keeper renews its lease, and cancels its call when the lease is lost."""

    def __init__(self, session: Session, claimed_at: float) -> None:
        self.session = session
        self.renewed_at = claimed_at  # monotonic; from before we sent the claim
        self.calling = False
        self.sent = False  # the provider may have got the request
        self.lost = False
        self.task = asyncio.current_task()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Mark the hold as calling the provider, so that a lost lease cancels the call."""
        self.calling = True
        try:
            yield
        finally:
            self.calling = False

    def on_send(self) -> None:
        """Note that the request leaves. Raises NotYetError if we slept: others may have the run."""
        if self.stale:
            raise NotYetError(0.0)
        self.sent = True

    def lose(self) -> None:
        """Cancel a call under way, as the lease is lost; a settle learns of it from the row."""
        if self.calling and self.task:
            self.lost = True
            self.task.cancel()

    @property
    def waiting(self) -> bool:
        """Tell whether its call waits, and no byte of the request is sent."""
        return self.calling and not self.sent

    @property
    def stale(self) -> bool:
        """Tell whether the last renewal is too old to prove that the session is still ours."""
        return time.monotonic() - self.renewed_at > STALE_S


class Runs:
    """Hold the runs of one worker, and change their rows.

    Each of these takes one item and returns an awaitable. `read`: a session's id -> its row, or None.
    `claim`: a Claim -> the session, if it is ours now. `retry`: a Backoff, `settle`: a Settlement -> the row,
    or None when our lease is no longer the row's, or another transaction has locked it. `mark`: a Mark ->
    None. They raise as Database.patiently does; only the caller of an item gets an error about it.
    """

    def __init__(
        self,
        db: Database,
        worker: str,
        models: Sequence[str],
        *,
        most_attempts: int,
        lifeline: Database | None = None,
    ) -> None:
        """Claim only sessions of `models`, which are patterns of LIKE; renew leases through `lifeline`."""
        self.db = db
        self._models = list(models)
        self.lifeline = lifeline or db
        self._worker = worker
        self._most_attempts = most_attempts
        self._held: dict[UUID, Hold] = {}
        self._alone = asyncio.Semaphore(ALONE_LANES)
        self.read = Together(self._read)
        self.claim = Together(apart(self._claim, waits=False))
        self.retry = Together(apart(self._retry, slow=False))
        self.settle = Together(apart(self._settle, slow=False))
        self.mark = Together(apart(self._mark))

    def __iter__(self) -> Iterator[Hold]:
        return iter(list(self._held.values()))

    def __contains__(self, session_id: UUID) -> bool:
        return session_id in self._held

    @asynccontextmanager
    async def keep(self, session: Session, claimed_at: float) -> AsyncIterator[Hold]:
        """Keep the session among ours while the body runs. If cancelled, give it back if its request was not
        sent; let it go as an unknown outcome if it was.
        """
        hold = self._held[session.id] = Hold(session, claimed_at)
        try:
            yield hold
        except asyncio.CancelledError:
            if hold.lost and hold.task:
                hold.task.uncancel()
                raise LeaseLostError(session.id) from None
            await self.step_aside(hold)
            raise
        finally:
            if self._held.get(session.id) is hold:
                del self._held[session.id]

    async def step_aside(self, hold: Hold, *, delay_s: float = 0.0) -> Row:
        """Give the run back, or let it go if its request was sent; return its row. Raises LeaseLostError."""
        session = hold.session
        facts: dict[str, Any] = {"session": session.id, "lease": session.lease}
        if not hold.sent:
            facts |= {"delay_s": delay_s, "attempts": int(not session.spent)}
        name = "let_go" if hold.sent else "give_back"
        (rows,) = await self.db.patiently((name, facts), patience_s=STOP_S, lock_s=STOP_S)
        row = rows[0] if rows else (await self.left(session)).row
        if row is None:
            raise LeaseLostError(session.id)
        return row

    async def extend(self, holds: Iterable[Hold]) -> list[Hold]:
        """Renew the leases and return the holds whose lease is lost; one whose row is locked is not among
        them. Raises GenctlError if none is lost and the database did not answer for one of them.
        """
        holds = list(holds)
        fates = await apart(self._extend, waits=False)(holds)
        lost = [hold for hold, fate in zip(holds, fates, strict=True) if fate is None]
        errors = [fate for fate in fates if isinstance(fate, GenctlError)]
        if errors and not lost:
            raise errors[0]
        return lost

    async def left(self, session: Session) -> Left:
        """Find out what has become of a run whose row our step did not change, or whose answer was lost."""
        row = await self.db.row("sessions", ids=[session.id])
        if row is None or row["lease"] != session.lease:
            return Left(None)
        # the sweeper sends back under the same lease, but sets no due_at
        retried = row["status"] == Status.QUEUED and row["due_at"] is not None
        left = retried or row["status"] in {Status.COMPLETED, Status.FAILED}
        return Left(
            row if left else None,
            is_ours=row["status"] == Status.PROCESSING,
            is_unclaimed=row["status"] == Status.QUEUED and row["run"] == session.run,
        )

    async def settle_alone(self, settlement: Settlement, *, dry: bool = False) -> Row | None:
        """Settle in a transaction of its own; few of these run at once. Raises GenctlError.

        `dry`: return the row as it would be, and change nothing.
        """
        async with self._alone:
            return one(await self._settle([settlement], dry=dry))

    async def retry_alone(self, item: Backoff) -> Row | None:
        """Retry in a transaction of its own, likewise."""
        async with self._alone:
            return one(await self._retry([item]))

    async def _read(self, ids: list[UUID]) -> list[Session | Exception | None]:
        rows = {row["id"]: row for row in await self.db.rows("sessions", ids=ids)}
        return [attempted(Session.of, rows[id_]) if id_ in rows else None for id_ in ids]

    async def _claim(self, claims: list[Claim]) -> list[Session | Exception | None]:
        """Claim for each; of two claims of one session in this statement, one gets it.

        After an outage it leaves dead leases alone for a moment: their owners may have answers to store.
        """
        facts = {
            "items": as_json(claims),
            "lease_s": LEASE_S,
            "worker": self._worker,
            "most": self._most_attempts,
            "models": self._models,
            "dead": self.db.back_since_s() > RENEW_S,
        }
        (rows,) = await self.db.patiently(("claim", facts), patience_s=CLAIM_PATIENCE_S, lock_s=RENEW_S)
        taken = {row["id"]: row for row in rows}
        return [
            attempted(Session.of, taken.pop(claim.session_id))
            if claim.session_id in taken and claim.run in {None, taken[claim.session_id]["run"]}
            else None
            for claim in claims
        ]

    async def _extend(self, holds: list[Hold]) -> list[bool | Exception | None]:
        """Renew the leases; True: renewed, False: another transaction has locked the row, None: lost."""
        now = time.monotonic()
        items = as_json([{"session_id": h.session.id, "lease": h.session.lease} for h in holds])
        facts = {"items": items, "lease_s": LEASE_S}
        (rows,) = await self.lifeline.transact(("extend", facts), timeout_s=TOGETHER_S)
        found = {(row["id"], row["lease"]): bool(row["renewed"]) for row in rows}
        fates = [found.get((hold.session.id, hold.session.lease)) for hold in holds]
        for hold, is_renewed in zip(holds, fates, strict=True):
            if is_renewed:
                hold.renewed_at = now
        return [*fates]

    async def _retry(self, items: list[Backoff]) -> list[Row | Exception | None]:
        patience_s = TOGETHER_S if len(items) > 1 else SETTLE_PATIENCE_S
        (rows,) = await self.db.patiently(("retry", {"items": as_json(items)}), patience_s=patience_s)
        return _by_session(rows, [item.session_id for item in items])

    async def _settle(
        self, settlements: list[Settlement], *, dry: bool = False
    ) -> list[Row | Exception | None]:
        """Settle in one transaction all but those whose accounts another transaction has locked."""
        users = {settlement.user_id for settlement in settlements}
        undo: list[Statement] = [("undo", {})] if dry else []
        patience_s = TOGETHER_S if len(settlements) > 1 else SETTLE_PATIENCE_S
        moved = await movement(
            self.db, users, ("settle", {"items": as_json(settlements)}), *undo, patience_s=patience_s
        )
        found = _by_session(moved.rows[0], [settlement.session_id for settlement in settlements])
        return [
            row if settlement.user_id in moved.mine else AccountLockedError(settlement.user_id)
            for settlement, row in zip(settlements, found, strict=True)
        ]

    async def _mark(self, marks: list[Mark]) -> list[Exception | None]:
        await self.db.patiently(("mark_copied", {"items": as_json(marks)}), lock_s=BRIEFLY_S)
        return [None for _ in marks]


def apart(
    work: Callable[[list[T]], Awaitable[Sequence[A | Exception]]], *, slow: bool = True, waits: bool = True
) -> Callable[[list[T]], Awaitable[Sequence[A | Exception]]]:
    """Make work that halves its items after a refusal, a lock or a time-out, until a bad item stands alone.

    A database that is away is an error for all items; without `slow` a silent one is, too. So is a lock for
    work that never `waits` for a row, as that lock is one of the table.
    """

    async def tried(items: list[T]) -> Sequence[A | Exception]:
        try:
            return await work(items)
        except GenctlError as error:
            is_slow, is_locked = isinstance(error, DatabaseSilentError), isinstance(error, LockedError)
            away = isinstance(error, DatabaseGoneError) and not (slow and is_slow)
            if away or (is_locked and not waits) or len(items) == 1:
                return [error] * len(items)
        half = len(items) // 2
        return [*await tried(items[:half]), *await tried(items[half:])]

    return tried


def one(results: Sequence[T | Exception]) -> T:
    """Return the only result, or raise it where it is an error."""
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result


def _by_session(rows: Iterable[Row], ids: Iterable[UUID]) -> list[Row | Exception | None]:
    found: Mapping[UUID, Row] = {row["id"]: row for row in rows}
    return [found.get(id_) for id_ in ids]

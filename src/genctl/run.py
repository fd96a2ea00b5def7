"""A claimed run in our hands: claim, renew, retry, give back, let go, settle; the statements of the protocol.

What many jobs ask for at the same moment is one statement. Every step but the claim is gated by the lease, so
that it may be tried again, and hits nothing once the run is somebody else's.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import msgspec

from genctl.base.batch import Together, attempted
from genctl.domain.model import ErrorDetails, GenctlError, Image, LeaseLostError, Session, Status
from genctl.edges.db import Database, Row, Statement, as_json
from genctl.edges.db_errors import DatabaseGoneError, DatabaseSilentError, LockedError
from genctl.ledger import BRIEFLY_S, AccountLockedError, movement

T = TypeVar("T")
A = TypeVar("A")

LEASE_S = 30  # a worker that is silent for so long has lost its sessions; also the messages' visibility
RENEW_S = 10
STALE_S = 20  # no request is sent when the last renewal is older
STOP_S = 5.0  # what a cancelled step of the database gets to end in
CLAIM_PATIENCE_S = 15.0  # shorter than a lease: a claim whose answer was lost is not claimed over
SETTLE_PATIENCE_S = 10.0  # of one try; then those who wait for it are told why
TOGETHER_S = 3.0  # of one for many, and of renewals: what hangs for one holds up the others for so long
ALONE_LANES = 4  # connections for what was passed over or refused, and is tried again by itself


class Claim(msgspec.Struct, frozen=True):
    """Whose session is wanted: of this run (None: whichever it is); `lapsed` as for Pipeline.claim."""

    session_id: UUID
    run: int | None
    lapsed: bool


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ends. `attempts` are its provider calls; a failure has `details`, a success `result`.

    Without `release` the reservation stays as it is, and `refund_error` says why.
    """

    session_id: UUID
    user_id: str
    run: int
    lease: int
    status: Status
    attempts: int
    trace: dict[str, Any]
    details: ErrorDetails | None = None
    result: dict[str, tuple[Image, ...]] | None = None
    release: bool = True
    refund_error: str | None = None


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """Back to the queue for `delay_s` seconds; `unknown` is 1 where nobody knows what the call came to."""

    session_id: UUID
    lease: int
    delay_s: float
    unknown: int
    trace: dict[str, Any]


class Mark(msgspec.Struct, frozen=True):
    """The DLQ copy of this run is sent, under this message id."""

    session_id: UUID
    run: int
    message_id: str


class Left(NamedTuple):
    """What became of a run: `row` is as we have ended it or sent it back."""

    row: Row | None
    is_ours: bool = False  # under our lease, alive or not, and not over
    is_unclaimed: bool = False  # it waits, and nobody has claimed it after us


class Hold:
    """A claimed session in our hands: renewed until the hold ends, cancelled when the lease is lost."""

    def __init__(self, session: Session, claimed_at: float) -> None:
        self.session = session
        self.renewed_at = claimed_at  # monotonic; before the claim was sent
        self.calling = False
        self.sent = False  # the provider may have got the request
        self.lost = False
        self.task = asyncio.current_task()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count the hold as calling the provider: a lost lease cancels the call."""
        self.calling = True
        try:
            yield
        finally:
            self.calling = False

    def renew(self, began_at: float) -> None:
        """Note a renewal that began then (monotonic)."""
        self.renewed_at = began_at

    def on_send(self) -> None:
        """The request is about to leave. Raises LeaseLostError when we slept: somebody else may be at it."""
        if self.stale:
            raise LeaseLostError(self.session.id)
        self.sent = True

    def lose(self) -> None:
        """The lease is lost: a call under way is cancelled; a settle finds out by itself."""
        if self.calling and self.task:
            self.lost = True
            self.task.cancel()

    @property
    def waiting(self) -> bool:
        """On the way to its call, and no byte of the request is out."""
        return self.calling and not self.sent

    @property
    def stale(self) -> bool:
        """The last renewal is too long ago to be sure that the session is still ours."""
        return time.monotonic() - self.renewed_at > STALE_S


class Runs:
    """The runs of one worker, and what it does to their rows. `lifeline`: the database as renewals reach it.

    `read`: a session's id -> its row, or None. `claim`: a Claim -> the session, if it is ours now. `retry`:
    a Backoff, `settle`: an Settlement -> the row, or None when it is not to be had: the lease is no longer the
    row's, or somebody has locked it. `mark`: a Mark -> None. Each takes one item and gives its answer, to be
    awaited. They raise as Database.patiently does, and what one item is refused for is raised to it alone.
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
        """`models`: patterns of LIKE; only sessions of these are claimed."""
        self.db = db
        self._models = list(models)
        self.lifeline = lifeline or db
        self._worker = worker
        self._most_attempts = most_attempts
        self._held: dict[UUID, Hold] = {}
        self._alone = asyncio.Semaphore(ALONE_LANES)
        self.read = Together(self._read)
        self.claim = Together(apart(self._claim))
        self.retry = Together(apart(self._retry, slow=False))
        self.settle = Together(apart(self._settle, slow=False))
        self.mark = Together(apart(self._mark))

    def __iter__(self) -> Iterator[Hold]:
        return iter(list(self._held.values()))

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, session_id: UUID) -> bool:
        return session_id in self._held

    @asynccontextmanager
    async def keep(self, session: Session, claimed_at: float) -> AsyncIterator[Hold]:
        """Keep the session among ours, for extend(). A stop in the middle puts it where it belongs:
        back, when its request was not sent; let go as an unknown outcome, when it was.
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
        """Give back what was not sent, let go what was; the row. Raises LeaseLostError: no longer ours."""
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
        """Renew the leases; those that are lost. One whose row is locked is neither."""
        now, holds = time.monotonic(), list(holds)
        fates = await apart(self._extend)(holds)
        lost = []
        for hold, fate in zip(holds, fates, strict=True):
            if isinstance(fate, DatabaseGoneError | LockedError):
                raise fate
            if fate is True:
                hold.renew(now)
            elif fate is None:
                lost.append(hold)
        return lost

    async def left(self, session: Session) -> Left:
        """What has become of a run that a step of ours did not hit, or whose answer was lost."""
        row = await self.db.row("sessions", ids=[session.id])
        if row is None or row["lease"] != session.lease:
            return Left(None)
        # the sweeper sends back under the same lease, but sets no time
        retried = row["status"] == Status.QUEUED and row["due_at"] is not None
        left = retried or row["status"] in {Status.COMPLETED, Status.FAILED}
        return Left(
            row if left else None,
            is_ours=row["status"] == Status.PROCESSING,
            is_unclaimed=row["status"] == Status.QUEUED and row["run"] == session.run,
        )

    async def settle_alone(self, ending: Settlement, *, dry: bool = False) -> Row | None:
        """As `settle`, but in a transaction of its own and behind few others. Raises GenctlError.

        `dry`: the row as it would be; nothing is done.
        """
        async with self._alone:
            return one(await self._settle([ending], dry=dry))

    async def retry_alone(self, item: Backoff) -> Row | None:
        """As `retry`, likewise."""
        async with self._alone:
            return one(await self._retry([item]))

    async def _read(self, ids: list[UUID]) -> list[Session | Exception | None]:
        rows = {row["id"]: row for row in await self.db.rows("sessions", ids=ids)}
        return [attempted(Session.of, rows[id_]) if id_ in rows else None for id_ in ids]

    async def _claim(self, claims: list[Claim]) -> list[Session | Exception | None]:
        """Of two claims of one session in one go, one gets it.

        After an outage those who hold runs get the first turn at them: they have answers that are paid for.
        """
        facts = {
            "items": as_json(claims),
            "lease_s": LEASE_S,
            "worker": self._worker,
            "most": self._most_attempts,
            "models": self._models,
            "dead": self.db.back_since_s() > RENEW_S,
        }
        try:  # rows that are locked are passed over: it waits for a table's lock, which is over soon
            (rows,) = await self.db.patiently(("claim", facts), patience_s=CLAIM_PATIENCE_S, lock_s=RENEW_S)
        except LockedError as error:
            return [error] * len(claims)
        taken = {row["id"]: row for row in rows}
        return [
            attempted(Session.of, taken.pop(claim.session_id))
            if claim.session_id in taken and claim.run in {None, taken[claim.session_id]["run"]}
            else None
            for claim in claims
        ]

    async def _extend(self, holds: list[Hold]) -> list[bool | Exception | None]:
        """True: renewed; False: locked by somebody; None: lost."""
        items = as_json([{"session_id": h.session.id, "lease": h.session.lease} for h in holds])
        try:
            facts = {"items": items, "lease_s": LEASE_S}
            (rows,) = await self.lifeline.transact(("extend", facts), timeout_s=TOGETHER_S)
        except LockedError as error:  # the table, since rows are passed over
            return [error] * len(holds)
        found = {(row["id"], row["lease"]): bool(row["renewed"]) for row in rows}
        return [found.get((hold.session.id, hold.session.lease)) for hold in holds]

    async def _retry(self, items: list[Backoff]) -> list[Row | Exception | None]:
        patience_s = TOGETHER_S if len(items) > 1 else SETTLE_PATIENCE_S
        (rows,) = await self.db.patiently(("retry", {"items": as_json(items)}), patience_s=patience_s)
        return _by_session(rows, [item.session_id for item in items])

    async def _settle(self, endings: list[Settlement], *, dry: bool = False) -> list[Row | Exception | None]:
        """In one transaction, without those whose accounts somebody else holds."""
        users = {ending.user_id for ending in endings}
        undo: list[Statement] = [("undo", {})] if dry else []
        patience_s = TOGETHER_S if len(endings) > 1 else SETTLE_PATIENCE_S
        moved = await movement(
            self.db, users, ("settle", {"items": as_json(endings)}), *undo, patience_s=patience_s
        )
        found = _by_session(moved.rows[0], [ending.session_id for ending in endings])
        return [
            row if ending.user_id in moved.mine else AccountLockedError(ending.user_id)
            for ending, row in zip(endings, found, strict=True)
        ]

    async def _mark(self, marks: list[Mark]) -> list[Exception | None]:
        await self.db.patiently(("mark_copied", {"items": as_json(marks)}), lock_s=BRIEFLY_S)
        return [None for _ in marks]


def apart(
    work: Callable[[list[T]], Awaitable[Sequence[A | Exception]]], *, slow: bool = True
) -> Callable[[list[T]], Awaitable[Sequence[A | Exception]]]:
    """The same work, but what is refused, locked or too slow for many is tried by halves: one bad item among
    others is told alone. A database that is away is told to all, and without `slow` one that is silent, too:
    whoever then tries each alone is done sooner.
    """

    async def tried(items: list[T]) -> Sequence[A | Exception]:
        try:
            return await work(items)
        except GenctlError as error:
            halve_it = slow and isinstance(error, DatabaseSilentError)
            away = isinstance(error, DatabaseGoneError) and not halve_it
            if away or len(items) == 1:
                return [error] * len(items)
        half = len(items) // 2
        return [*await tried(items[:half]), *await tried(items[half:])]

    return tried


def one(results: Sequence[T | Exception]) -> T:
    """The only result; raised, where it is an error."""
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result


def _by_session(rows: Iterable[Row], ids: Iterable[UUID]) -> list[Row | Exception | None]:
    found: Mapping[UUID, Row] = {row["id"]: row for row in rows}
    return [found.get(id_) for id_ in ids]

"""Find and carry out what the safety net is for, by kinds: each is a net of its own.

A net carries out a batch and tells whether there may be more. It is safe beside any number of workers and
sweepers: the row gates every step, as it gates theirs, and a sweeper takes the messages that it sends.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any, Literal
from uuid import UUID
from weakref import WeakValueDictionary

import msgspec
import structlog

from genctl import credits, gate
from genctl.base.batch import Together, all_of
from genctl.base.settings import Settings
from genctl.domain import decide
from genctl.domain.model import GenctlError, LeaseLostError, Session, Status, rough
from genctl.edges.db import Row, as_json
from genctl.edges.db_errors import LockedError
from genctl.enqueue import send_jobs
from genctl.ledger import BRIEFLY_S
from genctl.pipeline import Pipeline
from genctl.run import RENEW_S, apart

PASS_S = 60.0  # how long a net goes on while its batches are full
ORPHAN_AFTER_S = 3600
OWED_AFTER_S = 60  # before that whoever owes a message may still send it
OFFERED_S = 120  # longer than SQS may take for a batch; then others send what a killed sweeper has taken
GATE_REST_S = 3600  # after a pause the backlog has so long before the queued time-out counts again
BATCH = 100
AMONG = 10_000  # rows of which a batch is picked by chance
AMONG_OWED = 1_000  # of these, where there may be many batches
BLOCKS = 128  # of the reservations' table, through which the patrol goes at a time: some 10,000 rows
MOST_COUNTED = 10_000  # rows of a pile
PRUNED = 10_000  # rows of the trace at a time
MOVES = 2  # of credits at once
HANDS = 2  # nets that use the database at once, as workers use it too

log = structlog.stdlib.get_logger()


class Orphan(msgspec.Struct, frozen=True):
    """Hold what a reservation tells of a session whose row is gone."""

    id: UUID
    user_id: str
    run: int
    reservation_id: UUID


class Swept(msgspec.Struct, frozen=True):
    """Describe one thing that a pass did, or would do."""

    action: Literal["send", "copy", "requeue", "fail", "refund", "capture", "prune"]
    session: Session | Orphan | None  # None: prune, which is about no session
    why: str
    code: str | None = None  # of `fail`

    @property
    def account(self) -> str:
        """Name the user whose account it needs; what goes back to the queue needs nobody's."""
        return self.session.user_id if self.session and self.action != "requeue" else f"none of {id(self)}"

    def item(self) -> dict[str, Any]:
        """Write it as `sweep` prints it."""
        session = self.session
        whose = dict.fromkeys(("sessionId", "userId", "run"))
        if session:
            whose = {"sessionId": session.id, "userId": session.user_id, "run": session.run}
        return {"action": self.action, **whose, "code": self.code, "why": self.why}


Turns = WeakValueDictionary[str, asyncio.Lock]  # by account
Net = Callable[["Cast"], Awaitable[bool]]


class Cast:
    """Follow one cast of a net: what it did, what failed, and what it leaves alone from now on."""

    def __init__(self, turns: Turns, *, dry_run: bool = False, keeps: bool = True) -> None:
        """Begin. With `dry_run` it only says what it would do, of one batch. Unless it `keeps` what it did,
        it only logs it. `turns` are those of all nets.
        """
        self.dry_run = dry_run
        self._turns = turns
        self._keeps = keeps
        self.done: list[Swept] = []
        self.failed: list[GenctlError] = []
        self.is_cut = False  # it has left something for the next
        self.tried: set[UUID] = set()  # sessions
        self._locked: set[str] = set()  # accounts
        self._give_up_at = time.monotonic() + PASS_S

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._give_up_at

    def did(self, swept: Swept) -> None:
        """Note what it did, or would do."""
        if self._keeps:
            self.done.append(swept)
        if not self.dry_run:
            log.info("sweep.done", **swept.item())

    def failed_at(self, error: GenctlError, swept: Swept | None = None) -> None:
        """Note what failed; the next pass meets it again."""
        log.warning("sweep.failed", **(swept.item() if swept else {}), error=error.message)
        self.failed.append(error)

    async def each(
        self, found: Iterable[Swept], do: Callable[[Swept], Awaitable[bool]], *, at_once: int
    ) -> None:
        """Carry each out, those that need the same account (for other nets, too) one by one.

        `do` tells whether we did it: a worker or another sweeper may have been faster. Passes over what
        another transaction has locked, and from then on over all that need that account.
        """
        needing: dict[str, list[Swept]] = {}
        for swept in found:
            needing.setdefault(swept.account, []).append(swept)
        hands = asyncio.Semaphore(at_once)

        async def of_one(account: str) -> None:
            turn = self._turns.setdefault(account, asyncio.Lock())
            for swept in needing[account]:
                async with turn, hands:
                    if account not in self._locked:
                        await self._carry_out(swept, do)

        await all_of(map(of_one, needing))

    async def _carry_out(self, swept: Swept, do: Callable[[Swept], Awaitable[bool]]) -> None:
        try:
            if self.dry_run or await do(swept):
                self.did(swept)
        except LockedError as error:
            self._locked.add(swept.account)
            log.info("sweep.passed_over", **swept.item(), error=error.message)
        except GenctlError as error:
            self.failed_at(error, swept)


class Nets:
    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        self._pipeline = pipeline
        self._db = pipeline.db
        self._settings = settings
        self._turns = Turns()
        self._hands = asyncio.Semaphore(HANDS)
        self._back = Together(apart(self._requeue, waits=False))
        self._ended: set[UUID] = set()  # runs that we have failed, and whose copies we send at once
        self._next_block = random.getrandbits(31)  # of the patrol: workers begin at different ones
        ours: dict[str, Any] = {"models": pipeline.tool.like, "others": pipeline.others}
        self._late = ours | {"queued_timeout_s": settings.queued_timeout_s, "among": AMONG}
        self._owed = ours | {"age_s": OWED_AFTER_S, "offered_s": OFFERED_S, "among": AMONG_OWED}

        self.of_database = (self.leases, self.overdue, self.holds, self.trace)
        self.of_queue = (self.jobs, self.copies)

    async def cast(self, net: Net, *, dry_run: bool = False, keeps: bool = True) -> Cast:
        """Carry out batches until one is not full, or the time is over."""
        cast, goes_on = Cast(self._turns, dry_run=dry_run, keeps=keeps), True
        try:
            while goes_on:
                async with nullcontext() if net in self.of_queue else self._hands:
                    cast.is_cut = await net(cast)
                goes_on = cast.is_cut and not (dry_run or cast.is_over)
        except GenctlError as error:
            cast.failed_at(error)
        return cast

    # --- nets of the database

    async def leases(self, cast: Cast) -> bool:
        """Send runs whose worker fell silent back to the queue; end those that were tried often enough."""
        dead, full = await self._find(cast, "dead_leases", **self._late)
        if self._db.back_since_s() <= RENEW_S:  # the owners of the runs get the first turn after an outage,
            return False  # also one through which this look has waited
        limits, held = self._pipeline.limits, self._pipeline.runs
        found = [_dead(session, limits) for session in dead if session.id not in held]
        await cast.each(found, self._end, at_once=BATCH)
        return full

    async def overdue(self, cast: Cast) -> bool:
        """Fail runs that waited longer than the queued time-out, but never for a gate."""
        if (await gate.read(self._db, self._pipeline.tool.name)).open_for_s < GATE_REST_S:
            return False
        late, full = await self._find(cast, "overdue", **self._late)
        why = "it waited longer than the queued time-out"
        found = [Swept("fail", session, why, "SweptTimeout") for session in late]
        await cast.each(found, self._end, at_once=BATCH)
        return full

    async def holds(self, cast: Cast) -> bool:
        """Release what failed sessions still hold, and capture what completed ones do."""
        if not (cast.dry_run or cast.tried):
            await self._db.rows("clear_holds")
        found, full = await self._find(cast, "held_owed")
        await cast.each(map(_holds, found), self._move, at_once=MOVES)
        return full

    async def patrol(self, cast: Cast) -> bool:
        """Look at the next of all reservations for what no mark tells: that is rare, and they are many."""
        (row,) = await self._db.rows("reservation_blocks")
        begin = self._next_block % max(1, row["blocks"]) // BLOCKS * BLOCKS
        part = {"first": f"({begin},0)", "end": f"({begin + BLOCKS},0)"}
        holders = readable(await self._db.rows("unmarked_holders", **part))
        gone = await self._db.rows("orphans", age_s=ORPHAN_AFTER_S, **part)
        if holders and not cast.dry_run:
            await self._db.rows("mark_holders", ids=[session.id for session in holders])
        why = "its session is gone and its reservation still held"
        found = [_holds(session) for session in holders]
        found += [Swept("refund", msgspec.convert(row, Orphan), why) for row in gone]
        await cast.each(found, self._move, at_once=MOVES)
        self._next_block = begin + BLOCKS if begin + BLOCKS < row["blocks"] else 0
        return False

    async def whole_patrol(self, cast: Cast) -> bool:
        """Look at all reservations likewise, as far as the time allows."""
        self._next_block = 0
        await self.patrol(cast)
        while self._next_block and not cast.is_over:
            await self.patrol(cast)
        return self._next_block > 0

    async def trace(self, cast: Cast) -> bool:
        age_s = self._settings.trace_retention_s
        name = "old_trace" if cast.dry_run else "prune_trace"
        try:
            row = await self._db.row(name, age_s=age_s, limit=PRUNED)
        except LockedError:  # another sweeper deletes them
            return False
        if events := row["events"] if row else 0:
            cast.did(Swept("prune", None, f"{events} events of the trace are older than {rough(age_s)}"))
        return bool(events == PRUNED)

    async def _find(self, cast: Cast, name: str, **params: object) -> tuple[list[Session], bool]:
        """List a batch that this cast has not tried; tell whether it is full."""
        rows = await self._db.rows(name, limit=BATCH, tried=[*cast.tried], **params)
        cast.tried |= {row["id"] for row in rows}
        return readable(rows), len(rows) == BATCH

    async def _requeue(self, dead: list[Session]) -> list[bool | Exception]:
        """Send runs back to the queue; tell of each whether it was still dead."""
        items = [{"session_id": one.id, "lease": one.lease, "worker": one.claimed_by} for one in dead]
        back = {row["id"] for row in await self._db.rows("requeue_dead", items=as_json(items))}
        for _ in back:
            self._pipeline.meters.count("orphaned")
        return [session.id in back for session in dead]

    async def _end(self, swept: Swept) -> bool:
        """Send a run back to the queue, or claim it and settle it as failed without a call."""
        session = swept.session
        if not isinstance(session, Session):
            return False
        if swept.action == "requeue":
            return await self._back(session)
        claimed = await self._pipeline.claim(session.id, session.run, lapsed=True)
        if claimed is None:
            return False
        try:
            row = await self._pipeline.give_up(claimed, swept.code or "WorkerCrashed")
        except LeaseLostError:
            return False
        if row.copy_owed:
            self._ended.add(row.id)  # `copies` sends its copy
        return True

    async def _move(self, swept: Swept) -> bool:
        session = swept.session
        if session is None or session.reservation_id is None:
            return False
        reservation = session.reservation_id
        if swept.action == "capture":
            return await credits.capture_reservation(self._db, reservation, reason="sweep")
        reason = "sweep" if isinstance(session, Session) else "sweep: no session"
        return bool(await credits.release_reservation(self._db, reservation, reason=reason, wait_s=BRIEFLY_S))

    # --- nets of the queue

    async def jobs(self, cast: Cast) -> bool:
        """Send job messages that are not proven sent."""
        found, full = await self._find(cast, "owed_jobs", **self._owed)

        async def send(jobs: list[Session]) -> dict[UUID, GenctlError]:
            pipeline = self._pipeline
            whys = await send_jobs(jobs, db=self._db, queue=pipeline.queue, tool=pipeline.tool.name)
            return {
                id_: GenctlError("QueueUnreachable", f"owed jobs were not sent: {why}", "genctl doctor")
                for id_, why in whys.items()
            }

        owed = [Swept("send", session, "its job message is not proven sent") for session in found]
        return await self._send(cast, owed, send) and full

    async def copies(self, cast: Cast) -> bool:
        """Send DLQ copies that are not proven sent, also those of the runs that we have failed."""
        ended = self._ended.copy()
        found, full = await self._find(cast, "owed_copies", **self._owed, ended=[*ended])
        if not full:
            self._ended -= ended
        unsent = dict[UUID, GenctlError]()

        async def copy(row: Session) -> None:
            try:
                body = decide.job_body(row, self._pipeline.tool.name)
                await self._pipeline.copy(row, body=body, code=decide.error_code(row))
            except GenctlError as error:
                unsent[row.id] = error

        async def send(rows: list[Session]) -> dict[UUID, GenctlError]:
            await all_of(map(copy, rows))
            return unsent

        owed = [Swept("copy", session, "its DLQ copy is not proven sent") for session in found]
        return await self._send(cast, owed, send, untold=ended) and full

    async def _send(
        self,
        cast: Cast,
        owed: Sequence[Swept],
        send: Callable[[list[Session]], Awaitable[Mapping[UUID, GenctlError]]],
        *,
        untold: Collection[UUID] = (),
    ) -> bool:
        """Take what no other sweeper has taken, and send it; `send` returns what it could not send, and why.

        Reports what was sent, but for the `untold`. Puts all back and returns False if nothing was.
        """
        if cast.dry_run or not owed:
            cast.done += owed
            return True
        await self._pipeline.reach()
        sessions = [swept.session for swept in owed if isinstance(swept.session, Session)]
        takes = await apart(self._take, waits=False)(sessions)
        fates = {one.id: fate for one, fate in zip(sessions, takes, strict=True)}
        taken = {id_: fate for id_, fate in fates.items() if isinstance(fate, datetime)}
        unsent = await send([session for session in sessions if session.id in taken]) if taken else {}
        refused = [fate for fate in fates.values() if isinstance(fate, GenctlError)]
        for error in {error.message: error for error in (*refused, *unsent.values())}.values():
            cast.failed_at(error)
        for session, swept in zip(sessions, owed, strict=True):
            if session.id in taken and session.id not in {*unsent, *untold}:
                cast.did(swept)
        if unsent and len(unsent) == len(taken):
            await self._db.rows("put_back", ids=[*taken], offered=[*{*taken.values()}])
            return False
        return True

    async def _take(self, sessions: list[Session]) -> list[datetime | Exception | None]:
        """Take these, and return when; None: another sweeper has it, or it owes nothing any more."""
        items = [{"session_id": session.id, "run": session.run} for session in sessions]
        waits_s = self._settings.queued_timeout_s
        rows = await self._db.rows(
            "take", items=as_json(items), offered_s=OFFERED_S, queued_timeout_s=waits_s
        )
        taken = {row["id"]: row["offered_at"] for row in rows}
        return [taken.get(session.id) for session in sessions]


def asked_of_piles(models: Sequence[str], *, queued_timeout_s: float) -> dict[str, Any]:
    """Make the parameters of `piles`, so that it counts what the sweepers of these models look for."""
    facts = {"models": [*models], "others": [], "queued_timeout_s": queued_timeout_s}
    return facts | {"most": MOST_COUNTED}


def _dead(session: Session, limits: decide.Limits) -> Swept:
    why = f"its worker {session.claimed_by} fell silent" if session.claimed_by else "its worker fell silent"
    code = decide.dead_lease_code(session, limits)
    return Swept("fail", session, why, code) if code else Swept("requeue", session, why)


def _holds(session: Session) -> Swept:
    if session.status is Status.COMPLETED:
        return Swept("capture", session, "it completed and still holds its reservation")
    return Swept("refund", session, "it failed and still holds its reservation")


def readable(rows: Sequence[Row]) -> list[Session]:
    """Read the rows; log those of an adopted table that we cannot read, and go on."""
    found = (Session.readable(row, _odd) for row in rows)
    return [session for session in found if session]


def _odd(id_: Any, why: str) -> None:
    log.warning("sweep.odd_row", sessionId=id_, why=why)

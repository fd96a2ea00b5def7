"""Make an order a reservation, a row and a message; the sweeper sends a message that we could not send."""

import asyncio
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from uuid import UUID

import msgspec

from genctl.domain import decide
from genctl.domain.model import GenctlError, Session
from genctl.domain.orders import Order, check
from genctl.edges import spans
from genctl.edges.db import Database, as_json
from genctl.edges.deadline import lock_s
from genctl.edges.sqs import Queue
from genctl.edges.sqs_shapes import Outgoing
from genctl.ledger import WAIT_S, movement
from genctl.run import apart


class Enqueued(msgspec.Struct, frozen=True):
    """Hold the stored sessions; `owed` says why we could not send messages, which the sweeper will send."""

    sessions: list[Session]
    owed: str | None


async def enqueue(  # noqa: PLR0913 - what it needs, and how long it may take
    orders: Sequence[Order],
    *,
    db: Database,
    queue: Queue | None,
    tool: str,
    opening: int = 0,
    wait_s: float = WAIT_S,
    send_within_s: float | None = None,
    traceparent: str | None = None,
) -> Enqueued:
    """Reserve the credits and store the sessions of a tool in one transaction, send the jobs, mark them sent.

    Users without an account get `opening` credits. The sweeper sends the jobs that this cannot send in time,
    or without a `queue`. `traceparent` is the W3C context of who orders. Stores nothing and raises
    GenctlError: exit 2 for a bad order, exit 1 when a user's credits are short, AccountLockedError when an
    account stays locked for `wait_s` seconds.
    """
    for order in orders:
        check(order)
    with spans.span("genctl.enqueue", parent=traceparent, root=True, tool=tool, jobs=len(orders)):
        sessions = await _stored(orders, db, opening, wait_s)
        owed: str | None = "the queue cannot be reached"
        try:
            async with asyncio.timeout(send_within_s):
                if queue:
                    unsent = await send_jobs(sessions, db=db, queue=queue, tool=tool)
                    owed = next(iter(unsent.values()), None)
        except TimeoutError:
            owed = f"the queue did not answer within {send_within_s:g} s"
        return Enqueued(sessions, owed)


async def _stored(orders: Sequence[Order], db: Database, opening: int, wait_s: float) -> list[Session]:
    """Reserve the credits and store the sessions. Raises as enqueue() does."""
    users = {order.user_id for order in orders}
    more = {"traceparent": spans.here()}
    items = [msgspec.structs.asdict(order) | {"amount": order.cost} | more for order in orders]
    reserve = ("reserve", {"items": as_json(items)})
    moved = await movement(db, users, reserve, opening=opening, wait_s=lock_s(wait_s))
    (rows,) = moved.rows
    if not rows:
        raise await _short(orders, db)
    return [Session.of(row) for row in rows]


async def _short(orders: Sequence[Order], db: Database) -> GenctlError:
    """Make the error that names the user who lacks most credits, and how many."""
    needed: Counter[str] = Counter()
    for order in orders:
        needed[order.user_id] += order.cost
    user, lacks = next(iter((await lacking(db, needed)).items()))
    told = f"user {user} has {needed[user] - lacks} credits and needs {needed[user]}"
    fix = f"genctl credits grant --user {shlex.quote(user)} --amount {max(lacks, 1)}"
    return GenctlError("CreditsShort", told, fix, exit_code=1)


async def lacking(db: Database, needed: Mapping[str, int], *, opening: int = 0) -> dict[str, int]:
    """Return how many of these credits each user lacks, most first; without an account one has `opening`."""
    rows = await db.rows("balances_of", users=[*needed])
    balances = dict.fromkeys(needed, opening) | {row["user_id"]: row["balance"] for row in rows}
    return dict(sorted(((u, needed[u] - balances[u]) for u in needed), key=lambda one: -one[1]))


async def send_jobs(sessions: Sequence[Session], *, db: Database, queue: Queue, tool: str) -> dict[UUID, str]:
    """Send the job messages of a tool's queued sessions and mark them; return those still owed, and why.

    Raises nothing when the queue is away or a mark fails: the rows say that these messages are owed.
    """
    try:
        results = await queue.send([_message(session, tool) for session in sessions])
        owed = {
            s.id: _why(result.error, result.fix)
            for s, result in zip(sessions, results, strict=True)
            if result.error is not None
        }
    except GenctlError as error:
        return dict.fromkeys((session.id for session in sessions), _why(error.message, error.fix))

    async def mark(some: list[Session]) -> list[Exception | None]:
        items = [{"session_id": session.id, "run": session.run} for session in some]
        await db.rows("mark_enqueued", items=as_json(items))
        return [None for _ in some]

    if sent := [session for session in sessions if session.id not in owed]:
        marked = zip(sent, await apart(mark, waits=False)(sent), strict=True)
        owed |= {session.id: error.message for session, error in marked if isinstance(error, GenctlError)}
    return owed


def _message(session: Session, tool: str) -> Outgoing:
    attributes = {spans.HEADER: session.traceparent} if session.traceparent else {}
    return Outgoing(decide.job_body(session, tool), attributes, user=session.user_id)


def _why(error: str, fix: str) -> str:
    return f"{error}; {fix}" if fix else error

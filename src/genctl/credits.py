"""Move credits beside the path of a run (grants, late releases), show what a user has, and audit them all.

Reserve moves credits from the balance to a held reservation, capture spends them, release gives them back.
Each movement is one row of the ledger; the sum of a user's rows is the balance.
"""

import shlex
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from genctl.base.person import Advance
from genctl.base.settings import Settings
from genctl.domain.model import GenctlError, camel
from genctl.domain.orders import MOST_CREDITS, check_name
from genctl.edges.db import Database, Row
from genctl.edges.db_errors import DatabaseGoneError
from genctl.edges.deadline import lock_s
from genctl.ledger import BRIEFLY_S, WAIT_S, AccountLockedError, movement

PARTS = {"audit_balances": 20, "audit": 90}  # statement -> the hundredths of the audit that are done after it
DONE = 100
MOST = 10_000
MOST_FIXES = 10  # commands in one line
HELD = {"terminal_holds", "refund_pending", "orphan_reservation"}  # held, and no run will end it
# kind -> what to do about it
FIXES = {
    "failed_not_released": "the user paid for a failed image: genctl refunds check --fix gives it back",
    "completed_not_captured": "the user has image and credits: decide whether to take them back",
    "terminal_holds": "genctl sweep releases it for a failed session and captures it for a completed one",
    "refund_amount": "genctl refunds check --fix gives back what is missing; what is too much needs a person",
    "refund_pending": "genctl sweep tries the release again; look at refundError when it stays",
    "double_movement": "compare its status and its rows in the ledger: one is too many, or it is wrong",
    "missing_movement": "somebody changed the status by hand: book what was moved",
    "balance_ledger": "somebody changed the balance by hand: find out who, and book the difference",
    "details_ledger": "the ledger is right; genctl refunds check --fix tells the user so",
    "missing_details": "the session was failed by something that is not genctl",
    "missing_reservation": "find out who deleted or changed the reservation's row, and restore it",
    "orphan_reservation": "its session is gone: restore it, or let refunds check --fix give the credits back",
}


class Violation(NamedTuple):
    """Describe one broken invariant, and how to mend it."""

    kind: str
    session_id: UUID | None
    reservation_id: UUID | None
    user_id: str | None
    expected: str
    found: str
    fix: str

    @property
    def is_safe(self) -> bool:
        """Tell whether fix() can mend it: give the user what is theirs, or tell them what they got."""
        if self.user_id is None:  # adopted tables may hold such rows
            return False
        if self.kind == "refund_amount":
            return int(self.found) < int(self.expected)
        if self.kind == "details_ledger":
            return self.reservation_id is not None
        return self.kind in HELD or self.kind == "failed_not_released"


class Audit(msgspec.Struct, frozen=True):
    """Count what the audit looked at (sessions, reservations, accounts), and list what is wrong with it."""

    checked: dict[str, int]
    violations: list[Violation]
    total: int  # of the violations, listed or not
    unknowns: int  # calls whose outcome nobody knows, and
    late_results: int  # results that came after the refund: the provider may have billed both,
    worth: int  # though users got so many credits back

    @property
    def safe(self) -> list[Violation]:
        """Return the listed ones that fix() can mend."""
        return [violation for violation in self.violations if violation.is_safe]

    @property
    def is_cut(self) -> bool:
        """Tell whether it lists only the first ones."""
        return self.total > len(self.violations)


def opening(settings: Settings) -> int:
    """Return what a new user has: 1,000 credits on the embedded stack, nothing elsewhere."""
    return 1000 if settings.embedded else 0


async def open_accounts(db: Database, users: Sequence[str], credits: int) -> None:
    """Make the accounts that are missing, with so many credits."""
    await movement(db, users, opening=credits)


async def grant(db: Database, users: Sequence[str], amount: int, reason: str, *, opening: int = 0) -> None:
    """Add credits to each user, and say why. Makes missing accounts, with `opening` credits.

    Raises GenctlError: exit 2, or AccountLockedError when accounts stay locked; the other users have their
    credits then.
    """
    for user in users:
        check_name("user", user)
    if not 0 < amount <= MOST_CREDITS:
        fix = f"name a whole number from 1 to {MOST_CREDITS}"
        raise GenctlError("BadAmount", f"cannot grant {amount} credits", fix, exit_code=2)
    if not reason.strip():
        raise GenctlError("BadReason", "the reason is empty", "say why: the ledger keeps it", exit_code=2)
    everyone = set(users)
    facts = {"amount": amount, "reason": reason}
    moved = await movement(db, everyone, ("grant", facts), opening=opening)
    locked, give_up_at = list[AccountLockedError](), time.monotonic() + lock_s(WAIT_S)
    for user in sorted(everyone - moved.mine):
        try:
            left_s = give_up_at - time.monotonic()
            await movement(db, [user], ("grant", facts), opening=opening, wait_s=left_s)
        except AccountLockedError as error:
            locked.append(error)
    if locked:
        raise _still_locked(locked, len(everyone), amount, reason)


def _still_locked(
    errors: Sequence[AccountLockedError], of: int, amount: int, reason: str
) -> AccountLockedError:
    users = [error.user for error in errors]
    who = f"user {users[0]}" if len(users) == 1 else f"{len(users)} users, {users[0]} the first,"
    others = f"; the other {of - len(users)} have theirs" if of > len(users) else ""
    verb = "has" if len(users) == 1 else "have"
    why = f"{who} {verb} got nothing: the account is locked by another transaction{errors[0].held}{others}"
    terms = ("--amount", str(amount), "--reason", reason)
    again = [
        shlex.join(("genctl", "credits", "grant", "--user", user, *terms)) for user in users[:MOST_FIXES]
    ]
    return AccountLockedError(users[0], why, " && ".join(again))


async def release_reservation(
    db: Database, reservation_id: UUID, *, reason: str = "release", wait_s: float = WAIT_S
) -> int:
    """Give a held reservation back; return the released amount, 0 when nothing was held.

    The same transaction updates the failed session that held it: details, version and NOTIFY. The caller has
    made sure that the session has ended, or is gone. Raises AccountLockedError after `wait_s` seconds, and as
    movement does.
    """
    reservation = await db.row("reservation", id=reservation_id)
    if reservation is None:
        return 0
    facts = {"reservation": reservation_id, "reason": reason}
    steps = ("release_reservation", facts), ("note_refund", facts)
    moved = await movement(db, [reservation["user_id"]], *steps, wait_s=wait_s)
    released, _ = moved.rows
    return int(released[0]["amount"]) if released else 0


async def capture_reservation(db: Database, reservation_id: UUID, *, reason: str) -> bool:
    """Capture what a completed session still holds, because its settle could not; tell whether it held any.

    This changes no balance and nothing that a page shows, so it needs no lock on the account. Raises
    LockedError when another transaction holds the reservation.
    """
    facts = {"reservation": reservation_id, "reason": reason}
    (captured,) = await db.transact(("capture_reservation", facts), lock_s=BRIEFLY_S)
    return bool(captured)


async def account(db: Database, user: str) -> Row:
    """Read `balance` and `held` of a user. Raises GenctlError, exit 4."""
    row = await db.row("credits_of", user=user)
    if row is None:
        raise _no_account(user)
    return row


def _no_account(user: str) -> GenctlError:
    return GenctlError(
        "NoAccount",
        f"user {user} has no account",
        f"genctl credits grant --user {user} --amount N makes one",
        exit_code=4,
    )


async def shown(db: Database, user: str, limit: int) -> dict[str, Any]:
    """Read balance, held credits and the newest rows of the ledger, as JSON. Raises GenctlError, exit 4."""
    rows = await db.rows("ledger_of", user=user, limit=limit)
    return camel(await account(db, user)) | {"ledger": [camel(row) for row in rows]}


async def audit(
    db: Database, user: str | None = None, *, since: datetime | None = None, advance: Advance = lambda _: None
) -> Audit:
    """Prove the invariants of statuses, ledger and details in one snapshot, without any lock.

    `user` and `since` (what began, ended or moved credits since then) narrow it; `advance` hears of each
    hundredth. It lists at most MOST violations of each part, and counts all. Raises GenctlError, exit 4 when
    there is nothing of that user.
    """
    about = {"user": user, "since": since}
    found: list[Violation] = []
    total = done = 0

    def reach(hundredths: float) -> None:
        nonlocal done
        if more := max(0, int(hundredths) - done):
            done += more
            advance(more)

    async with db.snapshot() as rows:
        (_,) = [row async for row in rows("audit_room")]
        (checked,) = [row async for row in rows("audit_counts", **about)]
        most = max(checked["sessions"], checked["reservations"], 1)
        for part, until in PARTS.items():
            safe, others, passed, began = list[Violation](), list[Violation](), 0, done
            async for row in rows(part, **about, whole=user is None and since is None):
                if row["kind"] is None:
                    passed += int(row["expected"])
                    reach(began + (until - began) * min(1, passed / most))
                    continue
                total += 1
                violation = Violation(**row, fix=FIXES[row["kind"]])
                some = safe if violation.is_safe else others
                if len(some) < MOST:
                    some.append(violation)
            found += [*safe, *others][:MOST]
            reach(until)
        (unsure,) = [row async for row in rows("unsure_calls", **about, until=None)]
        reach(DONE)
    if user and not found and not any(checked.values()):
        raise _no_account(user)
    return Audit(checked=checked, violations=found, total=total, **unsure)


async def fix(db: Database, violation: Violation) -> bool:
    """Mend a safe violation in a transaction of its own; tell whether this changed anything.

    It looks again under the lock, so a second fix changes nothing. Raises GenctlError.
    """
    reservation_id, user = violation.reservation_id, violation.user_id
    if not violation.is_safe or reservation_id is None or user is None:
        return False
    reason = f"fix: {violation.kind}"
    if violation.expected == "captured":
        return await capture_reservation(db, reservation_id, reason=reason)
    if violation.kind in HELD:
        return bool(await release_reservation(db, reservation_id, reason=reason))
    about = {"reservation": reservation_id, "reason": reason}
    moved = await movement(db, [user], ("repay", about), ("note_refund", about), wait_s=WAIT_S)
    return any(moved.rows)


async def fix_all(
    db: Database,
    violations: Sequence[Violation],
    show: Callable[[Violation, GenctlError | None], object] = lambda *_: None,
) -> list[Violation]:
    """Mend these one by one, and return the mended ones. `show` gets each at once, with the refusal if any.

    Raises DatabaseGoneError; what it has mended stays so.
    """
    mended = []
    for violation in violations:
        try:
            if not await fix(db, violation):
                continue
        except DatabaseGoneError:
            raise
        except GenctlError as refused:  # the others still get theirs
            show(violation, refused)
        else:
            show(violation, None)
            mended.append(violation)
    return mended

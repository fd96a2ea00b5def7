"""Credits outside a run's way: grants, late releases, what a user has, and the audit.

Reserve moves credits from the balance to a held reservation, capture spends it, release gives it
back. Each movement is one row of the ledger; the sum of a user's rows is the balance.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from genctl.base.settings import Settings
from genctl.domain.model import GenctlError, camel
from genctl.domain.orders import MOST_CREDITS, check_name
from genctl.edges.db import Database, Row

PARTS = ("audit_runs", "audit_reservations", "audit_balances")
MOST = 10_000
RELEASED = {"terminal_holds", "refund_pending", "orphan_reservation"}  # held, though nothing will end it
# kind -> what to do about it
FIXES = {
    "failed_not_released": "the user paid for a failed image: genctl refunds check --fix gives it back",
    "completed_not_captured": "the user has image and credits: decide whether to take them back",
    "terminal_holds": "genctl sweep releases what a failed session holds; a completed one needs a person",
    "refund_amount": "genctl refunds check --fix gives back what is missing; what is too much needs a person",
    "refund_pending": "genctl sweep tries the release again; look at refundError when it stays",
    "double_movement": "compare the ledger's rows of this reservation; one is too many",
    "missing_movement": "somebody changed the status by hand: book what was moved",
    "balance_ledger": "somebody changed the balance by hand: find out who, and book the difference",
    "details_ledger": "the ledger is right; genctl refunds check --fix tells the user so",
    "missing_details": "the session was failed by something that is not genctl",
    "missing_reservation": "the reservation's row was deleted: restore it",
    "orphan_reservation": "its session is gone: restore it, or let refunds check --fix give the credits back",
}


class Violation(NamedTuple):
    """One broken invariant, with how to mend it."""

    kind: str
    session_id: UUID | None
    reservation_id: UUID | None
    user_id: str | None
    expected: str
    found: str
    fix: str

    @property
    def is_safe(self) -> bool:
        """fix() can mend it: the user gets what is theirs, or is told what they got."""
        if self.kind == "refund_amount":
            return int(self.found) < int(self.expected)
        if self.kind == "details_ledger":
            return self.reservation_id is not None
        return self.kind == "failed_not_released" or (self.kind in RELEASED and self.expected != "captured")


class Audit(msgspec.Struct, frozen=True):
    """What was looked at (sessions, reservations, accounts), and what is wrong with it."""

    checked: dict[str, int]
    violations: list[Violation]
    total: int  # of the violations, listed or not
    unknowns: int  # calls whose outcome nobody knows, and
    late_results: int  # results that came after the refund: the provider may have billed both


def opening(settings: Settings) -> int:
    """What a new user has: 1,000 credits on the embedded stack, nothing elsewhere."""
    return 1000 if settings.embedded else 0


async def open_accounts(db: Database, users: Sequence[str], credits: int) -> None:
    """Make the accounts that are missing, with so many credits."""
    await db.rows("ensure_accounts", users=sorted(set(users)), opening=credits)


async def grant(db: Database, users: Sequence[str], amount: int, reason: str, *, opening: int = 0) -> None:
    """Add credits to each user. An account that is missing is made, with `opening` credits.

    Raises GenctlError, exit 2.
    """
    for user in users:
        check_name("user", user)
    if not 0 < amount <= MOST_CREDITS:
        raise GenctlError(
            "BadAmount", f"cannot grant {amount} credits", "name a whole number above 0", exit_code=2
        )
    everyone = sorted(set(users))
    await db.transact(
        ("ensure_accounts", {"users": everyone, "opening": opening}),
        ("lock_accounts", {"users": everyone}),
        ("grant", {"users": everyone, "amount": amount, "reason": reason}),
    )


async def release_reservation(db: Database, reservation_id: UUID, *, reason: str = "release") -> int:
    """Give a held reservation back; the released amount, 0 when nothing was held.

    A failed session that held it is told: details, version and NOTIFY in the same transaction. That the
    session has ended, or is gone, is the caller's to know.
    """
    reservation = await db.row("reservation", id=reservation_id)
    if reservation is None:
        return 0
    users = [reservation["user_id"]]
    _, _, released, _ = await db.transact(
        ("ensure_accounts", {"users": users, "opening": 0}),
        ("lock_accounts", {"users": users}),
        ("release_reservation", {"reservation": reservation_id, "reason": reason}),
        ("note_refund", {"reservation": reservation_id}),
    )
    return int(released[0]["amount"]) if released else 0


async def account(db: Database, user: str) -> Row:
    """`balance` and `held` of a user. Raises GenctlError, exit 4."""
    row = await db.row("credits_of", user=user)
    if row is None:
        raise GenctlError(
            "NoAccount",
            f"user {user} has no account",
            f"genctl credits grant --user {user} --amount N makes one",
            exit_code=4,
        )
    return row


async def shown(db: Database, user: str, limit: int) -> dict[str, Any]:
    """Balance, held credits and the newest rows of the ledger, as JSON says them.

    Raises GenctlError, exit 4.
    """
    rows = await db.rows("ledger_of", user=user, limit=limit)
    return camel(await account(db, user)) | {"ledger": [camel(row) for row in rows]}


async def audit(
    db: Database,
    user: str | None = None,
    *,
    since: datetime | None = None,
    step: Callable[[int], object] = lambda _: None,
) -> Audit:
    """Prove the invariants of statuses, ledger and details in one snapshot; nobody waits for it.

    `user` and `since` (what changed since then) narrow it; `step` hears of each of the PARTS. Memory is
    bounded: of each part at most MOST violations are listed, and all are counted.
    """
    about = {"user": user, "since": since}
    found: list[Violation] = []
    total = 0
    async with db.snapshot() as rows:
        (checked,) = await rows("audit_counts", **about)
        for part in PARTS:
            wrong = await rows(part, **about, most=MOST)
            total += wrong[0]["total"] if wrong else 0
            for row in wrong:
                del row["total"]
                found.append(Violation(**row, fix=FIXES[row["kind"]].format(**row)))
            step(1)
        (unsure,) = await rows("unsure_calls", **about, until=None)
    return Audit(checked=checked, violations=found, total=total, **unsure)


async def fix(db: Database, violation: Violation) -> bool:
    """Mend what can be mended safely, in a transaction of its own; whether it did.

    Each looks again under the lock, so that a second one does nothing. Raises GenctlError.
    """
    reservation_id, user = violation.reservation_id, violation.user_id
    if not violation.is_safe or reservation_id is None or user is None:
        return False
    if violation.kind in RELEASED:
        return bool(await release_reservation(db, reservation_id, reason=f"fix: {violation.kind}"))
    about = {"reservation": reservation_id, "reason": violation.kind}
    *_, repaid, told = await db.transact(
        ("ensure_accounts", {"users": [user], "opening": 0}),
        ("lock_accounts", {"users": [user]}),
        ("repay", about),
        ("note_refund", about),
    )
    return bool(repaid or told)


async def fix_all(db: Database, violations: Sequence[Violation]) -> list[Violation]:
    """Mend these one by one; those that were. Raises GenctlError: what was mended stays so."""
    return [violation for violation in violations if await fix(db, violation)]

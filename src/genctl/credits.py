"""Credits outside a run's way: grants, late releases, what a user has, and the audit.

Reserve moves credits from the balance to a held reservation, capture spends it, release gives it
back. Each movement is one row of the ledger; the sum of a user's rows is the balance.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from genctl.base.settings import Settings
from genctl.domain.model import GenctlError, camel
from genctl.domain.orders import MOST_CREDITS, check_name
from genctl.edges.db import Database, Row

COUNTED = {"sessions", "reservations", "accounts"}
# kind -> what to do about it
FIXES = {
    "failed_not_released": "the user paid for a failed image: genctl credits grant --user {user_id}",
    "completed_not_captured": "the user has image and credits: decide whether to take them back",
    "terminal_holds": "genctl sweep releases what a failed session holds; a completed one needs a person",
    "refund_amount": "compare the ledger with the reservation and grant the difference",
    "refund_pending": "genctl sweep tries the release again; look at refundError when it stays",
    "double_movement": "compare the ledger's rows of this reservation; one is too many",
    "missing_movement": "somebody changed the status by hand: book what was moved",
    "balance_ledger": "somebody changed the balance by hand: find out who, and book the difference",
    "details_ledger": "the ledger is right; error_details tells the user something else",
    "missing_details": "the session was failed by something that is not genctl",
    "missing_reservation": "the reservation's row was deleted: restore it",
    "orphan_reservation": "its session was deleted: restore it, or grant the credits back",
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


class Audit(msgspec.Struct, frozen=True):
    """What was looked at (sessions, reservations, accounts), and what is wrong with it."""

    checked: dict[str, int]
    violations: list[Violation]


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


async def audit(db: Database, user: str | None = None) -> Audit:
    """Prove the invariants of statuses, ledger and details in one statement, so in one snapshot."""
    (rows,) = await db.transact(("audit", {"user": user}), timeout_s=None)
    return Audit(
        checked={row["kind"]: int(row["found"]) for row in rows if row["kind"] in COUNTED},
        violations=[
            Violation(**row, fix=FIXES[row["kind"]].format(**row)) for row in rows if row["kind"] in FIXES
        ],
    )

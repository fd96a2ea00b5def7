"""Move credits beside the path of a run (grants, late releases, adjustments), show them, and audit them all.

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

from genctl.base.person import Advance, who
from genctl.base.settings import Settings
from genctl.domain.model import GenctlError, camel
from genctl.domain.orders import MOST_CREDITS, check_name
from genctl.edges.db import Database, Row
from genctl.edges.db_errors import DatabaseGoneError, DataRefusedError
from genctl.edges.deadline import lock_s
from genctl.ledger import BRIEFLY_S, WAIT_S, AccountLockedError, movement

# statement -> the hundredths of the audit that are done after it
PARTS = {"audit_balances": 20, "audit_adjusted": 21, "audit": 90}
DONE = 100
MOST = 10_000
MOST_FIXES = 10  # commands in one line
HELD = {"terminal_holds", "refund_pending", "orphan_reservation"}  # held, and no run will end it
ADJUST = "`genctl credits adjust --user {user} --reservation {reservation} --reason T`"
UNDO = "`genctl credits adjust --user {user} --to-ledger --reason T`"
RETRY = "`genctl sessions retry {session}`"
TAKE_BACK = f"{ADJUST} takes back what is too much"
# kind -> what to do about it; a test types what stands between backticks
FIXES = {
    "failed_not_released": "the user paid for a failed image: `genctl refunds check --fix` gives it back",
    "completed_not_captured": f"the user has image and credits: {ADJUST} takes them back",
    "terminal_holds": "`genctl refunds check --fix` releases what a failed run holds, captures the rest",
    "refund_amount": "`genctl refunds check --fix` gives back what is missing",
    "refund_pending": "`genctl refunds check --fix` tries again; look at refundError when it stays",
    "double_movement": f"its status and its rows in the ledger disagree: {ADJUST} books the difference",
    "missing_movement": f"somebody changed rows by hand: {ADJUST} books what was moved",
    "balance_ledger": f"somebody changed the balance by hand: {UNDO} undoes that, --to-balance books it",
    "details_ledger": "the ledger is right; `genctl refunds check --fix` tells the user so",
    "missing_details": f"something that is not genctl failed it: {RETRY} gives it another run",
    "missing_reservation": f"somebody deleted or changed the reservation's row: {ADJUST} restores it",
    "orphan_reservation": "its session is gone: `genctl refunds check --fix` gives the credits back",
}
OVERDRAWN = "a balance must not fall below 0"  # says the database
NOBODYS = "the row names no user: mend it with psql"
ADJUSTED = "adjusted: "  # how the reasons of adjusting rows begin; SQL knows it too


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
    _check(reason)
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
        terms = ("--amount", str(amount), "--reason", reason)
        again = [
            shlex.join(("genctl", "credits", "grant", "--user", error.user, *terms))
            for error in locked[:MOST_FIXES]
        ]
        more = f", {len(locked) - 1} more neither" if len(locked) > 1 else ""
        had = len(everyone) - len(locked)
        others = f"; the other {had} have theirs" if had else ""
        why = f"user {locked[0].user} has got nothing{more}: the account is locked by another transaction"
        raise AccountLockedError(locked[0].user, f"{why}{locked[0].held}{others}", " && ".join(again))


def _check(reason: str) -> str:
    if not reason.strip():
        raise GenctlError("BadReason", "the reason is empty", "say why: the ledger keeps it", exit_code=2)
    return reason.strip()


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


async def adjust(db: Database, user: str, reason: str, *, to_ledger: bool) -> int:
    """Set a user's balance to what the ledger says, or book what it has more or less; return these credits.

    Raises GenctlError: exit 4 for a user of whom there is nothing.
    """
    await _known(db, user)
    step = "adjust_balance" if to_ledger else "adjust_ledger"
    moved = await movement(db, [user], (step, {"reason": _because(reason)}), wait_s=WAIT_S)
    return sum(row["credits"] for row in moved.rows[0])


async def adjust_reservation(db: Database, user: str, meant: UUID, reason: str) -> int:
    """Book for a user what a reservation's rows lack, or have too much; return these credits.

    `meant` is its id or its session's. The reservation's row is made again if it is gone, and the session
    says what came back. From then on the audit judges the reservation by the sum of its rows. Raises
    GenctlError: exit 4 for an id that nothing has, exit 1 while a run is open whose reservation has ended,
    or for credits that the user has spent.
    """
    await _known(db, user)
    found = await db.row("reservation_meant", id=meant)
    if found is None:
        raise GenctlError("NotFound", f"no reservation {meant}", "genctl refunds check", exit_code=4)
    if found["open_session"]:
        told = f"the reservation has ended, and the run of session {found['open_session']} has not"
        raise GenctlError("RunIsOpen", told, f"genctl sessions cancel {found['open_session']}", exit_code=1)
    ids = {"reservation": found["id"], "session": found["session_id"]}
    facts = ids | {"user": user, "reason": _because(reason)}
    row = ("restore_reservation", facts), ("name_reservation", facts)
    steps = ("adjust_reservation", facts), ("note_refund", facts)
    try:
        moved = await movement(db, [user], *row, *steps, wait_s=WAIT_S)
    except DataRefusedError as refused:
        if OVERDRAWN not in refused.message:
            raise
        told = f"user {user} has spent them: {OVERDRAWN}"
        fix = f"{_granted(user)} first, or leave it as it is"
        raise GenctlError("CreditsSpent", told, fix, exit_code=1) from refused
    if not moved.rows[2]:
        told = f"reservation {found['id']} has nothing to do with user {user}"
        raise GenctlError("NotFound", told, "genctl refunds check", exit_code=4)
    return sum(row["credits"] for row in moved.rows[2])


def _because(reason: str) -> str:
    return f"{ADJUSTED}{_check(reason)} (by {who()})"


async def _known(db: Database, user: str) -> None:
    if not await db.rows("ledger_of", user=user, limit=1):
        await account(db, user)


async def account(db: Database, user: str) -> Row:
    """Read `balance` and `held` of a user. Raises GenctlError, exit 4."""
    if row := await db.row("credits_of", user=user):
        return row
    raise _no_account(user)


def _granted(user: str) -> str:
    return f"`genctl credits grant --user {shlex.quote(user)} --amount N`"


def _no_account(user: str) -> GenctlError:
    fix = f"{_granted(user)} makes one"
    return GenctlError("NoAccount", f"user {user} has no account", fix, exit_code=4)


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
                violation = Violation(**row, fix=_cure(row))
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


def _cure(row: Row) -> str:
    """Say how to mend a violation, with the command that does it."""
    if row["user_id"] is None:
        return NOBODYS
    is_too_much = row["kind"] == "refund_amount" and int(row["found"]) > int(row["expected"])
    reservation = row["reservation_id"] or row["session_id"]
    facts = {"user": shlex.quote(row["user_id"]), "session": row["session_id"], "reservation": reservation}
    return (TAKE_BACK if is_too_much else FIXES[row["kind"]]).format_map(facts)


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
        refused = None
        try:
            if not await fix(db, violation):
                continue
            mended.append(violation)
        except DatabaseGoneError:
            raise
        except GenctlError as error:  # the others still get theirs
            refused = error
        show(violation, refused)
    return mended

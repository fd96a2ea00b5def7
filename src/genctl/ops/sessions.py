"""Find sessions by filters, or by any id."""

import re
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from genctl.base.person import Note
from genctl.domain.model import GenctlError, Session
from genctl.edges.db import Database, Row

MOST_ODD = 10_000  # rows that genctl cannot read, among which it looks for some that it can


async def listed(db: Database, note: Note, **filters: Any) -> list[dict[str, Any]]:
    """List the newest sessions as the API shows them; `note` names the rows that we cannot read.

    Filters (None: any): `user`, `status`, `code`, `since` and `until` (datetimes), and `limit`.
    """
    wanted = most = filters["limit"]
    while True:
        odd: list[str] = []
        rows = await db.rows("list_sessions", **filters | {"limit": most})
        found = readable(rows, odd.append)
        if len(found) >= wanted or len(rows) < most or most >= wanted + MOST_ODD:
            break
        most = wanted + min(2 * len(odd), MOST_ODD)  # what we cannot read hides none that we can
    for line in odd:
        note(line)
    return [session.item() for session in found[:wanted]]


def readable(rows: Iterable[Row], note: Note) -> list[Session]:
    """Read these rows as sessions; `note` names those of an adopted table that we cannot read."""

    def odd(session_id: Any, why: str) -> None:
        note(f"genctl cannot read session {session_id}: {why}")

    return [session for row in rows if (session := Session.readable(row, odd))]


async def find(db: Database, text: str) -> Session:
    """Find the session that has an id which is `text` or begins with it.

    Raises GenctlError: exit 4 for none, 2 for several.
    """
    low, high = uuid_range(text)
    rows = (
        await db.rows("find_sessions", low=low, high=high, pattern=like_prefix(text), text=text)
        if text
        else []
    )
    odd: list[str] = []
    found = readable(rows, odd.append)
    exact = [session for session in found if text in _ids(session)]
    match exact or found:
        case [session]:
            return session
        case [] if odd:
            raise GenctlError("OddRow", odd[0], "mend the row with psql, or leave it as it is", exit_code=4)
        case []:
            raise GenctlError(
                "SessionNotFound",
                f"no session has an id that is or begins with {text!r}",
                "genctl sessions list",
                exit_code=4,
            )
    some = ", ".join(str(session.id) for session in found[:3])
    raise GenctlError(
        "Ambiguous", f"{text!r} begins ids of several sessions: {some}", "give more of the id", exit_code=2
    )


def uuid_range(prefix: str) -> tuple[UUID, UUID] | tuple[None, None]:
    """Return the lowest and the highest UUID with this prefix; (None, None) when no UUID has it."""
    digits = prefix.replace("-", "").lower()
    if not re.fullmatch(r"[0-9a-f]{1,32}", digits) or not str(UUID(digits.ljust(32, "0"))).startswith(
        prefix.lower()
    ):
        return None, None
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def like_prefix(text: str) -> str:
    """Make the LIKE pattern for texts that begin with `text`."""
    return re.sub(r"([\\%_])", r"\\\1", text.replace("\0", "")) + "%"


def _ids(session: Session) -> set[str | None]:
    request = session.details.get("requestId")
    return {str(session.id), str(session.reservation_id), session.client_key, request}

"""What jobs do to their rows, in the statements of the protocol: what many do at the same moment is one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec

from genctl.base.batch import Together, attempted
from genctl.domain.model import GenctlError, Session, Status
from genctl.edges.db import Database, DatabaseGoneError, Row, as_json

LEASE_S = 30  # a worker that is silent for so long has lost its sessions; also the messages' visibility
STOP_S = 5.0  # what a cancelled step of the database gets to end in
CLAIM_PATIENCE_S = 15.0  # shorter than a lease: a claim whose answer was lost is not claimed over


class Claim(msgspec.Struct, frozen=True):
    """Whose session is wanted: of this run (None: whichever it is); `lapsed` as for Pipeline.claim."""

    session_id: UUID
    run: int | None
    lapsed: bool


class Rows:
    """Each attribute takes one item and gives its answer, to be awaited; raises as Database.patiently does.

    `read`: a session's id -> its row, or None. `claim`: a Claim -> the session, if it is ours now.
    `retry`, and `settle` with the user before it: an item of the statement -> the row, or None when the
    lease is no longer the row's. `mark`: an item of mark_copied -> None.
    """

    def __init__(self, db: Database, worker: str, models: Sequence[str]) -> None:
        """`models`: patterns of LIKE; only sessions of these are claimed."""
        self._db = db
        self._models = list(models)
        self._worker = worker
        self.read = Together(self._read)
        self.claim = Together(self._claim)
        self.retry = Together(self._retry)
        self.settle = Together(self._settle)
        self.mark = Together(self._mark)

    async def put_back(self, session: Session, *, sent: bool) -> bool:
        """Give the session back, or let it go when its request was sent; False: it is not ours."""
        facts = {"session": session.id, "lease": session.lease}
        (rows,) = await self._db.patiently(("let_go" if sent else "give_back", facts), patience_s=STOP_S)
        return bool(rows)

    async def left_by_us(self, session: Session) -> Row | None:
        """The row, if it was we who ended it or sent it back: the answer to a commit may have been lost."""
        row = await self._db.row("sessions", ids=[session.id])
        if row is None or row["lease"] != session.lease:
            return None
        # the sweeper sends back under the same lease, but sets no time
        retried = row["status"] == Status.QUEUED and row["due_at"] is not None
        return row if retried or row["status"] in {Status.COMPLETED, Status.FAILED} else None

    async def _read(self, ids: list[UUID]) -> list[Session | Exception | None]:
        rows = {row["id"]: row for row in await self._db.rows("sessions", ids=ids)}
        return [attempted(Session.of, rows[id_]) if id_ in rows else None for id_ in ids]

    async def _claim(self, claims: list[Claim]) -> list[Session | Exception | None]:
        """Of two claims of one session in one go, one gets it."""
        params = {
            "items": as_json(claims),
            "lease_s": LEASE_S,
            "worker": self._worker,
            "models": self._models,
        }
        (rows,) = await self._db.patiently(("claim", params), patience_s=CLAIM_PATIENCE_S)
        taken = {row["id"]: row for row in rows}
        return [
            attempted(Session.of, taken.pop(claim.session_id))
            if claim.session_id in taken and claim.run in {None, taken[claim.session_id]["run"]}
            else None
            for claim in claims
        ]

    async def _retry(self, items: list[dict[str, Any]]) -> list[Row | None]:
        (rows,) = await self._db.patiently(("retry", {"items": as_json(items)}))
        return _by_session(rows, items)

    async def _settle(self, ended: list[tuple[str, dict[str, Any]]]) -> list[Row | Exception | None]:
        """In one transaction; when the data of one is refused, each in its own."""
        users = sorted({user for user, _ in ended})
        items = [item for _, item in ended]
        try:
            *_, rows = await self._db.patiently(
                ("ensure_accounts", {"users": users, "opening": 0}),
                ("lock_accounts", {"users": users}),
                ("settle", {"items": as_json(items)}),
            )
        except DatabaseGoneError:
            raise
        except GenctlError as error:
            if len(ended) == 1:
                return [error]
            return [(await self._settle([one]))[0] for one in ended]
        return [*_by_session(rows, items)]

    async def _mark(self, items: list[dict[str, Any]]) -> list[None]:
        await self._db.patiently(("mark_copied", {"items": as_json(items)}))
        return [None for _ in items]


def _by_session(rows: Iterable[Row], items: Iterable[Mapping[str, Any]]) -> list[Row | None]:
    found = {row["id"]: row for row in rows}
    return [found.get(item["session_id"]) for item in items]

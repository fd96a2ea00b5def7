"""The judge: watches one failing job from outside, hop by hop, each on its own evidence.

It knows the contract and nothing of how genctl keeps it: base-shape tables, the channel, the API and its
streams, the DLQ.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID, uuid4

from genctl.base.printable import many
from genctl.domain.model import GenctlError, rfc3339
from genctl.edges import listener
from genctl.edges.db import Row
from genctl.edges.sqs import Message
from genctl.ops.sampling import look
from genctl.ops.smoke import sound
from genctl.ops.smoke.deployment import Deployment
from genctl.ops.smoke.ears import Ears
from genctl.ops.smoke.hop import HOPS, BrokenError, Evidence, Hop
from genctl.ops.watch import Seen

AGAIN = ("refund", "isolation")  # what may still break once it was seen whole: looked at again at the end
SETTLED = {"details", "refund", "notify"}  # what the row's own transaction brings
SETTLED_S = 1.0  # how long it may all the same come behind the row
AGAIN_S = 5.0  # for the second look, should time be over
QUIET_S = 0.25  # how long a stranger's stream must stay silent after the user's has spoken
SILENT = {"ready", "heartbeat", "reset", "bye"}  # events that speak of no session

Check = Callable[[], Awaitable[Evidence]]


class Judge:
    """Orders one job that the provider is sure to refuse; `hops` tells what happens to it."""

    def __init__(self, at: Deployment, ears: Ears, user: str, stranger: str, timeout_s: float) -> None:
        self.at = at
        self.ears = ears
        self.user = user
        self.stranger = stranger
        self.client_key = f"smoke-{uuid4().hex[:12]}"
        self.session_id: UUID | None = None
        self.answer_lost = False  # an order is on its way, or was and nobody knows what became of it
        self._ends_at = time.monotonic() + timeout_s
        self._ordered_at = self._answered_at = 0.0
        self._reservation_id: UUID | None = None
        self._funds: Row = {}  # of the user, before
        self._failed: tuple[Row, float] | None = None  # the row as it was first seen failed, and when
        self._told_at = 0.0

    @classmethod
    @asynccontextmanager
    async def open(cls, at: Deployment, user: str, timeout_s: float) -> AsyncIterator[Self]:
        """A judge with open ears; `timeout_s` is its time for all hops together, from now on.

        Raises GenctlError (exit 3) when the channel cannot be heard.
        """
        ends_at = time.monotonic() + timeout_s
        stranger = f"genctl-smoke-stranger-{uuid4().hex[:12]}"
        async with Ears.open(at, user, stranger, timeout_s / 3) as ears:
            yield cls(at, ears, user, stranger, ends_at - time.monotonic())

    @property
    def _prompt(self) -> str:
        return f"a photograph of a crowd, {self.at.api.tool.sensitive}"

    async def hops(self) -> AsyncIterator[Hop]:
        """The hops in order, each as soon as it is known; ends with the first that is broken.

        One that was whole and is not at the end comes a second time.
        """
        checks: dict[str, Check] = {
            "accepted": self._accepted,
            "claimed": self._claimed,
            "row": self._row,
            "details": self._details,
            "refund": self._refund,
            "notify": self._notify,
            "sse": self._sse,
            "isolation": self._isolation,
            "dlq": self._dlq,
        }
        for name in HOPS:
            hop = await self._hop(name, checks[name], SETTLED_S if name in SETTLED else None)
            yield hop
            if not hop.ok:
                return
        self._ends_at = max(self._ends_at, time.monotonic() + AGAIN_S)
        for name in AGAIN:
            if not (hop := await self._hop(name, checks[name], 0.0)).ok:
                yield hop

    async def _hop(self, name: str, check: Check, patience_s: float | None) -> Hop:
        try:
            text, at = await self._until(name, check, patience_s)
        except BrokenError as broken:
            waiting = await self._waiting() if name == "claimed" else ""
            return Hop(name, ok=False, why=f"{broken}{waiting}")
        at = at or time.monotonic()
        when = datetime.now(UTC) - timedelta(seconds=time.monotonic() - at)
        ms = round(max(0.0, at - self._ordered_at) * 1000, 1)
        return Hop(name, ok=True, at=rfc3339(when), ms=ms, evidence=text)

    async def _until(self, name: str, check: Check, patience_s: float | None) -> Evidence:
        """Ask until there is evidence. When time is over, raises the last complaint, or one of the silence.

        Time is what is left for all hops; a complaint after `patience_s` seconds of it is the last.
        """
        began, left_s = time.monotonic(), self._ends_at - time.monotonic()
        silence = f"no answer in the {max(0.0, left_s):.3g} s that were left"
        broken = BrokenError(f"to see {name}", silence, "the parts of the deployment: one hangs")
        # often at first, for the latency; seldom into a DLQ, where a look raises receive counts
        first_s, growth, most_s = (0.25, 0.1, 2.0) if name == "dlq" else (0.01, 0.02, 0.1)
        with suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                while True:
                    try:
                        return await check()
                    except BrokenError as complaint:
                        broken = complaint
                    except GenctlError as error:
                        broken = BrokenError(f"to see {name}", error.message, error.fix or "its log")
                    asked_s = time.monotonic() - began
                    if broken.final or (patience_s is not None and asked_s >= patience_s):
                        break
                    await asyncio.sleep(min(first_s + growth * asked_s, most_s))
        raise broken

    # -- the hops ---------------------------------------------------------------------------------

    async def _accepted(self) -> Evidence:
        if self.session_id is None:
            await self._order()
        row = await self._session(final=True)
        if (row["user_id"], row["reservation_id"]) != (self.user, self._reservation_id):
            raise BrokenError(
                f"a session of {self.user} with the reservation of the answer",
                f"one of {row['user_id']} with {row['reservation_id']}",
                "what POST …/generations stores",
                final=True,
            )
        reservation = await self._reservation()
        evidence = f"session {row['id']} of {self.user}, {reservation['amount']} credits"
        return Evidence(evidence, self._answered_at)

    async def _order(self) -> None:
        """Once: whatever is wrong with it is final, since a second order would be a second job."""
        self._funds = await self.funds()
        self._ordered_at = time.monotonic()
        self.answer_lost = True
        try:
            status, said = await self.at.api.order(self.user, prompt=self._prompt, clientKey=self.client_key)
        except GenctlError as error:
            raise BrokenError("202 for the order", error.message, error.fix, final=True) from None
        self._answered_at = time.monotonic()
        self.answer_lost = False
        if status != 202:
            hint = _HINTS.get(status, "the API's log").format(user=self.user)
            raise BrokenError("202 for the order", f"{status} {_short(said)}", hint, final=True)
        try:
            self.session_id, self._reservation_id = UUID(said["sessionId"]), UUID(said["reservationId"])
        except (TypeError, ValueError, KeyError, AttributeError):
            expected = "sessionId and reservationId in the answer"
            raise BrokenError(expected, _short(said), "what the API answers", final=True) from None
        self.ears.only = self.session_id

    async def _claimed(self) -> Evidence:
        status = (await self._session())["status"]
        if status == "queued":
            raise BrokenError("the row to leave queued", "it still queued", "the worker's log, and the gate")
        return Evidence("the row has left queued")

    async def _waiting(self) -> str:
        """Whether the job's message may be in the queue: it was never sent, or nobody takes it."""
        try:
            async with asyncio.timeout(2):
                facts = await self.at.queue.attributes()
        except (GenctlError, TimeoutError):
            return ""
        waiting, taken = (
            int(facts.get(f"ApproximateNumberOfMessages{kind}", 0)) for kind in ("", "NotVisible")
        )
        hint = "nobody takes them" if waiting else "somebody has it" if taken else "was it sent?"
        return f"; queue {self.at.queue.name} has {many(waiting, 'message')} waiting, {taken} taken: {hint}"

    async def _row(self) -> Evidence:
        row, at = await self._session(), time.monotonic()
        for notice in self.ears.notices:  # a NOTIFY made us look earlier
            if notice.row and notice.session_id == self.session_id and notice.row["status"] == "failed":
                row, at = notice.row, min(at, notice.at)
        if row["status"] == "completed":
            raise BrokenError(
                f"the provider to refuse {self._prompt!r}",
                "the session completed",
                "the provider, which has made the image",
                final=True,
            )
        if row["status"] != "failed" or row["completed_at"] is None:
            found = f"{row['status']}, completed_at {rfc3339(row['completed_at'])}"
            raise BrokenError("status failed with completed_at", found, "the worker's log")
        self._failed = self._failed or (row, at)
        return Evidence(f"failed, completed_at {rfc3339(row['completed_at'])}", at)

    async def _details(self) -> Evidence:
        details = (await self._session())["error_details"]
        if complaints := sound.details_complaints(details, self.at.secrets):
            raise BrokenError("complete error_details", "; ".join(complaints), "what the settle writes")
        return Evidence(
            f"{details['code']} ({details['category']}): {details['userMessage']}",
            self._failed[1] if self._failed else None,
        )

    async def _refund(self) -> Evidence:
        details = (await self._session())["error_details"]
        reservation = await self._reservation()
        amount, status = reservation["amount"], reservation["status"]
        if status != "released" or reservation["released_at"] is None or reservation["captured_at"]:
            found = f"{status}, released_at {rfc3339(reservation['released_at'])}"
            raise BrokenError("the reservation released, with released_at", found, "credit_reservations")
        told = [details[name] for name in ("reservationAmount", "refundedCredits", "refundError")]
        if told != [amount, amount, None] or details["refundedAt"] is None:
            found = "reservationAmount {}, refundedCredits {}, refundError {}".format(*told)
            raise BrokenError(
                f"{amount} credits in error_details, with refundedAt", found, "what the release returned"
            )
        funds = await self.funds()
        balance = self._funds["balance"] + self._funds["bound"] - funds["bound"]
        if funds["balance"] != balance:
            raise BrokenError(
                f"the balance of {self.user} back at {balance}", funds["balance"], "credit_accounts"
            )
        if (await self.at.db.rows("smoke_has_ledger"))[0]["there"]:
            (booked,) = await self.at.db.rows("smoke_releases", reservation=self._reservation_id)
            if (booked["times"], booked["credits"]) != (1, amount):
                found = f"{booked['times']} of together {booked['credits']}"
                raise BrokenError(f"one release of {amount} in the ledger", found, "credit_ledger")
        return Evidence(f"{amount} credits released once, balance {balance} as before")

    async def _notify(self) -> Evidence:
        known = (str(self.session_id), str(self._reservation_id))
        mine = [notice for notice in self.ears.notices if any(name in notice.payload for name in known)]
        if not mine:
            strange = [notice.payload for notice in self.ears.notices if notice.session_id is None]
            found = f"only {strange[-1][:200]!r}, which names no session" if strange else "none"
            raise BrokenError(
                f"a NOTIFY on {listener.CHANNEL} for the session", found, "the transaction that settles"
            )
        heard_at, payload, _, row = mine[0]
        expected = {
            "user_id": self.user,
            "reservation_id": str(self._reservation_id),
            "session_id": str(self.session_id),
            "status": "failed",
        }
        if complaint := sound.payload_complaint(payload, expected):
            raise BrokenError(f"the NOTIFY to say {json.dumps(expected)}", complaint, "what sends it")
        if row is None or row["status"] != "failed":
            found = f"a row that was still {row['status']}" if row else "no row"
            raise BrokenError(
                "the failed row visible when the NOTIFY comes",
                found,
                "what sends it: it belongs in the transaction that settles",
                final=True,
            )
        return Evidence(f"{listener.CHANNEL}: {len(payload)} bytes, after the row was visible", heard_at)

    async def _sse(self) -> Evidence:
        stream, name = self.ears.own, str(self.session_id)
        mine = [(at, seen) for at, seen in stream.events if _names(seen, name)]
        if not mine:
            none = f"none: {stream.trouble}" if stream.trouble else "none"
            raise BrokenError(f"an event of the session on {self.user}'s stream", none, "the API's log")
        self._told_at, seen = mine[0]
        expected = {"sessionId": name, "clientKey": self.client_key, "status": "failed"}
        if seen.event != "failed" or not expected.items() <= seen.data.items():
            told = f"{seen.event} {_short(seen.data)}"
            raise BrokenError(f"the event failed with {json.dumps(expected)}", told, "the API", final=True)
        said, stored = seen.data.get("error_details"), (await self._session())["error_details"]
        for key in ("code", "category", "userMessage", "refundedCredits"):
            found = said.get(key) if isinstance(said, dict) else None
            if found != stored[key]:
                expected_of = f"{key} {stored[key]!r} in the event's error_details"
                raise BrokenError(expected_of, repr(found), "what the API sends of the row", final=True)
        known = {earlier.id for at, earlier in stream.events if at < self._told_at}
        without = ", but without an id of its own" if not seen.id or seen.id in known else ""
        return Evidence(f"failed on {self.user}'s stream, with error_details{without}", self._told_at)

    async def _isolation(self) -> Evidence:
        assert self.session_id  # noqa: S101 - accepted
        for user, expected in ((self.stranger, 404), (self.user, 200)):
            status, said = await self.at.api.session(user, self.session_id)
            if status != expected:
                whose = "another user's" if user == self.stranger else f"{user}'s own"
                raise BrokenError(
                    f"{expected} for {whose} GET of the session",
                    f"{status} {_short(said)}",
                    "how the API looks sessions up",
                    final=status == 200,
                )
        stream = self.ears.strangers
        if stream.is_gone:
            raise BrokenError("a stream of another user, to be silent", stream.trouble, "the API's log")
        await asyncio.sleep(self._told_at + QUIET_S - time.monotonic())
        if leaked := [seen for _, seen in stream.events if seen.event not in SILENT]:
            found = f"{leaked[0].event} {_short(leaked[0].data)}"
            raise BrokenError("silence on another user's stream", found, "how the API tells", final=True)
        return Evidence("another user's stream is silent, and their GET of the session is 404")

    async def _dlq(self) -> Evidence:
        assert self.session_id  # noqa: S101 - accepted
        found = await look(self.at.dlq, enough=self.is_copy)
        copy = next(filter(self.is_copy, found.messages), None)
        where = f"in DLQ {self.at.dlq.name}"
        if copy is None:
            seen = f"none among {many(len(found.messages), 'message')}"
            raise BrokenError(f"a copy of the job's message {where}", seen, "the worker's log")
        if complaint := sound.body_complaint(copy.body, self.at.api.tool.name, self.session_id):
            raise BrokenError(
                f"the original body in the copy {where}", complaint, f"message {copy.message_id}", final=True
            )
        details = (await self._session())["error_details"]
        if complaint := sound.attributes_complaint(copy.attributes, self.session_id, details):
            raise BrokenError(
                f"the failure's attributes at the copy {where}",
                complaint,
                f"message {copy.message_id}",
                final=True,
            )
        shown = ("code", "run", "attempts", "providerStatus")
        said = ", ".join(f"{name} {copy.attributes[name]}" for name in shown if name in copy.attributes)
        return Evidence(f"message {copy.message_id} {where}: {said}")

    # -- looking ----------------------------------------------------------------------------------

    def is_copy(self, message: Message) -> bool:
        """Whether a message of the DLQ is of our session."""
        name = str(self.session_id)
        return name in message.body or message.attributes.get("sessionId") == name

    async def funds(self) -> Row:
        """`balance` of the user, and what is `bound` in reservations."""
        if row := await self.at.db.row("smoke_funds", user=self.user):
            return row
        status, said = await self.at.api.credits(self.user)  # what a user will have who has no account yet
        return {
            "balance": said.get("balance", 0) if status == 200 and isinstance(said, dict) else 0,
            "bound": 0,
        }

    async def _session(self, *, final: bool = False) -> Row:
        row = await self.at.db.row("smoke_session", session=self.session_id)
        if row is None:
            raise BrokenError("the session's row", "none", "the API, and its database", final=final)
        return row

    async def _reservation(self) -> Row:
        row = await self.at.db.row("smoke_reservation", reservation=self._reservation_id)
        if row is None or row["user_id"] != self.user or not (row["amount"] or 0) > 0:
            found = f"{row['amount']} credits of {row['user_id']}" if row else "none"
            raise BrokenError(f"a reservation of {self.user}'s credits", found, "credit_reservations")
        return row


_HINTS = {
    401: "GENCTL_SECRET, which is another there",
    402: "the balance of {user}; without --user the job is a fresh user's",
    404: "GENCTL_API_URL",
}


def _names(seen: Seen, session: str) -> bool:
    return isinstance(seen.data, dict) and session in json.dumps(seen.data)


def _short(said: Any) -> str:
    return (said if isinstance(said, str) else json.dumps(said, default=str))[:300]

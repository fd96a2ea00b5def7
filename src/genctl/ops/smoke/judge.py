"""Judge one failing job from outside, hop by hop, each on its own evidence.

The judge knows the contract and nothing else of genctl: the base tables, the channel, the API and its
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
from genctl.edges.sqs_shapes import Message
from genctl.ops.sampling import look
from genctl.ops.smoke import sound
from genctl.ops.smoke.deployment import Deployment
from genctl.ops.smoke.hop import HOPS, BrokenError, Evidence, HopResult, expect
from genctl.ops.smoke.listeners import Listeners
from genctl.ops.watch import Seen

AGAIN = ("refund", "isolation")  # what held once may break later: checked again at the end
SETTLED = {"details", "refund", "notify"}  # come with the row's own transaction
SETTLED_S = 1.0  # how long after the row they may come all the same
AGAIN_S = 5.0  # for the second check, if the time is over
QUIET_S = 0.25  # how long a stranger's stream must stay silent after the user's has spoken
SILENT = {"ready", "heartbeat", "reset", "bye"}  # events that speak of no session
LOOK_AT = {  # the status of an order: what explains it
    401: "GENCTL_SECRET: the API has another one",
    402: "the balance of {user}; without --user the job is a fresh user's",
    404: "GENCTL_API_URL",
}


class Judge:
    """Order one job that the provider is sure to refuse, and check what happens to it."""

    def __init__(
        self, deployment: Deployment, listeners: Listeners, user: str, stranger: str, ends_at: float
    ) -> None:
        self.deployment = deployment
        self.listeners = listeners
        self.user = user
        self.stranger = stranger
        self.client_key = f"smoke-{uuid4().hex[:12]}"
        self.session_id: UUID | None = None
        self._prompt = f"a photograph of a crowd, {deployment.api.tool.sensitive}"
        self._ends_at = ends_at
        self._ordered_at = self._answered_at = 0.0
        self._reservation_id: UUID | None = None
        self._funds: Row = {}  # of the user, before
        self._failed_at: float | None = None  # when we first saw the failed row
        self._told_at = 0.0

    @classmethod
    @asynccontextmanager
    async def open(cls, deployment: Deployment, user: str, ends_at: float) -> AsyncIterator[Self]:
        """Listen, and yield a judge with time until `ends_at` (monotonic). Raises GenctlError (exit 3)."""
        stranger = f"genctl-smoke-stranger-{uuid4().hex[:12]}"
        async with Listeners.open(deployment, user, stranger, (ends_at - time.monotonic()) / 3) as listeners:
            yield cls(deployment, listeners, user, stranger, ends_at)

    async def hops(self) -> AsyncIterator[HopResult]:
        """Yield the hops in order, each as soon as it is known; end with the first broken one.

        A hop that held and no longer does at the end comes a second time.
        """
        for name in HOPS:
            hop = await self._hop(name, SETTLED_S if name in SETTLED else None)
            yield hop
            if not hop.ok:
                return
        self._ends_at = max(self._ends_at, time.monotonic() + AGAIN_S)
        for name in AGAIN:
            if not (hop := await self._hop(name, 0.0)).ok:
                yield hop

    async def _hop(self, name: str, patience_s: float | None) -> HopResult:
        try:
            text, at = await self._until(name, patience_s)
        except BrokenError as broken:
            waiting = await self._waiting() if name == "claimed" else ""
            return HopResult(name, ok=False, why=f"{broken}{waiting}")
        at = at or time.monotonic()
        when = datetime.now(UTC) - timedelta(seconds=time.monotonic() - at)
        ms = round(max(0.0, at - self._ordered_at) * 1000, 1)
        return HopResult(name, ok=True, at=rfc3339(when), ms=ms, evidence=text)

    async def _until(self, name: str, patience_s: float | None) -> Evidence:
        """Check a hop until it holds. Raises BrokenError when `patience_s` or all hops' time is over."""
        check: Callable[[], Awaitable[Evidence]] = getattr(self, f"_{name}")
        began, left_s = time.monotonic(), self._ends_at - time.monotonic()
        silence = f"no answer in the {max(0.0, left_s):.3g} s that were left"
        broken = BrokenError(f"to see {name}", silence, "the parts of the deployment: one hangs")
        # often at first, to measure the latency; seldom in the DLQ, where a look raises receive counts
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

    # --- the hops: `_until` finds the method of a hop by its name ---------------------------------

    async def _accepted(self) -> Evidence:
        if self.session_id is None:
            await self._order()
        row = await self._session(final=True)
        is_theirs = (row["user_id"], row["reservation_id"]) == (self.user, self._reservation_id)
        theirs = f"a session of {self.user} with the reservation of the answer"
        found = f"one of {row['user_id']} with {row['reservation_id']}"
        expect(is_theirs, theirs, found, "what POST …/generations stores", final=True)
        credits = (await self._reservation())["amount"]
        return Evidence(f"session {row['id']} of {self.user}, {credits} credits", self._answered_at)

    async def _order(self) -> None:
        """Send the order once. Each fault is final: a second order would be a second job."""
        self._funds = await self.funds()
        self._ordered_at = time.monotonic()
        try:
            order = {"prompt": self._prompt, "clientKey": self.client_key}
            status, body = await self.deployment.api.ask(self.user, "/generations", order)
        except GenctlError as error:
            raise BrokenError("202 for the order", error.message, error.fix, final=True) from None
        self._answered_at = time.monotonic()
        look_at = LOOK_AT.get(status, "the API's log").format(user=self.user)
        expect(status == 202, "202 for the order", f"{status} {_short(body)}", look_at, final=True)
        try:
            self.session_id, self._reservation_id = UUID(body["sessionId"]), UUID(body["reservationId"])
        except (TypeError, ValueError, KeyError, AttributeError):
            expected = "sessionId and reservationId in the answer"
            raise BrokenError(expected, _short(body), "what the API answers", final=True) from None
        self.listeners.heed(self.session_id)

    async def find_lost_order(self) -> None:
        """Look for the session of an order without an answer: the API may have taken it."""
        if self.session_id is None and self._ordered_at:
            made = await self.deployment.db.row("smoke_ordered", user=self.user, client_key=self.client_key)
            self.session_id = made["id"] if made else None

    async def _claimed(self) -> Evidence:
        has_left = (await self._session())["status"] != "queued"
        expect(has_left, "the row to leave queued", "it still queued", "the worker's log, and the gate")
        return Evidence("the row has left queued")

    async def _waiting(self) -> str:
        """Count the messages in the queue: was the job's not sent, or does no worker take it?"""
        queue = self.deployment.queue
        try:
            async with asyncio.timeout(2):
                waiting, taken, _ = await queue.depth()
        except (GenctlError, TimeoutError):
            return ""
        hint = "nobody takes them" if waiting else "somebody has it" if taken else "was it sent?"
        return f"; queue {queue.name} has {many(waiting, 'message')} waiting, {taken} taken: {hint}"

    async def _row(self) -> Evidence:
        row, at = await self._session(), time.monotonic()
        for notice in self.listeners.notices:  # we may have read it at its NOTIFY already
            if notice.row and notice.session_id == self.session_id and notice.row["status"] == "failed":
                row, at = notice.row, min(at, notice.at)
        status, completed_at = row["status"], rfc3339(row["completed_at"])
        refusal, by = f"the provider to refuse {self._prompt!r}", "the provider, which has made the image"
        expect(status != "completed", refusal, "the session completed", by, final=True)
        found = f"{status}, completed_at {completed_at}"
        has_failed = status == "failed" and completed_at
        expect(has_failed, "status failed with completed_at", found, "the worker's log")
        self._failed_at = self._failed_at or at
        return Evidence(f"failed, completed_at {completed_at}", at)

    async def _details(self) -> Evidence:
        details = (await self._session())["error_details"]
        complaints = sound.details_complaints(details, self.deployment.secrets)
        expect(not complaints, "complete error_details", "; ".join(complaints), "what the settle writes")
        told = f"{details['code']} ({details['category']}): {details['userMessage']}"
        return Evidence(told, self._failed_at)

    async def _refund(self) -> Evidence:
        details = (await self._session())["error_details"]
        reservation = await self._reservation()
        amount, status = reservation["amount"], reservation["status"]
        is_released = status == "released" and reservation["released_at"] and not reservation["captured_at"]
        found = f"{status}, released_at {rfc3339(reservation['released_at'])}"
        expect(is_released, "the reservation released, with released_at", found, "credit_reservations")
        told = [details[name] for name in ("reservationAmount", "refundedCredits", "refundError")]
        is_told = told == [amount, amount, None] and details["refundedAt"]
        found = "reservationAmount {}, refundedCredits {}, refundError {}".format(*told)
        expected = f"{amount} credits in error_details, with refundedAt"
        expect(is_told, expected, found, "what the release returned")
        funds = await self.funds()
        balance = self._funds["balance"] + self._funds["bound"] - funds["bound"]
        back = f"the balance of {self.user} back at {balance}"
        expect(funds["balance"] == balance, back, funds["balance"], "credit_accounts")
        if (await self.deployment.db.rows("smoke_has_ledger"))[0]["there"]:
            (booked,) = await self.deployment.db.rows("smoke_releases", reservation=self._reservation_id)
            is_once = (booked["times"], booked["credits"]) == (1, amount)
            found = f"{booked['times']} of together {booked['credits']}"
            expect(is_once, f"one release of {amount} in the ledger", found, "credit_ledger")
        return Evidence(f"{amount} credits released once, balance {balance} as before")

    async def _notify(self) -> Evidence:
        names = {"reservation_id": str(self._reservation_id), "session_id": str(self.session_id)}
        mine = [one for one in self.listeners.notices if any(name in one.payload for name in names.values())]
        strange = [notice.payload for notice in self.listeners.notices if notice.session_id is None]
        found = f"only {strange[-1][:200]!r}, which names no session" if strange else "none"
        by = "the transaction that settles"
        expect(mine, f"a NOTIFY on {listener.CHANNEL} for the session", found, by)
        heard_at, payload, _, row = mine[0]
        expected = {"user_id": self.user, **names, "status": "failed"}
        complaint = sound.payload_complaint(payload, expected)
        expect(not complaint, f"the NOTIFY to say {json.dumps(expected)}", complaint, "what sends it")
        status = row["status"] if row else None
        found = f"a row that was still {status}" if row else "no row"
        by = "what sends it: it belongs in the transaction that settles"
        expect(status == "failed", "the failed row visible when the NOTIFY comes", found, by, final=True)
        return Evidence(f"{listener.CHANNEL}: {len(payload)} bytes, after the row was visible", heard_at)

    async def _sse(self) -> Evidence:
        stream, name = self.listeners.own, str(self.session_id)
        mine = [(at, seen) for at, seen in stream.events if _names(seen, name)]
        none = f"none: {stream.trouble}" if stream.trouble else "none"
        expect(mine, f"an event of the session on {self.user}'s stream", none, "the API's log")
        self._told_at, seen = mine[0]
        expected = {"sessionId": name, "clientKey": self.client_key, "status": "failed"}
        is_failed = seen.event == "failed" and expected.items() <= seen.data.items()
        heard = f"{seen.event} {_short(seen.data)}"
        expect(is_failed, f"the event failed with {json.dumps(expected)}", heard, "the API", final=True)
        told, stored = seen.data.get("error_details"), (await self._session())["error_details"]
        for key in ("code", "category", "userMessage", "refundedCredits"):
            found = told.get(key) if isinstance(told, dict) else None
            wanted = f"{key} {stored[key]!r} in the event's error_details"
            expect(found == stored[key], wanted, repr(found), "what the API sends", final=True)
        known = {earlier.id for at, earlier in stream.events if at < self._told_at}
        without = ", but without an id of its own" if not seen.id or seen.id in known else ""
        return Evidence(f"failed on {self.user}'s stream, with error_details{without}", self._told_at)

    async def _isolation(self) -> Evidence:
        for user, expected in ((self.stranger, 404), (self.user, 200)):
            status, body = await self.deployment.api.ask(user, f"/sessions/{self.session_id}")
            whose = "another user's" if user == self.stranger else f"{user}'s own"
            wanted, found = f"{expected} for {whose} GET of the session", f"{status} {_short(body)}"
            expect(status == expected, wanted, found, "how the API looks sessions up", final=status == 200)
        stream = self.listeners.strangers
        silent = "a stream of another user, to be silent"
        expect(not stream.is_gone, silent, stream.trouble, "the API's log")
        await asyncio.sleep(self._told_at + QUIET_S - time.monotonic())
        spoken = [seen for _, seen in stream.events if seen.event not in SILENT]
        leaked = [f"{seen.event} {_short(seen.data)}" for seen in spoken]
        quiet = "silence on another user's stream"
        expect(not leaked, quiet, "; ".join(leaked[:1]), "how the API tells", final=True)
        return Evidence("another user's stream is silent, and their GET of the session is 404")

    async def _dlq(self) -> Evidence:
        assert self.session_id  # noqa: S101 - accepted
        found = await look(self.deployment.dlq, enough=self.is_copy)
        where = f"in DLQ {self.deployment.dlq.name}"
        copies = list(filter(self.is_copy, found))
        none = f"none among {many(len(found), 'message')}"
        expect(copies, f"a copy of the job's message {where}", none, "the worker's log")
        body, attributes, name = copies[0].body, copies[0].attributes, f"message {copies[0].message_id}"
        complaint = sound.body_complaint(body, self.deployment.api.tool.name, self.session_id)
        expect(not complaint, f"the original body in the copy {where}", complaint, name, final=True)
        details = (await self._session())["error_details"]
        complaint = sound.attributes_complaint(attributes, self.session_id, details)
        expect(not complaint, f"the failure's attributes at the copy {where}", complaint, name, final=True)
        shown = ("code", "run", "attempts", "providerStatus")
        told = ", ".join(f"{key} {attributes[key]}" for key in shown if key in attributes)
        return Evidence(f"{name} {where}: {told}")

    # -- looking ----------------------------------------------------------------------------------

    def is_copy(self, message: Message) -> bool:
        """Tell whether a message of the DLQ is of our session."""
        name = str(self.session_id)
        return name in message.body or message.attributes.get("sessionId") == name

    async def funds(self) -> Row:
        """Read the user's `balance`, and the credits `bound` in reservations since the first look."""
        since = self._funds.get("since")
        if row := await self.deployment.db.row("smoke_funds", user=self.user, since=since):
            return row
        # the API knows what a new user will have
        status, body = await self.deployment.api.ask(self.user, "/credits")
        known = status == 200 and isinstance(body, dict)
        return {"balance": body.get("balance", 0) if known else 0, "bound": 0}

    async def _session(self, *, final: bool = False) -> Row:
        row = await self.deployment.db.row("smoke_session", session=self.session_id)
        expect(row, "the session's row", "none", "the API, and its database", final=final)
        return row or {}

    async def _reservation(self) -> Row:
        row = await self.deployment.db.row("smoke_reservation", reservation=self._reservation_id) or {}
        found = f"{row['amount']} credits of {row['user_id']}" if row else "none"
        is_theirs = row and row["user_id"] == self.user and (row["amount"] or 0) > 0
        expect(is_theirs, f"a reservation of {self.user}'s credits", found, "credit_reservations")
        return row


def _names(seen: Seen, session: str) -> bool:
    return isinstance(seen.data, dict) and session in json.dumps(seen.data)


def _short(told: Any) -> str:
    return (told if isinstance(told, str) else json.dumps(told, default=str))[:300]

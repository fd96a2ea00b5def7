"""The judge: watches one failing job from outside, hop by hop, each on its own evidence.

It knows the contract and nothing of how genctl keeps it: base-shape tables, the channel, the DLQ.
"""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Self
from uuid import UUID

import aiohttp
import msgspec

from genctl.base.tokens import Tokens
from genctl.domain.model import Category, rfc3339
from genctl.domain.tools import SEEDREAM4
from genctl.edges import http, listener
from genctl.edges.db import Database, Row
from genctl.edges.sqs import Message, Queue
from genctl.ops.sampling import look
from genctl.ops.watch import Place, Seen, follow

HOPS = ("accepted", "claimed", "row", "details", "refund", "notify", "sse", "isolation", "dlq")
STRANGER = "genctl-smoke-stranger"  # another user, whose stream must stay silent
POLL_S = 0.01
LOOK_EVERY_S = 0.25  # looking into a DLQ raises the receive counts of all that is in it


class Hop(msgspec.Struct, frozen=True):
    """One hop: whether it holds, milliseconds after the job was accepted, what was seen, what is wrong."""

    hop: str
    ok: bool
    at: str | None = None
    ms: float | None = None
    evidence: str = ""
    why: str = ""


class Subject(msgspec.Struct, frozen=True):
    """The job under watch: one that the provider is sure to refuse."""

    session_id: UUID
    reservation_id: UUID
    user_id: str
    balance_before: int


class Door:
    """The API as its clients see it."""

    def __init__(self, url: str, tokens: Tokens) -> None:
        self.url = url
        self.tokens = tokens

    async def session(self, user: str, session_id: UUID) -> tuple[int, dict[str, Any]]:
        """Status and body of a user's GET of a session. Raises BrokenError when nobody answers."""
        headers = {"Authorization": f"Bearer {self.tokens.issue(user)}"}
        url = f"{self.url}{SEEDREAM4.api_path}/sessions/{session_id}"
        try:
            async with http.session(self.url) as client, client.get(url, headers=headers) as answer:
                return answer.status, await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise BrokenError(f"GET {url}: {str(error) or type(error).__name__}") from None


@asynccontextmanager
async def _running(
    work: Coroutine[Any, Any, None], begun: Coroutine[Any, Any, object]
) -> AsyncIterator[None]:
    """`work` beside the body, which begins when `begun` is over. Raises what `work` raises before."""
    task, beginning = asyncio.create_task(work), asyncio.create_task(begun)
    try:
        await asyncio.wait([task, beginning], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield
    finally:
        for each in (beginning, task):
            each.cancel()
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                await each


class BrokenError(Exception):
    """What was expected, what was found, where to look."""


class Judge:
    """Hears NOTIFY from before the job is made; then `hops` tells what happened to it."""

    def __init__(self, db: Database, dlq: Queue, api: Door, timeout_s: float) -> None:
        self.db = db
        self.dlq = dlq
        self.api = api
        self.timeout_s = timeout_s
        self._heard: list[tuple[float, str, Row | None]] = []  # when, payload, the row as it was then
        self._ready = asyncio.Event()
        self._failed: tuple[Row, float] | None = None  # the row when it was first seen failed
        self._streamed: dict[str, list[tuple[float, Seen]]] = {}  # user -> what came on the stream

    @classmethod
    @asynccontextmanager
    async def listening(
        cls, db: Database, dlq: Queue, api: Door, *, dsn: str, user: str, timeout_s: float
    ) -> AsyncIterator[Self]:
        """A judge that hears the channel and the streams of `user` and of a stranger.

        Raises GenctlError (exit 3) when it cannot.
        """
        judge = cls(db, dlq, api, timeout_s)
        async with AsyncExitStack() as ears:
            await ears.enter_async_context(_running(judge._listen(dsn), judge._ready.wait()))
            for whose in (user, STRANGER):
                opened = asyncio.Event()
                begun = asyncio.wait_for(opened.wait(), timeout_s)
                await ears.enter_async_context(_running(judge._follow(whose, opened), begun))
            yield judge

    async def _follow(self, user: str, opened: asyncio.Event) -> None:
        heard = self._streamed.setdefault(user, [])
        place = Place(self.api.url, lambda: self.api.tokens.issue(user))
        async for seen in follow(place, last_id=None, fail_after_s=None, note=lambda _: None):
            heard.append((time.monotonic(), seen))
            if seen.event == "ready":
                opened.set()

    async def _listen(self, dsn: str) -> None:
        async for event in listener.listen(dsn, listener.CHANNEL):
            match event:
                case listener.Connected():
                    self._ready.set()
                case listener.Heard(payload=payload):
                    heard_at = time.monotonic()
                    if session_id := event.session_id:
                        row = await self.db.row("smoke_session", session=session_id)
                        self._heard.append((heard_at, payload, row))

    async def hops(self, subject: Subject) -> AsyncIterator[Hop]:
        """The hops in order, each as soon as it is known; ends with the first that is broken."""
        accepted = time.monotonic()
        deadline = accepted + self.timeout_s
        checks: dict[str, Callable[[Subject], Awaitable[tuple[str, float] | str | None]]] = {
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
            try:
                found = await self._until(checks[name], subject, deadline)
            except BrokenError as broken:
                yield Hop(name, ok=False, why=str(broken))
                return
            evidence, at = found if isinstance(found, tuple) else (found, time.monotonic())
            seconds_ago = time.monotonic() - at
            when = datetime.fromtimestamp(time.time() - seconds_ago, UTC)
            ms = round(max(0.0, at - accepted) * 1000, 1)
            yield Hop(name, ok=True, at=rfc3339(when), ms=ms, evidence=evidence)

    async def _until(
        self,
        check: Callable[[Subject], Awaitable[tuple[str, float] | str | None]],
        subject: Subject,
        deadline: float,
    ) -> tuple[str, float] | str:
        """Ask until there is evidence. At the deadline a last complaint, or the silence, is the answer."""
        while True:
            try:
                if found := await check(subject):
                    return found
                complaint = f"nothing seen within {self.timeout_s:g} s"
            except BrokenError as broken:
                complaint = str(broken)
            if time.monotonic() > deadline:
                raise BrokenError(complaint)
            await asyncio.sleep(LOOK_EVERY_S if check == self._dlq else POLL_S)

    async def _session(self, subject: Subject) -> Row:
        row = await self.db.row("smoke_session", session=subject.session_id)
        if row is None:
            raise BrokenError("expected the session's row, found none; look at the API's log")
        return row

    async def _accepted(self, subject: Subject) -> str:
        row = await self._session(subject)
        return f"session {row['id']} of {row['user_id']}"

    async def _claimed(self, subject: Subject) -> str | None:
        row = await self._session(subject)
        if row["status"] == "queued":
            raise BrokenError(
                "the row is still queued: is a worker running, is the gate open, was the job sent to SQS?"
            )
        return "the row has left queued"

    async def _row(self, subject: Subject) -> tuple[str, float]:
        row, at = await self._session(subject), time.monotonic()
        for heard_at, _, then in self._heard:  # a NOTIFY made us look earlier
            if then and then["id"] == row["id"] and then["status"] == "failed":
                row, at = then, heard_at
        if row["status"] != "failed" or row["completed_at"] is None:
            raise BrokenError(
                f"expected status failed with completed_at, found {row['status']}; look at the worker's log"
            )
        self._failed = row, at
        return f"failed, completed_at {rfc3339(row['completed_at'])}", at

    async def _details(self, subject: Subject) -> tuple[str, float]:
        row, at = self._failed or (await self._session(subject), time.monotonic())
        details = row["error_details"]
        if complaints := details_complaints(details):
            raise BrokenError("error_details: " + "; ".join(complaints))
        return f"{details['code']} ({details['category']}): {details['userMessage']}", at

    async def _refund(self, subject: Subject) -> str:
        details = (await self._session(subject))["error_details"]
        reservation = await self.db.row("smoke_reservation", reservation=subject.reservation_id)
        if reservation is None or reservation["status"] != "released" or reservation["released_at"] is None:
            found = reservation["status"] if reservation else "no reservation"
            raise BrokenError(f"expected the reservation released, found {found}; genctl refunds check")
        amount = reservation["amount"]
        if details["refundedCredits"] != amount or details["reservationAmount"] != amount:
            raise BrokenError(
                f"expected {amount} credits in error_details, found refundedCredits "
                f"{details['refundedCredits']} and reservationAmount {details['reservationAmount']}"
            )
        account = await self.db.row("smoke_balance", user=subject.user_id)
        balance = account["balance"] if account else 0
        if balance != subject.balance_before:
            raise BrokenError(f"expected the balance back at {subject.balance_before}, found {balance}")
        if (await self.db.rows("smoke_has_ledger"))[0]["there"]:
            (booked,) = await self.db.rows("smoke_releases", reservation=subject.reservation_id)
            if (booked["times"], booked["credits"]) != (1, amount):
                raise BrokenError(
                    f"expected one release of {amount} in the ledger, found {booked['times']} "
                    f"of together {booked['credits']}"
                )
        return f"{amount} credits released once, balance {balance} as before"

    async def _notify(self, subject: Subject) -> tuple[str, float]:
        mine = [heard for heard in self._heard if str(subject.session_id) in heard[1]]
        if not mine:
            raise BrokenError(f"no NOTIFY on {listener.CHANNEL} was heard for the session")
        heard_at, payload, row = mine[0]
        expected = {
            "user_id": subject.user_id,
            "reservation_id": str(subject.reservation_id),
            "session_id": str(subject.session_id),
            "status": "failed",
        }
        said = json.loads(payload)
        if not expected.items() <= said.items():
            raise BrokenError(f"expected the NOTIFY to say {expected}, found {payload[:300]}")
        if row is None or row["status"] != "failed":
            raise BrokenError(
                "the NOTIFY came before the failed row was visible: it must be sent in the commit"
            )
        return f"{listener.CHANNEL}: {len(payload)} bytes, after the row was visible", heard_at

    async def _sse(self, subject: Subject) -> tuple[str, float] | None:
        mine = self._told(subject.user_id, subject.session_id)
        if not mine:
            raise BrokenError("no event of the session came on its user's stream; look at the API's log")
        heard_at, seen = mine[0]
        row = await self._session(subject)
        expected = {"sessionId": str(subject.session_id), "status": "failed", "run": 1}
        if seen.event != "failed" or not expected.items() <= seen.data.items():
            raise BrokenError(f"expected the event failed with {expected}, found {seen.event} {seen.data}")
        said, stored = seen.data.get("error_details") or {}, row["error_details"]
        for name in ("code", "category", "userMessage", "refundedCredits"):
            if said.get(name) != stored[name]:
                raise BrokenError(f"expected {name} {stored[name]!r} in the event, found {said.get(name)!r}")
        if not seen.id:
            raise BrokenError("the event has no id, so that no client can go on behind it")
        return f"failed on the user's stream, with error_details ({said['code']})", heard_at

    async def _isolation(self, subject: Subject) -> str:
        if leaked := self._told(STRANGER, subject.session_id):
            raise BrokenError(f"another user's stream got {leaked[0][1].event} of the session")
        for user, expected in ((STRANGER, 404), (subject.user_id, 200)):
            status, _ = await self.api.session(user, subject.session_id)
            if status != expected:
                raise BrokenError(f"expected {expected} for {user}'s GET of the session, found {status}")
        return "another user's stream is silent, and their GET of the session is 404"

    def _told(self, user: str, session_id: UUID) -> list[tuple[float, Seen]]:
        return [heard for heard in self._streamed[user] if str(session_id) in json.dumps(heard[1].data)]

    async def _dlq(self, subject: Subject) -> str:
        def is_it(message: Message) -> bool:
            return str(subject.session_id) in message.body

        found = await look(self.dlq, enough=is_it)
        copy = next(filter(is_it, found.messages), None)
        if copy is None:
            raise BrokenError(f"no copy in DLQ {self.dlq.name} ({len(found.messages)} messages seen)")
        if complaint := body_complaint(copy.body, subject.session_id):
            raise BrokenError(f"the copy in DLQ {self.dlq.name} has another body: {complaint}")
        said = ", ".join(f"{name} {value}" for name, value in copy.attributes.items() if name in _SHOWN)
        return f"message {copy.message_id} in {self.dlq.name}: {said}"


_SHOWN = ("code", "run", "attempts", "providerStatus")


def body_complaint(body: str, session_id: UUID) -> str | None:
    """What is wrong with the body of a copy of a session's first run."""
    try:
        job = json.loads(body)
    except ValueError:
        return "it is no JSON"
    expected = {"version": 1, "sessionId": str(session_id), "run": 1}
    if not isinstance(job, dict) or not expected.items() <= job.items() or "tool" not in job:
        return f"expected {expected} and a tool, found {body[:200]}"
    return None


_TEXT, _NUMBER, _BOOL, _NULL = (str,), (int,), (bool,), (type(None),)
DETAILS: dict[str, tuple[type, ...]] = {
    "providerStatus": _NUMBER + _NULL,
    "providerCode": _TEXT + _NULL,
    "providerMessage": _TEXT + _NULL,
    "userMessage": _TEXT,
    "providerBody": _TEXT + _NULL,
    "code": _TEXT,
    "category": _TEXT,
    "fatal": _BOOL,
    "outcome": _TEXT,
    "attempts": _NUMBER,
    "maxAttempts": _NUMBER,
    "firstAttemptAt": _TEXT + _NULL,
    "failedAt": _TEXT,
    "reservationAmount": _NUMBER + _NULL,
    "refundedCredits": _NUMBER,
    "refundedAt": _TEXT + _NULL,
    "refundError": _TEXT + _NULL,
    "requestId": _TEXT + _NULL,
    "provider": _TEXT,
}
SIZES = {"providerMessage": 1024, "providerBody": 2048}  # bytes of UTF-8
_ID = re.compile(
    r"request[ _-]?id|trace[ _-]?id|\b02\d{13}[0-9a-f]{8,38}\b"
    r"|\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b",
    re.IGNORECASE,
)
_SECRET = re.compile(
    r"bearer\s+[\w.~+/-]{8,}|\bauthorization\b\W+\w+\s+\S{8,}|x-(?:tos|amz)-signature=[0-9a-f]{8,}|\bAKIA[0-9A-Z]{16}\b",
    re.IGNORECASE,
)


def details_complaints(details: Any) -> list[str]:
    """Everything that is wrong with a session's `error_details`; empty when it is sound."""
    if not isinstance(details, dict):
        return [f"expected an object, found {type(details).__name__}"]
    found = [f"{name} is missing" for name in DETAILS if name not in details]
    for name, types in DETAILS.items():
        value = details.get(name)
        wrong = type(value) not in types  # a bool is no number here
        if name in details and wrong:
            found.append(f"{name} is {type(value).__name__}, not {' or '.join(t.__name__ for t in types)}")
        if isinstance(value, str):
            size = len(value.encode("utf-8", "surrogatepass"))
            if size > SIZES.get(name, size):
                found.append(f"{name} has {size} bytes, more than {SIZES[name]}")
            if _SECRET.search(value):
                found.append(f"{name} holds a secret")
    if details.get("category") not in set(Category):
        found.append(f"category {details.get('category')!r} is none of ours")
    if _ID.search(str(details.get("userMessage"))):
        found.append("userMessage holds an id")
    return found

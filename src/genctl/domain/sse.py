"""Write rows as server-sent events, write and read cursors, hold the events that a stream has yet to write.

An event is the state of a row as it is now, under its version. A cursor is a version bound to its user: we
cannot read another user's cursor, or one of another secret.
"""

import hmac
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple

from genctl.domain.model import Category, Gate, Session, Status, is_breaker, rfc3339

NAMES = {Status.FAILED: "failed", Status.COMPLETED: "done"}  # a row of any other was redriven: `queued`
OPEN_CATEGORIES = (Category.CONTENT_POLICY, Category.INVALID_REQUEST)
LATER = "The refund is under way."
_OURS = ("providerStatus", "providerCode", "providerMessage", "providerBody", "requestId")
_CURSOR = re.compile(r"[\w-]{32}", re.ASCII)  # eight bytes of version, sixteen of proof
_VERSION_BYTES = 8
_PROOF_BYTES = 16


class Event(NamedTuple):
    """Hold one event's bytes, and its id if it has one."""

    text: bytes
    id: str | None = None


def event(name: str, data: Mapping[str, Any], cursor: str | None = None) -> Event:
    """Write an event with one line of JSON, in ASCII, so that no character ends a line or turns it round."""
    line = json.dumps(data, default=str, separators=(",", ":"))
    head = f"event: {name}\n" if cursor is None else f"event: {name}\nid: {cursor}\n"
    return Event(f"{head}data: {line}\n\n".encode("ascii"), cursor)


def retry(delay_ms: int) -> bytes:
    """Write the line that tells a browser how long to wait before it comes back."""
    return f"retry: {delay_ms}\n\n".encode("ascii")


def changed(session: Session, cursor: str) -> Event:
    """Write the row as it is: `failed`, `done` or `queued`."""
    data: dict[str, Any] = {
        "sessionId": session.id,
        "clientKey": session.client_key,
        "status": session.status,
        "model": session.model,
        "run": session.run,
        "version": session.version or 0,
    }
    if session.status is Status.FAILED:
        data["error_details"] = for_user(session.error_details)
    if session.status is Status.COMPLETED:
        data["result"] = session.result
    return event(name_of(session), data, cursor)


def name_of(session: Session) -> str:
    """Name the event that shows the row."""
    return NAMES.get(session.status, "queued")


def for_user(details: Any) -> dict[str, Any] | None:
    """Keep of `error_details` what a user may see: the provider's words only if they are about the request.

    The other categories are about our account, so only operators read those words, and what the database said
    about a refund. Returns None for details of another shape, as adopted tables may hold.
    """
    if not isinstance(details, dict):
        return None
    hidden = {} if details.get("category") in OPEN_CATEGORIES else dict.fromkeys(_OURS)
    late = {"refundError": LATER} if details.get("refundError") else {}
    return {key: value for key, value in ({**details, **hidden, **late}).items() if key in details}


def item(session: Session) -> dict[str, Any]:
    """Return a session as its user may see it. `version` and `step` order all that is told of one session.

    Claims and retries change a row but draw no version; each of them raises `step`, which nothing resets.
    """
    whole = session.item() | {
        "error_details": for_user(session.error_details),
        "params": session.params,
        "version": session.version or 0,
        "step": 2 * session.lease - (session.status is Status.PROCESSING),
    }
    return {key: whole[key] for key in whole if key not in {"userId", "reservationId"}}


def gate_for_users(gate: Gate) -> dict[str, Any]:
    """Return whether jobs are carried out now, and until when not; why and by whom is for operators."""
    state = "open" if gate.is_open else "busy" if is_breaker(gate.who) else "paused"
    return {"state": state, "until": None if gate.is_open else rfc3339(gate.until)}


class Cursors(NamedTuple):
    """Write and read cursors with a secret key."""

    key: bytes

    def write(self, user: str, version: int, *, ready: bool = False) -> str:
        """Write the cursor of a user's version; `ready` has its own, as no id may come twice on a stream."""
        number = (version << 1 | ready).to_bytes(_VERSION_BYTES)
        return urlsafe_b64encode(number + self._proof(user, number)).decode()

    def read(self, user: str, cursor: str) -> int | None:
        """Read the version of a cursor; None: the cursor is not ours, or another user's."""
        if not _CURSOR.fullmatch(cursor):
            return None
        raw = urlsafe_b64decode(cursor)
        number, proof = raw[:_VERSION_BYTES], raw[_VERSION_BYTES:]
        return int.from_bytes(number) >> 1 if hmac.compare_digest(proof, self._proof(user, number)) else None

    def _proof(self, user: str, number: bytes) -> bytes:
        return hmac.digest(self.key, number + user.encode("utf-8", "replace"), "sha256")[:_PROOF_BYTES]


class Backlog:
    """Hold events that a stream has yet to write: at most `room`, the latest of each key, oldest first."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._waiting: dict[str, Event] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Tell whether there is no room for another event."""
        return len(self._waiting) >= self.room

    def put(self, key: str, what: Event) -> None:
        """Add an event in place of an older one of the same session."""
        self._waiting.pop(key, None)
        self._waiting[key] = what

    def take(self, limit_bytes: int) -> Event | None:
        """Take the oldest events as one piece of about so many bytes, with its last id; None without any."""
        pieces, size, last = [], 0, None
        while self._waiting and size < limit_bytes:
            text, cursor = self._waiting.pop(next(iter(self._waiting)))
            pieces.append(text)
            size += len(text)
            last = cursor or last
        return Event(b"".join(pieces), last) if pieces else None

    def clear(self) -> None:
        """Forget all events, because a reset follows."""
        self._waiting.clear()

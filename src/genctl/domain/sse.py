"""Write rows as server-sent events, write and read cursors.

An event is the state of a row as it is now, under its version. A cursor is a version bound to its user: we
cannot read another user's cursor, or one of another secret.
"""

import hmac
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from genctl.domain.model import Category, Gate, Session, Status, is_breaker, rfc3339

# One that is queued or processing is told since it has been redriven.
NAMES: Mapping[str | None, str] = {
    Status.FAILED: "failed",
    Status.COMPLETED: "done",
    Status.QUEUED: "queued",
    Status.PROCESSING: "queued",
}
OPEN_CATEGORIES = (Category.CONTENT_POLICY, Category.INVALID_REQUEST)
LATER = "The refund is under way."
_OURS = ("providerStatus", "providerCode", "providerMessage", "providerBody", "requestId")
_CURSOR = re.compile(r"[\w-]{32}", re.ASCII)  # eight bytes of version, sixteen of proof
_VERSION_BYTES = 8
_PROOF_BYTES = 16
_KEY_BYTES = 64  # that BLAKE2 takes
_ENCODER = msgspec.json.Encoder(enc_hook=str)


class Change(msgspec.Struct, array_like=True):
    """Hold what a stream shows of a row, in the order of `facts` of the statement `changes`.

    `head` is the newest version of its user; the rest is None where nothing has changed. `is_old`: the row
    was not merely faster than its NOTIFY. `told` is its error_details, or its result.
    """

    user_id: str
    head: int
    version: int | None
    id: str | None
    status: str | None
    model: str | None
    client_key: str | None
    run: int | None
    is_old: bool | None
    traceparent: str | None = None
    told: Any = None

    def bring(self, told: Any) -> None:
        """Take in what the row brings beside its facts."""
        self.told = told


class Freshness(NamedTuple):
    """Tell whether nothing is missing, and since when; else `since` is the moment until when nothing was."""

    fresh: bool
    since: datetime


def event(name: str, data: Mapping[str, Any], cursor: str | None = None) -> bytes:
    """Write an event with one line of JSON, in ASCII, so that no character ends a line or turns it round."""
    head = f"event: {name}\n" if cursor is None else f"event: {name}\nid: {cursor}\n"
    return b"%bdata: %b\n\n" % (head.encode("ascii"), _line(data))


def _line(data: Mapping[str, Any]) -> bytes:
    try:
        line = _ENCODER.encode(data)
    except (ValueError, OverflowError):  # lone surrogates, integers of more than 64 bits
        line = b"\x7f"
    if line.isascii() and b"\x7f" not in line:
        return line
    return json.dumps(data, default=str, separators=(",", ":")).encode("ascii")


def retry(delay_ms: int) -> bytes:
    """Write the line that tells a browser how long to wait before it comes back."""
    return b"retry: %d\n\n" % delay_ms


def heartbeat(last_id: str | None, freshness: Freshness) -> bytes:
    """Write the event that says how far this stream is, and whether that is all there is."""
    said = b"null" if last_id is None else b'"%b"' % last_id.encode()
    return b'event: heartbeat\ndata: {"lastEventId":%b%b' % (said, _rest_of_heartbeat(freshness))


@lru_cache(8)
def _rest_of_heartbeat(freshness: Freshness) -> bytes:
    fresh, since = (msgspec.json.encode(value) for value in (freshness.fresh, rfc3339(freshness.since)))
    return b',"fresh":%b,"since":%b}\n\n' % (fresh, since)


def changed(row: Change, cursor: str) -> bytes:
    """Write the row as it is: `failed`, `done` or `queued`."""
    data: dict[str, Any] = {
        "sessionId": row.id,
        "clientKey": row.client_key,
        "status": row.status,
        "model": row.model,
        "run": row.run,
        "version": row.version or 0,
    }
    if row.status == Status.FAILED:
        data["error_details"] = for_user(row.told)
    elif row.status == Status.COMPLETED:
        data["result"] = row.told
    return event(NAMES[row.status], data, cursor)


def for_user(details: Any) -> dict[str, Any] | None:
    """Keep of `error_details` what a user may see: the provider's words only if they are about the request.

    The other categories are about our account, so only operators read those words, and what the database said
    about a refund. Returns None for details of another shape, as adopted tables may hold.
    """
    if not isinstance(details, dict):
        return None
    hidden = {} if details.get("category") in OPEN_CATEGORIES else dict.fromkeys(_OURS)
    late = {"refundError": LATER} if details.get("refundError") else {}
    if not (hidden or late):
        return details
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
        said = number + user.encode("utf-8", "replace")
        return blake2b(said, key=self.key[:_KEY_BYTES], digest_size=_PROOF_BYTES).digest()

"""Clients of streams in one loop on bare sockets, and a settler; both so lean that they measure the server.

As a program it is the settler: `listeners.py DSN RATE AT_ONCE` ends the sessions whose ids come on stdin,
AT_ONCE in one transaction, RATE transactions a second (0: one after the other), and prints when it sent each
commit.
"""

import json
import re
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import psycopg

OPENING = 200  # connections that are being opened at a time
SETTLE = """
with mine as (
  select id, user_id, row_number() over (partition by user_id order by id) as nth
  from generation_sessions where id = any(%(ids)s)
),
account as (
  update credit_accounts a set event_seq = a.event_seq + m.changes
  from (select user_id, count(*) as changes from mine group by user_id) m
  where a.user_id = m.user_id returning a.user_id, a.event_seq - m.changes as before
),
ended as (
  update generation_sessions s
  set status = 'failed', completed_at = now(), version = a.before + m.nth, error_details = %(details)s
  from mine m join account a on a.user_id = m.user_id
  where s.id = m.id returning s.*
)
select pg_notify('session_completed', jsonb_build_object(
  'user_id', user_id, 'reservation_id', reservation_id, 'session_id', id, 'status', status)::text)
from ended
"""
DETAILS = {
    "providerStatus": 400,
    "providerCode": "InputTextSensitiveContentDetected",
    "providerMessage": "The request failed because the input text may contain sensitive information. "
    "Request id: 021762000000000a1b2c3d4e5f60718293a4b5c6d7e8f9012345",
    "userMessage": "The request failed because the input text may contain sensitive information.",
    "providerBody": '{"error":{"code":"InputTextSensitiveContentDetected","message":"The request failed '
    "because the input text may contain sensitive information. Request id: "
    '021762000000000a1b2c3d4e5f60718293a4b5c6d7e8f9012345","param":"","type":"BadRequest"}}',
    "code": "InputTextSensitiveContentDetected",
    "category": "content_policy",
    "fatal": True,
    "outcome": "refused",
    "attempts": 1,
    "maxAttempts": 3,
    "firstAttemptAt": "2026-11-30T09:00:00.000Z",
    "failedAt": "2026-11-30T09:00:01.000Z",
    "reservationAmount": 4,
    "refundedCredits": 4,
    "refundedAt": "2026-11-30T09:00:01.000Z",
    "refundError": None,
    "requestId": "021762000000000a1b2c3d4e5f60718293a4b5c6d7e8f9012345",
    "provider": "ark",
}


class Heard(NamedTuple):
    """Holds an event's stream and session, and when its last byte came (monotonic)."""

    stream: int
    session: str
    at: float


class Ears:
    """Many open streams of one server."""

    def __init__(self, port: int, heads: Sequence[bytes]) -> None:
        """One stream for each request head."""
        self._address = ("127.0.0.1", port)
        self._heads = heads
        self._sockets: list[socket.socket] = []
        self._pieces: list[list[tuple[float, bytes]]] = [[] for _ in heads]
        self._index: dict[int, int] = {}
        self._epoll = select.epoll()
        self.ended = 0

    def open(self, within_s: float) -> float:
        """Open all and wait until each is ready; the seconds that took."""
        began = time.monotonic()
        waiting: set[int] = set()
        while len(self._sockets) < len(self._heads) or waiting:
            while len(self._sockets) < len(self._heads) and len(waiting) < OPENING:
                waiting.add(self._connect())
            for stream in self._read(0.2):
                if b"event: ready" in b"".join(piece for _, piece in self._pieces[stream]):
                    waiting.discard(stream)
            if time.monotonic() - began > within_s:
                raise RuntimeError(f"{len(waiting)} streams are not ready after {within_s:.0f} s")
        self.forget()
        return time.monotonic() - began

    def _connect(self) -> int:
        stream = len(self._sockets)
        sock = socket.create_connection(self._address, 20)
        sock.sendall(self._heads[stream])
        sock.settimeout(0)
        self._sockets.append(sock)
        self._index[sock.fileno()] = stream
        self._epoll.register(sock, select.EPOLLIN)
        return stream

    def _read(self, wait_s: float) -> Iterator[int]:
        """Keep what has come; the streams on which something did."""
        for fd, _ in self._epoll.poll(wait_s):
            stream = self._index[fd]
            data = self._sockets[stream].recv(262_144)
            at = time.monotonic()
            if not data:
                self._epoll.unregister(fd)
                self.ended += 1
                continue
            self._pieces[stream].append((at, data))
            yield stream

    def until(self, done: Callable[[], bool], within_s: float) -> None:
        """Hear until it is done, or for so long."""
        give_up_at = time.monotonic() + within_s
        while time.monotonic() < give_up_at and not done():
            for _ in self._read(0.05):
                pass

    def count(self, name: bytes) -> int:
        """How many events of that name have come, one that is not whole included."""
        return sum(piece.count(b"event: " + name) for pieces in self._pieces for _, piece in pieces)

    def forget(self) -> None:
        """Forget what has come."""
        self._pieces = [[] for _ in self._heads]

    def heard(self) -> list[Heard]:
        """What has come of sessions."""
        found = []
        for stream, pieces in enumerate(self._pieces):
            text = b"".join(piece for _, piece in pieces)
            ends, size = [], 0
            for at, piece in pieces:
                size += len(piece)
                ends.append((size, at))
            place = 0
            for match in re.finditer(rb'data: \{"sessionId":"([^"]+)[^\n]*\n\n', text):
                while ends[place][0] < match.end():
                    place += 1
                found.append(Heard(stream, match[1].decode(), ends[place][1]))
        return found

    def close(self) -> None:
        """Close all."""
        for sock in self._sockets:
            sock.close()
        self._epoll.close()


@contextmanager
def listening(port: int, heads: Sequence[bytes]) -> Iterator[Ears]:
    """Ears, closed at the end."""
    ears = Ears(port, heads)
    try:
        yield ears
    finally:
        ears.close()


def settle(dsn: str, rate: float, at_once: int, ids: Sequence[str]) -> None:
    """End the sessions, and print a JSON object: the monotonic time of the commit by session."""
    times: dict[str, float] = {}
    with psycopg.connect(dsn, autocommit=True) as conn:
        began = time.monotonic()
        for n, start in enumerate(range(0, len(ids), at_once)):
            some = list(ids[start : start + at_once])
            if rate:
                time.sleep(max(0.0, began + n / rate - time.monotonic()))
            conn.execute("begin")
            conn.execute(SETTLE, {"ids": some, "details": json.dumps(DETAILS)}, prepare=True)
            times |= dict.fromkeys(some, time.monotonic())
            conn.execute("commit")
    json.dump(times, sys.stdout)


if __name__ == "__main__":
    settle(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.stdin.read().split())

"""The provider's client against the simulator, and against a server that knows no manners."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from aiohttp.test_utils import TestServer, unused_port
from tests.rude import OK, explodes, never_ends, raw, resets, silent, stalls, writes

from genctl.base.settings import Settings
from genctl.domain.classify import classify
from genctl.domain.model import Answer, Failure, GenctlError, NoAnswer, Session, Status
from genctl.services.scenarios import SCENARIOS, marked
from genctl.services.simulator import app
from genctl.tools import Request, wire
from genctl.tools.seedream4 import TOOL
from genctl.tools.wire import MAX_BODY_BYTES, NOT_MADE, Wire

KEY = "key-of-the-tests"


def session(prompt: str = "a lighthouse", **more: Any) -> Session:
    return Session(
        id=UUID("5f0c8a52-6f2f-4f43-9d3c-0d6a0a4a4f11"),
        user_id="ann",
        model="seedream-4-0-250828",
        prompt=prompt,
        status=Status.PROCESSING,
        run=2,
        attempts=3,
        unknowns=0,
        lease=7,
        created_at=datetime.now(UTC),
        **more,
    )


def client(base: str, *, timeout_s: float = 10.0) -> Wire:
    settings = Settings(of_tools={"ark_base_url": f"{base}/api/v3", "ark_api_key": KEY})
    return Wire(TOOL.bound(settings), longest_s=timeout_s)


def body_of(row: Session) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(TOOL.request(row, TOOL.bound(Settings()).said).body)
    return found


class Sent:
    """Counts how often the request was about to leave."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


async def call(base: str, *, sent: Sent | None = None, timeout_s: float = 10.0) -> Answer | NoAnswer:
    async with client(base, timeout_s=timeout_s) as provider:
        return await provider.generate(session(), sent or Sent())


# --- against the simulator -------------------------------------------------------------------


@pytest.fixture
async def simulator() -> AsyncIterator[str]:
    async with TestServer(app()) as server:
        yield str(server.make_url("")).rstrip("/")


ANSWERED = [s.name for s in SCENARIOS.values() if s.act == "answer" and not s.after_s and not s.once]


async def test_every_answer_comes_back_as_it_was_given(simulator: str) -> None:
    for name in ANSWERED:
        sent = Sent()
        async with client(simulator) as provider:
            answer = await provider.generate(session(marked("a test", name)), sent)
        assert isinstance(answer, Answer)
        assert answer.status == SCENARIOS[name].status
        assert answer.headers["server"] == "istio-envoy"
        if SCENARIOS[name].body is None:
            assert json.loads(answer.body).get("error", {}).get("code") == SCENARIOS[name].code
        assert sent.times == 1


async def test_a_dropped_call_is_no_answer_and_may_be_billed(simulator: str) -> None:
    async with client(simulator) as provider:
        lost = await provider.generate(session(marked("a test", "dropped")), Sent())
    assert isinstance(lost, NoAnswer)
    assert (lost.code, lost.sent) == ("ConnectionError", True)


async def test_a_call_that_is_cancelled_raises_that(simulator: str) -> None:
    out = asyncio.Event()
    async with client(simulator) as provider:
        task = asyncio.create_task(provider.generate(session(marked("a test", "hang")), out.set))
        await out.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# --- the request -----------------------------------------------------------------------------


def test_the_row_makes_the_request_and_the_watermark_is_off() -> None:
    assert body_of(session()) == {
        "model": "seedream-4-0-250828",
        "prompt": "a lighthouse",
        "size": "2048x2048",
        "response_format": "url",
        "watermark": False,
    }
    params = {"size": "4K", "image": ["https://example.com/a.png"], "unknown": 1}
    body = body_of(session(params=params))
    assert (body["size"], body["image"]) == ("4K", ["https://example.com/a.png"])
    assert "unknown" not in body


@pytest.mark.parametrize("image", [None, "data:image/png;base64," + "A" * 3_000_000])
async def test_the_request_names_session_run_and_attempt(image: str | None) -> None:
    """And a large reference image gets through."""

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        seen.append(request)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    seen: list[bytes] = []
    async with raw(answer) as base, client(base) as provider:
        row = session(params={"image": image} if image else None)
        assert isinstance(await provider.generate(row, Sent()), Answer)
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /api/v3/images/generations HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer key-of-the-tests\r\n" in head
    assert b"\r\nX-Client-Request-Id: 5f0c8a52-6f2f-4f43-9d3c-0d6a0a4a4f11-2-3\r\n" in head
    assert json.loads(body)["prompt"] == "a lighthouse"


def test_a_real_provider_without_a_key_is_refused_at_once() -> None:
    with pytest.raises(GenctlError) as caught:
        Wire(TOOL.bound(Settings(of_tools={"ark_base_url": "https://ark.example/api/v3"})), longest_s=300)
    assert (caught.value.exit_code, caught.value.code) == (3, "ProviderKeyMissing")


# --- without manners -------------------------------------------------------------------------


async def test_nothing_listening_is_no_answer_and_nothing_was_sent() -> None:
    sent = Sent()
    lost = await call(f"http://127.0.0.1:{unused_port()}", sent=sent)
    assert isinstance(lost, NoAnswer)
    assert (lost.code, lost.sent, sent.times) == ("ConnectionError", False, 0)


LOST = [
    (resets, False, "ConnectionError"),
    (resets, True, "ConnectionError"),
    (writes(), True, "ConnectionError"),
    (writes(b"SSH-2.0-OpenSSH_9.6\r\n"), True, "BadAnswer"),
    (writes(b"HTTP/1.1 99999 What\r\n\r\n"), True, "BadAnswer"),
    (writes(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"), True, "BadAnswer"),
    (silent, True, "Timeout"),
]


async def test_once_it_is_out_a_lost_call_may_be_billed() -> None:
    for rude, reads, code in LOST:
        async with raw(rude, reads=reads) as base:
            lost = await call(base, timeout_s=0.5)
        assert isinstance(lost, NoAnswer)
        assert (lost.code, lost.sent) == (code, True)
        assert lost.message
        assert KEY not in lost.message


async def test_the_longest_legal_call_has_all_of_its_time_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What connecting took is not taken off: an image made in the last second would be billed and lost."""
    monkeypatch.setattr(wire, "CONNECT_TIMEOUT_S", 0.7)
    began = asyncio.get_running_loop().time()
    async with raw(silent, reads=True) as base:
        lost = await call(base, timeout_s=0.5)
    assert isinstance(lost, NoAnswer)
    assert lost.message == "no answer within 0.5 s"
    assert 0.5 <= asyncio.get_running_loop().time() - began < 1.2
    async with client("http://127.0.0.1:1", timeout_s=300) as provider:
        limits = provider._timeout
    assert limits.sock_read == 300
    assert limits.total and limits.connect and limits.total - limits.connect >= 300


async def test_tls_that_fails_or_hangs_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw(writes(b"no TLS here"), reads=False) as base:
        lost = await call(base.replace("http:", "https:"))
        assert isinstance(lost, NoAnswer)
        assert (lost.code, lost.sent) == ("TlsError", False)
    monkeypatch.setattr(wire, "CONNECT_TIMEOUT_S", 0.2)
    async with raw(silent, reads=False) as base:
        lost = await call(base.replace("http:", "https:"))
        assert isinstance(lost, NoAnswer)
        assert (lost.code, lost.sent) == ("ConnectTimeout", False)


async def test_a_lease_found_stale_at_the_last_moment_keeps_the_request_in() -> None:
    class StaleError(ValueError):
        pass

    def stale() -> None:
        raise StaleError

    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with server, client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as provider:
        with pytest.raises(StaleError):
            await provider.generate(session(), stale)
        while not heard:
            await asyncio.sleep(0)
    assert heard == [b""]


CAME = [
    (writes(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"), 302, b""),
    (writes(OK, b"Content-Length: 100\r\n\r\ncut"), 200, b"cut"),
    (stalls, 200, b'{"data"'),
    (never_ends, 400, b"x" * MAX_BODY_BYTES),
    (writes(OK, b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b"{}")), 200, b"{}"),
    (writes(OK, b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b"x" * 99)[:-9]), 200, b"x" * 99),
    (writes(OK, b"Content-Encoding: gzip\r\n\r\n", b"no gzip"), 200, b"no gzip"),
    (explodes(OK + b"Content-Encoding: gzip\r\n\r\n", b"\0"), 200, bytes(MAX_BODY_BYTES)),
    (writes(OK, b"Content-Encoding: br\r\n\r\n", b"\x00\xff"), 200, b"\x00\xff"),
    (writes(b"HTTP/1.1 429 No\r\nRetry-After: 7\r\n\r\n"), 429, b""),
]


async def test_what_came_counts_whatever_is_missing() -> None:
    """The status has told the most; the classifier sees that a body is cut."""
    for rude, status, body in CAME:
        async with raw(rude) as base:
            answer = await call(base, timeout_s=1.0)
        assert isinstance(answer, Answer)
        assert answer.status == status
        assert answer.body == body
        assert status != 429 or answer.headers["retry-after"] == "7"


async def test_a_large_answer_is_not_drained() -> None:
    """The connection is closed at the cap: what got out is what the sockets' buffers hold."""
    out, whole = 0, 100 * 2**20

    async def pours(_: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal out
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % whole)
        while out < whole:
            writer.write(b"x" * 2**16)
            await writer.drain()
            out += 2**16

    async with raw(pours) as base:
        answer = await call(base)
    assert isinstance(answer, Answer)
    assert answer.body == b"x" * MAX_BODY_BYTES
    assert out < whole / 4


def odd(*_: object) -> Request:
    return Request("http://127.0.0.1:9", {"X-Key": None}, b"{}")  # type: ignore[dict-item]


def text_for_bytes(*_: object) -> Request:
    return Request("http://127.0.0.1:9", {}, "abcd")  # type: ignore[arg-type]


def nowhere(*_: object) -> Request:
    return Request("http://[what-was-ordered/", {}, b"{}")


def fails(*_: object) -> Request:
    raise KeyError("size")


async def test_a_tool_that_fails_at_its_request_is_an_answer_and_nothing_was_sent() -> None:
    for request_ in [odd, text_for_bytes, nowhere, fails, lambda *_: None]:
        sent = Sent()
        tool = msgspec.structs.replace(TOOL, request=request_).bound(
            Settings(of_tools={"ark_base_url": "http://127.0.0.1:9", "ark_api_key": KEY})
        )
        async with Wire(tool, longest_s=1.0) as at:
            answer = await at.generate(session(), sent)
        assert isinstance(answer, NoAnswer) and (answer.code, answer.sent, sent.times) == (NOT_MADE, False, 0)
        failure = classify(answer, tool.provider, now=datetime.now(UTC))
        assert isinstance(failure, Failure)
        assert (failure.category, failure.fatal, failure.outcome) == ("internal", False, "refused")
        assert failure.provider_message == answer.message

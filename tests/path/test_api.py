"""The API's contract: whose, how much, how often, and from where."""

import asyncio
import io
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

import aiohttp
import jwt
import msgspec
import pytest
import structlog
from tests.ears import BASE, MUCH_TO_TELL, SECRET, Client, served
from tests.kit import STALL_S, Kit, until, with_tools
from tests.path.test_bridge import change, fail

from genctl.base.tokens import Tokens
from genctl.domain.orders import LONGEST_PROMPT
from genctl.services import stream
from genctl.services.api import page_of
from genctl.services.site import Site
from genctl.tools.seedream4 import TOOL


@pytest.fixture
async def client(kit: Kit) -> AsyncIterator[Client]:
    async with served(kit.settings) as client:
        yield client


async def test_an_order_becomes_a_session_and_its_job(kit: Kit, client: Client) -> None:
    status, made = await client.order({"prompt": "a heron", "clientKey": "k1", "size": "2K"})
    assert status == 202
    assert made.keys() == {"sessionId", "reservationId", "clientKey", "status"}
    assert (made["clientKey"], made["status"]) == ("k1", "queued")
    settled = await kit.work()
    assert settled
    item = await client.get(f"/sessions/{made['sessionId']}")
    assert item.keys() == {
        "sessionId", "clientKey", "status", "model", "prompt", "run", "attempts", "createdAt", "startedAt",
        "completedAt", "result", "error_details", "credits", "params", "version", "step",
    }  # fmt: skip
    assert 0 < item["version"] < 2**53  # a number that JavaScript holds exactly
    assert item["step"] == 2  # one claim, and its end
    assert (item["status"], item["credits"]) == ("completed", {"reserved": 4, "refunded": 0})
    assert item["result"]["images"][0].keys() == {"url", "size", "expiresAt"}
    assert await client.get("/credits") == {"balance": 996, "held": 0}


async def test_an_api_takes_orders_without_the_providers_key(kit: Kit) -> None:
    """Its secret has none: only a worker calls the provider, and one has begun."""
    await kit.query("insert into tool_paces (tool) values (%s)", "seedream4")
    async with served(kit.settings, of_tools={}) as client:
        assert (await client.order({"prompt": "a heron"}))[0] == 202


async def test_a_failure_is_shown_with_its_refund(kit: Kit, client: Client) -> None:
    item = await client.get(f"/sessions/{await fail(kit)}")
    assert (item["status"], item["credits"]) == ("failed", {"reserved": 4, "refunded": 4})
    assert "Request id" in item["error_details"]["providerMessage"]
    assert "equest id" not in item["error_details"]["userMessage"]


async def test_what_speaks_of_our_account_is_not_shown(kit: Kit, client: Client) -> None:
    await kit.enqueue("auth")
    await kit.work()
    (item,) = (await client.get("/sessions"))["sessions"]
    details = item["error_details"]
    assert details["category"] == "auth"
    assert details["code"]
    assert details["providerMessage"] is details["providerBody"] is details["providerStatus"] is None
    assert details["userMessage"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"no json", b"[]", b"{}", b'{"prompt":5}', b'{"prompt":"\\ud800"}', b"\xff\xfe",
        {"prompt": ""}, {"prompt": "  \n"}, {"prompt": "a\0b"}, {"prompt": "x" * (LONGEST_PROMPT + 1)},
        {"prompt": "x", "model": "dall-e"}, {"prompt": "x", "size": "huge"},
        {"prompt": "x", "model": "seedream-4-5-251128", "size": "1K"}, {"prompt": "x", "seed": 1},
        {"prompt": "x", "image": "file:///etc/passwd"}, {"prompt": "x", "image": ["a\0"]}, {"prompt": "x", "size": 2},
        {"prompt": "x", "clientKey": "a\nb"},
        {"prompt": "x", "clientKey": "k" * 300}, {"prompt": "x", "clientKey": ""},
        {"prompt": "x", "model": "seedream-4-\n"}, {"prompt": "x", "model": "seedream-4-" + "x" * 5000},
        pytest.param(b'{"prompt":' + b"[" * 200_000, id="nested"),
    ],
)  # fmt: skip
async def test_bad_input_is_422_and_says_why(client: Client, body: Any) -> None:
    sent: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
    status, said = await client.ask("POST", f"{BASE}/generations", **sent)
    assert status == 422
    assert said["error"]["message"]
    assert (await client.get("/sessions"))["sessions"] == []


@pytest.mark.parametrize(
    ("field", "meant"),
    [("cost", "it takes size"), ("user", "it takes size"), ("Model", "model"), ("clientkey", "clientKey"), ("siz", "size"), ("n", "it takes size")],
)  # fmt: skip
async def test_a_field_that_nobody_knows_is_named_with_what_may_be_meant(
    client: Client, field: str, meant: str
) -> None:
    """It was dropped in silence, and the job was charged. Cost and user are never taken from the body."""
    status, said = await client.order({"prompt": "x", field: "1"})
    assert (status, said["error"]["code"]) == (422, "UnknownParameter")
    assert field in said["error"]["message"]
    assert meant in said["error"]["fix"]
    assert await client.get("/credits") == {"balance": 1000, "held": 0}


async def test_a_model_that_a_setting_leaves_out_is_not_taken(kit: Kit) -> None:
    async with served(replace(kit.settings, models=("seedream-4-0-*",))) as client:
        status, said = await client.order({"prompt": "x", "model": "seedream-4-5-251128"})
        assert (status, said["error"]["fix"]) == (422, "use one like seedream-4-0-*")
        assert (await client.order({"prompt": "x"}))[0] == 202


async def test_no_order_is_taken_while_nothing_can_carry_it_out(kit: Kit) -> None:
    """A real provider, and nobody with a key."""
    settings = with_tools(kit.settings, ark_base_url="https://ark.example/api/v3", ark_api_key=None)
    async with served(settings) as client:
        status, _ = await client.order({"prompt": "x"})
        assert status == 503
        assert await client.get("/credits") == {"balance": 1000, "held": 0}


async def test_the_page_is_about_the_tool_that_is_set(client: Client) -> None:
    _, page = await client.ask("GET", "/")
    assert '<html lang="en" data-tool="seedream4">' in page
    assert '<option value="2K">' in page


async def test_the_page_comes_compressed(client: Client) -> None:
    async with aiohttp.ClientSession() as http:
        for path in ("/", "/page/store.js", "/page/style.css"):
            async with http.get(client.url + path) as answer:
                assert answer.headers["Content-Encoding"] == "gzip"


def test_the_page_of_a_tool_without_sizes_asks_for_none() -> None:
    page = page_of(msgspec.structs.replace(TOOL, sizes={}))
    assert '<label class="size" hidden>' in page
    assert "<option" not in page and "{{" not in page


async def test_a_huge_body_is_not_read(client: Client) -> None:
    status, _ = await client.ask("POST", f"{BASE}/generations", data=io.BytesIO(b"x" * 2_000_000))
    assert status == 413


async def test_who_cannot_pay_gets_402_and_nothing_happens(kit: Kit, client: Client) -> None:
    await client.order({"prompt": "opens the account"})
    await kit.query("update credit_accounts set balance = 3")
    status, said = await client.order({"prompt": "x"})
    assert (status, said["error"]["code"]) == (402, "CreditsShort")
    assert "genctl" not in said["error"]["fix"]
    assert len((await client.get("/sessions"))["sessions"]) == 1


async def test_a_key_makes_one_session_however_often_it_comes(kit: Kit, client: Client) -> None:
    """Also at the same moment, and on another server; another body under the same key is 422."""
    body, key = {"prompt": "x", "clientKey": "c"}, {"Idempotency-Key": "once"}
    async with served(kit.settings) as other:
        answers = await asyncio.gather(*(c.order(body, **key) for c in (client, other) * 4))
    assert {status for status, _ in answers} == {202}
    assert len({made["sessionId"] for _, made in answers}) == 1
    assert await client.get("/credits") == {"balance": 996, "held": 4}
    for changed in ({"prompt": "y"}, {"clientKey": "d"}, {"size": "2K"}, {"model": "seedream-4-5-251128"}):
        assert (await client.order(body | changed, **key))[0] == 422
    assert (await Client(client.url, "bob").order({"prompt": "y"}, **key))[0] == 202
    assert (await client.order(body, **{"Idempotency-Key": ""}))[0] == 422


async def test_a_key_is_honoured_though_its_order_took_the_last_credits(kit: Kit, client: Client) -> None:
    await client.order({"prompt": "opens the account"})
    await kit.query("update credit_accounts set balance = 4")
    answers = await asyncio.gather(
        *(client.order({"prompt": "x"}, **{"Idempotency-Key": "k"}) for _ in range(8))
    )
    assert {status for status, _ in answers} == {202}
    assert len({made["sessionId"] for _, made in answers}) == 1


async def test_an_order_is_taken_though_the_queue_is_away(kit: Kit) -> None:
    """The sweeper sends it later."""
    async with served(kit.settings, sqs_endpoint="http://127.0.0.1:1") as client:
        status, made = await client.order({"prompt": "x"})
    assert status == 202
    (row,) = await kit.query("select enqueued_at from generation_sessions where id = %s", made["sessionId"])
    assert row["enqueued_at"] is None


async def test_pages_hold_every_session_once(kit: Kit, client: Client) -> None:
    made = [str(await change(kit)) for _ in range(7)]
    await change(kit, user="bob")
    await change(kit, model="other-1")
    seen, before = [], ""
    while True:
        page = await client.get(f"/sessions?limit=3{before}")
        seen += [item["sessionId"] for item in page["sessions"]]
        assert client.api.cursors.read("ann", page["lastEventId"]) == 8
        if page["next"] is None:
            break
        before = f"&before={page['next']}"
    assert seen == made[::-1]
    for bad in ("limit=0", "limit=x", "before=rubbish", "before=1'--"):
        assert (await client.ask("GET", f"{BASE}/sessions?{bad}"))[0] == 422
    assert (await client.get("/sessions?limit=100000"))["next"] is None


async def test_somebody_elses_session_is_not_there(kit: Kit, client: Client) -> None:
    theirs = await change(kit, user="bob")
    other_tool = await change(kit, model="other-1")
    for what in (theirs, other_tool, uuid4(), "rubbish", "%00", "..%2f.."):
        assert (await client.ask("GET", f"{BASE}/sessions/{what}"))[0] == 404
    assert (await client.ask("GET", f"{BASE}/sessions?before={theirs}"))[1]["sessions"] == []


@pytest.mark.parametrize("path", ["/sessions", "/sessions/x", "/credits", "/events"])
async def test_without_a_good_token_there_is_nothing(client: Client, path: str) -> None:
    good, cookie = {"sub": "ann", "exp": 4_000_000_000}, Site.of(client.url).cookie
    headers: list[dict[str, str]] = [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {client.token}"},
        {"Authorization": f"Bearer {jwt.encode(good, '', 'none')}"},
        {"Authorization": f"Bearer {jwt.encode(good, 'x' * 40, 'HS256')}"},
        {"Authorization": f"Bearer {jwt.encode(good | {'exp': 1}, SECRET, 'HS256')}"},
        {"Authorization": f"Bearer {'x' * 20_000}"},
        {"Cookie": f"{cookie}=rubbish"},
        {"Authorization": "Bearer rubbish", "Cookie": f"{cookie}={client.token}"},
    ]
    async with aiohttp.ClientSession() as http:
        for each in headers:
            async with http.get(f"{client.url}{BASE}{path}", headers=each) as answer:
                assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


async def test_oversized_headers_are_refused_and_the_server_lives(client: Client) -> None:
    status, _ = await client.ask(
        "GET", f"{BASE}/credits", headers={"X-Large": "x" * 7000, "Last-Event-ID": "y" * 7000}
    )
    assert status == 200
    host, port = client.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + b"x" * 100_000)
    assert b" 400 " in await reader.readline()
    writer.close()
    assert (await client.ask("GET", "/healthz"))[0] == 200


async def test_who_goes_away_in_the_middle_of_a_body_is_no_bug(client: Client) -> None:
    host, port = client.url.removeprefix("http://").split(":")
    with structlog.testing.capture_logs() as lines:
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /signin HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: {client.url}\r\n"
        writer.write(head.encode() + b"Content-Length: 99\r\n\r\nticket=")
        await writer.drain()
        writer.close()

        async def is_answered() -> bool:
            return 'method="POST",status="422"' in (await client.ask("GET", "/metrics"))[1]

        await until(is_answered)
    assert [line for line in lines if line["log_level"] == "error"] == []


class Browser:
    """Keeps the cookie, names its origin."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self.http = http
        self.url = url

    async def post(self, path: str, origin: str | None, **more: Any) -> aiohttp.ClientResponse:
        headers = {"Origin": origin} if origin else {}
        async with self.http.post(
            f"{self.url}{path}", headers=headers, allow_redirects=False, **more
        ) as answer:
            return answer


@pytest.fixture
async def browser(client: Client) -> AsyncIterator[Browser]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        yield Browser(http, client.url)


async def test_a_ticket_signs_in_once_on_any_server(kit: Kit, client: Client, browser: Browser) -> None:
    """Looking at the link spends nothing; a second POST, also at another server, is refused."""
    ticket = Tokens(SECRET).ticket("ann")
    link = f"/signin?ticket={ticket}"
    for _ in range(2):
        async with browser.http.get(browser.url + link) as page:
            assert page.status == 200
            assert "Sign in" in await page.text()
    assert (await browser.post(link, "https://evil.example")).status == 403
    answer = await browser.post("/signin", browser.url, data={"ticket": ticket})
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    async with browser.http.get(f"{browser.url}{BASE}/credits") as known:
        assert known.status == 200
    assert (await browser.post(link, browser.url)).status == 401
    async with served(kit.settings) as other:
        assert (await Browser(browser.http, other.url).post(link, other.url)).status == 401
    for bad in ("", "rubbish", client.token, Tokens(SECRET).ticket("ann", -5)):
        assert (await browser.post(f"/signin?ticket={bad}", browser.url)).status == 401


async def test_a_change_that_comes_with_the_cookie_must_come_from_our_page(
    client: Client, browser: Browser
) -> None:
    await browser.post(f"/signin?ticket={Tokens(SECRET).ticket('ann')}", browser.url)
    order, body = f"{BASE}/generations", {"json": {"prompt": "x"}}
    for origin in (None, "null", "https://evil.example", browser.url + ".evil.example", "http://127.0.0.1:1"):
        assert (await browser.post(order, origin, **body)).status == 403
    assert (await browser.post(order, browser.url, **body)).status == 202
    assert len((await client.get("/sessions"))["sessions"]) == 1


async def test_every_answer_is_strict_and_no_origin_is_allowed_unless_it_is_set(kit: Kit) -> None:
    app = "https://app.example"
    async with served(kit.settings, image_hosts=("img.example",)) as closed:  # noqa: SIM117
        async with aiohttp.ClientSession() as http:
            for path in ("/", "/healthz", "/signin", "/nowhere", f"{BASE}/credits"):
                async with http.get(closed.url + path, headers={"Origin": app}) as answer:
                    policy = answer.headers["Content-Security-Policy"]
                    assert "default-src 'none'" in policy
                    assert "img-src 'self' img.example;" in policy
                    assert "unsafe" not in policy
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"
                    assert "Access-Control-Allow-Origin" not in answer.headers
    async with served(kit.settings, cors_origins=(app,)) as opened, aiohttp.ClientSession() as http:
        for origin, allowed in ((app, app), ("https://evil.example", None)):
            headers = {"Origin": origin, "Authorization": f"Bearer {opened.token}"}
            async with http.get(f"{opened.url}{BASE}/credits", headers=headers) as answer:
                assert answer.headers.get("Access-Control-Allow-Origin") == allowed


async def test_metrics_count(client: Client) -> None:
    async with client.stream() as ear:
        await ear.ready()
        status, text = await client.ask("GET", "/metrics")
    assert status == 200
    assert "genctl_sse_streams 1.0" in text
    assert "genctl_listening 1.0" in text


async def test_heartbeats_name_the_last_id_and_have_none(
    kit: Kit, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.05)
    async with client.stream() as ear:
        await ear.ready()
        await fail(kit)
        await ear.until(lambda ear: ear.told and ear.events[-1].name == "heartbeat")
        beat = ear.events[-1]
        assert beat.id is None
        assert beat.data | {"since": ""} == {"lastEventId": ear.told[0].id, "fresh": True, "since": ""}


async def test_a_user_has_so_many_streams_and_the_newest_are_kept(kit: Kit) -> None:
    """EventSource cannot show a refusal, and a forgotten tab must not keep out the one in use."""
    async with served(kit.settings, streams_per_user=2) as client, client.stream() as oldest:
        await oldest.ready()
        async with client.stream() as one, Client(client.url, "bob").stream() as other:
            await one.ready()
            await other.ready()
            async with client.stream() as newest:
                await newest.ready()
                await oldest.until(lambda ear: ear.named("bye"))
                assert oldest.named("bye")[0].data["why"] == "newer stream"
                assert oldest.task
                await oldest.task  # the server has hung up
                for ear in (one, other, newest):
                    assert not ear.named("bye")
        assert b"genctl_sse_replaced_total 1.0" in client.api.metrics.text()


async def test_a_stream_ends_when_its_token_does(client: Client) -> None:
    client.token = Tokens(SECRET).issue("ann", 4.0)
    async with client.stream() as ear:
        await ear.ready()
        assert ear.task
        await asyncio.wait_for(asyncio.shield(ear.task), 4 + STALL_S)
        assert not ear.named("bye")
    assert (await client.ask("GET", f"{BASE}/events"))[0] == 401


@pytest.mark.parametrize("at_a_time", [0, 1])
async def test_a_reader_that_does_not_read_is_cut_off(
    kit: Kit, client: Client, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    """Its queue never grows, and the others don't notice; one that takes a byte at a time is no better."""
    monkeypatch.setattr(stream, "WRITE_TIMEOUT_S", 0.3)
    start = (await client.get("/sessions"))["lastEventId"]
    await kit.query(MUCH_TO_TELL)
    host, port = client.url.removeprefix("http://").split(":")
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect((host, int(port)))
        head = f"GET {BASE}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.token}\r\n"
        stuck.sendall(f"{head}Last-Event-ID: {start}\r\n\r\n".encode())

        async def cut() -> bool:
            with suppress(BlockingIOError, ConnectionError):
                stuck.recv(at_a_time, socket.MSG_DONTWAIT)
            said = client.api.metrics.text()
            return b"genctl_sse_slow_readers_total 1.0" in said and b"genctl_sse_streams 0.0" in said

        await until(cut)
    async with client.stream(f"?lastEventId={start}") as ear:
        await ear.ready()
        assert len(ear.told) == 1000


async def test_the_end_of_the_server_is_told(kit: Kit) -> None:
    async with served(kit.settings) as client, client.stream() as ear:
        await ear.ready()
        task = asyncio.create_task(client.api.streams.stop(1.0))
        await ear.until(lambda ear: ear.named("bye"))
        await task

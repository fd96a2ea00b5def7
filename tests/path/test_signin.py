"""Signing in and out behind whatever stands before the API, and tokens that are taken back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from tests.ears import BASE, SECRET, Client, served
from tests.kit import SOON_S, Kit, until

from genctl.base.tokens import Tokens
from genctl.services import revoked
from genctl.services.site import Site

TOKENS = Tokens(SECRET)
APP = "https://app.example.com"


class Visitor:
    """A browser that comes by the address `seen`, whatever the API's own is; it keeps its cookies by hand."""

    def __init__(self, http: aiohttp.ClientSession, client: Client, seen: str, **headers: str) -> None:
        self._http = http
        self._client = client
        self.seen = Site.of(seen)
        self.headers = {"Host": seen.partition("://")[2].partition("/")[0], **headers}
        self.cookies: dict[str, str] = {}
        self.set_cookie = ""

    async def ask(self, method: str, path: str, **more: Any) -> aiohttp.ClientResponse:
        origin = f"{self.seen.scheme}://{self.seen.host}" + (f":{self.seen.port}" if self.seen.port else "")
        headers = self.headers | {"Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())}
        headers |= {"Origin": origin} if method == "POST" else {}
        headers |= more.pop("headers", {})
        async with self._http.request(
            method, self._client.url + path, headers=headers, allow_redirects=False, **more
        ) as answer:
            await answer.read()
            for line in answer.headers.getall("Set-Cookie", []):
                self.set_cookie = line
                name, _, value = line.partition(";")[0].partition("=")
                self.cookies[name] = value
            return answer

    async def sign_in(self, user: str = "ann", **form: str) -> aiohttp.ClientResponse:
        return await self.ask("POST", "/signin", data={"ticket": TOKENS.ticket(user), **form})

    async def order(self, **more: Any) -> int:
        return (await self.ask("POST", f"{BASE}/generations", json={"prompt": "x"}, **more)).status


@asynccontextmanager
async def visited(kit: Kit, seen: str, headers: dict[str, str], **settings: Any) -> AsyncIterator[Visitor]:
    async with served(kit.settings, **settings) as client, aiohttp.ClientSession() as http:
        yield Visitor(http, client, seen, **headers)


@pytest.mark.parametrize(
    ("headers", "more", "cookie"),
    [
        ({"Host": "app.example.com:443"}, {}, "__Host-genctl_token"),
        ({"Host": "10.0.0.7:8787", "Authorization": "Basic Ym9iOnB3"}, {"public_url": APP}, "__Host-genctl_token"),
        (
            {"Host": "10.0.0.7", "X-Forwarded-Host": "app.example.com", "X-Forwarded-Proto": "https"},
            {"trusted_proxies": ("127.0.0.0/8",)},
            "__Host-genctl_token",
        ),
    ],
    ids=["Host has the port", "a proxy's Host, and its password", "a trusted proxy"],
)  # fmt: skip
async def test_behind_a_proxy_a_user_signs_in_orders_and_leaves(
    kit: Kit, headers: dict[str, str], more: dict[str, Any], cookie: str
) -> None:
    async with visited(kit, APP, headers, **more) as visitor:
        assert (await visitor.ask("GET", "/whoami")).status == 401
        answer = await visitor.sign_in()
        assert (answer.status, answer.headers["Location"]) == (303, f"{more.get('public_url', '')}/")
        assert list(visitor.cookies) == [cookie]
        attributes = {part.strip().lower() for part in visitor.set_cookie.split(";")[1:]}
        assert {"httponly", "samesite=strict", "path=/", "secure"} <= attributes
        assert ("Strict-Transport-Security" in answer.headers) == bool(more)
        for foreign in ("http://app.example.com:81", "https://evil.example"):
            assert await visitor.order(headers={"Origin": foreign}) == 403
        assert await visitor.order() == 202
        assert (await (await visitor.ask("GET", "/whoami")).json())["userId"] == "ann"
        assert (
            await visitor.ask("POST", "/signout", headers={"Origin": "https://evil.example"})
        ).status == 403
        assert (await visitor.ask("POST", "/signout")).status == 303
        assert await visitor.order() == 401


async def test_what_others_say_of_themselves_makes_no_https(kit: Kit) -> None:
    async with visited(kit, "http://10.0.0.7", {"X-Forwarded-Proto": "https"}) as visitor:
        assert "Strict-Transport-Security" not in (await visitor.ask("GET", "/")).headers
        assert "secure" not in (await visitor.sign_in()).headers["Set-Cookie"].lower()


@pytest.mark.parametrize("prefix", ["", "/images"], ids=["taken away", "left"])
async def test_the_page_works_below_a_path_whether_the_proxy_takes_it_away_or_not(
    kit: Kit, prefix: str
) -> None:
    async with visited(kit, f"{APP}/images", {"Host": "10.0.0.7"}, public_url=f"{APP}/images") as visitor:
        for path, text in (
            ("/", "page/app.js"),
            ("/signin", 'action="signin"'),
            ("/page/app.js", "./store.js"),
        ):
            answer = await visitor.ask("GET", prefix + path)
            assert answer.status == 200
            assert text in await answer.text()
        assert (
            await visitor.ask("POST", f"{prefix}/signin", data={"ticket": TOKENS.ticket("ann")})
        ).status == 303
        assert (await visitor.ask("GET", f"{prefix}{BASE}/credits")).status == 200
        answer = await visitor.ask("GET", "/images")
        assert (answer.status, answer.headers["Location"]) == (307, f"{APP}/images/")


async def test_no_answer_leads_to_the_host_that_the_proxy_has_sent(kit: Kit) -> None:
    async with visited(kit, APP, {"Host": "10.0.0.7"}, public_url=APP) as visitor:
        for path in ("/signin/", "/page", f"{BASE}/credits/", f"{BASE}/events/", "/nowhere/"):
            answer = await visitor.ask("GET", path)
            assert (path, answer.status, answer.headers.get("Location")) == (path, 404, None)


async def test_pages_of_other_origins_may_send_what_tracing_adds(kit: Kit) -> None:
    usual = "authorization,content-type,traceparent,tracestate,baggage,sentry-trace,x-request-id"
    for more, wanted, allowed in (
        ({}, usual, True),
        ({}, "x-mine", False),
        ({"cors_headers": ("x-mine",)}, "x-mine,authorization", True),
        ({"cors_headers": ()}, "baggage", False),
    ):
        async with visited(kit, APP, {}, cors_origins=("https://shop.example",), **more) as visitor:
            headers = {
                "Origin": "https://shop.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": wanted,
            }
            answer = await visitor.ask("OPTIONS", f"{BASE}/generations", headers=headers)
            assert (answer.status == 200) == allowed


# -- whose browser it is -----------------------------------------------------------------------------


async def test_a_link_that_another_site_may_have_opened_waits_for_the_button(kit: Kit) -> None:
    async with visited(kit, APP, {}) as visitor:
        for judged, asks in (("none", "false"), ("cross-site", "true")):
            headers = {"Sec-Fetch-Site": judged}
            page = await visitor.ask("GET", f"/signin?ticket={TOKENS.ticket('ann')}", headers=headers)
            assert f'data-asks="{asks}"' in await page.text()


async def test_a_sign_in_that_would_replace_another_user_asks_first_and_spends_nothing(kit: Kit) -> None:
    async with visited(kit, APP, {}) as visitor:
        assert (await visitor.sign_in("ann")).status == 303
        form = {"ticket": TOKENS.ticket("mallory")}
        for _ in range(2):
            answer = await visitor.ask("POST", "/signin", data=form)
            assert (answer.status, "Set-Cookie" in answer.headers) == (409, False)
            error = (await answer.json())["error"]
            assert error["code"] == "AskFirst"
            assert error["message"] == "You are signed in as ann. This link signs you in as mallory instead."
        assert (await (await visitor.ask("GET", "/whoami")).json())["userId"] == "ann"
        assert (await visitor.ask("POST", "/signin", data=form | {"confirmed": "1"})).status == 303
        assert (await (await visitor.ask("GET", "/whoami")).json())["userId"] == "mallory"
        assert (await visitor.sign_in("mallory")).status == 303  # the same user need not be asked
        assert (await visitor.sign_in("mallory", asks="1")).status == 409  # but where the page says so


async def test_two_stacks_of_one_host_do_not_sign_each_other_out(kit: Kit) -> None:
    """Browsers send a cookie to all ports of a host."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with (
        served(kit.settings) as one,
        served(kit.settings) as two,
        aiohttp.ClientSession(cookie_jar=jar) as http,
    ):
        for client, user in ((one, "ann"), (two, "bob")):
            form = {"ticket": TOKENS.ticket(user)}
            async with http.post(
                f"{client.url}/signin", data=form, headers={"Origin": client.url}, allow_redirects=False
            ) as answer:
                assert answer.status == 303
        for client, user in ((one, "ann"), (two, "bob")):
            async with http.get(f"{client.url}/whoami") as answer:
                assert (await answer.json())["userId"] == user


# -- what is taken back ------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revoked, "EVERY_S", 0.05)


async def test_signing_out_ends_the_token_its_copies_and_its_streams(kit: Kit) -> None:
    async with visited(kit, APP, {}) as visitor:
        await visitor.sign_in()
        copy = dict(visitor.cookies)
        client = visitor._client
        client.token = next(iter(copy.values()))
        async with client.stream() as ear, Client(client.url).stream() as other:
            await ear.ready()
            await other.ready()
            await visitor.ask("POST", "/signout")
            assert set(visitor.cookies.values()) == {'""'}
            assert ear.task and other.task
            await asyncio.wait_for(asyncio.shield(ear.task), SOON_S)
            assert not other.task.done()
        visitor.cookies = copy
        assert (await visitor.ask("GET", "/whoami")).status == 401
        await visitor.sign_in()
        assert (await visitor.ask("GET", "/whoami")).status == 200


async def test_a_bearer_signs_itself_out_from_anywhere(kit: Kit) -> None:
    async with served(kit.settings) as client:
        assert (await client.ask("POST", "/signout"))[0] == 303
        assert (await client.ask("GET", "/whoami"))[0] == 401
        assert (await client.ask("POST", "/signout"))[0] == 401


@pytest.mark.usefixtures("soon")
async def test_what_a_user_had_is_revoked_in_every_process_and_what_comes_later_is_good(kit: Kit) -> None:
    async with served(kit.settings) as client, served(kit.settings) as other:
        ticket = TOKENS.ticket("ann")
        old = Client(other.url)
        async with (
            client.stream() as ear,
            Client(other.url).stream() as far,
            Client(client.url, "bob").stream() as bobs,
        ):
            for each in (ear, far, bobs):
                await each.ready()
            await kit.db.row("revoke_tokens_of", user="ann")
            for each in (ear, far):
                assert each.task
                await asyncio.wait_for(asyncio.shield(each.task), SOON_S)
            assert bobs.task and not bobs.task.done()
        assert (await old.ask("GET", "/whoami"))[0] == 401
        status, said = await other.ask("POST", f"/signin?ticket={ticket}", headers={"Origin": other.url})
        assert (status, said["error"]["message"]) == (401, "the token was revoked")
        assert (await Client(other.url).ask("GET", "/whoami"))[0] == 200

        fresh = Client(client.url)
        await kit.db.row("revoke_token", token=TOKENS.read(fresh.token).id, expires_at=4e9)

        async def is_refused() -> bool:
            return (await fresh.ask("GET", "/whoami"))[0] == 401

        await until(is_refused)
        assert (await Client(client.url).ask("GET", "/whoami"))[0] == 200


@pytest.mark.usefixtures("soon")
async def test_what_was_revoked_before_the_start_is_known_and_a_database_without_the_table_is_no_end(
    kit: Kit,
) -> None:
    token = Client("http://unused")
    await kit.db.row("revoke_tokens_of", user="ann")
    async with served(kit.settings) as client:
        client.token = token.token

        async def is_refused() -> bool:
            return (await client.ask("GET", "/whoami"))[0] == 401

        await until(is_refused)
    await kit.query("alter table revoked_tokens rename to elsewhere")
    async with served(kit.settings) as client:
        assert (await client.ask("GET", "/whoami"))[0] == 200
        assert (await client.ask("POST", "/signout"))[0] == 303

"""The page behind nginx as docs/behind-a-proxy.md sets it up: TLS, another host's name, a path, a password."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, expect
from tests.browser.screen import LOOK, card, live
from tests.kit import free_port
from tests.process.place import Place
from tests.process.served import Served, serve
from tests.proxies import certificate, nginx_serves

pytestmark = pytest.mark.asyncio(loop_scope="session")

DOCS = (Path(__file__).parents[2] / "docs" / "behind-a-proxy.md").read_text()
WHOLE, BELOW = re.findall(r"```nginx\n(.*?)```", DOCS, re.DOTALL)


@contextmanager
def proxied(place: Place, path: str, *more: str) -> Iterator[tuple[Served, str]]:
    """An API behind the docs' nginx, and the address that users see; `more` directives of the server."""
    port = free_port()
    seen = f"https://127.0.0.1:{port}{path}"
    with serve(place, GENCTL_PUBLIC_URL=seen, GENCTL_TRUSTED_PROXIES="127.0.0.1") as api:
        block = WHOLE if not path else re.sub(r"    location / .*", f"{BELOW}}}", WHOLE, flags=re.DOTALL)
        crt, key = certificate(place.folder, "app.example.com")
        changes = {
            "listen 443": f"{' '.join(more)} listen 127.0.0.1:{port}",
            "127.0.0.1:8787": urlsplit(api.client.url).netloc,
            "/etc/nginx/app.example.com.crt": str(crt),
            "/etc/nginx/app.example.com.key": str(key),
        }
        for old, new in changes.items():
            assert old in block
            block = block.replace(old, new)
        with nginx_serves(block, port, place.folder):
            yield api, seen


@pytest.mark.parametrize(("path", "password"), [("", True), ("/images", False)], ids=["password", "path"])
async def test_a_user_signs_in_orders_sees_the_failure_and_leaves(
    browser: Browser, place: Place, user: str, path: str, password: bool
) -> None:
    more: tuple[str, ...] = ()
    if password:
        (place.folder / "passwords").write_text("ann:{PLAIN}open\n")
        more = (f"auth_basic gate; auth_basic_user_file {place.folder}/passwords;",)
    with proxied(place, path, *more) as (_, seen):
        link = place.genctl("token", "--user", user, "--link", GENCTL_PUBLIC_URL=seen)["signIn"]
        assert link.startswith(f"{seen}/signin?")
        async with await browser.new_context(
            **LOOK, ignore_https_errors=True, http_credentials={"username": "ann", "password": "open"}
        ) as context:
            page = await context.new_page()
            await page.goto(link)
            await live(page)
            assert page.url == f"{seen}/"
            (cookie,) = await context.cookies()
            port, slug = urlsplit(seen).port, path.replace("/", "_")
            assert cookie["name"] == f"__Host-genctl_token_{port}{slug}"
            assert (cookie["secure"], cookie["httpOnly"], cookie["path"]) == (True, True, "/")
            await page.locator("#prompt").fill("a test [scenario:sensitive]")
            await page.keyboard.press("Enter")
            await expect(page.locator(".card")).to_have_attribute("data-status", "queued")
            with place.worker():
                (row,) = place.sql("select id from generation_sessions where user_id = %s", user)
                await expect(card(page, row["id"])).to_have_attribute("data-status", "failed", timeout=20_000)
            await page.get_by_role("button", name="Sign out").click()
            await expect(page.locator("#signed-out")).to_be_visible()
            assert await context.cookies() == []

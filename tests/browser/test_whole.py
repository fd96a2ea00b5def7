"""The page in a real browser on the whole system: API and worker processes, PostgreSQL, SQS, simulator."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Locator, Page, expect
from tests.browser.screen import LOOK, Tab, card, come_back, live
from tests.ears import Client
from tests.process.place import Place
from tests.process.served import SECRET, Served, serve

from genctl.base.tokens import Tokens
from genctl.services.scenarios import SENSITIVE

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOTE_THE_FLIP = """id => {
  const card = document.querySelector(`.card[data-session-id="${id}"]`);
  window.flippedAt = new Promise((note) => {
    new MutationObserver(() => card.dataset.status === 'failed' && note(Date.now())).observe(card, {attributes: true});
  });
}"""
COUNT_NEW_CARDS = """() => {
  window.newCards = 0;
  const count = (changes) => changes.forEach(({addedNodes}) => (window.newCards += addedNodes.length));
  new MutationObserver(count).observe(document.querySelector('#cards'), {childList: true});
}"""
SESSIONS = "select id from generation_sessions where user_id = %s"
POST_BLINDLY = """async (url) => {
  await fetch(url, {method: 'POST', mode: 'no-cors', credentials: 'include', body: '{"prompt": "stolen"}'});
}"""


@pytest.fixture(scope="module")
def api(place: Place) -> Iterator[Served]:
    """An API process whose page may show the simulator's images, as the embedded stack's may."""
    images = urlsplit(place.settings.of_tools["ark_base_url"]).netloc
    with serve(place, GENCTL_IMAGE_HOSTS=images) as api:
        yield api


def sign_in_link(api: Served, user: str) -> str:
    return f"{api.client.url}/signin?ticket={Tokens(SECRET).ticket(user)}"


@pytest_asyncio.fixture(loop_scope="session")
async def page(tab: Tab, api: Served, user: str) -> AsyncIterator[Page]:
    """The user's page."""
    async with tab.signed_in(sign_in_link(api, user)) as page:
        yield page


async def shown(page: Page, place: Place, user: str) -> str:
    """A job whose card waits on the page. The provider will refuse it."""
    session = await asyncio.to_thread(place.enqueue, "sensitive", user=user)
    await come_back(page)
    await expect(card(page, session)).to_have_attribute("data-status", "queued")
    return session


async def ended(place: Place, session: str, status: str = "failed") -> dict[str, Any]:
    return await asyncio.to_thread(place.until_row, session, status=status)


async def order(page: Page, prompt: str) -> Locator:
    """What a person does; all cards there are, and from here on new ones are counted."""
    await page.evaluate(COUNT_NEW_CARDS)
    await page.locator("#prompt").fill(prompt)
    await page.keyboard.press("Enter")
    await expect(page.locator(".card .prompt")).to_have_text(prompt)
    return page.locator(".card")


async def test_a_card_flips_within_a_second_of_its_row_without_a_reload(
    page: Page, place: Place, user: str
) -> None:
    session = await shown(page, place, user)
    await expect(page.locator("#balance")).to_have_text("996 credits 4 held")
    await page.evaluate(NOTE_THE_FLIP, session)
    with place.worker():
        row = await ended(place, session)
        failed = card(page, session)
        await expect(failed).to_have_attribute("data-status", "failed")
    flipped_ms = await page.evaluate("window.flippedAt")  # gone, had the page been loaded again
    assert 0 <= flipped_ms - row["completed_at"].timestamp() * 1000 < 1000
    assert "Request id" in row["error_details"]["providerMessage"]
    await expect(failed.locator(".sentence")).to_have_text(SENSITIVE.message)
    await expect(failed.locator(".refund span")).to_have_text("4 credits returned")
    await expect(page.locator("#balance")).to_have_text("1,000 credits")


async def test_an_order_of_the_form_is_one_card_from_the_key_to_the_loaded_image(
    page: Page, place: Place, user: str
) -> None:
    own = await order(page, "a fox in fresh snow")
    await expect(own).to_have_attribute("data-status", "queued")
    [made] = place.sql(SESSIONS, user)
    with place.worker():
        await ended(place, made["id"], "completed")
        await expect(card(page, made["id"])).to_have_attribute("data-status", "completed")
    await expect(own.locator(".picture")).to_be_visible()
    await expect(own.locator(".picture")).not_to_have_js_property("naturalWidth", 0)
    assert await page.evaluate("window.newCards") == 1


async def test_what_waits_behind_a_pause_is_told_and_can_be_cancelled_and_ordered_anew(
    page: Page, place: Place, user: str
) -> None:
    await asyncio.to_thread(place.genctl, "pause")
    try:
        session = await shown(page, place, user)
        await expect(page.locator("#gate")).to_contain_text("Images are paused until about ")
        await expect(card(page, session).locator(".waiting")).to_have_text("Paused")
        await card(page, session).locator(".prompt").click()
        await page.get_by_role("button", name="Cancel this image").click()
        await expect(page.locator("dialog .refund span")).to_have_text("4 credits returned")
        await expect(page.locator("#balance")).to_have_text("1,000 credits")
        await page.get_by_role("button", name="Try again · 4 credits").click()
        await expect(page.locator(".card .status")).to_have_text(["Queued", "Cancelled"])
        await expect(page.locator("#balance")).to_have_text("996 credits 4 held")
    finally:
        await asyncio.to_thread(place.genctl, "resume")


async def test_a_page_of_another_origin_orders_nothing(
    page: Page, place: Place, api: Served, user: str
) -> None:
    """Another port is another origin but the same site, so that the cookie comes along."""
    url = f"{api.client.url}/api/seedream4/generations"
    form = (
        f"""<form method=post enctype=text/plain action="{url}"><button name='{{"prompt": "' value='"}}'>"""
    )

    async def foreign(_: web.Request) -> web.Response:
        return web.Response(text=form, content_type="text/html")

    application = web.Application()
    application.router.add_get("/", foreign)
    async with TestServer(application, host="127.0.0.1") as server:
        other = await page.context.new_page()
        await other.goto(str(server.make_url("/")))
        for post in (lambda: other.evaluate(POST_BLINDLY, url), other.get_by_role("button").click):
            async with other.expect_response(url) as answer:
                await post()
            answered = await answer.value
            assert json.loads(answered.request.post_data or "")["prompt"]
            assert answered.status == 403  # without the cookie it would be 401
    assert place.sql(SESSIONS, user) == []


async def test_who_signs_in_as_another_in_a_second_tab_sees_no_cards_mixed(
    page: Page, place: Place, api: Served, user: str
) -> None:
    await shown(page, place, user)
    second = await page.context.new_page()
    await second.goto(sign_in_link(api, f"bob-{user}"))
    await expect(second.get_by_role("status")).to_contain_text(
        f"You are signed in as {user}. This link signs you in as bob-{user} instead."
    )
    await expect(page.locator("#user")).to_have_text(f"Signed in as {user}")
    await second.get_by_role("button", name="Sign in").click()
    await live(second)
    await expect(second.locator("#user")).to_have_text(f"Signed in as bob-{user}")
    await expect(page.locator("#user")).to_have_text(f"Signed in as bob-{user}")
    await expect(page.locator("#empty")).to_be_visible()
    await expect(page.locator(".card")).to_have_count(0)


async def test_another_sites_link_signs_nobody_in_without_a_click(
    page: Page, api: Served, browser: Browser, user: str
) -> None:
    """Neither over somebody, nor in a browser where nobody is signed in; the page says who it would be."""
    for context in (page.context, await browser.new_context(**LOOK)):
        other = await context.new_page()
        await other.route(
            "http://evil.test/",
            lambda route: route.fulfill(
                content_type="text/html",
                body=f"<script>location = {json.dumps(sign_in_link(api, 'mallory'))}</script>",
            ),
        )
        await other.goto("http://evil.test/")
        status = other.get_by_role("status")
        await expect(status).to_contain_text("This link signs you in as mallory")
        if context is page.context:
            await expect(status).to_contain_text(f"You are signed in as {user}.")
            await page.reload()
            await expect(page.locator("#user")).to_have_text(f"Signed in as {user}")
        else:
            assert await context.cookies() == []
            await other.get_by_role("button", name="Sign in").click()
            await expect(other.locator("#user")).to_have_text("Signed in as mallory")
            await context.close()


async def test_who_signs_out_is_out_in_every_tab_and_a_copy_of_the_cookie_is_worth_nothing(
    page: Page, api: Served, user: str
) -> None:
    await expect(page.locator("#user")).to_have_text(f"Signed in as {user}")
    second = await page.context.new_page()
    await second.goto(api.client.url)
    await live(second)
    (cookie,) = await page.context.cookies()
    await page.get_by_role("button", name="Sign out").click()
    for each in (page, second):
        await expect(each.locator("#signed-out")).to_be_visible()
        await expect(each.locator("#user")).to_be_hidden()
    assert await page.context.cookies() == []
    thief = Client(api.client.url, user)
    thief.token = cookie["value"]
    assert (await thief.ask("GET", "/whoami"))[0] == 401

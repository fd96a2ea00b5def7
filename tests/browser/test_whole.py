"""The page in a real browser on the whole system: API and worker processes, PostgreSQL, SQS, simulator."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Locator, Page, Route, expect
from tests.browser.screen import LOOK, card, come_back, keep_answering, live, opened
from tests.kit import until
from tests.process.place import Place
from tests.process.served import Served, move, own_postgres, serve

from genctl.services.scenarios import SENSITIVE
from genctl.tools.seedream4 import TOOL

pytestmark = pytest.mark.asyncio(loop_scope="module")

NASTY = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202egnp.\nlast"
)
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
POST_BLINDLY = """async (url) => {
  await fetch(url, {method: 'POST', mode: 'no-cors', credentials: 'include', body: '{"prompt": "stolen"}'});
}"""


@contextmanager
def page_served(place: Place, port: int = 0) -> Iterator[Served]:
    """An API process whose page may show the simulator's images, as the embedded stack's may."""
    with serve(
        place, port, GENCTL_IMAGE_HOSTS=urlsplit(place.settings.of_tools["ark_base_url"]).netloc
    ) as api:
        yield api


def sign_in_link(place: Place, api: Served, user: str = "ann") -> str:
    said = place.genctl("token", "--user", user, "--link", GENCTL_API_URL=api.client.url)
    return str(said["signIn"])


@pytest.fixture
def api(place: Place) -> Iterator[Served]:
    with page_served(place) as api:
        yield api


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, place: Place, api: Served) -> AsyncIterator[Page]:
    """Ann's page."""
    async with opened(browser, sign_in_link(place, api)) as page:
        yield page


async def enqueue(place: Place, scenario: str = "sensitive", **wish: Any) -> str:
    return await asyncio.to_thread(place.enqueue, scenario, **wish)


async def shown(page: Page, place: Place) -> str:
    """A job whose card waits on the page. The provider will refuse it."""
    session = await enqueue(place)
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


async def test_a_card_flips_within_a_second_of_its_row_without_a_reload(page: Page, place: Place) -> None:
    session = await shown(page, place)
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
    page: Page, place: Place
) -> None:
    own = await order(page, "a fox in fresh snow")
    await expect(own).to_have_attribute("data-status", "queued")
    [made] = place.sql("select id from generation_sessions")
    with place.worker():
        await ended(place, made["id"], "completed")
        await expect(card(page, made["id"])).to_have_attribute("data-status", "completed")
    await expect(own.locator(".picture")).to_be_visible()
    await expect(own.locator(".picture")).not_to_have_js_property("naturalWidth", 0)
    assert await page.evaluate("window.newCards") == 1


async def test_what_waits_behind_a_pause_is_told_and_can_be_cancelled_and_ordered_anew(
    page: Page, place: Place
) -> None:
    await asyncio.to_thread(place.genctl, "pause")
    session = await shown(page, place)
    await expect(page.locator("#gate")).to_contain_text("Images are paused until about ")
    await expect(card(page, session).locator(".waiting")).to_have_text("Paused")
    await card(page, session).locator(".prompt").click()
    await page.get_by_role("button", name="Cancel this image").click()
    await expect(page.locator("dialog .refund span")).to_have_text("4 credits returned")
    await expect(page.locator("#balance")).to_have_text("1,000 credits")
    await page.get_by_role("button", name="Try again · 4 credits").click()
    await expect(page.locator(".card .status")).to_have_text(["Queued", "Cancelled"])
    await expect(page.locator("#balance")).to_have_text("996 credits 4 held")


async def test_an_event_before_the_answer_to_the_order_finds_its_card(page: Page, place: Place) -> None:
    """By the client key, since nothing has told the page a session yet."""
    settled = asyncio.Event()

    async def answer_late(route: Route) -> None:
        answer = await route.fetch()
        await settled.wait()
        await route.fulfill(response=answer)

    await page.route("**/generations", answer_late)
    with place.worker():
        own = await order(page, f"a crowd, {TOOL.sensitive}")
        await expect(own).to_have_attribute("data-status", "failed", timeout=20_000)
    async with page.expect_request("**/credits"):  # the answer is taken in
        settled.set()
    await expect(own).to_have_attribute("data-status", "failed")
    assert await page.evaluate("window.newCards") == 1


async def test_a_failure_that_the_page_did_not_expect_makes_a_card(page: Page, place: Place) -> None:
    with place.worker():
        session = await enqueue(place, prompt="made elsewhere")
        await ended(place, session)
        await expect(card(page, session)).to_have_attribute("data-status", "failed")
    await expect(card(page, session).locator(".prompt")).to_contain_text("made elsewhere")


async def test_a_prompt_is_text_whatever_it_holds(page: Page, place: Place) -> None:
    with place.worker():
        session = await enqueue(place, prompt=NASTY)
        stored = (await ended(place, session))["prompt"]
    assert NASTY in stored
    prompt = card(page, session).locator(".prompt")
    await expect(prompt).to_have_js_property("textContent", stored)
    await prompt.click()
    await expect(page.locator("dialog dd").first).to_have_js_property("textContent", stored)
    assert await page.locator("body script, [onerror]").count() == 0
    assert await page.title() == "genctl: your images"


async def test_a_failed_card_survives_stale_fetches(page: Page, place: Place, api: Served) -> None:
    session = await shown(page, place)
    await keep_answering(page, await api.client.get(f"/sessions/{session}"))
    asked: list[str] = []
    page.on("response", lambda response: asked.append(response.url))
    with place.worker():
        await ended(place, session)

        async def asked_three_times() -> bool:
            return len([url for url in asked if url.endswith(session)]) == 3

        await until(asked_three_times)
    async with page.expect_request("**/credits"):  # a stale list is taken in
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await expect(card(page, session)).to_have_attribute("data-status", "failed")
    await expect(card(page, session).locator(".sentence")).to_have_text(SENSITIVE.message)


async def test_the_native_event_source_brings_what_failed_while_the_server_was_killed(
    page: Page, place: Place, api: Served
) -> None:
    """No card waits, so that nothing but the stream can tell."""
    await page.evaluate("window.sameDocument = true")
    api.running.end(signal.SIGKILL)
    await expect(page.locator("#stream .word")).to_have_text("Offline")
    session = await enqueue(place)
    await asyncio.to_thread(place.say, "worker", "--drain")
    with page_served(place, urlsplit(api.client.url).port or 0):
        await expect(card(page, session)).to_have_attribute("data-status", "failed", timeout=20_000)
        await live(page)
        assert await page.evaluate("window.sameDocument")


async def test_a_page_of_another_origin_orders_nothing(page: Page, place: Place, api: Served) -> None:
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
    assert place.sql("select id from generation_sessions") == []


async def test_a_page_opened_while_the_database_is_away_says_so_and_recovers(
    browser: Browser, place: Place, tmp_path: Path
) -> None:
    async with own_postgres(tmp_path) as postgres:
        place = move(place, postgres.dsn)
        with page_served(place) as api:
            async with opened(browser, sign_in_link(place, api)) as page:
                session = await shown(page, place)
                await postgres.stop()
                await page.reload()
                await expect(page.locator("#trouble")).to_contain_text("not available at the moment")
                await expect(page.locator("#stream .word")).to_have_text("Offline")
                await postgres.start()
                await expect(card(page, session)).to_be_visible(timeout=20_000)
                await expect(page.locator("#trouble")).to_be_hidden()
                await live(page)


async def test_who_signs_in_as_another_in_a_second_tab_sees_no_cards_mixed(
    page: Page, place: Place, api: Served
) -> None:
    await shown(page, place)
    second = await page.context.new_page()
    await second.goto(sign_in_link(place, api, "bob"))
    await expect(second.get_by_role("status")).to_contain_text(
        "You are signed in as ann. This link signs you in as bob instead."
    )
    await expect(page.locator("#user")).to_have_text("Signed in as ann")
    await second.get_by_role("button", name="Sign in").click()
    await live(second)
    await expect(second.locator("#user")).to_have_text("Signed in as bob")
    await expect(page.locator("#user")).to_have_text("Signed in as bob")
    await expect(page.locator("#empty")).to_be_visible()
    await expect(page.locator(".card")).to_have_count(0)


async def test_another_sites_link_signs_nobody_in_without_a_click(
    page: Page, place: Place, api: Served, browser: Browser
) -> None:
    """Neither over ann, nor in a browser where nobody is signed in; the page says who it would be."""
    for context in (page.context, await browser.new_context(**LOOK)):
        other = await context.new_page()
        await other.route(
            "http://evil.test/",
            lambda route: route.fulfill(
                content_type="text/html",
                body=f"<script>location = {json.dumps(sign_in_link(place, api, 'mallory'))}</script>",
            ),
        )
        await other.goto("http://evil.test/")
        status = other.get_by_role("status")
        await expect(status).to_contain_text("This link signs you in as mallory")
        if context is page.context:
            await expect(status).to_contain_text("You are signed in as ann.")
            await page.reload()
            await expect(page.locator("#user")).to_have_text("Signed in as ann")
        else:
            assert await context.cookies() == []
            await other.get_by_role("button", name="Sign in").click()
            await expect(other.locator("#user")).to_have_text("Signed in as mallory")
            await context.close()


async def test_who_signs_out_is_out_in_every_tab_and_a_copy_of_the_cookie_is_worth_nothing(
    page: Page, place: Place, api: Served
) -> None:
    await expect(page.locator("#user")).to_have_text("Signed in as ann")
    second = await page.context.new_page()
    await second.goto(api.client.url)
    await live(second)
    (cookie,) = await page.context.cookies()
    await page.get_by_role("button", name="Sign out").click()
    for each in (page, second):
        await expect(each.locator("#signed-out")).to_be_visible()
        await expect(each.locator("#user")).to_be_hidden()
    assert await page.context.cookies() == []
    api.client.token = cookie["value"]
    assert (await api.client.ask("GET", "/whoami"))[0] == 401

"""What the page claims while something is broken, and that nothing is lost by it; as a person meets it."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, BrowserContext, Page, Route, expect
from tests.browser.screen import LOOK, card, live
from tests.browser.stub import Stub
from tests.browser.test_page import PIXEL
from tests.kit import STALL_S, until

pytestmark = pytest.mark.asyncio(loop_scope="session")


@asynccontextmanager
async def visitor(browser: Browser, server: Stub, script: str = "") -> AsyncIterator[BrowserContext]:
    """A browser of its own that is signed in; `script` runs before the page's."""
    async with await browser.new_context(**LOOK) as context:
        if script:
            await context.add_init_script(script)
        await context.request.post(server.sign_in_link(), form={}, max_redirects=0)
        yield context


async def another(context: BrowserContext, server: Stub) -> Page:
    page = await context.new_page()
    await page.goto(server.url)
    await page.locator("#form").wait_for()
    return page


async def order(page: Page, prompt: str) -> None:
    await page.locator("#prompt").fill(prompt)
    await page.keyboard.press("Enter")


# -- the connection line ---------------------------------------------------------------------------


async def test_a_heartbeat_that_does_not_vouch_is_shown_and_told_after_a_while(
    page: Page, server: Stub
) -> None:
    server.tell_heartbeat(fresh=False, since="2026-11-24T12:04:31.000Z")
    await expect(page.locator("#stream .word")).to_have_text("Not up to date")
    await expect(page.locator("#stream .since")).to_have_text(re.compile(r"^since .*\d\d:\d\d"))
    await expect(page.locator("#behind")).to_be_hidden()
    await expect(page.locator("#behind")).to_contain_text("Cards show how things stood at")
    server.tell_heartbeat()
    await live(page)
    await expect(page.locator("#behind")).to_be_hidden()


async def test_an_end_that_was_planned_shows_no_banner(page: Page, server: Stub) -> None:
    await page.evaluate(
        """() => {
          window.banners = 0;
          const look = () => (window.banners += !document.querySelector('#behind').hidden);
          new MutationObserver(look).observe(document.querySelector('#behind'), {attributes: true});
        }"""
    )
    server.end_streams()
    await until(lambda: _is(server.streams == 1))
    await live(page)
    assert await page.evaluate("window.banners") == 0


@pytest.mark.loaded
async def test_a_page_that_was_stopped_catches_up_when_it_goes_on(page: Page, server: Stub) -> None:
    """As by a machine that sleeps: headless Chromium obeys no Page.setWebLifecycleState, so its renderers are stopped."""
    session = server.enqueue("x")
    assert page.context.browser
    asked = await page.context.browser.new_browser_cdp_session()
    processes = (await asked.send("SystemInfo.getProcessInfo"))["processInfo"]
    renderers = [one["id"] for one in processes if one["type"] == "renderer"]
    try:
        for renderer in renderers:
            os.kill(renderer, signal.SIGSTOP)
        server.end_streams()
        server.fail(session)
    finally:
        for renderer in renderers:
            os.kill(renderer, signal.SIGCONT)
    await expect(card(page, session)).to_have_attribute("data-status", "failed")
    await live(page)


async def test_a_machine_that_slept_with_the_page_in_sight_does_not_wait_for_a_dead_stream(
    browser: Browser, server: Stub
) -> None:
    """No event tells of it, only the clock; and the connection says nothing, not even its end."""
    async with visitor(browser, server) as context:
        await context.clock.install()
        page = await another(context, server)
        await live(page)
        server.forget_streams()
        session = server.enqueue("x")
        server.fail(session)
        await context.clock.fast_forward("10:00")
        await expect(card(page, session)).to_have_attribute("data-status", "failed")
        await live(page)


async def test_an_image_ages_while_its_dialog_is_open(browser: Browser, server: Stub) -> None:
    async with visitor(browser, server) as context:
        await context.clock.install()
        page = await another(context, server)
        session = server.enqueue("x")
        server.complete(session, PIXEL, kept_h=20 / 3600)
        await card(page, session).locator(".prompt").click()
        await page.locator("dialog .save").focus()
        await context.clock.fast_forward("00:31")
        await expect(page.locator("dialog .gallery")).to_contain_text("It is gone by now.")
        await expect(page.locator("dialog .close")).to_be_focused()


@pytest.mark.parametrize(
    "gone",
    [
        pytest.param("delete window.EventSource", id="the stream comes by fetch"),
        pytest.param("delete Navigator.prototype.locks", id="a tab that is seen has a stream of its own"),
    ],
)
async def test_the_page_hears_without_what_a_browser_may_lack(
    browser: Browser, server: Stub, gone: str
) -> None:
    async with visitor(browser, server, gone) as context:
        page = await another(context, server)
        await live(page)
        session = server.enqueue("x")
        server.fail(session)
        await expect(card(page, session)).to_have_attribute("data-status", "failed")


async def _has_noticed(server: Stub) -> bool:
    """The stub learns of an end only by writing, and not always by the first time."""
    server.tell_heartbeat()
    return server.streams == 0


async def test_a_page_from_the_back_forward_cache_catches_up(page: Page, server: Stub) -> None:
    """It holds no stream meanwhile; the browser would not keep it otherwise."""
    kept = "name => dispatchEvent(new PageTransitionEvent(name, {persisted: true}))"
    session = server.enqueue("x")
    await page.evaluate(kept, "pagehide")
    await until(lambda: _has_noticed(server))
    server.fail(session)
    await page.evaluate(kept, "pageshow")
    await expect(card(page, session)).to_have_attribute("data-status", "failed")
    await live(page)


async def test_storage_that_is_forbidden_takes_nothing_but_the_draft(browser: Browser, server: Stub) -> None:
    forbid = """for (const name of ['sessionStorage', 'localStorage']) {
      Object.defineProperty(window, name, {get() { throw new DOMException('no', 'SecurityError'); }});
    }"""
    async with visitor(browser, server, forbid) as context:
        page = await another(context, server)
        await live(page)
        await order(page, "a fox")
        await expect(page.locator(".card")).to_have_attribute("data-status", "queued")


# -- tabs ------------------------------------------------------------------------------------------


async def test_tabs_have_one_stream_from_each_of_them_one_orders_and_the_end_of_the_leader_is_healed(
    browser: Browser, server: Stub
) -> None:
    async with visitor(browser, server) as context:
        first = await another(context, server)
        await live(first)
        second, third = await another(context, server), await another(context, server)
        await live(second)
        await live(third)
        assert server.streams == 1
        await asyncio.gather(*(order(tab, "a fox") for tab in (first, second, third)))
        await until(lambda: _is(len(server.sessions) == 3))
        session = server.enqueue("between two leaders")
        await first.close()
        server.fail(session)  # whoever leads next must be told of it
        for tab in (second, third):
            await expect(card(tab, session)).to_have_attribute(
                "data-status", "failed", timeout=(2 + STALL_S) * 1_000
            )
        await live(third)
        server.tell_heartbeat()  # the stub notices by it that the first one's is gone
        await until(lambda: _is(server.streams == 1))


# -- what was typed --------------------------------------------------------------------------------


@pytest.mark.loaded
async def test_an_order_that_cannot_be_sent_waits_as_a_card_and_is_paid_once(
    page: Page, server: Stub
) -> None:
    keys: list[str] = []

    async def refuse(route: Route) -> None:
        keys.append(route.request.headers["idempotency-key"])
        await route.abort()

    await page.route("**/generations", refuse)
    await order(page, "a fox")
    own = page.locator(".card")
    await expect(own).to_have_attribute("data-status", "unsent")
    await expect(own.locator(".waiting")).to_have_text("The server cannot be reached.")
    await expect(page.locator("#news")).to_have_text("“a fox” was not sent. The server cannot be reached.")
    await page.reload()
    await expect(own).to_have_attribute("data-status", "unsent")
    await expect(own.locator(".prompt")).to_have_text("a fox")
    await page.unroute("**/generations")
    async with page.expect_request("**/generations") as sent:
        await own.get_by_role("button", name="Resend").click()
    keys.append((await sent.value).headers["idempotency-key"])
    await expect(own).to_have_attribute("data-status", "queued")
    assert len(set(keys)) == 1
    assert len(server.sessions) == 1
    await page.reload()
    await expect(own).to_have_count(1)


@pytest.mark.loaded
async def test_a_draft_outlives_a_reload_and_a_sign_in(page: Page, server: Stub) -> None:
    await page.locator("#prompt").fill("a fox that nobody has sent yet")
    await page.reload()
    await expect(page.locator("#prompt")).to_have_value("a fox that nobody has sent yet")
    other = await page.context.new_page()
    await other.goto(server.sign_in_link())  # the first page begins anew
    await live(other)
    await expect(other.locator("#prompt")).to_have_value("")
    await expect(page.locator("#prompt")).to_have_value("a fox that nobody has sent yet")


@pytest.mark.loaded
async def test_a_refusal_takes_no_text_that_was_typed_meanwhile_and_can_be_discarded(
    page: Page, server: Stub
) -> None:
    server.balance = 2
    gate = asyncio.Event()

    async def late(route: Route) -> None:
        await gate.wait()
        await route.continue_()

    await page.route("**/generations", late)
    await order(page, "the first")
    await page.locator("#prompt").fill("the second")
    gate.set()
    await expect(page.locator(".card")).to_have_attribute("data-status", "unsent")
    await expect(page.locator("#prompt")).to_have_value("the second")
    await expect(page.locator(".card .waiting")).to_have_text("An image costs 4 credits and you have 2.")
    await page.get_by_role("button", name="Discard").click()
    await expect(page.locator(".card")).to_have_count(0)
    await expect(page.locator("#prompt")).to_be_focused()


@pytest.mark.loaded
async def test_a_redrive_with_another_prompt_takes_the_refused_one_off_the_card(
    page: Page, server: Stub
) -> None:
    session = server.enqueue("undressed")
    server.fail(session)
    await expect(card(page, session).locator(".prompt")).to_have_text("undressed")
    stale = json.loads(json.dumps(server.sessions[session]))
    server.sessions[session]["prompt"] = "dressed"
    server.redrive(session)
    await expect(card(page, session).locator(".prompt")).to_have_text("dressed")
    await page.route("**/sessions?*", lambda route: route.fulfill(json={"sessions": [stale], "next": None}))
    async with page.expect_response("**/sessions?*"):
        await page.evaluate("window.dispatchEvent(new Event('focus'))")
    await expect(card(page, session).locator(".prompt")).to_have_text("dressed")
    await expect(card(page, session)).to_have_attribute("data-status", "queued")


async def _is(what: bool) -> bool:
    return what

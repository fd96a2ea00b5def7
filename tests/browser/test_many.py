"""Many cards: an event touches one of them, and nothing moves by itself."""

import pytest
from playwright.async_api import Page, expect
from tests.browser.screen import card, live
from tests.browser.stub import Stub
from tests.kit import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

COUNT_CHANGES = """() => {
  window.touched = new Set();
  const list = document.querySelector('#cards');
  const of = ({target, addedNodes, removedNodes}) => target === list
    ? [...addedNodes, ...removedNodes] : [(target.closest ?? (() => target.parentElement.closest('li'))).call(target, 'li')];
  const count = (changes) => changes.flatMap(of).forEach((item) => window.touched.add(item));
  new MutationObserver(count).observe(list, {childList: true, subtree: true, attributes: true, characterData: true});
}"""
COUNT_SHIFTS = """() => {
  window.shifted = 0;
  new PerformanceObserver((list) => list.getEntries().forEach(({value}) => (window.shifted += value)))
    .observe({type: 'layout-shift', buffered: false});
}"""


async def filled(page: Page, server: Stub, cards: int = 60) -> list[str]:
    made = [server.enqueue(f"number {number}", ago_s=number + 1) for number in range(cards)]
    await page.reload()
    await live(page)
    await expect(page.locator(".card")).to_have_count(min(cards, 48))
    return made


async def test_an_event_touches_its_card_and_moves_neither_focus_nor_scroll(page: Page, server: Stub) -> None:
    made = await filled(page, server)
    await card(page, made[20]).locator(".prompt").focus()
    at = await page.evaluate("scrollY")
    await page.evaluate(COUNT_CHANGES)
    await page.evaluate(COUNT_SHIFTS)
    for session in (made[0], made[21], made[40]):  # above, beside, below
        server.fail(session)
        await expect(card(page, session)).to_have_attribute("data-status", "failed")
    assert await page.evaluate("window.shifted") == 0
    server.fail(made[55])  # not loaded yet
    await expect(card(page, made[55]).locator(".prompt")).to_have_text("number 55")
    assert await page.evaluate("window.touched.size") == 4
    await expect(card(page, made[20]).locator(".prompt")).to_be_focused()
    assert abs(await page.evaluate("scrollY") - at) < 2
    order = await page.locator(".card .prompt").all_text_contents()
    assert order == sorted(order, key=lambda prompt: int(prompt.split()[1]))


async def test_older_images_leave_the_focus_where_it_is_or_give_it_to_the_first_of_them(
    page: Page, server: Stub
) -> None:
    made = await filled(page, server, 110)
    await page.locator("#older").focus()
    await page.keyboard.press("Enter")
    await expect(page.locator(".card")).to_have_count(96)
    await expect(page.locator("#older")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator(".card")).to_have_count(110)
    await expect(card(page, made[96]).locator(".prompt")).to_be_focused()


async def test_the_wheel_loads_older_images_by_itself(page: Page, server: Stub) -> None:
    await filled(page, server)
    await page.mouse.move(600, 600)
    while await page.locator(".card").count() == 48:
        await page.mouse.wheel(0, 2_000)
    await expect(page.locator(".card")).to_have_count(60)


async def test_a_reset_keeps_the_place(page: Page, server: Stub) -> None:
    made = await filled(page, server)
    await page.locator("#older").click()
    await expect(page.locator(".card")).to_have_count(60)
    await card(page, made[50]).locator(".prompt").focus()
    at = await page.evaluate("scrollY")
    async with page.expect_response("**/sessions?*"):
        server.tell_reset()
    server.fail(made[50])
    await expect(card(page, made[50])).to_have_attribute("data-status", "failed")
    await expect(page.locator(".card")).to_have_count(60)
    await expect(card(page, made[50]).locator(".prompt")).to_be_focused()
    assert abs(await page.evaluate("scrollY") - at) < 2


async def test_a_burst_of_fifty_is_one_list_request_and_one_announcement(page: Page, server: Stub) -> None:
    made = await filled(page, server, 48)
    server.asked.clear()
    for session in made:
        server.fail(session)
    news = page.locator("#news p")
    await expect(news).to_have_text("48 images failed. 192 credits returned.")
    asked = [path for path in server.asked if "sessions" in path]
    assert asked.count("/api/seedream4/sessions") == 1
    assert len(asked) <= 2  # on a busy machine the first may come alone
    server.fail(made[3])  # its refund, say: it was failed before
    await until(lambda: _asked(server, f"/api/seedream4/sessions/{made[3]}"))
    await expect(news).to_have_count(1)


async def test_a_change_out_of_sight_is_told_with_a_way_to_it(page: Page, server: Stub) -> None:
    made = await filled(page, server)
    server.fail(made[59], category="server")
    notice = page.locator("#elsewhere")
    await expect(notice).to_have_text("1 image changed out of sight")
    await notice.click()
    await expect(card(page, made[59])).to_be_in_viewport()
    await expect(card(page, made[59]).locator(".prompt")).to_be_focused()
    await expect(notice).to_be_hidden()
    server.fail(made[58])
    await expect(card(page, made[58])).to_have_attribute("data-status", "failed")
    await expect(notice).to_be_hidden()


async def _asked(server: Stub, path: str) -> bool:
    return path in server.asked

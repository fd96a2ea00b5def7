"""What a person wants to know: price, state, end, and what can be done; in every look, for everybody."""

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, Route, expect
from tests.browser.screen import LOOK, card, come_back
from tests.browser.stub import SENTENCE, Stub
from tests.browser.test_page import PIXEL, shown

pytestmark = pytest.mark.asyncio(loop_scope="session")

AXE = Path(__file__).parents[1] / "js/node_modules/axe-core/axe.min.js"
BODY = '{"error": {"code": "OutputImageSensitiveContentDetected", "message": "<b>no</b>"}}'
TOO_WIDE = "element => element.scrollWidth - element.clientWidth"
BIDI = "\u202eevil\u202c \u05e9\u05dc\u05d5\u05dd " + "x" * 10_000


async def test_the_price_is_said_before_the_order_and_who_cannot_pay_is_told(
    page: Page, server: Stub
) -> None:
    await expect(page.locator("#cost")).to_have_text("4 credits an image")
    server.balance = 2
    await page.evaluate("window.dispatchEvent(new Event('focus'))")
    await expect(page.locator("#cost")).to_have_text("An image costs 4 credits and you have 2.")
    generate = page.get_by_role("button", name="Generate")
    await expect(generate).to_have_attribute("aria-disabled", "true")
    await page.locator("#prompt").fill("a fox")
    await page.keyboard.press("Enter")
    await expect(page.locator("#complaint")).to_have_text("An image costs 4 credits and you have 2.")
    await expect(page.locator("#prompt")).to_have_value("a fox")
    server.balance = 100
    # the balance is asked for again before it is refused; and a key that is pressed twice orders once
    await page.locator("#form").evaluate("form => { form.requestSubmit(); form.requestSubmit(); }")
    await expect(page.locator(".card")).to_have_attribute("data-status", "queued")


async def test_a_failed_image_can_be_tried_again_at_its_price(page: Page, server: Stub) -> None:
    session = await shown(page, server)
    server.sessions[session]["params"] = {"size": "4K"}
    server.fail(session)
    await card(page, session).locator(".prompt").click()
    await page.get_by_role("button", name="Try again · 4 credits").click()
    await expect(page.locator(".card")).to_have_count(2)
    await expect(page.locator(".card").first).to_have_attribute("data-status", "queued")
    made = next(id_ for id_ in server.sessions if id_ != session)
    assert server.sessions[made]["prompt"] == server.sessions[session]["prompt"]
    assert server.sessions[made]["params"] == {"size": "4K"}


@pytest.mark.loaded
async def test_a_complaint_goes_once_somebody_does_something_about_it(page: Page, server: Stub) -> None:
    session = await shown(page, server)
    server.fail(session)
    server.balance = 0
    await card(page, session).locator(".prompt").click()
    await page.get_by_role("button", name="Try again").click()
    complaint = page.locator("#complaint")
    await expect(complaint).to_have_text("An image costs 4 credits and you have 0.")
    server.balance = 100
    await page.get_by_role("button", name="Resend").click()
    await expect(complaint).to_have_text("")
    await expect(page.locator(".card").first).to_have_attribute("data-status", "queued")
    await page.locator("#prompt").fill(" ")
    await page.keyboard.press("Enter")
    await expect(complaint).to_have_text("Say what the image shall show.")
    await page.locator("#prompt").fill("a fox")
    await expect(complaint).to_have_text("")


async def test_an_image_that_waits_can_be_cancelled_and_one_that_is_made_cannot(
    page: Page, server: Stub
) -> None:
    begun, session = await shown(page, server, "begun"), await shown(page, server)
    cancel = page.get_by_role("button", name="Cancel this image")
    await card(page, begun).locator(".prompt").click()
    server.begin(begun)  # nothing has told the page
    await cancel.click()
    await expect(page.locator("dialog .complaint")).to_contain_text("does not wait any more")
    await expect(page.locator("dialog .status")).to_have_text("Processing")
    await expect(cancel).to_be_hidden()
    await page.keyboard.press("Escape")
    await card(page, session).locator(".prompt").click()
    await cancel.click()
    await expect(page.locator("dialog h2")).to_have_text("Cancelled")
    await expect(page.locator("dialog .refund")).to_contain_text("4 credits returned")
    await expect(card(page, session).locator(".status")).to_have_text("Cancelled")


async def test_a_cancel_that_is_too_late_is_not_told_of_another_image(page: Page, server: Stub) -> None:
    begun, other = await shown(page, server, "begun"), await shown(page, server)
    may_answer = asyncio.Event()

    async def late(route: Route) -> None:
        await may_answer.wait()
        await route.continue_()

    await page.route("**/cancel", late)
    await card(page, begun).locator(".prompt").click()
    server.begin(begun)  # nothing has told the page
    await page.get_by_role("button", name="Cancel this image").click()
    await page.keyboard.press("Escape")
    await card(page, other).locator(".prompt").click()
    may_answer.set()
    await expect(card(page, begun)).to_have_attribute("data-status", "processing")
    await expect(page.locator("dialog .complaint")).to_have_text("")


@pytest.mark.loaded
async def test_what_hides_itself_when_it_is_used_does_not_drop_the_focus(page: Page, server: Stub) -> None:
    session = await shown(page, server)
    await card(page, session).locator(".prompt").click()
    await page.get_by_role("button", name="Cancel this image").press("Enter")
    await expect(page.get_by_role("button", name="Close")).to_be_focused()
    await page.keyboard.press("Escape")
    await page.route("**/generations", lambda route: route.abort())
    await page.locator("#prompt").fill("cannot be sent")
    await page.keyboard.press("Enter")
    resend = page.get_by_role("button", name="Resend")
    await resend.wait_for()
    await page.unroute("**/generations")
    await resend.press("Enter")
    await expect(page.locator(".card[data-status=queued] .prompt")).to_be_focused()
    server.tell_heartbeat(fresh=False, since="2026-11-24T12:04:31.000Z")
    await page.locator("#behind .retry").wait_for()
    await page.locator("#behind .retry").press("Enter")
    server.tell_heartbeat()
    await expect(page.locator("#behind")).to_be_hidden()
    await expect(page.locator("#cards")).to_be_focused()


async def test_a_closed_gate_is_told_on_what_waits(page: Page, server: Stub) -> None:
    server.gate = {"state": "paused", "until": None}
    server.enqueue("waits", ago_s=185)
    await page.reload()
    await expect(page.locator("#gate")).to_contain_text("Images are paused.")
    await expect(page.locator(".card .waiting")).to_have_text("Paused · 3 min")
    server.gate = {"state": "busy", "until": None}
    server.tell_heartbeat()
    await expect(page.locator("#gate")).to_contain_text("The image service is busy")
    server.gate = {"state": "open", "until": None}
    server.tell_heartbeat()
    await expect(page.locator("#gate")).to_be_hidden()


async def test_a_set_shows_all_its_images_and_what_is_missing(page: Page, server: Stub) -> None:
    session = await shown(page, server)
    server.sessions[session]["params"] = {"sequential_image_generation_options": {"max_images": 4}}
    refused = {"place": 2, "code": "X", "category": "content_policy", "userMessage": SENTENCE}
    server.complete(session, PIXEL, images=3, refused=[refused])
    await expect(card(page, session).locator(".many")).to_have_text("3 of 4 images")
    await card(page, session).locator(".prompt").click()
    await expect(page.locator("dialog .full img")).to_have_count(3)
    await expect(page.locator("dialog .short")).to_have_text("3 of 4 images: the others were not made.")
    gap = page.locator("dialog .gallery > :nth-child(2)")
    await expect(gap).to_contain_text("Image 2: Refused by the content policy")
    await expect(gap).to_contain_text(SENTENCE)


async def test_an_image_of_another_host_is_saved_or_where_that_host_forbids_it_opened(
    page: Page, server: Stub
) -> None:
    headers: dict[str, str] = {"access-control-allow-origin": "*"}

    async def image(route: Route) -> None:
        await route.fulfill(body=PIXEL, content_type="image/png", headers=headers)

    await page.context.route("https://images.example/**", image)
    session = await shown(page, server)
    server.complete(session, PIXEL, host="https://images.example")
    await card(page, session).locator(".prompt").click()
    save = page.get_by_role("button", name="Download image 1")
    async with page.expect_download() as saved:
        await save.click()
    download = await saved.value
    assert download.suggested_filename == f"{session}-1.png"
    assert (await download.path()).read_bytes() == PIXEL
    headers["access-control-allow-origin"] = "https://other.example"  # Playwright adds one that is missing
    async with page.context.expect_page() as opened:
        await save.click()
    assert (await opened.value).url == f"https://images.example/images/{session}"
    await expect(save).to_have_text("Opened: save it there")


async def test_an_expired_image_is_told_as_such(page: Page, server: Stub) -> None:
    session = await shown(page, server)
    server.complete(session, PIXEL, kept_h=-1)
    await expect(card(page, session).locator(".waiting")).to_contain_text("This image was kept until")
    await card(page, session).locator(".prompt").click()
    await expect(page.locator("dialog .gallery")).to_contain_text("It is gone by now.")
    await expect(page.locator("dialog .full")).to_have_count(0)


async def test_the_providers_answer_is_behind_a_disclosure_where_there_is_one(
    page: Page, server: Stub
) -> None:
    told, hidden = await shown(page, server), await shown(page, server, "of ours")
    server.fail(told, providerBody=BODY + "y" * 1_900)
    server.fail(hidden, category="auth", providerBody=None)
    await card(page, hidden).locator(".prompt").click()
    await expect(page.locator("dialog .body")).to_be_hidden()
    await page.keyboard.press("Escape")
    await card(page, told).locator(".prompt").click()
    body = page.locator("dialog .body pre")
    await expect(body).to_be_hidden()
    await page.get_by_text("The provider’s answer").click()
    await expect(body).to_be_visible()
    await expect(body).to_contain_text("<b>no</b>")


async def test_waiting_images_are_counted_in_the_title_and_kinds_can_be_filtered(
    page: Page, server: Stub
) -> None:
    waits, failed = await shown(page, server), await shown(page, server, "another")
    await expect(page).to_have_title("(2) genctl: your images")
    await expect(page.locator("#filter")).to_be_hidden()
    server.fail(failed)
    await expect(page).to_have_title("(1) genctl: your images")
    await page.get_by_role("button", name="Failed 1").click()
    await expect(card(page, waits)).to_be_hidden()
    await expect(card(page, failed)).to_be_visible()
    await page.get_by_role("button", name="Done 0").click()
    await expect(page.locator("#none")).to_be_visible()
    await page.get_by_role("button", name="All 2").click()
    await expect(card(page, waits)).to_be_visible()
    await expect(page.get_by_role("button", name="Cancelled")).to_be_hidden()
    server.fail(waits, code="Cancelled", category="cancelled")
    await page.get_by_role("button", name="Cancelled 1").click()
    await expect(page.locator(".card:visible")).to_have_attribute("data-session-id", waits)
    await page.get_by_role("button", name="Failed 1").click()
    await expect(page.locator(".card:visible")).to_have_attribute("data-session-id", failed)


async def test_a_filter_hides_nothing_that_was_just_ordered(page: Page, server: Stub) -> None:
    failed, done = await shown(page, server), await shown(page, server, "made")
    server.fail(failed)
    server.complete(done, PIXEL)
    await page.get_by_role("button", name="Failed 1").click()
    await card(page, failed).locator(".prompt").click()
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator(".card[data-status=queued] .prompt")).to_be_focused()
    await page.get_by_role("button", name="Done 1").click()
    await page.locator("#prompt").fill("a fox")
    await page.keyboard.press("Enter")
    await expect(page.locator(".card:visible")).to_have_count(4)


@pytest.mark.loaded
async def test_news_is_heard_while_the_dialog_is_open(page: Page, server: Stub) -> None:
    session, other = await shown(page, server), await shown(page, server, "another")
    await card(page, session).locator(".prompt").click()
    server.complete(other, PIXEL)
    await expect(page.locator("dialog [role=log]")).to_have_text("“another”: completed.")
    await expect(page.locator("#news")).to_have_text("")


async def test_prompts_of_any_length_and_direction_break_nothing(page: Page, server: Stub) -> None:
    session = await shown(page, server, BIDI)
    prompt = card(page, session).locator(".prompt")
    assert await prompt.evaluate("element => getComputedStyle(element).unicodeBidi") in (
        "isolate",
        "plaintext",
    )
    server.fail(session)
    await prompt.click()
    await expect(page.locator("dialog dd").first).to_have_js_property("textContent", BIDI)
    await expect(page.get_by_role("button", name="Try again")).to_be_in_viewport()
    await expect(page.get_by_role("button", name="Close")).to_be_in_viewport()


# -- every look, for everybody ---------------------------------------------------------------------


async def show_everything(page: Page, server: Stub) -> None:
    """A card of each kind, one of which is full of long words."""
    server.fail(server.enqueue("no more"), code="Cancelled", category="cancelled")
    server.fail(server.enqueue("x" * 300), userMessage="y" * 300, code="Z" * 100, requestId="0" * 200)
    server.fail(server.enqueue("refused " * 12), refundedCredits=0, providerBody=BODY)
    server.complete(server.enqueue("made"), PIXEL, images=2)
    server.complete(server.enqueue("gone"), PIXEL, kept_h=-1)
    server.begin(server.enqueue("begun"))
    server.enqueue("waits")
    server.gate = {"state": "paused", "until": None}
    await page.route("**/generations", lambda route: route.abort())
    await page.locator("#prompt").fill("cannot be sent")
    await page.keyboard.press("Enter")
    await page.locator(".card[data-status=unsent]").wait_for()
    await come_back(page)
    server.tell_heartbeat(fresh=False, since="2026-11-24T12:04:31.000Z")
    await page.locator("#behind").wait_for()
    await page.locator("#gate").wait_for()
    await expect(page.locator(".card")).to_have_count(8)


async def violations(page: Page, within: str = "body", *, dark: bool = True) -> list[str]:
    """What axe finds there in light, and by the colours in dark."""
    found = []
    for scheme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]}))[: 1 + dark]:
        await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        asked = "([where, options]) => axe.run(where, options).then(({violations}) => violations)"
        found += await page.evaluate(
            asked, [within, {"resultTypes": ["violations"], "preload": False, **rules}]
        )
    return [f"{one['id']}: {[node['html'] for node in one['nodes']]}" for one in found]


@pytest.mark.loaded
async def test_in_any_state_axe_finds_nothing_and_nothing_is_cut_off_at_any_width(
    page: Page, server: Stub
) -> None:
    if not AXE.exists():
        pytest.skip("axe is not installed: npm install --prefix tests/js")
    await show_everything(page, server)
    await page.evaluate(AXE.read_text("utf-8"))
    assert await violations(page) == []
    for width in (320, 2560):
        await page.set_viewport_size({"width": width, "height": 900})
        assert await page.locator("html").evaluate(TOO_WIDE) == 0
        box = await page.locator("#cards").bounding_box()
        assert box
        assert box["width"] > 0.9 * width - 10
        for failed in await page.locator(".card[data-status=failed] .prompt").all():
            await failed.click()
            assert await page.locator("dialog .frame").evaluate(TOO_WIDE) == 0
            await page.keyboard.press("Escape")
    await page.emulate_media(forced_colors="active")
    dot, ground = [
        await page.locator(one).evaluate("element => getComputedStyle(element).backgroundColor")
        for one in ("#stream .dot", "body")
    ]
    assert dot != ground
    await page.emulate_media(forced_colors="none")
    await page.set_viewport_size(LOOK["viewport"])
    for status in ("failed", "completed", "queued"):
        await page.locator(f".card[data-status={status}] .prompt").first.click()
        for folded in await page.locator("dialog summary:visible").all():
            await folded.click()
        assert await violations(page, "dialog", dark=status == "failed") == []
        await page.keyboard.press("Escape")
    await page.get_by_role("button", name="Sign out").click()
    await page.locator("#signed-out").wait_for()
    assert await violations(page) == []


async def test_a_prompt_of_one_line_begins_where_one_of_two_begins(page: Page, server: Stub) -> None:
    texts = [
        card(page, await shown(page, server, prompt)).locator(".prompt") for prompt in ("short", "long " * 30)
    ]
    top = """element => {
      const range = document.createRange();
      range.selectNodeContents(element);
      return range.getBoundingClientRect().top - element.closest('.facts').getBoundingClientRect().top;
    }"""
    one, two = [await text.evaluate(top) for text in texts]
    assert one == pytest.approx(two, abs=1)


async def test_without_scripts_the_page_says_so(browser: Browser, server: Stub) -> None:
    async with await browser.new_context(java_script_enabled=False) as context:
        page = await context.new_page()
        await page.goto(server.url)
        await expect(page.locator("noscript p")).to_be_visible()

"""The page in a real browser under the strict policy: what reaches the person's eyes, and when."""

import base64
import json
import time

import pytest
from playwright.async_api import Browser, Page, expect
from tests.browser.screen import LOOK, card, come_back, keep_answering, live
from tests.browser.stub import SENTENCE, Stub
from tests.kit import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
XSS = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>&lt;b&gt;"


async def shown(page: Page, server: Stub, prompt: str = "a lighthouse at dusk") -> str:
    """A queued session whose card is on the page."""
    session_id = server.enqueue(prompt)
    await come_back(page)
    await expect(card(page, session_id)).to_have_attribute("data-status", "queued")
    return session_id


async def test_a_card_flips_within_a_second_of_the_event_without_a_reload(page: Page, server: Stub) -> None:
    """The quickest of three does: a busy machine may let the browser stand still for longer."""
    await page.evaluate("window.sameDocument = true")
    took = list[float]()
    while not took or (min(took) >= 1 and len(took) < 3):
        session_id = await shown(page, server)
        began = time.monotonic()
        server.fail(session_id)
        failed = card(page, session_id)
        await expect(failed).to_have_attribute("data-status", "failed")
        took.append(time.monotonic() - began)
    assert min(took) < 1
    await expect(failed.locator(".status")).to_have_text("Failed")
    await expect(failed.locator(".headline")).to_have_text("Refused by the content policy")
    await expect(failed.locator(".sentence")).to_have_text(SENTENCE)
    assert await page.evaluate("window.sameDocument")


async def test_the_details_are_there_before_any_fetch_is_answered(page: Page, server: Stub) -> None:
    session_id = await shown(page, server)
    await page.route("**/api/seedream4/sessions/*", lambda route: None)  # never answered
    server.fail(session_id)
    await expect(card(page, session_id).locator(".sentence")).to_have_text(SENTENCE)
    await expect(card(page, session_id).locator(".refund")).to_contain_text("4 credits returned")


async def test_a_failed_card_survives_stale_fetches(page: Page, server: Stub) -> None:
    session_id = await shown(page, server)
    await keep_answering(page, json.loads(json.dumps(server.sessions[session_id])))
    answers: list[str] = []
    page.on("response", lambda response: answers.append(response.url))
    server.fail(session_id)

    async def asked_three_times() -> bool:
        return len([url for url in answers if url.endswith(session_id)]) == 3

    await until(asked_three_times)
    async with page.expect_response(lambda response: "sessions?" in response.url):  # and a stale list
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await expect(card(page, session_id)).to_have_attribute("data-status", "failed")
    await expect(card(page, session_id).locator(".sentence")).to_have_text(SENTENCE)


async def test_a_failure_without_a_card_makes_a_stub_that_the_row_fills(page: Page, server: Stub) -> None:
    session_id = server.enqueue("made elsewhere")
    server.fail(session_id)
    stub = card(page, session_id)
    await expect(stub).to_have_attribute("data-status", "failed")
    await expect(stub.locator(".prompt")).to_have_text("made elsewhere")


async def test_text_is_escaped_everywhere(page: Page, server: Stub) -> None:
    session_id = await shown(page, server, XSS)
    server.fail(session_id, userMessage=XSS, providerMessage=f"{XSS}!", code=XSS, category=XSS, requestId=XSS)
    await expect(card(page, session_id).locator(".sentence")).to_have_text(XSS)
    await expect(card(page, session_id).locator(".prompt")).to_have_text(XSS)
    await card(page, session_id).locator(".prompt").click()
    await expect(page.locator("dialog .sentence")).to_have_text(XSS)
    assert await page.locator("#cards script, #cards [onerror], dialog script, dialog [onerror]").count() == 0
    assert await page.title() == "genctl: your images"


async def test_an_address_that_is_a_script_is_no_image(page: Page, server: Stub) -> None:
    session_id = await shown(page, server)
    server.complete(session_id, PIXEL)
    server.sessions[session_id]["result"] = {"images": [{"url": "javascript:document.title='owned'"}]}
    await page.reload()
    await card(page, session_id).locator(".prompt").click()
    await expect(page.locator("dialog .full")).to_be_hidden()
    assert await page.locator('[href^="javascript"], [src^="javascript"]').count() == 0


async def test_the_refund_is_shown_with_its_time_and_the_balance_follows(page: Page, server: Stub) -> None:
    session_id = await shown(page, server)
    await expect(page.locator("#balance")).to_have_text("996 credits 4 held")
    server.fail(session_id)
    refund = card(page, session_id).locator(".refund")
    await expect(refund.locator("span")).to_have_text("4 credits returned")
    at = server.sessions[session_id]["error_details"]["refundedAt"]
    await expect(refund.locator("time")).to_have_attribute("datetime", at)
    await expect(refund.locator("time")).to_have_text(
        await page.evaluate("at => new Date(at).toLocaleTimeString('en', {hour12: false})", at)
    )
    await expect(page.locator("#balance")).to_have_text("1,000 credits")


async def test_a_refund_that_failed_is_pending_until_the_row_says_more(page: Page, server: Stub) -> None:
    session_id = await shown(page, server)
    server.fail(session_id, refundedCredits=0, refundedAt=None, refundError="release failed")
    refund = card(page, session_id).locator(".refund")
    await expect(refund).to_have_text("refund pending")
    server.fail(session_id)
    await expect(refund).to_contain_text("4 credits returned")


async def test_no_refund_is_claimed_that_the_row_does_not_tell(page: Page, server: Stub) -> None:
    session_id = await shown(page, server)
    server.fail(session_id, refundedCredits=0, refundedAt=None, reservationAmount=4)
    await expect(card(page, session_id).locator(".failure")).to_be_visible()
    await expect(card(page, session_id).locator(".refund")).to_be_hidden()


async def test_a_redriven_session_leaves_failed_and_may_complete(page: Page, server: Stub) -> None:
    session_id = await shown(page, server)
    server.fail(session_id)
    await expect(card(page, session_id)).to_have_attribute("data-status", "failed")
    server.redrive(session_id)
    await expect(card(page, session_id)).to_have_attribute("data-status", "queued")
    await expect(card(page, session_id).locator(".status")).to_have_text("Queued, run 2")
    server.complete(session_id, PIXEL)
    await expect(card(page, session_id).locator(".picture")).to_be_visible()
    await expect(card(page, session_id).locator(".failure")).to_be_hidden()


async def test_an_image_that_cannot_be_loaded_says_so(page: Page, server: Stub) -> None:
    session_id = await shown(page, server)
    server.complete(session_id, b"no image")
    await expect(card(page, session_id).locator(".waiting")).to_have_text("The image cannot be shown here.")
    await expect(card(page, session_id).locator(".picture")).to_be_hidden()


async def test_an_order_becomes_a_card_at_once_and_joins_its_session(page: Page, server: Stub) -> None:
    await page.locator("#prompt").fill("a fox in fresh snow")
    await page.keyboard.press("Enter")
    own = page.locator(".card")
    await expect(own.locator(".prompt")).to_have_text("a fox in fresh snow")
    await expect(own).to_have_attribute("data-status", "queued")
    [session_id] = server.sessions
    await expect(card(page, session_id)).to_have_count(1)
    await expect(page.locator("#balance")).to_have_text("996 credits 4 held")
    server.fail(session_id)
    await expect(own).to_have_attribute("data-status", "failed")
    await expect(own).to_have_count(1)


async def test_an_order_whose_answer_is_lost_is_paid_once(page: Page, server: Stub) -> None:
    server.lose_answer = True
    await page.locator("#prompt").fill("a fox in fresh snow")
    await page.get_by_role("button", name="Generate").click()
    await expect(page.locator(".card")).to_have_attribute("data-status", "queued")
    assert len(server.sessions) == 1


async def test_a_refused_order_says_why_and_gives_the_prompt_back(page: Page, server: Stub) -> None:
    server.balance = 2
    await page.locator("#prompt").fill("a fox")
    await page.keyboard.press("Enter")
    await expect(page.locator("#complaint")).to_have_text("An image costs 4 credits and you have 2.")
    await expect(page.locator("#prompt")).to_have_value("a fox")
    await expect(page.locator("#prompt")).to_be_focused()
    await expect(page.locator(".card")).to_have_count(0)


@pytest.mark.loaded
async def test_the_native_event_source_comes_back_after_a_restart_and_catches_up(
    page: Page, server: Stub
) -> None:
    session_id = await shown(page, server)
    await server.stop()
    await expect(page.locator("#stream .word")).to_have_text("Offline")
    await expect(page.locator("#behind")).to_be_visible()
    server.fail(session_id)  # nobody listens
    await server.start()
    await expect(card(page, session_id)).to_have_attribute("data-status", "failed")
    await live(page)
    await expect(page.locator("#behind")).to_be_hidden()


@pytest.mark.loaded
async def test_a_stream_that_the_browser_gave_up_is_opened_again(page: Page, server: Stub) -> None:
    """An answer other than 200 ends an EventSource for good."""
    session_id = await shown(page, server)
    server.broken = True
    async with page.expect_response(lambda response: response.status == 503):
        await server.stop()
        await server.start()
    server.fail(session_id)
    server.broken = False
    await expect(card(page, session_id)).to_have_attribute("data-status", "failed")
    await live(page)


async def test_after_a_reset_the_page_shows_what_the_database_holds(page: Page, server: Stub) -> None:
    """A restored backup: the row that failed is queued again in the same run."""
    kept, lost = await shown(page, server), await shown(page, server, "not in the backup")
    server.fail(kept)
    await expect(card(page, kept)).to_have_attribute("data-status", "failed")
    server.restore_backup()
    server.sessions[kept] |= {"status": "queued", "error_details": None}
    del server.sessions[lost]
    await server.stop()
    await server.start()
    await expect(card(page, kept)).to_have_attribute("data-status", "queued")
    await expect(card(page, lost)).to_have_count(0)


async def test_events_that_make_no_sense_hurt_nothing(page: Page, server: Stub) -> None:
    session_id = await shown(page, server)
    for data in ("no json", "null", "[]", "{}", '{"sessionId": 7}', '"text"'):
        server.tell_raw(f"event: failed\ndata: {data}\n\n")
    server.tell_raw("event: of-tomorrow\ndata: {}\n\n")
    server.fail(session_id)
    await expect(card(page, session_id)).to_have_attribute("data-status", "failed")
    await expect(page.locator(".card")).to_have_count(1)


async def test_a_waiting_card_learns_from_the_heartbeat_that_its_job_started(
    page: Page, server: Stub
) -> None:
    session_id = await shown(page, server)
    server.begin(session_id)
    server.tell_heartbeat()
    await expect(card(page, session_id)).to_have_attribute("data-status", "processing")


@pytest.mark.loaded
async def test_the_keyboard_opens_and_closes_the_dialog(page: Page, server: Stub) -> None:
    session_id = await shown(page, server)
    server.fail(session_id)
    await expect(card(page, session_id)).to_have_attribute("data-status", "failed")
    button = card(page, session_id).locator(".prompt")
    await page.locator("#form button[type=submit]").focus()
    await page.keyboard.press("Tab")
    await expect(button).to_be_focused()
    await page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_be_visible()
    for text in ("OutputImageSensitiveContentDetected", "content policy", "1 of 3", session_id, SENTENCE):
        await expect(dialog).to_contain_text(text)
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    await expect(button).to_be_focused()


async def test_an_open_dialog_flips_too(page: Page, server: Stub) -> None:
    session_id = await shown(page, server)
    await card(page, session_id).locator(".prompt").click()
    await expect(page.locator("dialog .status")).to_have_text("Queued")
    server.fail(session_id)
    await expect(page.locator("dialog .status")).to_have_text("Failed")
    await expect(page.locator("dialog")).to_contain_text("4 credits returned")


async def test_ids_can_be_copied(page: Page, server: Stub) -> None:
    session_id = await shown(page, server)
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await card(page, session_id).locator(".prompt").click()
    await page.get_by_role("button", name="Copy: Support reference").click()
    assert await page.evaluate("navigator.clipboard.readText()") == session_id  # a failed one adds its codes


@pytest.mark.loaded
async def test_a_flip_is_announced_and_the_first_list_is_not(page: Page, server: Stub) -> None:
    session_id = await shown(page, server)
    await expect(page.locator("#news")).to_have_text("")
    server.fail(session_id)
    await expect(page.locator("#news")).to_have_text(
        f"“a lighthouse at dusk” failed: Refused by the content policy. {SENTENCE} 4 credits returned."
    )


async def test_dark_follows_the_system(page: Page) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    await page.emulate_media(color_scheme="light")
    light = await page.evaluate(colour)
    await page.emulate_media(color_scheme="dark")
    assert await page.evaluate(colour) != light


async def test_who_wants_less_motion_gets_none(page: Page, server: Stub) -> None:
    session_id = await shown(page, server)
    await page.emulate_media(reduced_motion="no-preference")
    assert await page.evaluate("document.getAnimations().length") > 0
    await page.emulate_media(reduced_motion="reduce")
    server.fail(session_id)
    await expect(card(page, session_id)).to_have_attribute("data-status", "failed")
    assert await page.evaluate("document.getAnimations().length") == 0


async def test_older_images_come_on_demand_and_are_asked_for_again_after_a_failure(
    page: Page, server: Stub
) -> None:
    for number in range(60):
        server.enqueue(f"number {number}", ago_s=number + 1)
    await page.reload()
    await expect(page.locator(".card")).to_have_count(48)
    await page.route("**/sessions?*before=*", lambda route: route.abort(), times=1)
    await page.get_by_role("button", name="Show older images").click()
    await page.get_by_role("button", name="Older images could not be loaded").click()
    await expect(page.locator(".card")).to_have_count(60)
    await expect(page.locator("#older")).to_be_hidden()


async def test_an_empty_list_says_what_to_do(page: Page) -> None:
    await expect(page.locator("#empty")).to_contain_text("No images yet")


async def test_a_page_that_is_not_signed_in_says_how(browser: Browser, server: Stub) -> None:
    context = await browser.new_context(**LOOK)
    page = await context.new_page()
    await page.goto(server.url)
    await expect(page.locator("#signed-out")).to_contain_text("genctl token")
    await expect(page.locator("#form")).to_be_hidden()
    await context.close()


@pytest.mark.loaded
async def test_a_session_that_ends_on_the_way_signs_the_page_out(page: Page, server: Stub) -> None:
    await shown(page, server)
    server.sign_out()
    await server.stop()
    await server.start()
    await expect(page.locator("#signed-out")).to_be_visible()
    await expect(page.locator(".card")).to_have_count(0)


async def test_a_used_ticket_signs_nobody_in_and_says_so(browser: Browser, server: Stub) -> None:
    link = server.sign_in_link()
    async with await browser.new_context(**LOOK) as first, await browser.new_context(**LOOK) as second:
        page = await first.new_page()
        await page.goto(link)
        await page.wait_for_url(f"{server.url}/")
        page = await second.new_page()
        await page.goto(link)
        await expect(page.get_by_role("status")).to_contain_text("used before")
        await expect(page.get_by_role("button", name="Sign in")).to_be_hidden()
        await expect(page.get_by_role("link", name="To your images")).to_be_visible()


@pytest.mark.loaded
async def test_a_page_opened_while_the_database_is_away_says_so_and_recovers(
    page: Page, server: Stub
) -> None:
    session_id = await shown(page, server)
    server.broken = True
    await page.reload()
    await expect(page.locator("#trouble")).to_contain_text("The database cannot be reached. Nothing is lost")
    await expect(page.locator("#stream .word")).to_have_text("Offline")
    server.broken = False
    await expect(card(page, session_id)).to_be_visible()
    await expect(page.locator("#trouble")).to_be_hidden()

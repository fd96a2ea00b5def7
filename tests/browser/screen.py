"""The page as a person has it open: signed in, live, and its cards by their sessions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, Locator, Page, Route

# nothing moves: to draw what waits sixty times a second costs more than all that the tests ask of a page
LOOK: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}


@asynccontextmanager
async def opened(browser: Browser, sign_in_link: str) -> AsyncIterator[Page]:
    """A page that is signed in and live. An error of a script or a breach of the policy fails the test.

    The link's form is sent without its page, which costs as much as the page behind it and has tests of its own.
    """
    link = urlsplit(sign_in_link)
    server = f"{link.scheme}://{link.netloc}"
    wrong: list[str] = []
    async with await browser.new_context(**LOOK) as context:
        page = await context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if "Content Security" in line.text else None)
        signed = await context.request.post(
            sign_in_link, form={}, headers={"Origin": server}, max_redirects=0
        )
        assert signed.status == 303
        await page.goto(server)
        await live(page)
        yield page
    assert not wrong


async def live(page: Page) -> None:
    await page.locator("#stream[data-stream=live]").wait_for()


async def come_back(page: Page) -> None:
    """What the page hears when its person looks at it again: it asks for the list, as a reload would."""
    await page.evaluate("dispatchEvent(new Event('focus'))")


def card(page: Page, session_id: str) -> Locator:
    return page.locator(f'.card[data-session-id="{session_id}"]')


async def keep_answering(page: Page, item: dict[str, Any]) -> None:
    """From now on every fetch of the session, and of the list, shows it as it was."""

    async def one(route: Route) -> None:
        await route.fulfill(json=item)

    async def all_of_them(route: Route) -> None:
        await route.fulfill(json={"sessions": [item], "next": None, "lastEventId": None})

    await page.route("**/api/seedream4/sessions/*", one)
    await page.route("**/api/seedream4/sessions?*", all_of_them)

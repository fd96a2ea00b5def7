"""The page as a person has it open: signed in, live, and its cards by their sessions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import ConsoleMessage, Locator, Page, Route
from tests.browser.stub import Stub

# nothing moves: to draw what waits sixty times a second costs more than all that the tests ask of a page
LOOK: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}


# the page goes quiet as one that its browser keeps in memory does, and remembers nothing
LEAVE = """() => {
  if (location.protocol === 'about:') return;
  dispatchEvent(new PageTransitionEvent('pagehide'));
  sessionStorage.clear();
  localStorage.clear();
}"""
# nothing is open, typed, chosen or told any more
CLEAR = """() => {
  document.querySelector('dialog').close();
  const prompt = document.querySelector('#prompt');
  prompt.value = '';
  prompt.dispatchEvent(new Event('input', {bubbles: true}));
  document.querySelector('#filter button').click();
  document.querySelector('#news').replaceChildren();
  document.activeElement.blur();
  scrollTo(0, 0);
}"""


class Tab:
    """A tab of a signed-in person. An error of a script or a breach of the policy fails the test that has it."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.is_kept = False  # it shows a page that is live and has nothing on it
        self._wrong: list[str] = []
        page.on("pageerror", lambda error: self._wrong.append(str(error)))
        page.on("console", self._note)

    def _note(self, line: ConsoleMessage) -> None:
        if "Content Security" in line.text:
            self._wrong.append(line.text)

    @asynccontextmanager
    async def signed_in(self, sign_in_link: str) -> AsyncIterator[Page]:
        """The page behind a sign-in link, loaded and live; afterwards nobody is signed in here."""
        await self._load(sign_in_link)
        try:
            yield self._page
            assert not self._wrong
        finally:
            await self._tidy()
            await self.leave()

    @asynccontextmanager
    async def kept(self, server: Stub) -> AsyncIterator[Page]:
        """The page with nothing on it, which is loaded only if the test before has not left it so."""
        if not self.is_kept:
            await self._load(server.sign_in_link())
        self.is_kept = False
        try:
            yield self._page
            assert not self._wrong
        finally:
            await self._tidy()
        await self._page.evaluate(CLEAR)
        server.forget_all()
        server.tell_reset()
        await self._page.locator("#empty").wait_for()
        await live(self._page)
        self.is_kept = True

    async def leave(self) -> None:
        """Sign out of a page that was kept."""
        self.is_kept = False
        await self._page.evaluate(LEAVE)
        await self._page.context.clear_cookies()

    async def _load(self, sign_in_link: str) -> None:
        """Send the link's form without its page, which costs as much as the page behind it and has its own tests."""
        link = urlsplit(sign_in_link)
        server = f"{link.scheme}://{link.netloc}"
        signed = await self._page.request.post(
            sign_in_link, form={}, headers={"Origin": server}, max_redirects=0
        )
        assert signed.status == 303
        self.is_kept = False
        self._wrong.clear()
        await self._page.goto(server)
        await live(self._page)

    async def _tidy(self) -> None:
        page, context = self._page, self._page.context
        for other in context.pages:
            if other is not page:
                await other.close()
        await page.unroute_all(behavior="ignoreErrors")
        await context.unroute_all(behavior="ignoreErrors")
        await page.set_viewport_size(LOOK["viewport"])
        await page.emulate_media(reduced_motion="reduce", color_scheme="light", forced_colors="none")


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

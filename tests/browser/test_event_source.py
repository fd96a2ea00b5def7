"""Chromium's own EventSource, without the page's script, on an API that is made anew under it."""

import asyncio
import signal
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page
from tests.browser.screen import Tab
from tests.kit import free_port, until
from tests.process.place import Place
from tests.process.served import serve
from tests.stream.shop import Shop

pytestmark = pytest.mark.asyncio(loop_scope="session")

LISTEN = """() => {
  window.told = [];
  window.readies = 0;
  const source = new EventSource('/api/seedream4/events');
  source.addEventListener('ready', () => window.readies++);
  for (const name of ['failed', 'reset']) {
    source.addEventListener(name, ({data}) => window.told.push(JSON.parse(data).sessionId ?? name));
  }
}"""
TOLD = "(count) => window.told.length >= count ? window.told : null"


async def heard(page: Page, count: int) -> list[str]:
    """What it has heard, once it is so much; the page's policy lets it evaluate nothing by itself."""
    return await until(lambda: page.evaluate(TOLD, count))


async def test_it_hears_what_failed_while_the_server_was_ended_or_killed(tab: Tab, place: Place) -> None:
    """It goes on behind the last id by itself, and hears each failure once, in order."""
    port = free_port()
    link = place.genctl("token", "--user", "ann", "--link", GENCTL_API_URL=f"http://127.0.0.1:{port}")[
        "signIn"
    ]
    assert urlsplit(link).port == port
    async with Shop.open(place.dsn) as shop:
        with serve(place, port) as api:
            await api.ready()
            async with tab.signed_in(link) as page:
                await page.evaluate(LISTEN)
                await until(lambda: page.evaluate("window.readies === 1"))
                expected = await shop.fail("ann", 2)
                await heard(page, len(expected))
                await asyncio.to_thread(api.running.end, signal.SIGTERM)
                expected += await shop.fail("ann", 2)
                with serve(place, port) as next_one:
                    await heard(page, len(expected))
                    expected += await shop.fail("ann", 2)
                    await heard(page, len(expected))
                    await asyncio.to_thread(next_one.running.end, signal.SIGKILL)
                expected += await shop.fail("ann", 2)
                with serve(place, port):
                    assert await heard(page, len(expected)) == expected

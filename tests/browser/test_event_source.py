"""Chromium's own EventSource, without the page's script, on an API that is made anew under it."""

import asyncio
import signal
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser
from tests.browser.screen import opened
from tests.kit import free_port
from tests.process.place import Place
from tests.process.served import serve
from tests.stream.shop import Shop

pytestmark = pytest.mark.asyncio(loop_scope="module")

LISTEN = """() => {
  window.told = [];
  window.readies = 0;
  const source = new EventSource('/api/seedream4/events');
  source.addEventListener('ready', () => window.readies++);
  for (const name of ['failed', 'reset']) {
    source.addEventListener(name, ({data}) => window.told.push(JSON.parse(data).sessionId ?? name));
  }
}"""
TOLD = "(count) => window.told.length >= count && window.told"


async def test_it_hears_what_failed_while_the_server_was_ended_or_killed(
    browser: Browser, place: Place
) -> None:
    """It goes on behind the last id by itself, and hears each failure once, in order."""
    port = free_port()
    link = place.genctl("token", "--user", "ann", "--link", GENCTL_API_URL=f"http://127.0.0.1:{port}")[
        "signIn"
    ]
    assert urlsplit(link).port == port
    async with Shop.open(place.dsn) as shop:
        with serve(place, port) as api:
            await api.ready()
            async with opened(browser, link) as page:
                await page.evaluate(LISTEN)
                await page.wait_for_function("window.readies === 1")
                expected = await shop.fail("ann", 2)
                await page.wait_for_function(TOLD, arg=len(expected))
                await asyncio.to_thread(api.running.end, signal.SIGTERM)
                expected += await shop.fail("ann", 2)
                with serve(place, port) as next_one:
                    await page.wait_for_function(TOLD, arg=len(expected))
                    expected += await shop.fail("ann", 2)
                    await page.wait_for_function(TOLD, arg=len(expected))
                    await asyncio.to_thread(next_one.running.end, signal.SIGKILL)
                expected += await shop.fail("ann", 2)
                with serve(place, port):
                    told = await page.wait_for_function(TOLD, arg=len(expected))
                    assert await told.json_value() == expected

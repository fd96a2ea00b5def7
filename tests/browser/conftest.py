"""A real browser, and the server that it talks to behind one fixture."""

import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright
from tests.browser.screen import opened
from tests.browser.stub import Stub

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    if shutil.which(CHROMIUM) is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[Stub]:
    stub = Stub()
    await stub.start()
    yield stub
    await stub.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, server: Stub) -> AsyncIterator[Page]:
    """A page of the stub's user."""
    async with opened(browser, server.sign_in_link()) as page:
        yield page

"""A real browser, and the server that it talks to behind one fixture."""

import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright
from tests.browser.screen import opened
from tests.browser.stub import Stub

# Debian's package for tests: the same engine without the windows round it, at a third of the CPU
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium-headless-shell")
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

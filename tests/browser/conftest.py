"""A real browser with a tab for all tests of a run, and the server that it talks to behind one fixture."""

import shutil
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect
from tests.browser.screen import LOOK, Tab
from tests.browser.stub import Stub
from tests.kit import SOON_S
from tests.process.place import Place, Places

# Debian's package for tests: the same engine without the windows round it, at a third of the CPU
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--process-per-site",  # tabs of one person share a renderer
]

expect.set_options(timeout=SOON_S * 1_000)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "loaded: the page is loaded anew for the test, and left when it is over"
    )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium-headless-shell")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tab(browser: Browser) -> AsyncIterator[Tab]:
    """The tab that all tests share: a new one costs thrice as much as to load the page in it."""
    async with await browser.new_context(**LOOK) as context:
        yield Tab(await context.new_page())


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stub() -> AsyncIterator[Stub]:
    async with Stub() as stub:
        yield stub


@pytest_asyncio.fixture(loop_scope="session")
async def server(stub: Stub, tab: Tab, request: pytest.FixtureRequest) -> Stub:
    """The stub, of which nobody has ordered anything yet."""
    keeps = "page" in request.fixturenames and not request.node.get_closest_marker("loaded")
    if not (keeps and tab.is_kept):
        await tab.leave()
        await stub.begin_anew()
    return stub


@pytest_asyncio.fixture(loop_scope="session")
async def page(tab: Tab, server: Stub, request: pytest.FixtureRequest) -> AsyncIterator[Page]:
    """The page of the stub's user with nothing on it, open since an earlier test; a test may want it `loaded`."""
    if request.node.get_closest_marker("loaded"):
        async with tab.signed_in(server.sign_in_link()) as page:
            yield page
    else:
        async with tab.kept(server) as page:
            yield page


@pytest.fixture(scope="session")
def place(places: Places) -> Iterator[Place]:
    """A place for all tests of the whole system: each has users of its own."""
    with places() as place:
        yield place


@pytest.fixture
def user() -> str:
    """Somebody who was never here."""
    return f"ann-{uuid4().hex[:8]}"

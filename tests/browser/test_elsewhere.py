"""The store outside of our page: in React, and on another origin with a token of its own."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page, expect
from tests.browser.screen import LOOK
from tests.browser.stub import PAGE, Stub
from tests.kit import free_port
from tests.process.place import Place
from tests.process.served import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

REACT = Path(__file__).parents[2] / "examples" / "react"
STRANGER = """<!doctype html><title>elsewhere</title><p role="status"></p><ul></ul><script type="module">
import {createStore} from '/page/store.js';
import {byFetch, follow} from '/page/stream.js';
const [api, token] = [decodeURIComponent(location.hash.slice(1).split('|')[0]), location.hash.split('|')[1]];
const call = (path, init = {}) => fetch(path, {...init, headers: {...init.headers, authorization: `Bearer ${token}`}});
const store = createStore({
  fetch: call, events: follow(`${api}/api/seedream4/events`, byFetch(call)), now: Date.now,
  base: `${api}/api/seedream4`, root: `${api}/`, newKey: () => crypto.randomUUID(),
});
store.subscribe(() => {
  const {cards, connection} = store.getSnapshot();
  document.querySelector('p').textContent = connection.is;
  document.querySelector('ul').replaceChildren(...cards.map(({status, prompt}) => {
    const item = document.createElement('li');
    item.textContent = `${status}: ${prompt}`;
    return item;
  }));
});
store.start();
window.order = (prompt) => store.order(prompt);
</script>"""


@pytest_asyncio.fixture(loop_scope="session")
async def in_react(browser: Browser) -> AsyncIterator[tuple[Page, Stub]]:
    """The example, built and served beside the API."""
    if not (REACT / "node_modules/esbuild").exists():
        pytest.skip("React is not installed: npm install --prefix examples/react")
    built = await asyncio.to_thread(
        subprocess.run, ["npm", "run", "build"], cwd=REACT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    stub = Stub()
    stub.folders["/react"] = REACT
    await stub.start()
    async with await browser.new_context(**LOOK) as context:
        await context.request.post(stub.sign_in_link(), form={}, max_redirects=0)
        page = await context.new_page()
        await page.goto(f"{stub.url}/react/index.html")
        await expect(page.get_by_role("status")).to_have_text("Live")
        yield page, stub
    await stub.stop()


async def test_the_example_in_react_orders_flips_and_tries_again(in_react: tuple[Page, Stub]) -> None:
    page, stub = in_react
    await page.get_by_label("Prompt").fill("a fox in fresh snow")
    await page.get_by_role("button", name="Generate").click()
    card = page.get_by_role("listitem")
    await expect(card).to_have_attribute("data-status", "queued")
    (session,) = stub.sessions
    stub.fail(session)
    await expect(card).to_have_attribute("data-status", "failed")
    await expect(card).to_contain_text("4 credits returned")
    await card.get_by_role("button", name="a fox in fresh snow").click()
    await expect(page.get_by_role("dialog")).to_contain_text(session)
    await page.get_by_role("button", name="Try again").click()
    await expect(page.get_by_role("dialog")).to_be_hidden()
    await expect(card).to_have_count(2)


@pytest.fixture
def origin() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def api(place: Place, origin: str) -> Iterator[Served]:
    with serve(place, GENCTL_CORS_ORIGINS=origin) as api:
        yield api


async def test_a_page_of_an_allowed_origin_follows_with_a_bearer_token(
    browser: Browser, place: Place, api: Served, origin: str
) -> None:
    application = web.Application()
    application.router.add_static("/page", PAGE)
    application.router.add_get("/", stranger)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", urlsplit(origin).port).start()
    async with await browser.new_context(**LOOK) as context:
        page = await context.new_page()
        await page.goto(f"{origin}/#{api.client.url}|{api.client.token}")
        await expect(page.get_by_role("status")).to_have_text("live")
        await page.evaluate("window.order('a test [scenario:sensitive]')")
        await expect(page.get_by_role("listitem")).to_have_text("queued: a test [scenario:sensitive]")
        with place.worker():
            await expect(page.get_by_role("listitem")).to_contain_text("failed: ", timeout=20_000)
    await runner.cleanup()


async def stranger(_: web.Request) -> web.Response:
    return web.Response(text=STRANGER, content_type="text/html")

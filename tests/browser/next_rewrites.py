"""A Next server before the API, in Chromium. CI does not run this: Next is large, and builds for long.

npm install --prefix examples/next && pytest tests/browser/next_rewrites.py
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import Browser, expect
from tests.kit import free_port, until
from tests.process.place import Place
from tests.process.served import serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

NEXT = Path(__file__).parents[2] / "examples" / "next"
NOTE_THE_FLIP = """() => new Promise((note) => {
  const look = () => document.querySelector('li')?.dataset.status === 'failed' && note(Date.now());
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true, attributes: true});
})"""


@contextmanager
def running(command: str, port: int, api: str, place: Place) -> Iterator[None]:
    """`next dev`, or `next start` of a build."""
    env = place.env | {"GENCTL_API": api, "NEXT_TELEMETRY_DISABLED": "1"}
    if command == "start":
        subprocess.run(["npm", "run", "build"], cwd=NEXT, env=env, check=True, capture_output=True)
    words = ["npx", "next", command, "--hostname", "127.0.0.1", "--port", str(port)]
    log = place.folder / f"next-{command}.log"
    with log.open("w") as said:
        process = subprocess.Popen(words, cwd=NEXT, env=env, stdout=said, stderr=said, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # npx does not pass it on
        process.wait()


async def answers(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


@pytest.mark.parametrize("command", ["dev", "start"])
async def test_events_cookies_and_orders_pass_a_next_rewrite(
    browser: Browser, place: Place, command: str
) -> None:
    if not (NEXT / "node_modules/next").exists():
        pytest.skip("Next is not installed: npm install --prefix examples/next")
    port = free_port()
    public = f"http://127.0.0.1:{port}"
    with serve(place, GENCTL_PUBLIC_URL=public) as api, running(command, port, api.client.url, place):
        await until(lambda: answers(public), within_s=120)
        link = place.genctl(
            "token", "--user", "ann", "--link", GENCTL_API_URL=api.client.url, GENCTL_PUBLIC_URL=public
        )
        async with await browser.new_context() as context:
            page = await context.new_page()
            await page.goto(link["signIn"])
            await expect(page.get_by_role("status")).to_have_text("Live", timeout=60_000)
            assert page.url == f"{public}/"
            await page.get_by_role("button", name="Order").click()
            await expect(page.get_by_role("listitem")).to_have_attribute("data-status", "queued")
            flipped = asyncio.create_task(page.evaluate(NOTE_THE_FLIP))
            with place.worker():
                flipped_ms = await flipped
                (row,) = place.sql("select status, completed_at from generation_sessions")
            assert row["status"] == "failed"
            late_ms = flipped_ms - row["completed_at"].timestamp() * 1000
            assert late_ms < 1_000
            await expect(page.get_by_role("status")).to_have_text("Live")

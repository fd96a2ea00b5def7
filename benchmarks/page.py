"""What an event costs the page: script, layout, and the time from the server's write to the paint.

`python benchmarks/page.py [CARDS ...]` in the checkout; needs Chromium. The server is the stub of the tests.
"""

import asyncio
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import stage
from playwright.async_api import CDPSession, Page, async_playwright
from tests.browser.conftest import CHROMIUM, FLAGS
from tests.browser.stub import Stub

EVENTS = 30
BURST = 50
SPENT = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration", "TaskDuration")
NOTE_PAINTS = """() => {
  window.painted = {};
  const shown = ({target}) => {
    if (target.dataset.status !== 'failed') return;
    requestAnimationFrame(() => {
      const after = new MessageChannel();
      after.port1.onmessage = () => (window.painted[target.dataset.sessionId] = Date.now());
      after.port2.postMessage(0);
    });
  };
  new MutationObserver((changes) => changes.forEach(shown))
    .observe(document.querySelector('#cards'), {subtree: true, attributeFilter: ['data-status']});
}"""


async def main(sizes: list[int]) -> None:
    columns = ("cards", "script, ms", "layout and style, ms", "all of the thread, ms", "write to paint, ms")
    print("|", " | ".join([*columns, f"burst of {BURST}"]), "|")
    print("|---|---|---|---|---|---|")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        for cards in sizes:
            page = await browser.new_page(viewport={"width": 1280, "height": 900})
            print(await measured(page, cards), flush=True)
            await page.context.close()
        await browser.close()


async def measured(page: Page, cards: int) -> str:
    """One row of the table."""
    stub = Stub()
    await stub.start()
    waiting = [stub.enqueue(f"number {number} of many, in oil", ago_s=number) for number in range(cards)]
    await page.goto(stub.sign_in_link())
    await page.locator("#stream[data-stream=live]").wait_for()
    await load_all(page, cards)
    await page.evaluate(NOTE_PAINTS)
    cdp = await page.context.new_cdp_session(page)
    await cdp.send("Performance.enable")
    spent: dict[str, list[float]] = {name: [] for name in SPENT}
    painted = []
    for session in waiting[: EVENTS * 2 : 2]:
        before = await metrics(cdp)
        wrote_ms = time.time() * 1000
        stub.fail(session)
        painted.append(await when_painted(page, session) - wrote_ms)
        await asyncio.sleep(0.3)  # the row behind it
        after = await metrics(cdp)
        for name in SPENT:
            spent[name].append((after[name] - before[name]) * 1000)
    burst = waiting[1 : BURST * 2 : 2]
    before, wrote_ms = await metrics(cdp), time.time() * 1000
    for session in burst:
        stub.fail(session)
    last = max([await when_painted(page, session) for session in burst]) - wrote_ms
    await asyncio.sleep(1)
    after = await metrics(cdp)
    script = (after["ScriptDuration"] - before["ScriptDuration"]) * 1000
    await stub.stop()
    mid = {name: statistics.median(times) for name, times in spent.items()}
    drawn = mid["LayoutDuration"] + mid["RecalcStyleDuration"]
    paint = f"{statistics.median(painted):.0f} (slowest {max(painted):.0f})"
    return (
        f"| {cards} | {mid['ScriptDuration']:.1f} | {drawn:.1f} | {mid['TaskDuration']:.1f} | {paint} | "
        f"{last:.0f} ms to the last paint, {script:.0f} ms of script |"
    )


async def load_all(page: Page, cards: int) -> None:
    """Press the button until all cards are there."""
    shown = page.locator(".card")
    while (count := await shown.count()) < cards:
        await page.locator("#older").evaluate("button => button.click()")
        await shown.nth(count).wait_for(state="attached")


async def when_painted(page: Page, session: str) -> float:
    """The time at which the browser had painted the failed card, in milliseconds since 1970."""
    while not (at := await page.evaluate("id => window.painted[id]", session)):
        await asyncio.sleep(0.02)
    return float(at)


async def metrics(cdp: CDPSession) -> dict[str, float]:
    """What the page has spent so far, in seconds."""
    told = await cdp.send("Performance.getMetrics")
    return {row["name"]: row["value"] for row in told["metrics"]}


if __name__ == "__main__":
    asyncio.run(main([int(size) for size in stage.words(__doc__)] or [68, 540, 1088]))

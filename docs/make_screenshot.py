"""Makes docs/page*.png from the real page: `python -m docs.make_screenshot [FOLDER]` in the checkout.

With a folder, the pictures that show every look (light, dark, narrow, wide, faults, …) go there instead.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, async_playwright
from tests.browser.conftest import CHROMIUM, FLAGS
from tests.browser.stub import SENTENCE, Stub

HERE = Path(__file__).parent
LIGHTHOUSE = """
<svg xmlns="http://www.w3.org/2000/svg" width="640" height="640" viewBox="0 0 640 640">
  <defs>
    <linearGradient id="sky" x2="0" y2="1">
      <stop offset="0" stop-color="#2b2a5e"/><stop offset=".45" stop-color="#8a5a9c"/>
      <stop offset=".72" stop-color="#f2a07b"/><stop offset="1" stop-color="#fbd9a5"/>
    </linearGradient>
    <linearGradient id="sea" x2="0" y2="1">
      <stop offset="0" stop-color="#d98f86"/><stop offset="1" stop-color="#30305f"/>
    </linearGradient>
    <linearGradient id="beam" x1="1"><stop stop-color="#fff3c4" stop-opacity=".75"/>
      <stop offset="1" stop-color="#fff3c4" stop-opacity="0"/></linearGradient>
    <filter id="paper"><feTurbulence baseFrequency=".012 .03" numOctaves="4" seed="7"/>
      <feDisplacementMap in="SourceGraphic" scale="16"/></filter>
    <filter id="soft"><feGaussianBlur stdDeviation="5"/></filter>
  </defs>
  <g filter="url(#paper)">
    <rect x="-20" y="-20" width="680" height="680" fill="url(#sky)"/>
    <circle cx="196" cy="404" r="46" fill="#ffe9bd" filter="url(#soft)"/>
    <g fill="#fff" opacity=".22" filter="url(#soft)">
      <ellipse cx="120" cy="150" rx="150" ry="16"/><ellipse cx="290" cy="240" rx="190" ry="12"/>
      <ellipse cx="90" cy="310" rx="130" ry="10"/>
    </g>
    <rect x="-20" y="416" width="680" height="260" fill="url(#sea)"/>
    <g stroke="#ffe3b8" stroke-width="5" opacity=".6" stroke-linecap="round">
      <path d="M130 446h130M156 472h84M100 500h150M170 530h60M120 566h120"/>
    </g>
    <path d="M430 184 20 120v130z" fill="url(#beam)"/>
    <path d="M330 640c10-120 60-190 110-200 90-10 150 40 220 130v90z" fill="#221f3f"/>
    <path d="M404 452l14-236h44l14 236z" fill="#f6ead9"/>
    <path d="M409 372l3-52h56l3 52zM415 268l2-36h46l2 36z" fill="#b4453f"/>
    <path d="M410 210h60v12h-60z" fill="#221f3f"/>
    <rect x="424" y="172" width="32" height="40" fill="#ffefb5"/>
    <path d="M416 174q24-36 48 0z" fill="#b4453f"/>
    <path d="M440 150v-18" stroke="#221f3f" stroke-width="4"/>
    <g fill="none" stroke="#221f3f" stroke-width="4" stroke-linecap="round">
      <path d="M250 170q12-12 20 0q8-12 20 0M306 132q9-9 15 0q6-9 15 0"/>
    </g>
  </g>
</svg>
"""


async def main(folder: Path | None) -> None:
    stub = Stub()
    await stub.start()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        if folder is None:
            await fill(stub, await draw(browser))
            await shoot(browser, stub, HERE / "page.png")
            await shoot(browser, stub, HERE / "page-dialog.png", details="failed")
            await shoot(browser, stub, HERE / "page-phone.png", width=390)
            await shoot(browser, stub, HERE / "page-dark.png", dark=True)
        else:
            await shoot(browser, stub, folder / "empty.png")
            await fill(stub, await draw(browser))
            await shoot(browser, stub, folder / "light.png")
            await shoot(browser, stub, folder / "dark.png", dark=True)
            await shoot(browser, stub, folder / "narrow.png", width=360)
            await shoot(browser, stub, folder / "dialog.png", details="failed")
            await shoot(browser, stub, folder / "dialog-narrow.png", width=390, dark=True, details="failed")
            await shoot(browser, stub, folder / "dialog-image.png", details="completed")
            await shoot(browser, stub, folder / "wide.png", width=2560)
            await more(stub, await draw(browser))
            await shoot(browser, stub, folder / "320.png", width=320)
            await shoot(browser, stub, folder / "4k.png", width=3840, height=2160, scale=1)
            await shoot(browser, stub, folder / "dialog-set.png", details="completed", nth=0)
            await shoot(browser, stub, folder / "dialog-set-320.png", width=320, details="completed", nth=0)
            await shoot(browser, stub, folder / "dialog-cancelled.png", details="failed", nth=0)
            await shoot(
                browser,
                stub,
                folder / "dialog-4k.png",
                width=3840,
                height=2160,
                scale=1,
                details="completed",
                nth=0,
            )
            stub.gate = {"state": "busy", "until": None}
            await shoot(browser, stub, folder / "faults.png", faults=True)
        await browser.close()
    await stub.stop()


async def draw(browser: Browser) -> bytes:
    """What the provider would have made of the prompt."""
    page = await browser.new_page(viewport={"width": 640, "height": 640})
    await page.set_content(f"<style>body{{margin:0}}</style>{LIGHTHOUSE}")
    image = await page.screenshot()
    await page.close()
    return image


async def fill(stub: Stub, image: bytes) -> None:
    """One waits, one is done, two failed for different reasons; both are refunded."""
    refused = stub.enqueue("A crowd on a summer beach, explicit nudity, telephoto", ago_s=2_400)
    stub.fail(refused, ago_s=2_388)
    done = stub.enqueue("A lighthouse at dusk, watercolour on rough paper", ago_s=190)
    stub.complete(done, image)
    busy = stub.enqueue("Product photo of a walnut desk lamp, soft light from the left", ago_s=90)
    busy_words = "The image service is busy. Please try again in a few minutes."
    about = {
        "code": "ModelAccountIpmRateLimitExceeded",
        "category": "rate_limit",
        "fatal": False,
        "attempts": 3,
    }
    stub.fail(busy, ago_s=21, userMessage=busy_words, providerMessage=None, providerStatus=429, **about)
    stub.enqueue("An astronaut feeding pigeons in a rainy square, film grain", ago_s=4)


async def more(stub: Stub, image: bytes) -> None:
    """A set that lacks an image, a cancelled order, and enough others to fill a large screen."""
    refused = {"place": 2, "code": "OutputImageSensitiveContentDetected", "category": "content_policy"}
    stub.complete(
        stub.enqueue("Four lighthouses, one for each season", ago_s=2),
        image,
        images=3,
        refused=[refused | {"userMessage": SENTENCE}],
    )
    for number in range(40):
        stub.complete(stub.enqueue(f"A lighthouse, study {number}", ago_s=4_000 + number), image)
    cancelled: dict[str, Any] = {
        "category": "cancelled",
        "userMessage": "This image was cancelled before it was made.",
    }
    stub.fail(stub.enqueue("A cat in a cardboard box", ago_s=1), code="Cancelled", **cancelled)


async def shoot(  # noqa: PLR0913 - what it shows
    browser: Browser,
    stub: Stub,
    to: Path,
    *,
    width: int = 1280,
    height: int = 780,
    scale: float = 1.5,
    dark: bool = False,
    details: str = "",
    nth: int = -1,
    faults: bool = False,
) -> None:
    """Take a picture, on a phone of all of the page, with a card's dialog open or while much is wrong."""
    context = await browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        device_scale_factor=scale,
    )
    page: Page = await context.new_page()
    await page.goto(stub.sign_in_link())
    await page.locator("#stream[data-stream=live]").wait_for()
    await page.wait_for_load_state("load")
    if faults:
        await page.route("**/generations", lambda route: route.abort())
        await page.locator("#prompt").fill("A fox in fresh snow, early light")
        await page.keyboard.press("Enter")
        await page.locator(".card[data-status=unsent]").wait_for()
        stub.tell_heartbeat(fresh=False, since="2026-11-24T12:04:31.000Z")
        await page.locator("#behind").wait_for()
    if details:
        await page.locator(f".card[data-status={details}] .prompt").nth(nth).click()
    await page.evaluate(
        "Promise.all([...document.images].filter(i => i.complete && !i.hidden && i.src)"
        ".map(image => image.decode().catch(() => null)))"
    )
    await page.screenshot(path=to, full_page=width < 390 and not details)
    await context.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))

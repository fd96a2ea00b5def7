"""The main job on the embedded stack, watched from outside: one job that is refused, one that is made."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec

from genctl import credits
from genctl.base.settings import Settings
from genctl.base.tokens import Tokens
from genctl.domain.model import Session, Status
from genctl.edges.db import Database
from genctl.ops.smoke.deployment import Deployment, Door
from genctl.ops.smoke.hop import HOPS, HopResult, verdict
from genctl.ops.smoke.judge import Judge
from genctl.ops.smoke.sound import details_complaints
from genctl.ops.stack import Stack

USER = "demo"
TIMEOUT_S = 30.0
LOG_TIMEOUT_S = 3.0
POLL_S = 0.02
BAR = 40  # columns of the longest bar
WORKER_LOGS = ("session.failed.updated", "session.failed.notify.sent")
API_LOGS = ("sse.notify.received", "sse.session.lookup", "sse.emit")


class Check(msgspec.Struct, frozen=True):
    """One thing that must hold."""

    check: str
    ok: bool
    evidence: str


class Beat(msgspec.Struct, frozen=True):
    """When a hop was passed: milliseconds after the job was accepted."""

    hop: str
    at: str | None
    ms: float | None


class Shown(msgspec.Struct, frozen=True):
    """What `demo` has to show; with -o json exactly this, and with --keep `signIn`."""

    ok: bool
    checks: list[Check]
    timeline: list[Beat]


async def demo(stack: Stack, told: Callable[[HopResult | Check], None]) -> Shown:
    """Run both jobs; `told` hears of each hop and check as it is known. Raises GenctlError, exit 3."""
    settings = stack.settings
    checks: list[Check] = []

    def check(name: str, ok: bool, evidence: str) -> None:  # noqa: FBT001 - reads as a sentence
        checks.append(Check(name, ok, evidence))
        told(checks[-1])

    async with Deployment.open(settings) as at:
        await credits.open_accounts(at.db, [USER], credits.opening(settings))
        before = await _balance(at.db)
        hops = []
        async with Judge.open(at, USER, TIMEOUT_S) as judge:
            async for hop in judge.hops():
                hops.append(hop)
                told(hop)
        broken = next((hop for hop in verdict(hops) if not hop.ok), None)
        check("every hop holds", broken is None, f"{broken.hop}: {broken.why}" if broken else ", ".join(HOPS))
        check("the worker logged it", *await _logged(stack.logs("worker"), judge.session_id, WORKER_LOGS))
        check("the bridge logged it", *await _logged(stack.logs("api"), judge.session_id, API_LOGS))
        check("the card shows it", *await _card(at.api, judge.session_id))
        after = await _balance(at.db)
        check("the balance is whole again", after == before, f"{before} credits before, {after} after")
        status, good = await at.api.order(USER, prompt=at.api.tool.good, clientKey=f"demo-{uuid4().hex[:8]}")
        ended = await _ended(at.db, good["sessionId"]) if status == 202 else None
        check("a good job completes", *_made(ended))
        left = await _balance(at.db)
        check("and is paid for", left == after - at.api.tool.price, f"{after} credits before, {left} after")
    return Shown(
        ok=all(c.ok for c in checks),
        checks=checks,
        timeline=[Beat(hop.hop, hop.at, hop.ms) for hop in hops],
    )


async def _balance(db: Database) -> int:
    return int((await credits.account(db, USER))["balance"])


async def _ended(db: Database, session_id: str) -> Session:
    """The row once its run has ended; as it is when it does not end in time."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        (row,) = await db.rows("sessions", ids=[session_id])
        found = Session.of(row)
        if found.completed_at or time.monotonic() > deadline:
            return found
        await asyncio.sleep(POLL_S)


def _made(session: Session | None) -> tuple[bool, str]:
    if session is None or session.status is not Status.COMPLETED:
        return False, f"it is {session.status}" if session else "the API took no order"
    image = (session.result or {})["images"][0]
    return True, f"one image of {image['size']}"


async def _logged(log: Path, session_id: UUID | None, events: Sequence[str]) -> tuple[bool, str]:
    """Whether the log has all these events of the session, given a moment to be written; which, or not."""
    deadline = time.monotonic() + LOG_TIMEOUT_S
    while True:
        lines = {said["event"]: said for said in _lines(log) if said.get("sessionId") == str(session_id)}
        missing = [event for event in events if not _is_sound(lines.get(event))]
        if not missing:
            return True, ", ".join(events)
        if time.monotonic() > deadline:
            return False, f"not in {log}: {', '.join(missing)}"
        await asyncio.sleep(POLL_S)


def _is_sound(line: dict[str, Any] | None) -> bool:
    """It is there; of `sse.emit`, that it told of the failure with its details."""
    return line is not None and (
        line["event"] != "sse.emit" or (line.get("sseEvent"), line.get("hasErrorDetails")) == ("failed", True)
    )


def _lines(log: Path) -> Iterator[dict[str, Any]]:
    """The lines that are JSON."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, KeyError, TypeError):
            said = json.loads(line)
            said["event"]
            yield said


async def _card(door: Door, session_id: UUID | None) -> tuple[bool, str]:
    """What a page shows of the failure: the provider's sentence without ids, and the refund."""
    if session_id is None:
        return False, "there is no session"
    status, item = await door.session(USER, session_id)
    details = item.get("error_details") or {}
    sound = status == 200 and not details_complaints(details) and details["refundedCredits"] > 0
    text = f"{details.get('userMessage')} — {details.get('refundedCredits')} credits returned"
    return sound, text if sound else f"the API answered {status}: {item}"


async def run(
    settings: Settings, *, keep: bool, note: Callable[[str], None], show: Callable[..., None]
) -> int:
    """Start the stack, run the demo, show it; with `keep` stay until a signal. The exit code."""
    async with Stack(settings, say=note) as stack:
        shown = await demo(stack, lambda known: note(_line(known)))
        if not shown.ok:
            for part in ("worker", "api"):
                note(f"--- the last lines of {part} ({stack.logs(part)})\n{_tail(stack.logs(part))}")
        link = Tokens.of(stack.settings).sign_in_url(stack.settings.page_url, USER) if keep else None
        show(
            msgspec.structs.asdict(shown) | ({"signIn": link} if link else {}),
            text=lambda: drawn(shown, link),
        )
        if keep:
            note("the stack runs until Ctrl-C; every genctl command in another terminal finds it")
            await stack.watch()
    return int(not shown.ok)


def _line(known: HopResult | Check) -> str:
    if isinstance(known, HopResult):
        return known.line()
    return f"  {'ok    ' if known.ok else 'BROKEN'} {known.check}: {known.evidence}"


def _tail(log: Path, lines: int = 12) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def drawn(shown: Shown, link: str | None) -> str:
    """The timeline as bars, the verdict, and the page's link."""
    longest = max((beat.ms or 0.0 for beat in shown.timeline), default=0.0) or 1.0
    bars = [
        f"{beat.hop:<9} {'█' * round(BAR * (beat.ms or 0) / longest):<{BAR}} {beat.ms:8.1f} ms"
        for beat in shown.timeline
        if beat.ms is not None
    ]
    verdict = "everything holds" if shown.ok else "NOT everything holds"
    last = [f"Sign in: {link}"] if link else []
    return "\n".join([*bars, f"demo: {verdict}", *last]) + "\n"

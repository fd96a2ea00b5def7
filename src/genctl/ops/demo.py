"""Send a job that the provider refuses and a good one to the embedded stack, and watch from outside."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec

from genctl import credits
from genctl.base.person import Note
from genctl.base.settings import Settings
from genctl.base.tokens import Tokens
from genctl.domain.model import Status
from genctl.edges.db import Database
from genctl.ledger import movement
from genctl.ops.enqueue import ended
from genctl.ops.smoke.deployment import ApiClient, Deployment
from genctl.ops.smoke.hop import HOPS, HopResult, verdict
from genctl.ops.smoke.judge import Judge
from genctl.ops.smoke.sound import details_complaints
from genctl.ops.stack.child import last_lines, until
from genctl.ops.stack.stack import Stack

USER = "demo"
TIMEOUT_S = 30.0
LOG_TIMEOUT_S = 3.0
BAR = 40  # columns of the longest bar
LAST_LINES = 12
WORKER_LOGS = ("session.failed.updated", "session.failed.notify.sent")
API_LOGS = ("sse.notify.received", "sse.session.lookup", "sse.emit")


class Check(msgspec.Struct, frozen=True):
    """Say whether one thing holds, and by what we see that."""

    check: str
    ok: bool
    evidence: str

    def line(self) -> str:
        """Write it as one line of the output."""
        return f"  {'ok    ' if self.ok else 'BROKEN'} {self.check}: {self.evidence}"


async def demo(
    stack: Stack, show: Callable[[HopResult | Check], object]
) -> tuple[list[Check], list[HopResult]]:
    """Run both jobs; `show` gets each hop and check as soon as it is known. Raises GenctlError, exit 3."""
    settings = stack.settings
    checks: list[Check] = []

    def check(name: str, ok: bool, evidence: str) -> None:  # noqa: FBT001 - reads as a sentence
        checks.append(Check(name, ok, evidence))
        show(checks[-1])

    async with Deployment.open(settings) as deployment:
        db, api = deployment.db, deployment.api
        await movement(db, [USER], opening=credits.opening(settings))
        if await _balance(db) < 2 * api.tool.price:  # earlier demos, or whoever plays as this user
            await credits.grant(db, [USER], credits.opening(settings), "for the demo")
        before = await _balance(db)
        hops = []
        async with Judge.open(deployment, USER, time.monotonic() + TIMEOUT_S) as judge:
            async for hop in judge.hops():
                hops.append(hop)
                show(hop)
        broken = next((hop for hop in verdict(hops) if not hop.ok), None)
        check("every hop holds", broken is None, f"{broken.hop}: {broken.why}" if broken else ", ".join(HOPS))
        check("the worker logged it", *await _logged(stack.logs("worker"), judge.session_id, WORKER_LOGS))
        check("the bridge logged it", *await _logged(stack.logs("api"), judge.session_id, API_LOGS))
        check("the card shows it", *await _card(api, judge.session_id))
        after = await _balance(db)
        check("the balance is whole again", after == before, f"{before} credits before, {after} after")
        order = {"prompt": api.tool.good, "clientKey": f"demo-{uuid4().hex[:8]}"}
        status, good = await api.ask(USER, "/generations", order)
        check("a good job completes", *await _made(db, status, good))
        left = await _balance(db)
        check("and is paid for", left == after - api.tool.price, f"{after} credits before, {left} after")
    return checks, hops


async def _balance(db: Database) -> int:
    return int((await credits.account(db, USER))["balance"])


async def _made(db: Database, status: int, answer: Any) -> tuple[bool, str]:
    """Wait until the run of an order has ended, and judge what it made; `answer` is the API's."""
    if status != 202:
        return False, f"the API took no order: {status} {answer}"
    try:
        async with asyncio.timeout(TIMEOUT_S):
            (session,) = await ended(db, [UUID(answer["sessionId"])])
    except TimeoutError:
        return False, f"it has not ended within {TIMEOUT_S:g} s"
    if session.status is not Status.COMPLETED:
        return False, f"it is {session.status}"
    return True, f"one image of {(session.result or {})['images'][0]['size']}"


async def _logged(log: Path, session_id: UUID | None, events: Sequence[str]) -> tuple[bool, str]:
    """Wait a moment for the session's events in a log; say which it has, or which are missing."""

    def missing() -> list[str]:
        return [event for event in events if event not in _events(log, str(session_id))]

    if await until(lambda: not missing(), LOG_TIMEOUT_S):
        return True, ", ".join(events)
    return False, f"not in {log}: {', '.join(missing())}"


def _events(log: Path, session_id: str) -> set[str]:
    """Name the session's events, except a failure that went out on a stream without its details."""
    found = set()
    for text in log.read_bytes().splitlines():
        with suppress(msgspec.DecodeError):
            line = msgspec.json.decode(text, type=dict[str, Any])
            whole = line.get("sseEvent", "failed") == "failed" and line.get("hasErrorDetails", True)
            if whole and line.get("sessionId") == session_id:
                found.add(line["event"])
    return found


async def _card(api: ApiClient, session_id: UUID | None) -> tuple[bool, str]:
    """Check what a page shows of the failure: the provider's sentence without ids, and the refund."""
    if session_id is None:
        return False, "there is no session"
    status, item = await api.ask(USER, f"/sessions/{session_id}")
    details = (item.get("error_details") if isinstance(item, dict) else None) or {}
    sound = status == 200 and not details_complaints(details) and details["refundedCredits"] > 0
    text = f"{details.get('userMessage')} — {details.get('refundedCredits')} credits returned"
    return sound, text if sound else f"the API answered {status}: {item}"


async def run(settings: Settings, *, keep: bool, note: Note, show: Callable[..., None]) -> int:
    """Start the stack, run the demo and show it; with `keep` stay until a signal. Return the exit code."""
    async with Stack(settings, note=note) as stack:
        checks, hops = await demo(stack, lambda known: note(known.line()))
        ok = all(check.ok for check in checks)
        for part in () if ok else ("worker", "api"):
            log = stack.logs(part)
            note("\n".join([f"--- the last lines of {part} ({log})", *last_lines(log, LAST_LINES)]))
        link = Tokens.of(stack.settings).sign_in_url(stack.settings.page_url, USER) if keep else None
        timeline = [{"hop": hop.hop, "at": hop.at, "ms": hop.ms} for hop in hops]
        told = {"ok": ok, "checks": checks, "timeline": timeline}
        show(told | ({"signIn": link} if link else {}), text=lambda: drawn(hops, link, ok=ok))
        if keep:
            note("the stack runs until Ctrl-C; every genctl command in another terminal finds it")
            await stack.watch()
    return int(not ok)


def drawn(hops: Sequence[HopResult], link: str | None, *, ok: bool) -> str:
    """Draw the timeline as bars, then the verdict and the page's link."""
    passed = [(hop.hop, hop.ms) for hop in hops if hop.ms is not None]
    longest = max((ms for _, ms in passed), default=0.0) or 1.0
    bars = [f"{hop:<9} {'█' * round(BAR * ms / longest):<{BAR}} {ms:8.1f} ms" for hop, ms in passed]
    verdict = "everything holds" if ok else "NOT everything holds"
    last = [f"Sign in: {link}"] if link else []
    return "\n".join([*bars, f"demo: {verdict}", *last]) + "\n"

"""Watch the main job on the embedded stack from outside: a job that the provider refuses, and a good one."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import msgspec

from genctl import credits
from genctl.base.person import Note
from genctl.base.settings import Settings
from genctl.base.tokens import Tokens
from genctl.domain.model import Session, Status
from genctl.edges.db import Database
from genctl.ops.smoke.deployment import Deployment, Door
from genctl.ops.smoke.hop import HOPS, HopResult, verdict
from genctl.ops.smoke.judge import Judge
from genctl.ops.smoke.sound import details_complaints
from genctl.ops.stack.child import last_lines, until
from genctl.ops.stack.stack import Stack

USER = "demo"
TIMEOUT_S = 30.0
LOG_TIMEOUT_S = 3.0
POLL_S = 0.02
BAR = 40  # columns of the longest bar
LAST_LINES = 12
WORKER_LOGS = ("session.failed.updated", "session.failed.notify.sent")
API_LOGS = ("sse.notify.received", "sse.session.lookup", "sse.emit")


class Check(msgspec.Struct, frozen=True):
    """Tell whether one thing holds."""

    check: str
    ok: bool
    evidence: str

    def line(self) -> str:
        """Write it for people."""
        return f"  {'ok    ' if self.ok else 'BROKEN'} {self.check}: {self.evidence}"


class Beat(msgspec.Struct, frozen=True):
    """Tell when a hop was passed: milliseconds after the job was accepted."""

    hop: str
    at: str | None
    ms: float | None


class Shown(msgspec.Struct, frozen=True):
    """Hold what `demo` shows: with -o json exactly this, and with --keep `signIn`."""

    ok: bool
    checks: list[Check]
    timeline: list[Beat]


async def demo(stack: Stack, show: Callable[[HopResult | Check], object]) -> Shown:
    """Run both jobs; `show` gets each hop and check as soon as it is known. Raises GenctlError, exit 3."""
    settings = stack.settings
    checks: list[Check] = []

    def check(name: str, ok: bool, evidence: str) -> None:  # noqa: FBT001 - reads as a sentence
        checks.append(Check(name, ok, evidence))
        show(checks[-1])

    async with Deployment.open(settings) as deployment:
        db, api = deployment.db, deployment.api
        await credits.open_accounts(db, [USER], credits.opening(settings))
        before = await _balance(db)
        hops = []
        async with Judge.open(deployment, USER, TIMEOUT_S) as judge:
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
        status, good = await api.order(USER, prompt=api.tool.good, clientKey=f"demo-{uuid4().hex[:8]}")
        check("a good job completes", *_made(await _ended(db, good["sessionId"]) if status == 202 else None))
        left = await _balance(db)
        check("and is paid for", left == after - api.tool.price, f"{after} credits before, {left} after")
    timeline = [Beat(hop.hop, hop.at, hop.ms) for hop in hops]
    return Shown(ok=all(check.ok for check in checks), checks=checks, timeline=timeline)


async def _balance(db: Database) -> int:
    return int((await credits.account(db, USER))["balance"])


async def _ended(db: Database, session_id: str) -> Session:
    """Read the row once its run has ended, or as it is when the time is over."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        (row,) = await db.rows("sessions", ids=[session_id])
        session = Session.of(row)
        if session.completed_at or time.monotonic() > deadline:
            return session
        await asyncio.sleep(POLL_S)


def _made(session: Session | None) -> tuple[bool, str]:
    if session is None or session.status is not Status.COMPLETED:
        return False, f"it is {session.status}" if session else "the API took no order"
    image = (session.result or {})["images"][0]
    return True, f"one image of {image['size']}"


class _Line(msgspec.Struct, frozen=True, rename="camel"):
    """Hold what matters of a line of a log."""

    event: str
    session_id: str = ""
    sse_event: str = ""
    has_error_details: bool = False

    @property
    def is_sound(self) -> bool:
        """Tell of `sse.emit` whether the failure went out with its details; other events are sound."""
        return self.event != "sse.emit" or (self.sse_event == "failed" and self.has_error_details)


async def _logged(log: Path, session_id: UUID | None, events: Sequence[str]) -> tuple[bool, str]:
    """Wait a moment for the session's events in a log: which it has, or which are missing."""

    def missing() -> list[str]:
        lines = [line for line in _lines(log) if line.session_id == str(session_id) and line.is_sound]
        return [event for event in events if event not in {line.event for line in lines}]

    if await until(lambda: not missing(), LOG_TIMEOUT_S):
        return True, ", ".join(events)
    return False, f"not in {log}: {', '.join(missing())}"


def _lines(log: Path) -> Iterator[_Line]:
    for line in log.read_bytes().splitlines():
        with suppress(msgspec.DecodeError):
            yield msgspec.json.decode(line, type=_Line)


async def _card(door: Door, session_id: UUID | None) -> tuple[bool, str]:
    """Judge what a page shows of the failure: the provider's sentence without ids, and the refund."""
    if session_id is None:
        return False, "there is no session"
    status, item = await door.session(USER, session_id)
    details = item.get("error_details") or {}
    sound = status == 200 and not details_complaints(details) and details["refundedCredits"] > 0
    text = f"{details.get('userMessage')} — {details.get('refundedCredits')} credits returned"
    return sound, text if sound else f"the API answered {status}: {item}"


async def run(settings: Settings, *, keep: bool, note: Note, show: Callable[..., None]) -> int:
    """Start the stack, run the demo, show it; with `keep` stay until a signal. Returns the exit code."""
    async with Stack(settings, note=note) as stack:
        shown = await demo(stack, lambda known: note(known.line()))
        for part in () if shown.ok else ("worker", "api"):
            log = stack.logs(part)
            note("\n".join([f"--- the last lines of {part} ({log})", *last_lines(log, LAST_LINES)]))
        link = Tokens.of(stack.settings).sign_in_url(stack.settings.page_url, USER) if keep else None
        show(
            msgspec.structs.asdict(shown) | ({"signIn": link} if link else {}),
            text=lambda: drawn(shown, link),
        )
        if keep:
            note("the stack runs until Ctrl-C; every genctl command in another terminal finds it")
            await stack.watch()
    return int(not shown.ok)


def drawn(shown: Shown, link: str | None) -> str:
    """Draw the timeline as bars, then the verdict and the page's link."""
    passed = [(beat.hop, beat.ms) for beat in shown.timeline if beat.ms is not None]
    longest = max((ms for _, ms in passed), default=0.0) or 1.0
    bars = [f"{hop:<9} {'█' * round(BAR * ms / longest):<{BAR}} {ms:8.1f} ms" for hop, ms in passed]
    verdict = "everything holds" if shown.ok else "NOT everything holds"
    last = [f"Sign in: {link}"] if link else []
    return "\n".join([*bars, f"demo: {verdict}", *last]) + "\n"

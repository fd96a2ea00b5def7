"""The main job on the embedded stack, watched from outside: one job that is refused, one that is made."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import msgspec

from genctl import credits
from genctl.base.settings import Settings
from genctl.domain.model import Session, Status
from genctl.domain.orders import Order
from genctl.domain.scenarios import GOOD_PROMPT, SENSITIVE_PROMPT
from genctl.domain.tools import SEEDREAM4
from genctl.edges.db import Database
from genctl.edges.sqs import Queue, Sqs
from genctl.ops.smoke import HOPS, Hop, Judge, Subject
from genctl.ops.stack import Stack
from genctl.pipeline import enqueue

USER = "demo"
TIMEOUT_S = 30.0
LOG_TIMEOUT_S = 3.0
POLL_S = 0.02
BAR = 40  # columns of the longest bar
LOGGED = ("session.failed.updated", "session.failed.notify.sent")


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
    """What `demo` has to show; with -o json exactly this."""

    ok: bool
    checks: list[Check]
    timeline: list[Beat]


async def demo(stack: Stack, told: Callable[[Hop | Check], None]) -> Shown:
    """Run both jobs; `told` hears of each hop and check as it is known. Raises GenctlError, exit 3."""
    settings = stack.settings
    checks: list[Check] = []

    def check(name: str, ok: bool, evidence: str) -> None:  # noqa: FBT001 - reads as a sentence
        checks.append(Check(name, ok, evidence))
        told(checks[-1])

    async with Database.open(settings.dsn()) as db, await Sqs.connect(settings) as sqs:
        queue = await sqs.queue(settings.queue)
        dlq = await queue.dead_letter_queue(settings.dlq)
        await credits.open_accounts(db, [USER], credits.opening(settings))
        before = await _balance(db)
        async with Judge.listening(db, dlq, dsn=settings.dsn(), timeout_s=TIMEOUT_S) as judge:
            bad = await _enqueue(db, queue, SENSITIVE_PROMPT)
            assert bad.reservation_id  # noqa: S101 - enqueue has just made it
            subject = Subject(bad.id, bad.reservation_id, USER, before)
            hops = []
            async for hop in judge.hops(subject):
                hops.append(hop)
                told(hop)
        broken = next((hop for hop in hops if not hop.ok), None)
        check("every hop holds", broken is None, f"{broken.hop}: {broken.why}" if broken else ", ".join(HOPS))
        found = await _logged(stack.logs("worker"), bad.id, LOGGED)
        missing = [event for event in LOGGED if event not in found]
        check("the worker logged it", not missing, ", ".join(missing or LOGGED))
        after = await _balance(db)
        check("the balance is whole again", after == before, f"{before} credits before, {after} after")
        good = await _enqueue(db, queue, GOOD_PROMPT)
        ended = await _ended(db, good)
        check("a good job completes", ended.status is Status.COMPLETED, _made(ended))
        left = await _balance(db)
        check("and is paid for", left == after - SEEDREAM4.price, f"{after} credits before, {left} after")
    return Shown(
        ok=all(c.ok for c in checks),
        checks=checks,
        timeline=[Beat(hop.hop, hop.at, hop.ms) for hop in hops],
    )


async def _enqueue(db: Database, queue: Queue, prompt: str) -> Session:
    order = Order(
        session_id=uuid4(),
        reservation_id=uuid4(),
        user_id=USER,
        prompt=prompt,
        model=SEEDREAM4.default_model,
        cost=SEEDREAM4.price,
        client_key=f"demo-{uuid4().hex[:8]}",
    )
    return (await enqueue([order], db=db, queue=queue)).sessions[0]


async def _balance(db: Database) -> int:
    return int((await credits.account(db, USER))["balance"])


async def _ended(db: Database, session: Session) -> Session:
    """The row once its run has ended; as it is when it does not end in time."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        (row,) = await db.rows("sessions", ids=[session.id])
        found = Session.of(row)
        if found.completed_at or time.monotonic() > deadline:
            return found
        await asyncio.sleep(POLL_S)


def _made(session: Session) -> str:
    if session.status is not Status.COMPLETED:
        return f"it is {session.status}"
    image = (session.result or {})["images"][0]
    return f"one image of {image['size']}"


async def _logged(log: Path, session_id: UUID, events: Sequence[str]) -> set[str]:
    """Which of the events the log has for the session, given a moment to be written."""
    deadline = time.monotonic() + LOG_TIMEOUT_S
    while True:
        found = {event for event, said in _lines(log) if said == str(session_id) and event in events}
        if len(found) == len(events) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(POLL_S)


def _lines(log: Path) -> Iterator[tuple[str, str | None]]:
    """Event and session of each line that is JSON."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, KeyError, TypeError):
            said = json.loads(line)
            yield said["event"], said.get("sessionId")


async def run(
    settings: Settings, *, keep: bool, note: Callable[[str], None], show: Callable[..., None]
) -> int:
    """Start the stack, run the demo, show it; with `keep` stay until a signal. The exit code."""
    async with Stack(settings, say=note) as stack:
        shown = await demo(stack, lambda known: note(_line(known)))
        if not shown.ok:
            note(f"--- the worker's last lines ({stack.logs('worker')})\n{_tail(stack.logs('worker'))}")
        show(shown, text=lambda: drawn(shown))
        if keep:
            note("the stack runs until Ctrl-C; every genctl command in another terminal finds it")
            await stack.watch()
    return int(not shown.ok)


def _line(known: Hop | Check) -> str:
    if isinstance(known, Hop):
        if known.ok:
            return f"  {known.hop:<9} {known.ms:8.1f} ms  {known.evidence}"
        return f"  {known.hop:<9}   BROKEN     {known.why}"
    return f"  {'ok    ' if known.ok else 'BROKEN'} {known.check}: {known.evidence}"


def _tail(log: Path, lines: int = 12) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def drawn(shown: Shown) -> str:
    """The timeline as bars, and the verdict."""
    longest = max((beat.ms or 0.0 for beat in shown.timeline), default=0.0) or 1.0
    bars = [
        f"{beat.hop:<9} {'█' * round(BAR * (beat.ms or 0) / longest):<{BAR}} {beat.ms:8.1f} ms"
        for beat in shown.timeline
        if beat.ms is not None
    ]
    verdict = "everything holds" if shown.ok else "NOT everything holds"
    return "\n".join([*bars, f"demo: {verdict}"]) + "\n"

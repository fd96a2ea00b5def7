"""Send owed messages, end runs that no worker will end, refund what is still held: the safety net.

It is safe beside any number of workers and sweepers: the row gates every step, as it gates theirs.
"""

import asyncio
import math
from typing import Any, Literal, NamedTuple
from uuid import UUID

import msgspec
import structlog

from genctl import credits, gate
from genctl.base.settings import Settings
from genctl.domain import decide
from genctl.domain.classify import longest_run_s
from genctl.domain.model import GenctlError, Session, rough
from genctl.edges.db import Database, as_json
from genctl.edges.sqs import Sqs
from genctl.enqueue import send_jobs
from genctl.ledger import BRIEFLY_S
from genctl.pipeline import Pipeline
from genctl.run import RENEW_S
from genctl.tools.found import Tools

EVERY_S = 15.0
ORPHAN_AFTER_S = 3600
OWED_AFTER_S = 60  # before that whoever owes a message may still send it
GATE_REST_S = 3600  # after a pause the backlog has so long before the queued time-out counts again
BATCH = 100
PRUNED = 10_000  # rows of the trace in one pass

log = structlog.stdlib.get_logger()


class Orphan(msgspec.Struct, frozen=True):
    """Hold what a reservation tells of a session whose row is gone."""

    id: UUID
    user_id: str
    run: int
    reservation_id: UUID


class Swept(msgspec.Struct, frozen=True):
    """Describe one thing that a pass did, or would do."""

    action: Literal["send", "copy", "requeue", "fail", "refund", "capture", "prune"]
    session: Session | Orphan | None  # None: prune, which is about no session
    why: str
    code: str | None = None  # of `fail`

    def item(self) -> dict[str, Any]:
        """Write it as `sweep` prints it."""
        session = self.session
        whose = dict.fromkeys(("sessionId", "userId", "run"))
        if session:
            whose = {"sessionId": session.id, "userId": session.user_id, "run": session.run}
        return {"action": self.action, **whose, "code": self.code, "why": self.why}


class SweepPass(NamedTuple):
    """Hold what one pass did, or would do, and the errors that kept it from the rest."""

    done: list[Swept]
    failed: list[GenctlError]


def check_timeout(settings: Settings) -> None:
    """Raise GenctlError (exit 2) when the queued time-out would fail runs while workers retry them."""
    attempts, waits_s = settings.max_attempts, settings.queued_timeout_s
    longest_s = longest_run_s(attempts, settings.provider_timeout_s)
    if waits_s < longest_s:
        raise GenctlError(
            "BadSetting",
            f"GENCTL_QUEUED_TIMEOUT is {waits_s:g} s, and {attempts} attempts may last {longest_s:g} s:"
            " runs would be failed while they are retried",
            f"set GENCTL_QUEUED_TIMEOUT={math.ceil(longest_s)}s or more, or lower GENCTL_MAX_ATTEMPTS"
            " or GENCTL_PROVIDER_TIMEOUT",
            exit_code=2,
        )


async def sweep(pipeline: Pipeline, settings: Settings, *, dry_run: bool = False) -> SweepPass:
    """Make one pass over at most a batch of each kind; log what fails, and leave it to the next pass.

    Raises GenctlError when it cannot read the rows.
    """
    found, failed = await _find(pipeline, settings.queued_timeout_s), list[GenctlError]()
    age_s = settings.trace_retention_s
    if dry_run:
        return SweepPass(found + await _pruned("old_trace", pipeline.db, age_s, failed), failed)
    done = await _send(pipeline, [swept for swept in found if swept.action == "send"], failed)
    others = (swept for swept in found if swept.action != "send")
    done += [swept for swept in others if await _carried_out(pipeline, swept, failed)]
    return SweepPass(done + await _pruned("prune_trace", pipeline.db, age_s, failed), failed)


async def sweep_every(pipeline: Pipeline, settings: Settings, every_s: float = EVERY_S) -> None:
    """Sweep for ever; log errors, which the next pass meets again."""
    while True:
        try:
            await sweep(pipeline, settings)
        except GenctlError as error:
            log.warning("sweeper.trouble", error=error.message, fix=error.fix)
        except Exception:  # a bug on one odd row must not end the worker beside it
            log.exception("sweeper.bug")
        await asyncio.sleep(every_s)


async def resend_all(settings: Settings) -> int:
    """Send the message of every queued run again, as a queue in memory has lost them; return how many.

    Raises GenctlError when it cannot send one, which the row then still owes.
    """
    sent, tools = 0, Tools.of(settings)
    async with Database.open(settings.dsn(), size=1) as db, await Sqs.connect(settings) as sqs:
        for tool in tools:
            queue = await sqs.queue(settings.queue_of(tool.name))
            await db.rows("owe_queued", models=tool.like)
            while jobs := await _sessions(db, "owed_jobs", age_s=0, models=tool.like):
                if owed := await send_jobs(jobs, db=db, queue=queue, tool=tool.name):
                    why = f"owed jobs were not sent: {next(iter(owed.values()))}"
                    raise GenctlError("QueueUnreachable", why, "run `genctl sweep`")
                sent += len(jobs)
    return sent


async def _find(pipeline: Pipeline, queued_timeout_s: float) -> list[Swept]:
    # other tools have sweepers of their own, but every sweeper releases and captures reservations
    db, tool = pipeline.db, pipeline.tool
    ours: dict[str, Any] = {"models": tool.like, "others": pipeline.others}
    late = ours | {"queued_timeout_s": queued_timeout_s}
    jobs = await _sessions(db, "owed_jobs", age_s=OWED_AFTER_S, models=tool.like)
    copies = await _sessions(db, "owed_copies", age_s=OWED_AFTER_S, **ours)
    found = [Swept("send", s, "its job message is not proven sent") for s in jobs]
    found += [Swept("copy", s, "its DLQ copy is not proven sent") for s in copies]
    if db.back_since_s() > RENEW_S:  # before that the owners of the runs get the first turn
        dead = await _sessions(db, "dead_leases", **late)
        found += [_dead(s, pipeline.limits) for s in dead if s.id not in pipeline.runs]
    if (await gate.read(db, tool.name)).open_for_s >= GATE_REST_S:
        waited = "it waited longer than the queued time-out"
        found += [Swept("fail", s, waited, "SweptTimeout") for s in await _sessions(db, "overdue", **late)]
    refunds, captures = await _sessions(db, "refunds_owed"), await _sessions(db, "captures_owed")
    found += [Swept("refund", s, "it failed and still holds its reservation") for s in refunds]
    found += [Swept("capture", s, "it completed and still holds its reservation") for s in captures]
    rows = await db.rows("orphans", age_s=ORPHAN_AFTER_S, limit=BATCH)
    gone = "its session is gone and its reservation still held"
    return found + [Swept("refund", msgspec.convert(row, Orphan), gone) for row in rows]


async def _pruned(name: str, db: Database, age_s: float, failed: list[GenctlError]) -> list[Swept]:
    """Prune rows of the trace that are too old, or only count them; return how many as one Swept, if any."""
    try:
        row = await db.row(name, age_s=age_s, limit=PRUNED)
    except GenctlError as error:
        log.warning("sweep.failed", action="prune", error=error.message)
        failed.append(error)
        return []
    if row is None or not row["events"]:
        return []
    return [Swept("prune", None, f"{row['events']} events of the trace are older than {rough(age_s)}")]


async def _send(pipeline: Pipeline, owed: list[Swept], failed: list[GenctlError]) -> list[Swept]:
    """Send the owed job messages together; return those that were sent."""
    if not owed:
        return []
    jobs = [swept.session for swept in owed if isinstance(swept.session, Session)]
    unsent = await send_jobs(jobs, db=pipeline.db, queue=pipeline.queue, tool=pipeline.tool.name)
    if unsent:
        why = next(iter(unsent.values()))
        log.warning("sweep.failed", action="send", jobs=len(unsent), error=why)
        failed.append(GenctlError("QueueUnreachable", f"owed jobs were not sent: {why}", "genctl doctor"))
    sent = [swept for swept in owed if swept.session and swept.session.id not in unsent]
    for swept in sent:
        _log_done(swept)
    return sent


def _dead(session: Session, limits: decide.Limits) -> Swept:
    why = "its worker fell silent"
    code = decide.dead_lease_code(session, limits)
    return Swept("fail", session, why, code) if code else Swept("requeue", session, why)


async def _carried_out(pipeline: Pipeline, swept: Swept, failed: list[GenctlError]) -> bool:
    """Carry it out; tell whether this pass did it, as a worker or another sweeper may have been faster."""
    try:
        done = await _carry_out(pipeline, swept)
    except GenctlError as error:
        log.warning("sweep.failed", **_about(swept), error=error.message)
        failed.append(error)
        return False
    if done:
        _log_done(swept)
    return done


def _log_done(swept: Swept) -> None:
    log.info("sweep.done", **_about(swept), why=swept.why)


def _about(swept: Swept) -> dict[str, Any]:
    item = swept.item()
    return {name: item[name] for name in ("action", "sessionId", "userId")}


async def _carry_out(pipeline: Pipeline, swept: Swept) -> bool:
    session, db = swept.session, pipeline.db
    if swept.action == "refund" and session and session.reservation_id:
        reason = "sweep" if isinstance(session, Session) else "sweep: no session"
        reservation = session.reservation_id
        return bool(await credits.release_reservation(db, reservation, reason=reason, wait_s=BRIEFLY_S))
    assert isinstance(session, Session)  # noqa: S101 - only a refund may be about no row
    match swept.action:
        case "capture" if session.reservation_id:
            return await credits.capture_reservation(db, session.reservation_id, reason="sweep")
        case "copy":
            await _copy(pipeline, session)
            return True
        case "requeue":
            items = [{"session_id": session.id, "lease": session.lease}]
            requeued = await db.rows("requeue_dead", items=as_json(items))
            if requeued:
                pipeline.meters.count("orphaned")
            return bool(requeued)
        case "fail":
            return await _fail(pipeline, session, swept.code or "WorkerCrashed")
    raise AssertionError(swept.action)


async def _fail(pipeline: Pipeline, session: Session, code: str) -> bool:
    """Claim the session and settle it as failed without a call."""
    claimed = await pipeline.claim(session.id, session.run, lapsed=True)
    if claimed is None:
        return False
    row = await pipeline.give_up(claimed, code)
    if row.copy_owed:
        await _copy(pipeline, row)
    return True


async def _copy(pipeline: Pipeline, row: Session) -> None:
    await pipeline.copy(row, body=decide.job_body(row, pipeline.tool.name), code=decide.error_code(row))


async def _sessions(db: Database, name: str, **params: object) -> list[Session]:
    return [Session.of(row) for row in await db.rows(name, limit=BATCH, **params)]

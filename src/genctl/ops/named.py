"""Retry or cancel the sessions that a person names."""

from collections.abc import Sequence

import msgspec

from genctl import gate
from genctl.base.person import who
from genctl.base.printable import many
from genctl.base.settings import Settings
from genctl.cancel import NotWaitingError, cancel
from genctl.domain.deadletters import Tally, at_most, plan
from genctl.domain.model import Session, Status
from genctl.edges.db import Database
from genctl.edges.db_errors import LockedError
from genctl.ops.bulk import Errand, recorded
from genctl.ops.redrive import BATCH, Plan, Redriven, RedriveOptions
from genctl.ops.sessions import find
from genctl.pipeline import Pipeline
from genctl.redrive import named, retry
from genctl.tools.found import Tools


class Cancelled(msgspec.Struct):
    """Count what became of the named sessions; `credits` went back to their users."""

    cancelled: int = 0
    credits: int = 0
    skipped: dict[str, int] = {}


async def found(db: Database, ids: Sequence[str]) -> list[Session]:
    """Find the sessions that are named, each once. Raises GenctlError as find() does."""
    sessions = [await find(db, text) for text in ids]
    return list({session.id: session for session in sessions}.values())


async def retry_named(
    settings: Settings, ids: Sequence[str], options: RedriveOptions, errand: Errand
) -> Plan | Redriven:
    """Give the sessions another run as a redrive would, whether their copies are in the DLQ or not.

    `errand.note` says why a session was left. Raises GenctlError: exit 4 for an id of no session, 2 for an
    ambiguous one, 3 when a dependency goes away.
    """
    terms = options.terms(settings)
    async with Pipeline.open(settings, size=1, calls=False) as pipeline:
        db, tool = pipeline.db, pipeline.tool.name
        letters = await named(await found(db, ids), db)
        count = len(letters)
        planned = Plan(options.edits, seen=count, approximate=count)
        planned.add(letters, at_most(plan(letters, terms), count))
        if errand.dry_run:
            return planned
        planned.ask(errand)
        done, rest = Tally(), [str(letter.session_id) for letter in letters]
        left, stopped = {"ids": rest}, None
        async with recorded(db, errand, done, tool=tool, left=lambda: left if rest else None) as stop:
            for first in range(0, count, BATCH):
                now = await gate.read(db, tool)
                if not now.is_open:
                    stop(stopped := now.why_closed)
                    errand.note(f"stopped: {stopped}; run it again to go on")
                    break
                fates = await retry(letters[first : first + BATCH], pipeline, terms)
                del rest[:BATCH]
                done.add(None if fate.error else fate.step for fate in fates)
                for fate in fates:
                    if fate.error or fate.step.action == "skip":
                        errand.note(f"session {fate.letter.session_id}: {fate.error or fate.step.why}")
        return Redriven(done, count, count, stopped)


async def cancel_named(settings: Settings, ids: Sequence[str], errand: Errand) -> Cancelled:
    """End the runs of the sessions that wait; `errand.note` says why a session was left.

    Raises GenctlError: exit 4 for an id of no session, 2 for an ambiguous one, 3 when the database goes away.
    """
    tools, done = Tools.of(settings), Cancelled()
    async with Database.open(settings.dsn()) as db:
        sessions = await found(db, ids)
        waiting = [session for session in sessions if session.status is Status.QUEUED]
        if errand.dry_run:
            left = {"not waiting": len(sessions) - len(waiting)} if len(sessions) > len(waiting) else {}
            return Cancelled(len(waiting), sum(one.reserved or 0 for one in waiting), left)
        if errand.confirm and waiting:
            users = {session.user_id for session in waiting}
            errand.confirm(f"Cancel {many(len(waiting), 'session')} of {many(len(users), 'user')}?")
        rest = [str(session.id) for session in sessions]
        async with recorded(db, errand, done, left=lambda: {"ids": rest} if rest else None):
            for session in sessions:
                provider = (tools.serving(session.model) or tools.about("")).provider
                try:
                    row = await cancel(
                        db, session, provider=provider, most_attempts=settings.max_attempts, who=who()
                    )
                except (NotWaitingError, LockedError) as error:
                    why = "not waiting" if isinstance(error, NotWaitingError) else "locked"
                    done.skipped[why] = done.skipped.get(why, 0) + 1
                    errand.note(f"session {session.id}: {error.message}")
                else:
                    done.cancelled += 1
                    done.credits += row.returned
                rest.remove(str(session.id))
    return done

"""Retry or cancel the sessions that a person names."""

from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from genctl import gate
from genctl.base.person import Note, who
from genctl.base.printable import many
from genctl.base.settings import Settings
from genctl.cancel import NotWaitingError, cancel
from genctl.domain.deadletters import Tally, at_most, plan
from genctl.domain.model import Session, Status
from genctl.edges.db import Database
from genctl.edges.db_errors import LockedError
from genctl.ops.bulk import Purpose, recorded
from genctl.ops.redrive import BATCH, Plan, Redriven, RedriveOptions
from genctl.ops.sessions import find
from genctl.pipeline import Pipeline
from genctl.redrive import named, retry
from genctl.tools.found import Tools

Confirm = Callable[[str], object] | None  # asks a person, and raises GenctlError when the answer is no


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
    settings: Settings,
    ids: Sequence[str],
    options: RedriveOptions,
    purpose: Purpose,
    *,
    dry_run: bool,
    confirm: Confirm,
    note: Note,
) -> Plan | Redriven:
    """Give the sessions another run as a redrive would, whether their copies are in the DLQ or not.

    `confirm` asks about the plan first; with `dry_run` only plan. `note` says why a session was left. Raises
    GenctlError: exit 4 for an id of no session, 2 for an ambiguous one, 3 when a dependency goes away.
    """
    async with Pipeline.open(settings, size=1, calls=False) as pipeline:
        serves = partial(Tools.of(settings).tells, pipeline.tool)
        terms = msgspec.structs.replace(options.terms, takes=pipeline.tool.takes, serves=serves)
        letters = await named(await found(pipeline.db, ids), pipeline.db)
        steps = at_most(plan(letters, terms), len(letters))
        tally = Tally()
        tally.add(steps)
        rows = [msgspec.structs.asdict(step) | x.item() for x, step in zip(letters, steps, strict=True)]
        planned = Plan(rows, tally, len(letters), len(letters), options.edits)
        if dry_run:
            return planned
        if confirm and (question := planned.question()):
            confirm(question)
        done, rest = Tally(), [str(letter.session_id) for letter in letters]
        tool = pipeline.tool.name
        async with recorded(
            pipeline.db, purpose, done, tool=tool, left=lambda: {"ids": tuple(rest)} if rest else None
        ) as work:
            for first in range(0, len(letters), BATCH):
                now = await gate.read(pipeline.db, tool)
                if not now.is_open:
                    work.stop(now.why_closed)
                    note(f"stopped: {now.why_closed}; run it again to go on")
                    return Redriven(done, len(letters), len(letters), now.why_closed)
                fates = await retry(letters[first : first + BATCH], pipeline, terms)
                del rest[:BATCH]
                kept = [fate.step for fate in fates if fate.error is None]
                done.add(kept, failed=len(fates) - len(kept))
                for fate in fates:
                    if fate.error or fate.step.action == "skip":
                        note(f"session {fate.letter.session_id}: {fate.error or fate.step.why}")
        return Redriven(done, len(letters), len(letters))


async def cancel_named(
    settings: Settings, ids: Sequence[str], purpose: Purpose, *, dry_run: bool, confirm: Confirm, note: Note
) -> Cancelled:
    """End the runs of the sessions that wait; `note` says why a session was left.

    With `dry_run` only say what it would do. Raises GenctlError: exit 4 for an id of no session, 2 for an
    ambiguous one, 3 when the database goes away.
    """
    tools, done = Tools.of(settings), Cancelled()
    async with Database.open(settings.dsn()) as db:
        sessions = await found(db, ids)
        waiting = [session for session in sessions if session.status is Status.QUEUED]
        if dry_run:
            left = {"not waiting": len(sessions) - len(waiting)} if len(sessions) > len(waiting) else {}
            return Cancelled(len(waiting), sum(one.reserved or 0 for one in waiting), left)
        if confirm and waiting:
            users = {session.user_id for session in waiting}
            confirm(f"Cancel {many(len(waiting), 'session')} of {many(len(users), 'user')}?")
        rest = [str(session.id) for session in sessions]
        async with recorded(db, purpose, done, left=lambda: {"ids": tuple(rest)} if rest else None):
            for session in sessions:
                provider = (tools.serving(session.model) or tools.about("")).provider
                try:
                    row = await cancel(
                        db, session, provider=provider, most_attempts=settings.max_attempts, who=who()
                    )
                except (NotWaitingError, LockedError) as error:
                    why = "not waiting" if isinstance(error, NotWaitingError) else "locked"
                    done.skipped[why] = done.skipped.get(why, 0) + 1
                    note(f"session {session.id}: {error.message}")
                else:
                    done.cancelled += 1
                    done.credits += row.returned
                rest.remove(str(session.id))
    return done

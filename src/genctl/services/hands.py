"""Deal a worker's hands among the users who wait, so that one user's many jobs do not fill them all.

A queue may deliver one user's ten thousand jobs first. Where a user holds his share of the hands, his message
waits here, hidden, and a hand takes a due run of another user from the table: the row decides. That run's own
message finds it taken or ended, as a second delivery does, so each queued run has its message at all times.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from uuid import UUID

import structlog

from genctl.domain.decide import read_job
from genctl.domain.model import GenctlError, Job
from genctl.edges.sqs_shapes import Message
from genctl.pipeline import Pipeline

USERS = 40  # whom one look walks past
DEEP = 50  # of a user's oldest runs, among which a look finds those that are due
ALONE_S = 0.2  # how long we believe that nobody else waits

log = structlog.stdlib.get_logger()


class Taken(NamedTuple):
    """Say what a hand takes: the run that a message names, or without a message a run of the table.

    We know job and user of a message once we have looked.
    """

    message: Message | None
    job: Job | None = None
    user: str | None = None

    @property
    def name(self) -> str:
        """Name it in the log: the message's id, or the session's."""
        return self.message.message_id if self.message else str(self.session_id)

    @property
    def session_id(self) -> UUID | None:
        """Return the session's id, if we know it."""
        return self.job.session_id if self.job else None


class Hands:
    """Know who holds a worker's hands; `aside` are messages of users who hold their share."""

    def __init__(self, pipeline: Pipeline, jobs: Mapping[asyncio.Task[Any], Taken], *, share: int) -> None:
        """Take the worker's jobs by their tasks, and how many hands a user may hold while others wait."""
        self.aside: list[Taken] = []
        self._pipeline = pipeline
        self._jobs = jobs
        self._share = share
        self._after = ""  # the last user whom we have preferred: the next look begins behind him
        self._alone_until = 0.0  # monotonic

    async def look(self, messages: Sequence[Message], hands: int) -> tuple[list[Taken], list[Taken]]:
        """Return the messages with their users, and due runs of others if a user may hold his share."""
        named = [Taken(message) for message in messages]
        if not self._may_be_unfair(messages):
            return named, []
        named = [Taken(message, _job(message)) for message in messages]
        held = self._held()
        with suppress(GenctlError):  # the jobs meet the trouble themselves
            rows = await self._pipeline.db.rows(
                "waiting_others",
                named=[one.session_id for one in named if one.job],
                full=[user for user, count in held.items() if count >= self._share],
                models=self._pipeline.tool.like,
                after=self._after,
                users=USERS,
                deep=DEEP,
                each=self._share,
                limit=hands + len(named) + len(self.aside),  # as many may be here already
            )
            users = {row["session_id"]: row["user_id"] for row in rows if row["is_named"]}
            others = [
                Taken(None, Job(1, self._pipeline.tool.name, row["session_id"], row["run"]), row["user_id"])
                for row in rows
                if not row["is_named"]
            ]
            if not others:
                self._alone_until = time.monotonic() + ALONE_S
            return [one._replace(user=users.get(one.session_id)) for one in named], others
        return named, []

    def deal(self, named: Sequence[Taken], others: Sequence[Taken], hands: int) -> list[Taken]:
        """Choose what so many free hands take, and set the other messages aside."""
        waiting = [*self.aside, *named]
        if not others and len(waiting) <= hands:
            self.aside.clear()
            return waiting
        here = {one.session_id for one in (*waiting, *self._jobs.values())}
        new = [one for one in others if one.session_id not in here]
        taken, self.aside[:] = dealt(waiting, new, self._held(), share=self._share, hands=hands)
        if preferred := [one for one in taken if one.message is None]:
            self._after = preferred[-1].user or ""
            log.info("worker.others.first", runs=len(preferred), aside=len(self.aside))
        return taken

    def _may_be_unfair(self, more: Sequence[Message]) -> bool:
        """Tell whether a user may hold more than his share with these messages, and others may wait.

        A user's messages have one group; those without a group may be anybody's.
        """
        many = len(self._jobs) + len(self.aside) + len(more)
        if time.monotonic() < self._alone_until or many <= self._share:
            return False
        ours = [taken.message for taken in self._jobs.values() if taken.message]
        groups = Counter([group for one in (*ours, *more) if (group := one.system.group)])
        unknown = many - len(self.aside) - groups.total()
        return bool(self.aside) or max(groups.values(), default=0) + unknown > self._share

    def _held(self) -> Counter[str]:
        claimed = {hold.task: hold.session.user_id for hold in self._pipeline.runs}
        users = (claimed.get(task, taken.user) for task, taken in self._jobs.items())
        return Counter(user for user in users if user is not None)


def dealt(
    waiting: Sequence[Taken], others: Sequence[Taken], held: Counter[str], *, share: int, hands: int
) -> tuple[list[Taken], list[Taken]]:
    """Return what so many hands take, and what of `waiting` they leave.

    First come the messages of users who hold less than their share, then the runs of such users, then the
    other messages: no hand stays free.
    """
    held, taken, left = Counter(held), list[Taken](), list[Taken]()
    for one in (*waiting, *others):
        if len(taken) < hands and (one.user is None or held[one.user] < share):
            taken.append(one)
            held.update([one.user] if one.user is not None else [])
        elif one.message is not None:
            left.append(one)
    room = hands - len(taken)
    return taken + left[:room], left[room:]


def _job(message: Message) -> Job | None:
    try:
        return read_job(message.body)
    except GenctlError:
        return None

"""Order test jobs, one or many, and wait for their end."""

import asyncio
import shlex
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import cycle, islice
from secrets import token_hex
from typing import Any
from uuid import UUID, uuid4

import msgspec

from genctl import credits, gate, traits
from genctl.base.person import Advance, Note
from genctl.base.printable import many
from genctl.base.settings import Settings
from genctl.domain.model import GenctlError, Session, Status, meant
from genctl.domain.orders import Order, change, check
from genctl.edges.db import Database
from genctl.edges.db_errors import LockedError
from genctl.edges.sqs import Queue, Sqs
from genctl.enqueue import enqueue, lacking
from genctl.ledger import AccountLockedError
from genctl.services.scenarios import SCENARIOS, marked
from genctl.tools import Tool
from genctl.tools.found import Tools

BATCH = 100  # jobs of one transaction
MOST_AT_ONCE = 1000  # sessions of one look
POLL_S = 0.1
KEY_BYTES, SUM = 5, 6  # of a key: what is drawn, and the digits that name the options


class EnqueueOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the options of `genctl enqueue`."""

    prompt: str
    user: str
    count: int = 1
    sensitive: bool = False
    scenario: str | None = None
    users: int | None = None
    grant: int | None = None
    model: str | None = None
    client_key: str | None = None
    cost: int | None = None
    rate: float | None = None
    wait: bool = False
    expect: str | None = None
    params: tuple[str, ...] = ()  # key=value
    key: str | None = None  # of the jobs that another command began to order

    def tool(self, settings: Settings) -> Tool:
        """Find the tool of the model, else the one that is set. Raises GenctlError: exit 2, 3 if unusable."""
        tools = Tools.of(settings)
        if self.model is None:
            return tools.named(settings.tool)
        tool = tools.ordered(self.model)
        if tool.name != settings.tool and settings.is_flag("tool"):
            raise _refused(
                f"the model {self.model} is one of the tool {tool.name}, not of {settings.tool}",
                f"use --tool {tool.name}, or leave --tool out",
            )
        return tool

    def check(self, settings: Settings) -> None:
        """Check the options before we grant or order anything. Raises GenctlError: exit 2, 3 if unusable."""
        tool = self.tool(settings)
        tool.check_usable()
        tool.check_orderable(self.model or tool.default_model)
        check(next(self.orders(tool)))
        if self.key is not None:
            self._check_key(self.key, tool)
        if self.scenario is None:
            return
        if self.scenario not in SCENARIOS:
            told = f"there is no scenario {self.scenario!r}{meant(self.scenario, SCENARIOS)}"
            raise _refused(told, "`genctl help scenarios` lists them")
        if self.sensitive:
            raise _refused("--sensitive and --scenario exclude each other", "--scenario sensitive is both")
        if tool.is_real:
            fix = f"unset {tool.base.upper()}, or start `genctl simulator` and point it there"
            raise _refused(f"--scenario speaks to the simulator, and {tool.address} is a real provider", fix)

    @property
    def whose(self) -> list[str]:
        """List the users who order the jobs in turn."""
        return [f"{self.user}-{n}" for n in range(1, self.users + 1)] if self.users else [self.user]

    def text(self, tool: Tool) -> str:
        """Return the prompt that the provider gets."""
        if self.sensitive:
            return f"{self.prompt}, {tool.sensitive}"
        return marked(self.prompt, self.scenario) if self.scenario else self.prompt

    def new_key(self, tool: Tool) -> str:
        """Make a key for these jobs. Its end names the options that make them, so that no others take it."""
        drawn = token_hex(KEY_BYTES)
        return drawn + self._sum(drawn, tool)

    def _check_key(self, key: str, tool: Tool) -> None:
        if self.count == 1:
            raise _refused("--continue goes on with the jobs of --count N", "genctl enqueue -h")
        drawn = key[: 2 * KEY_BYTES]
        if key != drawn + self._sum(drawn, tool):
            told = f"{key!r} is no key of these jobs: the command that printed it had other options"
            raise _refused(told, "repeat that command as it was, with --continue and the key")

    def _sum(self, drawn: str, tool: Tool) -> str:
        same = msgspec.structs.replace(
            self, count=0, grant=None, rate=None, wait=False, expect=None, key=None
        )
        return sha256(msgspec.json.encode([drawn, tool.name, same])).hexdigest()[:SUM]

    def dealt(self) -> Iterator[tuple[int, str]]:
        """Number the jobs from 1, each with the user who orders it."""
        return zip(range(1, self.count + 1), cycle(self.whose), strict=False)

    def price(self, tool: Tool) -> int:
        """Return the credits of a job."""
        return tool.price if self.cost is None else self.cost

    def orders(
        self, tool: Tool, key: str | None = None, leave: Container[int] = frozenset()
    ) -> Iterator[Order]:
        """Yield the orders of a tool, one after the other, but not those with the numbers to `leave`.

        The `key` and its number make the idempotency key of an order.
        """
        model = self.model or tool.default_model
        params = tool.checked(dict(map(change, self.params)), model) or None
        for n, user in self.dealt():
            if n in leave:
                continue
            client_key = self.client_key or f"cli-{uuid4().hex[:12]}"
            yield Order(
                session_id=uuid4(),
                reservation_id=uuid4(),
                user_id=user,
                prompt=self.text(tool),
                model=model,
                cost=self.price(tool),
                client_key=f"{client_key}-{n}" if self.client_key and self.count > 1 else client_key,
                params=params,
                idempotency_key=numbered(key, n) if key else None,
            )


class EnqueueResult(msgspec.Struct, frozen=True):
    """Say what to print, whether all jobs ended as expected, and why we still owe messages."""

    data: dict[str, Any]
    expected: bool
    owed: str | None


async def run(
    settings: Settings, options: EnqueueOptions, again: Callable[..., str], *, advance: Advance, note: Note
) -> EnqueueResult:
    """Send the jobs; `advance` counts them, and `again` writes the command with changed options.

    Many jobs have a key, by which another command goes on. Raises GenctlError, before the first order where
    the credits do not suffice for all.
    """
    began, tool = time.monotonic(), options.tool(settings)
    async with Database.open(settings.dsn(), size=1) as db, await Sqs.connect(settings) as sqs:
        queue = await sqs.queue(settings.queue_of(tool.name))
        await traits.check(db, tool, [*islice(options.orders(tool), len(options.whose))])
        key = options.key or (options.new_key(tool) if options.count > 1 else None)
        many_jobs = ManyJobs(db, queue, tool, options, again, credits.opening(settings), key)
        await many_jobs.begin(note)
        try:
            owed = await many_jobs.order(advance)
        except GenctlError as error:
            raise await many_jobs.stopped(error) from error
        except BaseException:  # a signal
            if key:  # without one the same command would order a second job
                note(f"at least {many_jobs.so_far()}; go on: {many_jobs.go_on()}")
            raise
        if not (now := await gate.read(db, tool.name)).is_open:
            note(f"{'it waits' if options.count == 1 else 'they wait'}: {now.why_closed}")
        ids = [*many_jobs.before.values(), *(session.id for session in many_jobs.sent)]
        over = await ended(db, ids) if options.wait or options.expect else []
    seconds = round(time.monotonic() - began, 3)
    expected = all(session.status == options.expect for session in over) if options.expect else True
    one = options.count == 1
    data = _one(many_jobs.sent[0], over, seconds) if one else _many(options, over, seconds)
    return EnqueueResult(data, expected, owed)


@dataclass
class ManyJobs:
    """Order jobs in batches; know which are `sent`, and which another command has ordered `before`."""

    db: Database
    queue: Queue
    tool: Tool
    options: EnqueueOptions
    again: Callable[..., str]
    opening: int
    key: str | None
    sent: list[Session] = field(default_factory=list)
    before: dict[int, UUID] = field(default_factory=dict)  # by number

    async def begin(self, note: Note) -> None:
        """Find what was ordered before, and grant credits. Raises GenctlError, exit 1 if they are short."""
        options = self.options
        if options.key:
            self.before = await self._ordered_before(options.key)
            note(f"{len(self.before):,} of {many(options.count, 'job')} were ordered before")
        if short := await self._short(options.grant or 0):
            raise short
        if options.grant:
            try:
                why = "genctl enqueue --grant"
                await credits.grant(self.db, options.whose, options.grant, why, opening=self.opening)
            except AccountLockedError as error:
                then = f"{error.fix} && {self.go_on()}"
                raise AccountLockedError(error.user, error.message, then) from error
        if self.key and not options.key:
            note(f"if it stops, this goes on: {self.go_on()}")

    async def order(self, advance: Advance) -> str | None:
        """Order the jobs; return why messages are still owed. Raises GenctlError in the middle."""
        rate, owed = self.options.rate, None
        most = BATCH if rate is None else min(BATCH, max(1, int(rate / 10)))
        rest = self.options.orders(self.tool, self.key, self.before)
        advance(len(self.before))
        due = time.monotonic()
        while orders := list(islice(rest, most)):
            if rate is not None:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due = time.monotonic() + len(orders) / rate
            made = await enqueue(
                orders, db=self.db, queue=self.queue, tool=self.tool.name, opening=self.opening
            )
            self.sent += made.sessions
            owed = owed or made.owed
            advance(len(orders))
        return owed

    async def _ordered_before(self, key: str) -> dict[int, UUID]:
        dealt, found = self.options.dealt(), dict[int, UUID]()
        while some := list(islice(dealt, MOST_AT_ONCE)):
            users, keys = [user for _, user in some], [numbered(key, n) for n, _ in some]
            rows = await self.db.rows("sessions_by_keys", users=users, keys=keys)
            found |= {int(row["idempotency_key"].rpartition("-")[2]): row["id"] for row in rows}
        return found

    async def _short(self, granted: int) -> GenctlError | None:
        """Make the error that names who lacks most credits for all jobs that are left; None: they suffice."""
        left = Counter(user for n, user in self.options.dealt() if n not in self.before)
        left.subtract(session.user_id for session in self.sent)
        needed = {user: count * self.options.price(self.tool) - granted for user, count in left.items()}
        found = await lacking(self.db, needed, opening=self.opening)
        lacks = {user: lack for user, lack in found.items() if lack > 0}
        if not lacks:
            return None
        user, most = next(iter(lacks.items()))
        others = f"; {many(len(lacks) - 1, 'other user')} likewise" if len(lacks) > 1 else ""
        needs = needed[user] + granted
        told = f"user {user} has {needs - most} credits and needs {needs}{others}"
        fix = f"genctl credits grant --user {shlex.quote(user)} --amount {most}"
        if others:
            fix = self.again(grant=granted + most, key=self.key)
        elif self.sent or self.before:
            fix = f"{fix} && {self.go_on()}"
        if self.key:
            told = f"{told}; {self.so_far()}"
        return GenctlError("CreditsShort", told, fix, exit_code=1)

    def go_on(self) -> str:
        """Write the command that orders the rest."""
        return self.again(grant=None, key=self.key)

    def so_far(self) -> str:
        """Say how many jobs were ordered."""
        done = len(self.before) + len(self.sent)
        return f"{done:,} of {many(self.options.count, 'job')} were ordered"

    async def stopped(self, error: GenctlError) -> GenctlError:
        """Make the error that also says how many jobs were ordered, and how to go on."""
        if isinstance(error, LockedError):
            so_far = f"; {self.so_far()}" if self.key else ""
            return GenctlError(error.code, error.message + so_far, self.go_on())
        if not self.key:
            return error
        if error.code == "CreditsShort" and (short := await self._short(0)):  # for all, not for one batch
            return short
        told = f"{error.message}; at least {self.so_far()}"  # the last batch may have been committed
        fix = "; then ".join([error.fix] * bool(error.fix) + [self.go_on()])
        return GenctlError(error.code, told, fix, exit_code=error.exit_code)


def numbered(key: str, number: int) -> str:
    """Return the idempotency key of a job of many."""
    return f"{key}-{number}"


async def ended(db: Database, ids: Sequence[UUID]) -> list[Session]:
    """Wait until all these sessions have ended; return them in the same order."""
    over: dict[UUID, Session] = {}
    while waiting := [session_id for session_id in ids if session_id not in over]:
        rows = await db.rows("sessions", ids=waiting[:MOST_AT_ONCE])
        over |= {row["id"]: Session.of(row) for row in rows if row["completed_at"]}
        if len(over) < len(ids):
            await asyncio.sleep(POLL_S)
    return [over[session_id] for session_id in ids]


def _one(sent: Session, ended: list[Session], seconds: float) -> dict[str, Any]:
    session = ended[0] if ended else sent
    said = {
        "sessionId": session.id,
        "reservationId": session.reservation_id,
        "clientKey": session.client_key,
        "userId": session.user_id,
        "run": session.run,
        "status": session.status,
    }
    if not ended:
        return said
    outcome = {"result": session.result} if session.result else {"error_details": session.error_details}
    return said | outcome | {"refundedCredits": session.returned, "seconds": seconds}


def _many(options: EnqueueOptions, ended: list[Session], seconds: float) -> dict[str, Any]:
    said: dict[str, Any] = {"count": options.count, "users": len(options.whose), "seconds": seconds}
    if ended:
        said |= {end: sum(s.status == end for s in ended) for end in (Status.COMPLETED, Status.FAILED)}
    return said


def _refused(message: str, fix: str) -> GenctlError:
    return GenctlError("Usage", message, fix, exit_code=2)

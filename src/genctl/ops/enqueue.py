"""Order test jobs, one or many, and wait for their end."""

import asyncio
import shlex
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any
from uuid import UUID, uuid4

import msgspec

from genctl import credits, traits
from genctl.base.person import Advance
from genctl.base.printable import many
from genctl.base.settings import Settings
from genctl.domain.model import GenctlError, Session, Status, meant
from genctl.domain.orders import Order, change, check
from genctl.edges.db import Database
from genctl.edges.sqs import Sqs
from genctl.enqueue import enqueue
from genctl.ledger import AccountLockedError
from genctl.services.scenarios import SCENARIOS, marked
from genctl.tools import Tool
from genctl.tools.found import Tools

BATCH = 100  # jobs of one transaction
MOST_AT_ONCE = 1000  # sessions of one look
POLL_S = 0.1


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
        if self.scenario is None:
            return
        if self.scenario not in SCENARIOS:
            told = f"there is no scenario {self.scenario!r}{meant(self.scenario, SCENARIOS)}"
            raise _refused(told, "genctl simulator -h lists them")
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

    def command(self, count: int) -> str:
        """Write the command that orders `count` of the jobs, without the grant."""
        wanted = msgspec.structs.asdict(self) | {"count": count, "grant": None, "params": None}
        words = ["genctl", "enqueue"]
        for name, value in wanted.items():
            if value is not None and value is not False:
                words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        words += [word for param in self.params for word in ("--param", param)]
        return shlex.join(words)

    def orders(self, tool: Tool) -> Iterator[Order]:
        """Yield the orders of a tool, one after the other."""
        model = self.model or tool.default_model
        params = tool.checked(dict(map(change, self.params)), model) or None
        for n, user in zip(range(self.count), cycle(self.whose), strict=False):
            key = self.client_key or f"cli-{uuid4().hex[:12]}"
            yield Order(
                session_id=uuid4(),
                reservation_id=uuid4(),
                user_id=user,
                prompt=self.text(tool),
                model=model,
                cost=tool.price if self.cost is None else self.cost,
                client_key=f"{key}-{n + 1}" if self.client_key and self.count > 1 else key,
                params=params,
            )


class EnqueueResult(msgspec.Struct, frozen=True):
    """Say what to print, whether all jobs ended as expected, and why we still owe messages."""

    data: dict[str, Any]
    expected: bool
    owed: str | None


async def run(settings: Settings, options: EnqueueOptions, advance: Advance) -> EnqueueResult:
    """Send the jobs; `advance` counts them. Raises GenctlError."""
    began, opening, tool = time.monotonic(), credits.opening(settings), options.tool(settings)
    async with Database.open(settings.dsn(), size=1) as db, await Sqs.connect(settings) as sqs:
        queue = await sqs.queue(settings.queue_of(tool.name))
        await traits.check(db, tool, [*islice(options.orders(tool), len(options.whose))])
        if options.grant:
            await _granted(db, options, options.grant, opening)
        sent: list[Session] = []
        owed = None
        most = BATCH if options.rate is None else min(BATCH, max(1, int(options.rate / 10)))
        rest = options.orders(tool)
        while orders := list(islice(rest, most)):
            try:
                made = await enqueue(orders, db=db, queue=queue, tool=tool.name, opening=opening)
            except AccountLockedError as error:
                done = f"{error.message}; {len(sent)} of {many(options.count, 'job')} were ordered"
                again = options.command(options.count - len(sent))
                raise AccountLockedError(error.user, done, again) from error
            sent += made.sessions
            owed = owed or made.owed
            advance(len(made.sessions))
            if options.rate is not None:
                await asyncio.sleep(max(0.0, began + len(sent) / options.rate - time.monotonic()))
        over = await ended(db, [session.id for session in sent]) if options.wait or options.expect else []
    seconds = round(time.monotonic() - began, 3)
    expected = all(session.status == options.expect for session in over) if options.expect else True
    data = _one(sent[0], over, seconds) if options.count == 1 else _many(options, over, seconds)
    return EnqueueResult(data, expected, owed)


async def _granted(db: Database, options: EnqueueOptions, amount: int, opening: int) -> None:
    try:
        await credits.grant(db, options.whose, amount, "genctl enqueue --grant", opening=opening)
    except AccountLockedError as error:
        again = f"{error.fix} && {options.command(options.count)}"
        raise AccountLockedError(error.user, error.message, again) from error


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

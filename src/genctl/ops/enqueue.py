"""Test jobs, one or many: from the wish to the rows, and on to their end."""

import asyncio
import shlex
import time
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import cycle, islice
from typing import Any
from uuid import UUID, uuid4

import msgspec

from genctl import credits, traits
from genctl.base.person import Advance
from genctl.base.printable import many
from genctl.base.settings import Settings
from genctl.domain.model import GenctlError, Session, Status
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


class EnqueueWish(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asks of `genctl enqueue`; its options by name."""

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
        """Find the tool of the model, else the one that is set.

        Raises GenctlError as Tools.named() and ordered() do, and (exit 2) where the model is not one of the
        tool that `--tool` names.
        """
        tools = Tools.of(settings)
        if self.model is None:
            return tools.named(settings.tool)
        tool = tools.ordered(self.model)
        if tool.name != settings.tool and settings.is_flag("tool"):
            raise _refused(
                f"the model {self.model} is one of the tool {tool.name}, not of {settings.tool}",
                f"say --tool {tool.name}, or leave it out",
            )
        return tool

    def check(self, settings: Settings) -> None:
        """Check it before anybody grants or makes anything.

        Raises GenctlError: exit 2 for a wish that makes no sense, 3 for a tool that nobody can use.
        """
        tool = self.tool(settings)
        tool.check_usable()
        tool.check_orderable(self.model or tool.default_model)
        check(next(self.orders(tool)))
        if self.scenario is None:
            return
        if self.scenario not in SCENARIOS:
            close = get_close_matches(self.scenario, SCENARIOS, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise _refused(f"there is no scenario {self.scenario!r}{hint}", "genctl simulator -h lists them")
        if self.sensitive:
            raise _refused("--sensitive and --scenario exclude each other", "--scenario sensitive is both")
        if tool.is_real:
            raise _refused(
                f"--scenario speaks to the simulator, and {tool.address} is a real provider",
                f"unset {tool.base.upper()}, or start `genctl simulator` and point it there",
            )

    @property
    def whose(self) -> list[str]:
        """List the users among whom it deals the jobs."""
        return [f"{self.user}-{n}" for n in range(1, self.users + 1)] if self.users else [self.user]

    def text(self, tool: Tool) -> str:
        """Write the prompt as the provider gets it."""
        if self.sensitive:
            return f"{self.prompt}, {tool.sensitive}"
        return marked(self.prompt, self.scenario) if self.scenario else self.prompt

    def command(self, count: int) -> str:
        """Write the command for so many of the jobs, without the grant."""
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
    """What to print, whether all ended as expected, and why messages are still owed."""

    data: dict[str, Any]
    expected: bool
    owed: str | None


async def run(settings: Settings, wish: EnqueueWish, advance: Advance) -> EnqueueResult:
    """Send the jobs; `advance` counts them. Raises GenctlError."""
    began, opening, tool = time.monotonic(), credits.opening(settings), wish.tool(settings)
    async with Database.open(settings.dsn(), size=1) as db, await Sqs.connect(settings) as sqs:
        queue = await sqs.queue(settings.queue_of(tool.name))
        await traits.check(db, tool, [*islice(wish.orders(tool), len(wish.whose))])
        if wish.grant:
            await _granted(db, wish, wish.grant, opening)
        sent: list[Session] = []
        owed = None
        most = BATCH if wish.rate is None else min(BATCH, max(1, int(wish.rate / 10)))
        for orders in _batched(wish.orders(tool), most):
            try:
                made = await enqueue(orders, db=db, queue=queue, tool=tool.name, opening=opening)
            except AccountLockedError as error:
                done = f"{error.message}; {len(sent)} of {many(wish.count, 'job')} were ordered"
                raise AccountLockedError(error.user, done, wish.command(wish.count - len(sent))) from error
            sent += made.sessions
            owed = owed or made.owed
            advance(len(made.sessions))
            if wish.rate is not None:
                await asyncio.sleep(max(0.0, began + len(sent) / wish.rate - time.monotonic()))
        ended = await _ended(db, sent) if wish.wait or wish.expect else []
    seconds = round(time.monotonic() - began, 3)
    expected = all(session.status == wish.expect for session in ended) if wish.expect else True
    return EnqueueResult(
        _one(sent[0], ended, seconds) if wish.count == 1 else _many(wish, ended, seconds), expected, owed
    )


async def _granted(db: Database, wish: EnqueueWish, amount: int, opening: int) -> None:
    try:
        await credits.grant(db, wish.whose, amount, "genctl enqueue --grant", opening=opening)
    except AccountLockedError as error:
        again = f"{error.fix} && {wish.command(wish.count)}"
        raise AccountLockedError(error.user, error.message, again) from error


async def _ended(db: Database, sessions: list[Session]) -> list[Session]:
    """Wait until all have ended, and give their rows in their order."""
    ended: dict[UUID, Session] = {}
    waiting = [session.id for session in sessions]
    while waiting:
        for row in await db.rows("sessions", ids=waiting[:MOST_AT_ONCE]):
            if row["completed_at"]:
                ended[row["id"]] = Session.of(row)
        waiting = [session_id for session_id in waiting if session_id not in ended]
        if waiting:
            await asyncio.sleep(POLL_S)
    return [ended[session.id] for session in sessions]


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


def _many(wish: EnqueueWish, ended: list[Session], seconds: float) -> dict[str, Any]:
    said: dict[str, Any] = {"count": wish.count, "users": len(wish.whose), "seconds": seconds}
    if ended:
        said |= {end: sum(s.status == end for s in ended) for end in (Status.COMPLETED, Status.FAILED)}
    return said


def _batched(orders: Iterable[Order], size: int) -> Iterator[list[Order]]:
    rest = iter(orders)
    while batch := list(islice(rest, size)):
        yield batch


def _refused(message: str, fix: str) -> GenctlError:
    return GenctlError("Usage", message, fix, exit_code=2)

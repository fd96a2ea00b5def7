"""What shall happen on the wires to the calls of which session: the proxies play it, and say what they did."""

import asyncio
import dataclasses
from collections.abc import Sequence

from aiohttp import web

# `hold`, `drop` the connection: `before` the other side gets it, or `after` that has done it and answered; a
# hold lasts until the caller is gone. Of SQS also `503`, `fail the entry` (SQS's fault) and `refuse the entry`
# (ours) inside of a 200, `deliver twice`, and `deliver late`: a delete that is answered and not done. Of PostgreSQL
# also `say` with a SQLSTATE: it refuses, in an error after which the connection goes on.
Act = str
ANY = ""  # in place of a session: whoever calls


@dataclasses.dataclass(eq=False)
class Planned:
    """At a step of a session: this act, so many times more."""

    session: str
    step: str
    act: Act
    times: int = 1


class Script:
    """Filled by a test while the proxies, in a thread of their own, play it."""

    def __init__(self) -> None:
        self.planned: list[Planned] = []
        self.under_way: list[Planned] = []  # taken, and neither done nor given back

    def plan(self, session: str, step: str, act: Act, times: int = 1) -> None:
        """Let `act` befall the next `times` calls of that step which are about the session."""
        self.planned.append(Planned(session, step, act, times))

    def take(self, step: str, about: str | bytes) -> Planned | None:
        """What was planned for a call that says `about`, which names its session somewhere."""
        for found in self.planned:
            if found.step == step and found.times > 0 and _names(about, found.session):
                self.under_way.append(found)
                found.times -= 1
                return found
        return None

    def give_back(self, taken: Sequence[Planned]) -> None:
        """What of these has not come to pass shall befall a later call."""
        for found in taken:
            if found in self.under_way:
                found.times += 1
                self.under_way.remove(found)

    def done(self, taken: Planned) -> None:
        """It has come to pass: a test may wait for it."""
        self.under_way.remove(taken)

    @property
    def open(self) -> list[Planned]:
        """What has not come to pass as often as it was planned."""
        return [found for found in self.planned if found.times > 0] + self.under_way

    @property
    def is_over(self) -> bool:
        """Whether everything has come to pass."""
        return not self.open


def _names(about: str | bytes, session: str) -> bool:
    if isinstance(about, str):
        return session in about
    # as PostgreSQL's protocol carries it: in a JSON text, or as a parameter of its own
    return session.encode() in about or bytes.fromhex(session.replace("-", "")) in about


async def hang_up(request: web.Request) -> web.Response:
    """Close the caller's connection without an answer."""
    if request.transport:
        request.transport.abort()
    return web.Response()


async def hold(_: web.Request) -> web.Response:
    """Say nothing until the caller is gone, which cancels us."""
    await asyncio.Event().wait()
    return web.Response()

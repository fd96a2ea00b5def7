"""Take one worker's part in the gate: watch the row, close the gate when the breaker says so, probe.

The outcome of a call only leaves a decision behind, so no job waits for the row; the watch carries it out.
"""

import asyncio
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

import structlog

from genctl import gate, traits
from genctl.domain.breaker import Breaker, Close, Open, Ordered, Phase, Sign, sign_of
from genctl.domain.model import Failure, Gate, GateState, GenctlError, Session, Success, rfc3339
from genctl.domain.traits import PLAIN, Trait, Traits, refused_traits, traits_of
from genctl.edges.db import Database
from genctl.pipeline import Hear
from genctl.tools.wire import CONNECT_TIMEOUT_S

LOOK_S = 1.0  # how old a reading of the row may be
PROBE_MARGIN_S = 60.0  # how much longer than the longest legal call a probe may last
RENEW_S = 10.0
LEAVE_S = 5.0
MOST_NOTED = 1_000  # values that we have yet to tell the database
LOCK_S = 0.5  # how long we wait for a lock of the row, as allowance() and watch() wait for each other

log = structlog.stdlib.get_logger()


class Gatekeeper:
    """Follow the gate of one tool; call `send_back` while it is closed, so that unsent jobs go back."""

    def __init__(
        self,
        db: Database,
        tool: str,
        *,
        failures: int | None,
        call_s: float,
        send_back: Callable[[], None],
        default_model: str,
    ) -> None:
        """Close the gate after so many `failures` in a row; None: never. `call_s`: the longest legal call.

        An order that names no model has `default_model`.
        """
        self.gate = Gate(tool)
        self.probe: asyncio.Task[Any] | None = None  # the one job of a probe of ours
        self._db = db
        self._who = f"breaker {socket.gethostname()}:{os.getpid()}"
        self._probe_s = CONNECT_TIMEOUT_S + call_s + PROBE_MARGIN_S
        self._send_back = send_back
        self._breaker = Breaker(limit=failures)
        self._decision: tuple[Open | Close, str] | None = None  # and its reason
        self._won: datetime | None = None  # changed_at of the row after we won the probe
        self._won_at = float("-inf")  # monotonic
        self._read_at = float("-inf")  # monotonic
        self._row = asyncio.Lock()  # so that a late reading undoes no change that we made meanwhile
        self._default_model = default_model
        self._noted: Counter[traits.Noted] = Counter()  # refusals that we have yet to tell the database
        self._sound: set[Trait] = set()  # traits that have succeeded, likewise
        self._wake = asyncio.Event()
        self._turned = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Tell whether we may receive messages, a probe's included, as far as we know."""
        return self._breaker.phase is not Phase.SHUT

    # For the worker

    async def watch(self) -> None:
        """Read the row every second and carry out the breaker's decisions, until somebody cancels it."""
        while True:
            try:
                async with self._row:
                    try:
                        await self._carry_out()
                    finally:  # we can read a locked row
                        await self._look()
                await self._tell_traits()
            except GenctlError as error:
                if self._decision:
                    log.warning("gate.unchanged", tool=self.gate.tool, error=error.message, fix=error.fix)
            if self._breaker.phase is not Phase.OPEN:
                self._send_back()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            self._wake.clear()

    async def allowance(self, most: int) -> int:
        """Count the messages that we may receive now: `most`, none behind a closed gate, one for a probe.

        Wins the probe when it is time for one. Raises GenctlError when it cannot read the row.
        """
        async with self._row:
            if time.monotonic() - self._read_at >= LOOK_S:
                await self._look()
            if self._breaker.phase is Phase.SHUT and not self._decision and self.gate.may_be_probed:
                await self._win()
            if self._breaker.phase is Phase.PROBING:
                if self.probe and not self.probe.done():
                    return 0
                await self._renew()
        return {Phase.OPEN: most, Phase.PROBING: 1, Phase.SHUT: 0}[self._breaker.phase]

    def started(self, job: asyncio.Task[Any]) -> None:
        """Note that a job begins: it is the probe if we have won that."""
        if self._breaker.phase is Phase.PROBING:
            self.probe = job

    async def leave(self) -> None:
        """Carry out the decision, and leave an unfinished probe to the next worker."""
        with suppress(GenctlError, TimeoutError):
            async with asyncio.timeout(LEAVE_S), self._row:
                await self._carry_out()
                await self._tell_traits()
                if self._breaker.phase is Phase.PROBING:
                    await self._turn(GateState.CLOSED, 0.0, self.gate.reason)

    # For a call

    def lets_pass(self) -> bool:
        """Tell whether this task's job may call the provider now."""
        mine = asyncio.current_task() is self.probe
        return self._breaker.phase is Phase.OPEN or (self._breaker.phase is Phase.PROBING and mine)

    async def passed(self) -> None:
        """Wait until this task's job may call the provider."""
        while not self.lets_pass():
            await self._turned.wait()

    def called(self) -> Hear:
        """Begin a call, and return what takes its outcome."""
        epoch = self._breaker.epoch

        def hear(result: Success | Failure, session: Session) -> None:
            chosen = traits_of(session.model, session.params, self._default_model)
            named = refused_traits(result, chosen)
            was, sign = self._breaker, sign_of(result, named=bool(named))
            self._note(session.user_id, chosen, named, result)
            # a refusal of the job proves the provider sound, but only an image proves the chosen values so
            proven = chosen if sign is not Sign.SOUND or isinstance(result, Success) else PLAIN
            self._breaker, does = was.heard(
                sign,
                epoch,
                random=random.random(),  # noqa: S311 - jitter
                order=Ordered(session.user_id, proven),
                now=time.monotonic(),
            )
            if does:
                self._decision = does, _reason(was, result)
                self._wake.set()

        return hear

    def _note(self, user: str, chosen: Traits, named: Traits, result: Success | Failure) -> None:
        """Keep for the watch what an outcome says of the chosen values.

        A value with which others have succeeded is not at fault: something else in this order is.
        """
        if isinstance(result, Success):
            if len(self._sound) < MOST_NOTED:
                self._sound |= chosen
            for noted in [noted for noted in self._noted if noted[0] in chosen]:
                del self._noted[noted]
        elif len(self._noted) < MOST_NOTED:
            known = self._breaker.company
            at_fault = [trait for trait in named if not known.is_sound_for_others(trait, user)]
            self._noted.update((trait, user, result.code) for trait in at_fault)

    async def _tell_traits(self) -> None:
        """Tell the database of them; no job waits for that."""
        sound, noted = frozenset(self._sound), dict(self._noted)
        if sound or noted:
            await traits.tell(self._db, self.gate.tool, sound, noted, lock_s=LOCK_S)
            self._sound -= sound
            self._noted.subtract(noted)
            self._noted = +self._noted

    # For the row; their callers hold its lock

    async def _look(self) -> None:
        self._see(await gate.read(self._db, self.gate.tool))

    async def _carry_out(self) -> None:
        if self._decision is None:
            return
        does, why = self._decision
        if isinstance(does, Open):
            await self._turn(GateState.OPEN, None, why)
        else:
            await self._turn(GateState.CLOSED, does.for_s, why)

    async def _win(self) -> None:
        self.probe = None
        waiting = await gate.waiting_users(self._db)
        self._breaker = self._breaker.met(waiting, time.monotonic())
        await self._turn(GateState.PROBING, self._probe_s, self.gate.reason)

    async def _renew(self) -> None:
        if time.monotonic() - self._won_at >= RENEW_S:
            await self._turn(GateState.PROBING, self._probe_s, self.gate.reason)

    async def _turn(self, state: GateState, for_s: float | None, reason: str | None) -> None:
        """Turn the gate as we have read it; if somebody else was faster, read the row again."""
        turned = await gate.turn(
            self._db, self.gate, state, for_s=for_s, reason=reason, who=self._who, lock_s=LOCK_S
        )
        if turned is None:
            await self._look()
            return
        if state is GateState.PROBING:
            self._won, self._won_at = turned.changed_at, time.monotonic()
        if state is GateState.PROBING and self._breaker.phase is Phase.PROBING:
            self.gate = turned  # the same probe goes on, and its call still counts
        else:
            self._see(turned)

    def _see(self, found: Gate) -> None:
        was, self.gate, self._read_at = self.gate, found, time.monotonic()
        if found.changed_at == was.changed_at and found.is_open == was.is_open:
            return
        mine = found.state is GateState.PROBING and found.changed_at == self._won
        phase = Phase.OPEN if found.is_open else Phase.PROBING if mine else Phase.SHUT
        self._breaker = self._breaker.turned(phase, found.closed_s)
        self._decision = None  # we have carried it out, or somebody else has turned the gate
        self._turned.set()
        self._turned = asyncio.Event()
        _tell(found, was)


def _reason(was: Breaker, result: Success | Failure) -> str:
    came = f"{result.code} ({result.category})" if isinstance(result, Failure) else "an image"
    if was.phase is Phase.PROBING:
        return f"a probe brought {came}"
    return f"{len(was.failures) + 1} calls in a row failed, the last with {came}"


def _tell(found: Gate, was: Gate) -> None:
    """Log each change of the gate, but not the renewal of a probe."""
    state = found.stands
    if (was.is_open and found.is_open) or (state is was.state is GateState.PROBING and found.who == was.who):
        return
    event = {
        GateState.OPEN: "gate.opened",
        GateState.CLOSED: "gate.closed",
        GateState.PROBING: "gate.probing",
    }[state]
    until = {} if found.is_open else {"until": rfc3339(found.until)}
    log.warning(event, tool=found.tool, who=found.who, reason=found.reason, **until)

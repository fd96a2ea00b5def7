"""Watch whether SQS answers a worker's receives."""

import time
from collections.abc import Callable
from typing import Any

import structlog

from genctl.domain.model import GenctlError

SILENT_S = 60.0
TELL_EVERY_S = 30.0  # the same trouble again, while it lasts

log = structlog.stdlib.get_logger()


class Liveness:
    """Turn red when the worker wants to receive and SQS has not answered for a minute; empty answers count.

    The worker wants no receive while the gate is closed, while it has as many jobs as it may, and once it has
    to stop: a restart then would leave calls behind that the provider may bill.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock  # monotonic seconds
        self._since: float | None = clock()  # the last answer, or when the worker first wanted one
        self._rests = ""
        self.trouble = self.code = ""  # what the last receive ran into
        self.heard_at: float | None = None  # the last answer
        self._met_at = self._told_at = 0.0

    def ask(self) -> None:
        """Note that the worker wants to receive from now on."""
        if self._since is None:
            self._since = self._clock()

    def answered(self) -> None:
        """Note that SQS has answered, with messages or without."""
        self._since = self.heard_at = self._clock()
        if self.trouble:
            log.info("worker.recovered", lastedS=round(self._since - self._met_at, 1))
            self.trouble = ""

    def ran_into(self, error: GenctlError) -> None:
        """Log the error of a receive: once, and again for another one or while the same one lasts."""
        now = self._clock()
        if not self.trouble:
            self._met_at = now
        if error.message != self.trouble or now - self._told_at >= TELL_EVERY_S:
            log.warning("worker.trouble", error=error.message, fix=error.fix)
            self._told_at = now
        self.trouble, self.code = error.message, error.code

    def rest(self, why: str) -> None:
        """Note that the worker wants no receive, and why."""
        self._since, self._rests = None, why

    @property
    def silent_s(self) -> float:
        """Return the seconds since the last answer; 0 while the worker wants none."""
        return 0.0 if self._since is None else self._clock() - self._since

    def report(self) -> dict[str, Any]:
        """Say `{ok, why}`; while the worker wants to receive also `silentS` and `trouble`."""
        if self._since is None:
            return {"ok": True, "why": self._rests}
        silent_s = self.silent_s
        ok = silent_s < SILENT_S
        why = "receives are answered" if ok else f"no receive was answered for {silent_s:.0f} s"
        return {"ok": ok, "why": why, "silentS": round(silent_s, 1), "trouble": self.trouble or None}

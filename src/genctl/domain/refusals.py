"""Count and name what the database refuses: answers that the trace keeps, and NOTIFYs."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from genctl.domain.model import rough

NOTIFY_USAGE = 0.1  # of the queue of NOTIFY; only a listener with an open transaction fills it so far


class Kept(NamedTuple):
    """Count the answers that the database refuses in the same words, and name a session of them."""

    said: str
    sessions: int
    oldest_s: float
    session_id: UUID


class Notifying(NamedTuple):
    """Hold how full NOTIFY's queue is, who may hold it up, and how many runs ended without one in an hour."""

    used: float = 0.0
    idle_pid: int | None = None
    unnotified: int = 0
    newest_s: float | None = None

    @property
    def is_clogged(self) -> bool:
        """Tell whether a listener keeps PostgreSQL from emptying the queue."""
        return self.used > NOTIFY_USAGE

    @property
    def clogged(self) -> str:
        """Say that it does."""
        return f"the queue of NOTIFY is {self.used:.0%} full: a listener holds a transaction open"

    @property
    def lost(self) -> str:
        """Say how many runs nobody was told of."""
        runs = f"{self.unnotified:,} run{'' if self.unnotified == 1 else 's'}"
        return f"{runs} ended without NOTIFY in the last hour"

    def words(self) -> str:
        """Say what is wrong now or was in the last hour; empty when all is well."""
        return "; ".join([self.clogged] * self.is_clogged + [self.lost] * (self.unnotified > 0))


def words_of(kept: Sequence[Kept]) -> str:
    """Say how many answers are not in their rows, for how long, and what the database says of them."""
    count, oldest_s = sum(some.sessions for some in kept), max(some.oldest_s for some in kept)
    said = "; ".join(f"{some.sessions:,}: {some.said}" for some in kept) if len(kept) > 1 else kept[0].said
    return f"{count:,} not in {'its row' if count == 1 else 'their rows'} for {rough(oldest_s)}: {said}"


def way_on(kept: Sequence[Kept]) -> str:
    """Return the command that shows one of them."""
    return f"genctl sessions trace {kept[0].session_id}"


def terminate(pid: int | None) -> str:
    """Return the command that ends a server process, or that finds it if `pid` is not known."""
    if pid is None:
        return "genctl doctor"
    return f"genctl runbook run end-backend --var pid={pid}"

"""What the database refuses, in figures and words: kept answers, and runs that ended without NOTIFY."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from genctl.domain.model import rough

NOTIFY_USAGE = 0.1  # of the queue of all listeners; only one that holds a transaction open fills it


class Kept(NamedTuple):
    """Answers that the database refuses in the same words, and a session of them."""

    said: str
    sessions: int
    oldest_s: float
    session_id: UUID


class Notifying(NamedTuple):
    """How full the queue of NOTIFY is, who may hold it up, and the runs of an hour that ended without one."""

    used: float = 0.0
    idle_pid: int | None = None
    unnotified: int = 0
    newest_s: float | None = None

    @property
    def is_clogged(self) -> bool:
        """Tell whether somebody keeps PostgreSQL from emptying it."""
        return self.used > NOTIFY_USAGE

    def words(self) -> str:
        """Say what is wrong, or was in the last hour; nothing when all is well."""
        clogged = f"the queue of NOTIFY is {self.used:.0%} full: a listener holds a transaction open"
        runs = f"{self.unnotified:,} run{'' if self.unnotified == 1 else 's'}"
        lost = f"{runs} ended without NOTIFY in the last hour"
        return "; ".join([*([clogged] if self.is_clogged else []), *([lost] if self.unnotified else [])])


def words_of(kept: Sequence[Kept]) -> str:
    """Say how many answers are not in their rows, since when, and what the database says of them."""
    count, oldest_s = sum(some.sessions for some in kept), max(some.oldest_s for some in kept)
    said = "; ".join(f"{some.sessions:,}: {some.said}" for some in kept) if len(kept) > 1 else kept[0].said
    return f"{count:,} not in {'its row' if count == 1 else 'their rows'} for {rough(oldest_s)}: {said}"


def way_on(kept: Sequence[Kept]) -> str:
    """Return the command that shows one of them."""
    return f"genctl sessions trace {kept[0].session_id}"


def terminate(pid: int | None) -> str:
    """Return the command that ends a server process, or finds it where it is not known."""
    if pid is None:
        return "genctl doctor"
    return f"psql \"$DATABASE_URL\" -c 'select pg_terminate_backend({pid})'"

"""Try a call again as often, and as late, as AWS's retry mode says."""

from typing import NamedTuple, Self

ATTEMPTS = {"legacy": 5, "standard": 3, "adaptive": 3}
FIRST_PAUSE_S, THROTTLED_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0, 20.0  # of the modes but legacy


class Retries(NamedTuple):
    """Hold how often to try, and the mode that somebody has chosen; `attempts` None: nobody has chosen."""

    attempts: int | None = None
    mode: str | None = None

    @classmethod
    def of(cls, mode: str | None, attempts: int | None) -> Self:
        """Take the mode and the count of AWS's settings, each None where nobody has set it."""
        return cls(attempts or ATTEMPTS.get(mode or ""), mode)

    def pause_s(self, attempt: int, *, throttled: bool, random: float) -> float:
        """Return how long to wait after so many attempts; `random` is in [0, 1).

        Without a mode the pauses are short, as a queue is near. `adaptive` pauses as `standard` does: genctl
        does not count its own calls against AWS's limits, as batches are few.
        """
        match self.mode:
            case None:
                return random * min(0.1 * 2.0**attempt, 2.0)
            case "legacy":
                return random * 2.0 ** (attempt - 1)
        first_s = THROTTLED_PAUSE_S if throttled else FIRST_PAUSE_S
        return random * min(first_s * 2.0 ** (attempt - 1), LONGEST_PAUSE_S)

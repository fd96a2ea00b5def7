"""The breaker: when failures say that the provider or our account is broken, and not the jobs.

What one worker knows, as a value. Each change of the gate's row begins a new epoch, and only calls
of the present one count: an old slow answer neither closes a gate that was opened since, nor opens
one that was closed since.
"""

from enum import StrEnum

import msgspec

from genctl.domain.model import Category, Failure, Success

FIRST_S = 30.0
LONGEST_S = 600.0
JITTER = 0.2


class Sign(StrEnum):
    """What an outcome says of the provider and of our account."""

    SOUND = "sound"
    BROKEN = "broken"
    NEITHER = "neither"


# A 429 says that we are too fast: Retry-After and the rate answer that. Nor does it prove the
# provider sound: the limiter in front of a broken one goes on counting.
SIGNS: dict[Category, Sign] = {
    Category.CONTENT_POLICY: Sign.SOUND,
    Category.INVALID_REQUEST: Sign.SOUND,
    Category.AUTH: Sign.BROKEN,
    Category.QUOTA: Sign.BROKEN,
    Category.SERVER: Sign.BROKEN,
    Category.NETWORK: Sign.BROKEN,
    Category.RATE_LIMIT: Sign.NEITHER,
    Category.INTERNAL: Sign.NEITHER,
    Category.CONFIG: Sign.BROKEN,
}


class Phase(StrEnum):
    """Of the gate, for this worker: `probing` is a probe of ours, another's is `shut`."""

    OPEN = "open"
    SHUT = "shut"
    PROBING = "probing"


class Open(msgspec.Struct, frozen=True):
    """The probe has shown that provider and account are sound."""


class Close(msgspec.Struct, frozen=True):
    """Close the gate for so long, then probe."""

    for_s: float


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """`limit` failures in a row close an open gate; None: they never do, but a probe still decides."""

    limit: int | None
    phase: Phase = Phase.OPEN
    epoch: int = 0
    failures: int = 0  # in a row, of this epoch
    closed_s: float = 0.0  # the last closing, as far as we saw it; 0 while the gate is open

    def turned(self, phase: Phase, closed_s: float = 0.0) -> "Breaker":
        """The row has changed; `closed_s` is how long a breaker has closed the gate for, 0 if it has not."""
        known_s = 0.0 if phase is Phase.OPEN else max(closed_s, 0.0) or self.closed_s
        return Breaker(limit=self.limit, phase=phase, epoch=self.epoch + 1, closed_s=known_s)

    def heard(self, sign: Sign, epoch: int, *, random: float) -> tuple["Breaker", Open | Close | None]:
        """The outcome of a call that began in `epoch`, and what is to be done about the gate.

        Once something is, nothing more counts until the row has turned. `random` is in [0, 1).
        """
        if epoch != self.epoch or self.phase is Phase.SHUT:
            return self, None
        if self.phase is Phase.PROBING:
            if sign is Sign.SOUND:
                return self._shut(), Open()
            longer_s = closing_s(self.closed_s, random=random)
            return self._shut(), Close(longer_s if sign is Sign.BROKEN else self.closed_s or FIRST_S)
        if sign is Sign.NEITHER:
            return self, None
        failures = self.failures + 1 if sign is Sign.BROKEN else 0
        if self.limit is not None and failures >= self.limit:
            return self._shut(), Close(closing_s(0.0, random=random))
        return msgspec.structs.replace(self, failures=failures), None

    def _shut(self) -> "Breaker":
        return msgspec.structs.replace(self, phase=Phase.SHUT, failures=0)


def sign_of(result: Success | Failure) -> Sign:
    """What the outcome of a call says."""
    if isinstance(result, Success):
        return Sign.SOUND
    if result.category is Category.NETWORK and result.provider_status in {400, 422}:
        return Sign.NEITHER  # the provider could not fetch the job's reference image
    return SIGNS[result.category]


def closing_s(last_s: float, *, random: float) -> float:
    """How long to close for after a closing of `last_s`, 0 if there was none: doubling from 30 s to
    10 min, less up to a fifth, so that gates which were closed together are not probed together.
    """
    return min(max(2 * last_s, FIRST_S), LONGEST_S) * (1 - JITTER * random)

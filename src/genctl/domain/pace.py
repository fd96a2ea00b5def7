"""The pace of provider calls: so many in any minute, and none before a time that the provider named."""

import math
from typing import Self

import msgspec

SLACK_S = 0.05  # a timer that wakes late must not cost a call


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """A token bucket, told by the time of its next token. Times are seconds of a clock that only grows."""

    interval_s: float = 0.0
    next_at: float = -math.inf
    not_before: float = -math.inf

    @classmethod
    def of(cls, a_minute: float | None) -> Self:
        """At most so many calls in any minute, evenly spread; None: no limit."""
        return cls(interval_s=(60 + SLACK_S) / a_minute if a_minute else 0.0)

    def wait_s(self, now: float) -> float:
        """Seconds until the next call may begin."""
        return max(0.0, self.next_at - now, self.not_before - now)

    def took(self, now: float) -> Self:
        """A call begins."""
        next_at = max(self.next_at, now - SLACK_S) + self.interval_s
        return msgspec.structs.replace(self, next_at=next_at) if self.interval_s else self

    def held_back(self, until: float) -> Self:
        """Nothing before then; a later time that was named before stays."""
        return msgspec.structs.replace(self, not_before=max(self.not_before, until))

    def starts(self, now: float, within_s: float, most: int) -> int:
        """How many calls could begin from now on within so long, at most `most`."""
        left_s = within_s - self.wait_s(now)
        if left_s < 0:
            return 0
        return min(most, int(left_s / self.interval_s) + 1) if self.interval_s else most

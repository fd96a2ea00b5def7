"""Name the hops in their order, hold the result of each, and judge all of them."""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

HOPS = ("accepted", "claimed", "row", "details", "refund", "notify", "sse", "isolation", "dlq")
NOT_TRIED = "not tried"


class HopResult(msgspec.Struct, frozen=True):
    """Say whether a hop holds, when (`ms` after the order), and what we saw or what is wrong."""

    hop: str
    ok: bool
    at: str | None = None
    ms: float | None = None
    evidence: str = ""
    why: str = ""

    def line(self) -> str:
        """Write it as one line of the output."""
        if self.ok:
            return f"  {self.hop:<9} {self.ms:8.1f} ms  {self.evidence}"
        return f"  {self.hop:<9}   BROKEN     {self.why}"


def verdict(hops: Iterable[HopResult]) -> list[HopResult]:
    """Return all nine; those behind the first broken one were not tried. The last result of a hop counts."""
    known = {hop.hop: hop for hop in hops}
    found: list[HopResult] = []
    for name in HOPS:
        tried = name in known and all(hop.ok for hop in found)
        found.append(known[name] if tried else HopResult(name, ok=False, why=NOT_TRIED))
    return found


class Evidence(NamedTuple):
    """Say what we saw, and when (monotonic); None is now."""

    text: str
    at: float | None = None


class BrokenError(Exception):
    """Say what we expected, what we found and where to look. `final`: waiting will not help."""

    def __init__(self, expected: str, found: object, look_at: str, *, final: bool = False) -> None:
        super().__init__(f"expected {expected}, found {found}; look at {look_at}")
        self.final = final


def expect(so: object, expected: str, found: object, look_at: str, *, final: bool = False) -> None:
    """Raise BrokenError unless `so` is true."""
    if not so:
        raise BrokenError(expected, found, look_at, final=final)

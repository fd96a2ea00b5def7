"""The hops in their order, what is known of one, and the verdict on all."""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

HOPS = ("accepted", "claimed", "row", "details", "refund", "notify", "sse", "isolation", "dlq")
NOT_TRIED = "not tried"


class HopResult(msgspec.Struct, frozen=True):
    """One hop: whether it holds, milliseconds after the order was sent, what was seen, what is wrong."""

    hop: str
    ok: bool
    at: str | None = None
    ms: float | None = None
    evidence: str = ""
    why: str = ""

    def line(self) -> str:
        """Tell it to people."""
        if self.ok:
            return f"  {self.hop:<9} {self.ms:8.1f} ms  {self.evidence}"
        return f"  {self.hop:<9}   BROKEN     {self.why}"


def verdict(hops: Iterable[HopResult]) -> list[HopResult]:
    """Judge all nine; nobody tried those behind the first broken one. Of one hop the last word counts."""
    known = {hop.hop: hop for hop in hops}
    found: list[HopResult] = []
    for name in HOPS:
        tried = name in known and all(hop.ok for hop in found)
        found.append(known[name] if tried else HopResult(name, ok=False, why=NOT_TRIED))
    return found


class Evidence(NamedTuple):
    """What was seen, and when (monotonic); None is now."""

    text: str
    at: float | None = None


class BrokenError(Exception):
    """What was expected, what was found, where to look. `final`: waiting will not mend it."""

    def __init__(self, expected: str, found: object, look_at: str, *, final: bool = False) -> None:
        super().__init__(f"expected {expected}, found {found}; look at {look_at}")
        self.final = final


def expect(so: object, expected: str, found: object, look_at: str, *, final: bool = False) -> None:
    """Raise BrokenError unless it is so."""
    if not so:
        raise BrokenError(expected, found, look_at, final=final)

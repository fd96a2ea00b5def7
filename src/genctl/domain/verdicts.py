"""Judge stored failures again, with other verdicts or newer tables: what would have become of them.

A row keeps what the provider said, but no headers, and of a long body only the beginning.
"""

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from genctl.domain.classify import ADVICE, OURS, classify, names_of
from genctl.domain.decide import Limits
from genctl.domain.details import BODY_BYTES
from genctl.domain.model import Answer, Category, Failure, NoAnswer, Outcome, camel, rfc3339
from genctl.domain.providers import Provider
from genctl.domain.rules import Rule

MOST_GROUPS = 1_000
MOST_NAMES = 10_000
MOST_NAMED = 20  # sessions of a group
VERDICTS = ("retry", "fatal")
ALIKE = ("code", "provider_status", "verdict", "would_be", "category", "would_be_category")  # in a group
SUMS = ("more_calls", "fewer_calls", "refunds", "credits")
BEYOND = "(others)"  # of the failures beyond so many groups
_LONGEST_CHARACTER = 4  # bytes; details are cut between two characters


class KeptFailure(msgspec.Struct, frozen=True):
    """Hold what a failed row keeps of the provider's answer."""

    id: UUID
    completed_at: datetime
    user_id: str | None = None
    model: str | None = None
    unknowns: int = 0
    error_details: Any = None

    @property
    def details(self) -> dict[str, Any]:
        """Return `error_details`, or an empty dict."""
        return self.error_details if isinstance(self.error_details, dict) else {}


class Judged(msgspec.Struct, kw_only=True, rename="camel"):
    """Say how failures were judged, and how they would be.

    `more_calls` are those that their runs would have had left, at most; `fewer_calls` those that they would
    not have made, if each attempt failed like the last; `credits` went back to users, and would not have if
    one of these calls had brought the image.
    """

    code: str
    provider_status: int | None
    verdict: str
    would_be: str
    category: str
    would_be_category: str
    more_calls: int = 0
    fewer_calls: int = 0
    credits: int = 0

    @property
    def is_changed(self) -> bool:
        """Tell whether the verdict or the category would be another."""
        return (self.verdict, self.category) != (self.would_be, self.would_be_category)


class SecondJudgment(Judged, kw_only=True, rename="camel"):
    """Judge one failure again. `in_part`: of the answer its row keeps only a part."""

    session_id: UUID
    user_id: str | None
    at: str | None
    in_part: bool = False


class CodeGroup(Judged, kw_only=True, rename="camel"):
    """Count the failures of one code that are judged alike; `known`: a table, or genctl itself, has it."""

    known: bool
    failures: int = 0
    first_seen: str | None = None
    last_seen: str | None = None
    refunds: int = 0
    sessions: list[UUID] = []

    def add(self, one: SecondJudgment) -> None:
        """Count one more; failures come oldest first."""
        self.failures += 1
        self.first_seen, self.last_seen = self.first_seen or one.at, one.at
        self.more_calls += one.more_calls
        self.fewer_calls += one.fewer_calls
        self.refunds += one.credits > 0
        self.credits += one.credits
        self.sessions = [*self.sessions, one.session_id][:MOST_NAMED]


def judged_again(
    kept: KeptFailure, provider: Provider, limits: Limits, others: Sequence[Rule], *, now: datetime
) -> SecondJudgment | None:
    """Judge a stored failure again by `limits` and the tables of today; None where the row keeps too little.

    Codes of our own keep their verdict: no setting and no table changes it.
    """
    details = kept.details
    code, was, status = (details.get(key) for key in ("code", "fatal", "providerStatus"))
    if not isinstance(code, str) or not isinstance(was, bool):
        return None
    category = str(details.get("category"))
    judged = {"code": code, "would_be_category": category}
    is_fatal, in_part = was, False
    if code not in OURS:
        for answer, in_part in _answers(details, code):
            found = classify(answer, provider, now=now, verdicts=limits.verdicts, others=others)
            # without its header, or cut, an answer may tell no code
            if isinstance(found, Failure) and (
                found.code == code or not (in_part or found.code == f"HTTP{status}")
            ):
                break
        else:
            return None
        judged, is_fatal = {"code": found.code, "would_be_category": str(found.category)}, found.fatal
    calls, left = _whole(details.get("attempts")), _calls_left(kept, limits)
    saves = was and not is_fatal and left > 0
    return SecondJudgment(
        **judged,
        session_id=kept.id,
        user_id=kept.user_id,
        at=rfc3339(kept.completed_at),
        provider_status=status if type(status) is int else None,
        verdict=VERDICTS[was],
        would_be=VERDICTS[is_fatal],
        category=category,
        more_calls=left if saves else 0,
        fewer_calls=max(0, calls - 1) if is_fatal and not was else 0,
        credits=_whole(details.get("refundedCredits")) if saves else 0,
        in_part=in_part,
    )


def _answers(details: Mapping[str, Any], code: str) -> Iterator[tuple[Answer | NoAnswer, bool]]:
    """Yield the answer that details keep, then one of its code and sentence alone, as only a part of it."""
    status, body = details.get("providerStatus"), details.get("providerBody")
    message = details.get("providerMessage") or ""
    if type(status) is int:
        raw = body.encode("utf-8", "replace") if isinstance(body, str) else None
        if raw is not None and len(raw) <= BODY_BYTES - _LONGEST_CHARACTER:
            yield Answer(status, {}, raw), False
        said = {"error": {"code": details.get("providerCode") or code, "message": message}}
        yield Answer(status, {}, msgspec.json.encode(said)), True
    elif details.get("category") == Category.NETWORK:  # else an answer, of which the row keeps no status
        yield NoAnswer(code, str(message), sent=details.get("outcome") == Outcome.UNKNOWN), False


def _calls_left(kept: KeptFailure, limits: Limits) -> int:
    """Return the attempts that the run had left when it failed; none after too many unknown outcomes."""
    most = _whole(kept.details.get("maxAttempts")) or limits.attempts
    unknown = kept.details.get("outcome") == Outcome.UNKNOWN
    if unknown and kept.unknowns + 1 > limits.unknowns:
        return 0
    return max(0, most - _whole(kept.details.get("attempts")))


def _whole(value: object) -> int:
    return value if type(value) is int else 0


class Trial:
    """Group stored failures by how they would be judged, in bounded memory."""

    def __init__(self, verdicts: Sequence[str], is_known: Callable[[str], bool]) -> None:
        self.verdicts = verdicts
        self.failures = self.changed = self.in_part = self.unknowable = 0
        self._is_known = is_known
        self._groups: dict[tuple[object, ...], CodeGroup] = {}
        self._names: set[str] = set()  # of codes, their families and statuses that were there

    def add(self, one: SecondJudgment | None) -> None:
        """Count one failure; None is one of which the row keeps too little."""
        self.failures += 1
        if one is None:
            self.unknowable += 1
            return
        self.changed += one.is_changed
        self.in_part += one.in_part
        if len(self._names) < MOST_NAMES:
            self._names |= {*names_of(one.code), str(one.provider_status)}
        known = self._is_known(one.code)
        if not one.is_changed and known:
            return
        alike = {name: getattr(one, name) for name in ALIKE}
        if len(self._groups) >= MOST_GROUPS and tuple(alike.values()) not in self._groups:
            alike |= {"code": BEYOND, "provider_status": None}
        self._groups.setdefault(tuple(alike.values()), CodeGroup(**alike, known=known)).add(one)

    @property
    def unused(self) -> list[str]:
        """Return the verdicts on codes and statuses that no stored failure has: perhaps a slip of the pen."""
        pairs = [(verdict, verdict.partition("=")[0]) for verdict in self.verdicts if verdict != ADVICE]
        return [verdict for verdict, name in pairs if not fnmatch.filter(self._names, name)]

    @property
    def unknown_codes(self) -> list[str]:
        """Return the codes that are in no table."""
        return sorted({group.code for group in self._groups.values() if not group.known})

    def seen(self, code: str, first: datetime) -> None:
        """Correct when a code was first seen, which may be before the period that we look at."""
        for group in self._groups.values():
            if group.code == code:
                group.first_seen = min(filter(None, (group.first_seen, rfc3339(first))))

    def shown(self) -> dict[str, Any]:
        """Return what `-o json` prints: those that would be judged otherwise first, most failures first."""
        groups = sorted(self._groups.values(), key=lambda one: (not one.is_changed, -one.failures, one.code))
        sums = camel({name: sum(getattr(one, name) for one in groups) for name in SUMS})
        return {
            "verdicts": list(self.verdicts),
            "unused": self.unused,
            "failures": self.failures,
            "changed": self.changed,
            **sums,
            "inPart": self.in_part,
            "unknowable": self.unknowable,
            "groups": groups,
        }

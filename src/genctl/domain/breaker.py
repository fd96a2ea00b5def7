"""Decide when failures say that the provider or our account is broken, and not the jobs: the breaker.

A breaker is what one worker knows, as a value. Each change of the gate's row begins a new epoch, and only
calls of the present epoch count: an old slow answer neither closes a gate that somebody has opened since, nor
opens one that somebody has closed since.

Users choose what they order, and so provoke answers. One user's failures alone close no gate while others
send jobs, and a failure counts for nothing where a trait of its order may explain it: until so many users
fail in a row with traits of their own that these explain nothing any more.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Self

import msgspec

from genctl.domain.model import Category, Failure, Success

FIRST_S = 30.0
LONGEST_S = 600.0
JITTER = 0.2
ALONE_S = 600.0  # a user is alone when no call of another user has ended for so long
OTHERS = 4  # one failure in so many of the limit must be of others than the user with the most
MOST_TRAITS = 256  # that we remember as sound, the latest
MOST_USERS = 64  # whose failures we count apart
MOST_TRIES = 20  # of a probe, where no limit is set
MANY = 3  # users, at least, who fail beside those with any one trait: then no trait is why


class Sign(StrEnum):
    """Say what an outcome tells of provider and account; `certain`: broken, whatever the order was."""

    SOUND = "sound"
    BROKEN = "broken"
    CERTAIN = "certain"
    NEITHER = "neither"
    ORDER = "order"


# A 429 says that we are too fast, which Retry-After and the rate mend. It does not prove the provider sound,
# as the limiter in front of a broken one goes on counting.
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
    Category.CANCELLED: Sign.NEITHER,
}


class Phase(StrEnum):
    """Say what the gate is for this worker; while another worker probes it is `shut`."""

    OPEN = "open"
    SHUT = "shut"
    PROBING = "probing"


class Open(msgspec.Struct, frozen=True):
    """Open the gate: the probe has shown that provider and account are sound."""


class Close(msgspec.Struct, frozen=True):
    """Close the gate for so long, then probe."""

    for_s: float


class Ordered(msgspec.Struct, frozen=True):
    """Name the user of the order that a call was for, and its traits (domain/traits.py)."""

    user: str = ""
    traits: frozenset[tuple[str, str]] = frozenset()


NOBODY = Ordered()


class Company(msgspec.Struct, frozen=True):
    """Remember the users whose calls ended lately, and the traits that have succeeded."""

    heard: Mapping[str, float] = {}  # the last two users, with the time of their last call
    sound: Mapping[tuple[str, str], frozenset[str]] = {}  # traits, with one or two users who succeeded
    any_sound: bool = False

    def joined(self, order: Ordered, now: float, *, sound: bool) -> "Company":
        """Return the same with one more outcome."""
        heard = {user: at for user, at in self.heard.items() if user != order.user}
        heard = dict([*heard.items(), (order.user, now)][-2:])
        if not sound:
            return msgspec.structs.replace(self, heard=heard)
        known = dict(self.sound)
        for trait in order.traits:
            users = known.pop(trait, frozenset())
            known[trait] = users if len(users) > 1 else users | {order.user}
        return Company(heard, dict([*known.items()][-MOST_TRAITS:]), any_sound=True)

    def met(self, users: Iterable[str], now: float) -> "Company":
        """Know of these users, who have sent jobs that wait."""
        known = self
        for user in users:
            known = known.joined(Ordered(user), now, sound=False)
        return known

    def is_alone(self, user: str, now: float) -> bool:
        """Tell whether nobody but this user has sent jobs lately."""
        return all(other == user or now - at > ALONE_S for other, at in self.heard.items())

    def suspects(self, order: Ordered, now: float) -> frozenset[tuple[str, str]]:
        """Return the traits that may be why this order failed: they were sound for nobody else.

        If its user is alone, a trait with which that user has succeeded explains nothing. If no order has
        ever succeeded, many users with traits of their own fail for a common reason.
        """
        if self.is_alone(order.user, now):
            return order.traits - self.sound.keys()
        if not self.any_sound:
            return frozenset()
        return frozenset(trait for trait in order.traits if not self.is_sound_for_others(trait, order.user))

    def is_sound_for_others(self, trait: tuple[str, str], user: str) -> bool:
        """Tell whether an order of somebody else with this trait has succeeded."""
        return bool(self.sound.get(trait, frozenset()) - {user})


class Explained(msgspec.Struct, frozen=True):
    """A user's failures in a row that traits may explain, and those that may explain the last one."""

    count: int
    suspects: frozenset[tuple[str, str]]


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """Close an open gate after `limit` failures in a row; None: never, but a probe still decides."""

    limit: int | None
    phase: Phase = Phase.OPEN
    epoch: int = 0
    failures: Mapping[str | None, int] = {}  # in a row, of this epoch, by user; certain ones by None
    explained: Mapping[str, Explained] = {}  # the same of those that traits of their orders may explain
    closed_s: float = 0.0  # the last closing, as far as we saw it; 0 while the gate is open
    company: Company = Company()

    def turned(self, phase: Phase, closed_s: float = 0.0) -> "Breaker":
        """Begin an epoch, as the row has changed; `closed_s`: for how long a breaker has closed the gate."""
        known_s = 0.0 if phase is Phase.OPEN else max(closed_s, 0.0) or self.closed_s
        return Breaker(
            limit=self.limit, phase=phase, epoch=self.epoch + 1, closed_s=known_s, company=self.company
        )

    def heard(
        self, sign: Sign, epoch: int, *, random: float, order: Ordered = NOBODY, now: float = 0.0
    ) -> tuple["Breaker", Open | Close | None]:
        """Count the outcome of a call for `order` that began in `epoch`; return what to do about the gate.

        Once it has returned a decision, it counts nothing more until the row has turned. `random` is in [0,
        1), `now` any clock in seconds.
        """
        known = self.company.joined(order, now, sound=sign is Sign.SOUND)
        heard = self._with(company=known)
        if epoch != self.epoch or self.phase is Phase.SHUT or sign is Sign.ORDER:
            return heard, None
        suspects = known.suspects(order, now) if sign is Sign.BROKEN else frozenset()
        if self.phase is Phase.PROBING:
            return heard.probed(sign, self._counted(sign, order.user, suspects), random, order.user, now)
        if sign is Sign.SOUND:
            return self._with(company=known, failures={}, explained={}), None
        if sign is Sign.NEITHER:
            return heard, None
        changes = {"company": known} | self._counted(sign, order.user, suspects)
        if not self._with(**changes).is_broken(now, explained=bool(suspects)):
            return self._with(**changes), None
        closed = self._with(company=known, phase=Phase.SHUT, failures={}, explained={})
        return closed, Close(closing_s(0.0, random=random))

    def met(self, users: Iterable[str], now: float) -> "Breaker":
        """Know of these users, who have sent jobs that wait."""
        return self._with(company=self.company.met(users, now))

    @property
    def in_a_row(self) -> int:
        """The failures so far."""
        return sum(self.failures.values()) + sum(one.count for one in self.explained.values())

    def is_broken(self, now: float, *, explained: bool) -> bool:
        """Tell whether the failures are enough, and not one user's while others send jobs.

        `explained`: a trait may explain the last one. It says nothing of us when its user is alone.
        """
        counting = Counter(self.failures)
        if self._is_common:
            counting.update({user: one.count for user, one in self.explained.items()})
        if self.limit is None or (in_a_row := counting.total()) < self.limit:
            return False
        by_user = {user: count for user, count in counting.items() if user is not None}
        loudest = max(by_user, key=by_user.__getitem__, default=None)
        others = in_a_row - (by_user[loudest] if loudest is not None else 0)
        return others >= self._enough or (
            loudest is not None and not explained and self.company.is_alone(loudest, now)
        )

    @property
    def _enough(self) -> int:
        """How many failures must be of others than the user with the most."""
        return max(1, (self.limit or 0) // OTHERS)

    @property
    def _is_common(self) -> bool:
        """Tell whether no trait explains what fails: enough users fail beside those who ordered it."""
        fewest = max(MANY, self._enough)
        if len(self.explained) <= fewest:
            return False
        having = Counter(trait for one in self.explained.values() for trait in one.suspects)
        return len(self.explained) - max(having.values()) >= fewest

    def _counted(self, sign: Sign, user: str, suspects: frozenset[tuple[str, str]]) -> dict[str, Any]:
        """Return what changes with one more failure."""
        if not suspects:
            by = None if sign is Sign.CERTAIN or len(self.failures) >= MOST_USERS else user
            return {"failures": {**self.failures, by: self.failures.get(by, 0) + 1}}
        was = self.explained.get(user)
        if was is None and len(self.explained) >= MOST_USERS:
            return {}
        return {"explained": {**self.explained, user: Explained(1 + (was.count if was else 0), suspects)}}

    def probed(
        self, sign: Sign, counted: dict[str, Any], random: float, user: str, now: float
    ) -> tuple[Self, Open | Close | None]:
        """Decide by the outcome of a probe, or let the next job decide.

        One user's failure speaks for nobody else, so that one user's jobs keep the gate closed to no others.
        """
        decided = self._with(phase=Phase.SHUT)
        if sign is Sign.SOUND:
            return decided, Open()
        tried = self._with(**counted)
        again = Close(self.closed_s or FIRST_S)
        is_doubtful = sign is Sign.BROKEN and not self.company.is_alone(user, now)
        if is_doubtful and tried.failures.keys() | tried.explained.keys() == {user}:
            return (tried, None) if tried.in_a_row < (self.limit or MOST_TRIES) else (decided, again)
        if sign is Sign.NEITHER or not tried.failures:
            return decided, again
        return decided, Close(closing_s(self.closed_s, random=random))

    def _with(self, **changed: Any) -> Self:
        return msgspec.structs.replace(self, **changed)


def sign_of(result: Success | Failure, *, named: bool = False) -> Sign:
    """Say what the outcome of a call tells; `named`: it names a trait of the order."""
    if isinstance(result, Success):
        return Sign.SOUND
    sign = SIGNS[result.category]
    if named and sign is not Sign.SOUND:
        return Sign.ORDER
    if result.category is Category.NETWORK and result.provider_status in {400, 422}:
        return Sign.NEITHER  # the provider could not fetch the job's reference image
    return Sign.CERTAIN if result.certain and sign is Sign.BROKEN else sign


def closing_s(last_s: float, *, random: float) -> float:
    """Say how long to close after a closing of `last_s` (0: none): doubling from 30 s to 10 min, less up to a
    fifth, so that workers do not probe together the gates that closed together.
    """
    return min(max(2 * last_s, FIRST_S), LONGEST_S) * (1 - JITTER * random)

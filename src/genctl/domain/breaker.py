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
from typing import NamedTuple, Self

import msgspec
from msgspec.structs import replace

from genctl.domain.model import Category, Failure, Success

FIRST_S = 30.0
LONGEST_S = 600.0
JITTER = 0.2
ALONE_S = 600.0  # a user is alone when no call of another user has ended for so long
OTHERS = 4  # one failure in so many of the limit must be of others than the user with the most
MOST_TRAITS = 256  # that we remember as sound, the latest
MOST_FAILURES = 1_000  # beyond the limit, that we remember: of one user, while others send jobs
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
            return replace(self, heard=heard)
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


class Failed(NamedTuple):
    """Remember whose call failed (None: whoever's, it is certain), and the traits that may be why."""

    user: str | None
    suspects: frozenset[tuple[str, str]]


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """Close an open gate after `limit` failures in a row; None: never, but a probe still decides."""

    limit: int | None
    phase: Phase = Phase.OPEN
    epoch: int = 0
    failures: tuple[Failed, ...] = ()  # in a row, of this epoch
    closed_s: float = 0.0  # the last closing, as far as we saw it; 0 while the gate is open
    company: Company = Company()

    def turned(self, phase: Phase, closed_s: float = 0.0) -> Self:
        """Begin an epoch, as the row has changed; `closed_s`: for how long a breaker has closed the gate."""
        known_s = 0.0 if phase is Phase.OPEN else max(closed_s, 0.0) or self.closed_s
        return replace(self, phase=phase, epoch=self.epoch + 1, failures=(), closed_s=known_s)

    def heard(
        self, sign: Sign, epoch: int, *, random: float, order: Ordered = NOBODY, now: float = 0.0
    ) -> tuple[Self, Open | Close | None]:
        """Count the outcome of a call for `order` that began in `epoch`; return what to do about the gate.

        Once it has returned a decision, it counts nothing more until the row has turned. `random` is in [0,
        1), `now` any clock in seconds.
        """
        heard = replace(self, company=self.company.joined(order, now, sound=sign is Sign.SOUND))
        if epoch != self.epoch or self.phase is Phase.SHUT or sign is Sign.ORDER:
            return heard, None
        if sign is Sign.SOUND:
            sound = replace(heard, failures=())
            return (sound, None) if self.phase is Phase.OPEN else (replace(sound, phase=Phase.SHUT), Open())
        if sign is Sign.NEITHER:
            again = None if self.phase is Phase.OPEN else Close(self.closed_s or FIRST_S)
            return (replace(heard, phase=Phase.SHUT) if again else heard), again
        suspects = heard.company.suspects(order, now) if sign is Sign.BROKEN else frozenset()
        failed = Failed(None if sign is Sign.CERTAIN else order.user, suspects)
        failures = (*self.failures, failed)[-MOST_FAILURES - (self.limit or 0) :]
        tried = replace(heard, failures=failures)
        does = tried.probed(now, random) if self.phase is Phase.PROBING else tried.closes(now, random)
        return (replace(heard, phase=Phase.SHUT, failures=()) if does else tried), does

    def met(self, users: Iterable[str], now: float) -> Self:
        """Know of these users, who have sent jobs that wait."""
        return replace(self, company=self.company.met(users, now))

    def closes(self, now: float, random: float) -> Close | None:
        """Close the gate if the failures are enough, and not one user's while others send jobs.

        A failure that a trait may explain says nothing of us when its user is alone.
        """
        is_common = self._is_common
        counting = Counter(one.user for one in self.failures if is_common or not one.suspects)
        if self.limit is None or (in_a_row := counting.total()) < self.limit:
            return None
        by_user = {user: count for user, count in counting.items() if user is not None}
        loudest = max(by_user, key=by_user.__getitem__, default=None)
        others = in_a_row - (by_user[loudest] if loudest is not None else 0)
        last = self.failures[-1]
        is_alone = loudest is not None and not last.suspects and self.company.is_alone(loudest, now)
        if others < self._enough and not is_alone:
            return None
        return Close(closing_s(0.0, random=random))

    @property
    def _enough(self) -> int:
        """How many failures must be of others than the user with the most."""
        return max(1, (self.limit or 0) // OTHERS)

    @property
    def _is_common(self) -> bool:
        """Tell whether no trait explains what fails: enough users fail beside those who ordered it."""
        explained = {one.user: one.suspects for one in self.failures if one.suspects}
        fewest = max(MANY, self._enough)
        if len(explained) <= fewest:
            return False
        having = Counter(trait for suspects in explained.values() for trait in suspects)
        return len(explained) - max(having.values()) >= fewest

    def probed(self, now: float, random: float) -> Close | None:
        """Decide by the failure of a probe, or let the next job decide.

        One user's failure speaks for nobody else, so that one user's jobs keep the gate closed to no others.
        """
        user = self.failures[-1].user
        is_one_users = user is not None and {one.user for one in self.failures} == {user}
        if is_one_users and not self.company.is_alone(user or "", now):
            is_over = len(self.failures) >= (self.limit or MOST_TRIES)
            return Close(self.closed_s or FIRST_S) if is_over else None
        if all(one.suspects for one in self.failures):
            return Close(self.closed_s or FIRST_S)
        return Close(closing_s(self.closed_s, random=random))


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

"""Classify the answers of one provider, and remember what the last ones meant.

A provider refuses thousands of jobs by the same bytes. What they mean depends on nothing but the status, the
body and a few headers, so we read them once.
"""

from collections.abc import Sequence
from datetime import datetime

from genctl.domain.classify import classify
from genctl.domain.details import without_secrets
from genctl.domain.envelopes import GENERIC
from genctl.domain.model import Answer, Failure, NoAnswer, Success
from genctl.domain.providers import Provider
from genctl.domain.rules import Rule

MOST = 128  # answers that we remember
MOST_BYTES = 4_096  # of the body of such an answer


class Classifier:
    """Say what a provider's answers mean, without its keys."""

    def __init__(
        self, provider: Provider, *, verdicts: Sequence[str] = (), others: Sequence[Rule] = ()
    ) -> None:
        """Take what classify() takes beside an answer."""
        self._provider = provider
        self._verdicts = verdicts
        self._others = others
        own = provider.envelope
        heard = {*own.headers, *own.code_headers, *GENERIC.headers, *GENERIC.code_headers, "retry-after"}
        self._heard = sorted(heard)
        self._known: dict[tuple[object, ...], Failure] = {}

    def __call__(self, answer: Answer | NoAnswer, *, now: datetime) -> Success | Failure:
        """Return what classify() and without_secrets() make of the answer."""
        if isinstance(answer, NoAnswer):
            return self._fresh(answer, now)
        key = (answer.status, answer.body, *map(answer.headers.get, self._heard))
        if known := self._known.get(key):
            return known
        result = self._fresh(answer, now)
        # the time counts for what a wait or an image's URL says, and for nothing else
        if isinstance(result, Failure) and result.retry_after_s is None and len(answer.body) <= MOST_BYTES:
            if len(self._known) >= MOST:
                del self._known[next(iter(self._known))]  # the oldest
            self._known[key] = result
        return result

    def _fresh(self, answer: Answer | NoAnswer, now: datetime) -> Success | Failure:
        said = classify(answer, self._provider, now=now, verdicts=self._verdicts, others=self._others)
        return without_secrets(said, self._provider.key_shape)

"""The traits of an order: the values that its user chose, of which a refusal may speak."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any

import msgspec

from genctl.domain.model import Category, Failure, GenctlError, Success, rfc3339

LONGEST = 200  # characters of a value as we keep it; of a longer one we keep the hash
MOST = 32  # traits of one order
Trait = tuple[str, str]  # a field of the order and its value
Traits = frozenset[Trait]
PLAIN: Traits = frozenset()
LEAST_VALUE = 6  # characters of a value that nobody writes by chance
UNNAMED = frozenset({Category.CONTENT_POLICY, Category.RATE_LIMIT})


def traits_of(model: str | None, params: Any, default_model: str) -> Traits:
    """Return what an order says beyond the plain one. We chose the default model, so it is no trait.

    Each element of a list is a trait, so that a refusal of one reference image does not spare the others.
    """
    chosen = params if isinstance(params, Mapping) else {}
    model_too = {} if model in {None, default_model} else {"model": model}
    found = [trait for name, value in {**model_too, **chosen}.items() for trait in _traits(str(name), value)]
    return frozenset(found[:MOST])


def _traits(name: str, value: Any) -> Iterator[Trait]:
    for one in value if isinstance(value, list) else [value]:
        text = one if isinstance(one, str) else json.dumps(one, sort_keys=True, default=str)
        if len(text) > LONGEST or not text.isprintable():
            text = f"sha256:{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
        yield name[:LONGEST], text


def refused_traits(result: Success | Failure, traits: Traits) -> Traits:
    """Return the traits that a refusal names, by field or by value.

    A refusal by content rules speaks of the order as a whole, and a 429 of our pace, whatever words it has.
    """
    if isinstance(result, Success) or result.certain or result.category in UNNAMED:
        return PLAIN
    status = result.provider_status or 0
    words = (result.provider_message or "")[:2_048] if 400 <= status < 500 and status != 429 else ""
    return frozenset(
        (name, value)
        for name, value in traits
        if name in result.names
        or (len(value) >= LEAST_VALUE and value in words)
        or re.search(
            rf"\b(?:parameter|field|argument) {re.escape(name)}\b|[`'\"]{re.escape(name)}[`'\"\[.]", words
        )
    )


class Refused(msgspec.Struct, frozen=True):
    """A trait that the provider has refused so often that we take no orders with it.

    `users` have met it. It counts for everybody (`for_all`) once two users have, else for its user alone.
    """

    field: str
    value: str
    code: str
    until: datetime
    users: int
    for_all: bool
    tool: str = ""

    @property
    def words(self) -> str:
        """Name field and value."""
        return f"{self.field} {self.value}"

    def error(self) -> GenctlError:
        """Say to the user which value we do not take, in words that tell nothing of our account."""
        return GenctlError(
            "ValueRefused",
            f"the image service refused several orders with {self.words}: none is taken"
            f" until {rfc3339(self.until)}",
            f"order another {self.field}, or try again after that time",
            exit_code=2,
        )

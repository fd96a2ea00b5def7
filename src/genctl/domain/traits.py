"""Find the traits of an order: the values that its user chose, and that a refusal may name."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any

import msgspec

from genctl.domain.model import Category, Failure, GenctlError, Success, rfc3339

LONGEST = 200  # characters of a value that we keep as it is; we keep the hash of a longer one
MOST = 32  # traits of one order
Trait = tuple[str, str]  # a field of the order and its value
Traits = frozenset[Trait]
PLAIN: Traits = frozenset()
LEAST_VALUE = 6  # characters of a value that no message holds by chance
UNNAMED = frozenset({Category.CONTENT_POLICY, Category.RATE_LIMIT})


def traits_of(model: str | None, params: Any, default_model: str) -> Traits:
    """Return the traits of an order. The default model is none, as the user has not chosen it.

    Each element of a list is a trait, as the provider may refuse one reference image and take the others.
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

    A refusal by content rules is about the whole order, and a 429 about our pace, whatever their words are.
    """
    if isinstance(result, Success) or result.certain or result.category in UNNAMED:
        return PLAIN
    status = result.provider_status or 0
    words = (result.provider_message or "")[:2_048] if 400 <= status < 500 and status != 429 else ""

    def is_named(name: str, value: str) -> bool:
        field = re.escape(name)
        by_field = rf"\b(?:parameter|field|argument) {field}\b|[`'\"]{field}[`'\"\[.]"
        return (len(value) >= LEAST_VALUE and value in words) or bool(re.search(by_field, words))

    return frozenset(trait for trait in traits if trait[0] in result.names or is_named(*trait))


class Refused(msgspec.Struct, frozen=True):
    """Hold a trait that the provider has refused so often that we take no orders with it.

    `users` have met the refusal. It counts for everybody (`for_all`) once two have, else for that user alone.
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
        """Make the error that names the value to the user, and says nothing of our account."""
        return GenctlError(
            "ValueRefused",
            f"the image service refused several orders with {self.words}: none is taken"
            f" until {rfc3339(self.until)}",
            f"order another {self.field}, or try again after that time",
            exit_code=2,
        )

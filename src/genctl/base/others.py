"""Load the providers that no tool of ours calls; others.toml says what their answers mean."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import msgspec

from genctl.domain.classify import rule_of
from genctl.domain.envelopes import Envelope
from genctl.domain.providers import Provider
from genctl.domain.rules import Rule

TABLES = Path(__file__).with_suffix(".toml")


class OtherProvider(msgspec.Struct, forbid_unknown_fields=True):
    """Hold a provider of the file; `also` names another whose rules follow its own."""

    envelope: Envelope
    rules: tuple[Rule, ...]
    also: str = ""


@cache
def others() -> dict[str, Provider]:
    """Return each provider by its name. The first call reads the file, which few commands need."""
    entries = msgspec.toml.decode(TABLES.read_bytes(), type=dict[str, OtherProvider])
    return {
        name: Provider(name, one.envelope, one.rules + (entries[one.also].rules if one.also else ()))
        for name, one in entries.items()
    }


@cache
def rules_of_others() -> tuple[Rule, ...]:
    """Return the rules of all of them: a gateway may pass on the code of any."""
    return tuple(rule for provider in others().values() for rule in provider.rules)


def is_in_a_table(code: str, own: Iterable[Provider]) -> bool:
    """Tell whether a rule names the code or its family: one of the `own` providers, or of any other."""
    tables = [*(provider.rules for provider in own), rules_of_others()]
    return any(rule_of(code, None, rules) for rules in tables)

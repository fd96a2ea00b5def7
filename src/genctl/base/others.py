"""Load the providers that no tool of ours calls; others.toml says what their answers mean."""

from functools import cache
from pathlib import Path

import msgspec

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

"""Describe a provider: where it keeps its words, what its codes mean, how its keys look."""

import msgspec

from genctl.domain.envelopes import GENERIC, Envelope
from genctl.domain.rules import Rule


class Provider(msgspec.Struct, frozen=True):
    """Hold one provider. We remove its keys, which `key_shape` matches, from the words that we store."""

    name: str
    envelope: Envelope
    rules: tuple[Rule, ...] = ()
    key_shape: str = ""


UNKNOWN = Provider("", GENERIC)

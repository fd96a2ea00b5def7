"""A provider: where it keeps its words, what its codes mean, how its keys look."""

import msgspec

from genctl.domain.envelopes import GENERIC, Envelope
from genctl.domain.rules import Rule


class Provider(msgspec.Struct, frozen=True):
    """Describe one provider. We remove what `key_shape` matches, its keys, from the words that we store."""

    name: str
    envelope: Envelope
    rules: tuple[Rule, ...] = ()
    key_shape: str = ""


UNKNOWN = Provider("", GENERIC)

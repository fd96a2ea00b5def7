"""What is known of a provider: where it keeps its words, what its codes mean, how its keys look."""

import msgspec

from genctl.domain.envelopes import ENVELOPES, GENERIC, Envelope
from genctl.domain.rules import RULES, Rule


class Provider(msgspec.Struct, frozen=True):
    """One provider. `key_shape` is a pattern of its keys, which are removed from what it says."""

    name: str
    envelope: Envelope
    rules: tuple[Rule, ...] = ()
    key_shape: str = ""


UNKNOWN = Provider("", GENERIC)
# Those that no tool of ours calls; what others have learned of them is here for who ports a tool.
OTHERS: dict[str, Provider] = {name: Provider(name, row, RULES[name]) for name, row in ENVELOPES.items()}

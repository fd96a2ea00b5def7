"""List what each part of genctl does with tables, and SQS with keys; deploy/ grants exactly that."""

# What SQS needs of the key that encrypts a queue, in the name of whoever sends and receives.
OF_KEY = ("kms:Decrypt", "kms:GenerateDataKey")

_LETTERS = {"s": "select", "i": "insert", "u": "update", "d": "delete"}
# A worker and its sweeper; an API; a person, by the commands. Locking a row (`for update`) needs the right to
# update it. Reserving first makes an account that is missing. `privacy erase` updates the trace.
_PARTS = ("worker", "api", "operator")
_TABLES = {
    "generation_sessions": ("su", "siu", "siu"),
    "credit_accounts": ("siu", "siu", "siu"),
    "credit_reservations": ("su", "siu", "siu"),
    "credit_ledger": ("si", "si", "si"),
    "session_events": ("sid", "si", "siud"),
    "tool_gates": ("siu", "s", "siu"),
    "refused_traits": ("siud", "su", "sud"),
    "tool_paces": ("siu", "s", "su"),
    "tool_workers": ("siud", "", "s"),
    "spent_tickets": ("", "siud", ""),
    "revoked_tokens": ("", "siud", "siud"),
    "bulk_work": ("", "", "siud"),
    "genctl_migrations": ("s", "s", "s"),
}

RIGHTS: dict[str, dict[str, tuple[str, ...]]] = {
    part: {
        table: tuple(map(_LETTERS.__getitem__, rights[nth]))
        for table, rights in _TABLES.items()
        if rights[nth]
    }
    for nth, part in enumerate(_PARTS)
}
RIGHTS["auditor"] = dict.fromkeys(RIGHTS["operator"], ("select",))  # a person who looks

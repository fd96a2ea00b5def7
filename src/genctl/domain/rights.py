"""List what each part of genctl does with tables, and SQS with keys; deploy/ grants exactly that."""

READ = ("select",)
ADD = ("select", "insert")
KEEP = ("select", "insert", "update")
ALL = ("select", "insert", "update", "delete")

# What SQS needs of the key that encrypts a queue, in the name of whoever sends and receives.
OF_KEY = ("kms:Decrypt", "kms:GenerateDataKey")

# Locking a row (`for update`) needs the right to update it. Reserving first makes an account that is missing.
RIGHTS: dict[str, dict[str, tuple[str, ...]]] = {
    "worker": {  # and its sweeper
        "generation_sessions": ("select", "update"),
        "credit_accounts": KEEP,
        "credit_reservations": ("select", "update"),
        "credit_ledger": ADD,
        "session_events": ("select", "insert", "delete"),
        "tool_gates": KEEP,
        "refused_traits": ALL,
        "tool_paces": KEEP,
        "tool_workers": ALL,
        "genctl_migrations": READ,
    },
    "api": {
        "generation_sessions": KEEP,
        "credit_accounts": KEEP,
        "credit_reservations": KEEP,
        "credit_ledger": ADD,
        "session_events": ADD,
        "tool_gates": READ,
        "tool_paces": READ,
        "refused_traits": ("select", "update"),
        "spent_tickets": ALL,
        "revoked_tokens": ALL,
        "genctl_migrations": READ,
    },
    "operator": {  # a person, by the commands
        "generation_sessions": KEEP,
        "credit_accounts": KEEP,
        "credit_reservations": KEEP,
        "credit_ledger": ADD,
        "session_events": ALL,  # `privacy erase` updates
        "tool_gates": KEEP,
        "refused_traits": ("select", "update", "delete"),
        "revoked_tokens": ALL,
        "bulk_work": ALL,
        "tool_paces": ("select", "update"),
        "tool_workers": READ,
        "genctl_migrations": READ,
    },
}
RIGHTS["auditor"] = dict.fromkeys(RIGHTS["operator"], READ)  # a person who looks

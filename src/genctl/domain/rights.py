"""What each part of genctl does with each of its tables; deploy/roles.sql grants exactly that."""

READ = ("select",)
ADD = ("select", "insert")
KEEP = ("select", "insert", "update")

# A lock on a row (`for update`) takes the right to update it. An account that is missing is made first.
RIGHTS: dict[str, dict[str, tuple[str, ...]]] = {
    "worker": {  # and its sweeper
        "generation_sessions": ("select", "update"),
        "credit_accounts": KEEP,
        "credit_reservations": ("select", "update"),
        "credit_ledger": ADD,
        "session_events": ("select", "insert", "delete"),
        "tool_gates": KEEP,
    },
    "api": {
        "generation_sessions": KEEP,
        "credit_accounts": KEEP,
        "credit_reservations": KEEP,
        "credit_ledger": ADD,
        "session_events": ADD,
        "tool_gates": READ,
        "spent_tickets": ("select", "insert", "update", "delete"),
        "genctl_migrations": READ,
    },
    "operator": {  # a person, by the commands
        "generation_sessions": KEEP,
        "credit_accounts": KEEP,
        "credit_reservations": KEEP,
        "credit_ledger": ADD,
        "session_events": ("select", "insert", "delete"),
        "tool_gates": KEEP,
        "genctl_migrations": READ,
    },
    "auditor": {  # a person who looks
        "generation_sessions": READ,
        "credit_accounts": READ,
        "credit_reservations": READ,
        "credit_ledger": READ,
        "session_events": READ,
        "tool_gates": READ,
        "genctl_migrations": READ,
    },
}

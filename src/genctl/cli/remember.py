"""`python -m genctl.cli.remember WHAT FILE`: write what completion offers, beside the shell that waits."""

import asyncio
import json
import os
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile

from genctl.base.printable import printable
from genctl.edges.db import Database
from genctl.ops.meaning import known_codes
from genctl.ops.sessions import listed
from genctl.tools.found import found, load

MOST = 50  # sessions
LIMIT_S = 3.0


async def sessions() -> list[dict[str, str]]:
    """Read the newest sessions. Raises GenctlError."""
    filters = dict.fromkeys(("user", "status", "code", "since", "until"))
    async with asyncio.timeout(LIMIT_S), Database.open(load().dsn(), size=1) as db:
        rows = await listed(db, lambda _: None, **filters, limit=MOST)
    return [
        {
            "id": str(row["sessionId"]),
            "status": str(row["status"]),
            "says": printable(
                f"{(row['error_details'] or {}).get('code', row['status'])} of {row['userId']}"
            ),
        }
        for row in rows
    ]


async def names() -> list[dict[str, str]]:
    """List the installed tools, their providers, and the codes that these may answer with."""
    tools = found()
    every = {
        "tools": [*tools.by_name],
        "providers": [*tools.providers],
        "codes": sorted({*known_codes([*tools.providers.values()])}),
    }
    return [{"kind": kind, "name": name} for kind, those in every.items() for name in those]


def main(what: str, file: Path) -> None:
    """Write the file at once and whole; only its owner may read it."""
    rows = asyncio.run(sessions() if what == "sessions" else names())
    with NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as new:
        json.dump(rows, new)
    os.replace(new.name, file)  # noqa: PTH105


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

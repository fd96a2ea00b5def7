"""`python -m genctl.cli.remember FILE`: write what completion offers, beside the shell that waits."""

import asyncio
import json
import os
import sys
from contextlib import suppress
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


def main(file: Path) -> None:
    """Write the file at once and whole; only its owner may read it."""
    tools, newest = found(), list[dict[str, str]]()
    with suppress(Exception):  # nobody waits for what we would say
        newest = asyncio.run(sessions())
    known = {
        "tools": [*tools.by_name],
        "providers": [*tools.providers],
        "codes": sorted({*known_codes([*tools.providers.values()])}),
        "sessions": newest,
    }
    with NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as new:
        json.dump(known, new)
    os.replace(new.name, file)  # noqa: PTH105


if __name__ == "__main__":
    main(Path(sys.argv[1]))

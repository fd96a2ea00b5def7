"""`migrate up` on request, each in a fork that kills itself before or after its n-th statement.

A line of stdin is {dsn, at: n}; the answer is `killed`, or `done` when there are fewer moments.
"""

import asyncio
import json
import os
import signal
import sys
from typing import Any

import psycopg

from genctl.edges import migrate

moments = 0
execute = psycopg.AsyncConnection.execute


def deadly(at: int) -> Any:
    def moment() -> None:
        global moments  # noqa: PLW0603
        moments += 1
        if moments == at:
            os.kill(os.getpid(), signal.SIGKILL)

    async def executed(*args: Any, **more: Any) -> Any:
        moment()
        answer = await execute(*args, **more)
        moment()
        return answer

    return executed


for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        setattr(psycopg.AsyncConnection, "execute", deadly(asked["at"]))  # noqa: B010 - it is overloaded
        asyncio.run(migrate.up(asked["dsn"]))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    outcome = "killed" if os.WIFSIGNALED(status) else "done" if status == 0 else "failed"
    sys.stdout.write(f"{outcome}\n")
    sys.stdout.flush()

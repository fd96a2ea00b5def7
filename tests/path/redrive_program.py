"""Redrives on request, each in a fork that kills itself after the n-th call that changes anything.

What others see is the same from there until the next such call. A line of stdin is {queue, at: n, ...settings};
the answer is `killed`, or `done` when there are fewer calls.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from genctl.base.settings import Settings
from genctl.domain.deadletters import Choice
from genctl.edges.db import Database
from genctl.edges.sqs import Sqs
from genctl.ops import redrive as ops
from genctl.ops import sampling

CHANGES = {
    *("ReceiveMessage", "SendMessageBatch", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"),
    *("requeue", "mark_enqueued"),
}
moments = 0


def deadly(call: Callable[..., Awaitable[Any]], at: int) -> Callable[..., Awaitable[Any]]:
    async def called(self: Any, *what: Any, **more: Any) -> Any:
        global moments  # noqa: PLW0603
        answer = await call(self, *what, **more)
        names = {one[0] if isinstance(one, tuple) else one for one in what}
        moments += bool(names & CHANGES)
        if moments == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    return called


async def redrive(settings: Settings) -> None:
    async with ops.Redrive.open(settings, ops.RedriveOptions(choice=Choice())) as under_way:
        await under_way.run()


for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # its logs are no answers
        ops.LANES, ops.BATCH = 2, 10
        sampling.LOOK_S = 1  # hidden by the killed one for a second, not for thirty
        moment = asked.pop("at")
        for owner, name in ((Sqs, "call"), (Database, "transact")):
            setattr(owner, name, deadly(getattr(owner, name), moment))
        asyncio.run(redrive(Settings(**asked | {"home": Path(asked["home"])})))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    outcome = "killed" if os.WIFSIGNALED(status) else "done" if status == 0 else "failed"
    sys.stdout.write(f"{outcome}\n")
    sys.stdout.flush()

"""`python stack_program.py HOME [PARTS]`: a stack on HOME until a signal, as `genctl up` will run it.

PARTS `idle`: PostgreSQL and a part that does nothing; `stuck`: a part more, which never gets ready and ignores
SIGTERM; `small`: PostgreSQL and the queue alone; `working`: all but the API. The first line of stdout comes when
all runs; a failure is told as the CLI does.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from genctl.base.settings import Settings
from genctl.cli.running import run
from genctl.domain.model import GenctlError
from genctl.ops.stack.child import Child
from genctl.ops.stack.stack import Maker, Stack, queue, worker

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""


def idler(stack: Stack) -> Child:
    return Child(name="idler", argv=["sleep", "600"], log=stack.logs("idler"))


class Idle(Stack):
    """A stack of what starts at once, where it is no matter what the parts are."""

    servers = (idler,)
    clients: ClassVar[Sequence[Maker]] = ()

    async def resend(self) -> None:
        """Nobody has a queue."""


class Small(Stack):
    servers = (queue,)
    clients: ClassVar[Sequence[Maker]] = ()


def stubborn(stack: Stack) -> Child:
    log = stack.logs("stubborn")
    argv = [sys.executable, "-c", STUBBORN]
    return Child(name="stubborn", argv=argv, log=log, ready=lambda: False, stop_within_s=0.5)


class Working(Stack):
    clients = (worker,)


class Stuck(Idle):
    clients = (stubborn,)


async def main(home: Path, parts: str) -> None:
    kind = {"idle": Idle, "stuck": Stuck, "small": Small, "working": Working}[parts]
    settings = Settings(home=home, embedded=True)
    async with kind(settings, note=lambda line: sys.stderr.write(f"{line}\n")) as stack:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await stack.watch()


if __name__ == "__main__":
    try:
        run(main(Path(sys.argv[1]), sys.argv[2]))
    except GenctlError as error:
        sys.exit(f"{error.code}: {error.message}")

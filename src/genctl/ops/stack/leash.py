"""`python leash.py SIGNAL PARENT COMMAND...`: COMMAND, which gets SIGNAL when its parent dies.

A script of its own, not a `preexec_fn`: nothing of ours runs between fork and exec of a process
that may have threads. Only Linux knows this; elsewhere COMMAND just starts.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(signal: str, parent: str, *command: str) -> None:
    """Become `command`; it never starts when `parent` (a process id) died before it was tied to it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal))
        if os.getppid() != int(parent):
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - becoming the command is what it is for


if __name__ == "__main__":
    main(*sys.argv[1:])

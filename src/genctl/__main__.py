"""Start `genctl`, also as `python -m genctl`."""

import os
import signal
import sys
from contextlib import suppress


def main() -> int:
    """Run the program and return its exit code."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the program is loaded and can print a line
    from genctl import cli

    code = cli.main()
    if (running := sys.modules.get("genctl.cli.running")) and running.threads_left():
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)  # Python would wait for them
    return code


if __name__ == "__main__":
    sys.exit(main())

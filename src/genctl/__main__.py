"""Start `genctl`, also as `python -m genctl`."""

import signal
import sys


def main() -> int:
    """Run the program and return its exit code."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the program is loaded and can print a line
    from genctl import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())

"""`genctl`, also as `python -m genctl`."""

import signal
import sys


def main() -> int:
    """The program; its exit code."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until it is loaded and can say a line
    from genctl import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())

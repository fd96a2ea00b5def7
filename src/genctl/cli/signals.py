"""Remember a signal that comes before the event loop runs: an import may swallow or turn its exception."""

import signal
from typing import NoReturn

came: list[int] = []


def remember() -> None:
    """Raise at SIGINT and SIGTERM, and remember that; SIGINT stays ignored where a script's & ignores it."""
    signal.signal(signal.SIGTERM, _raise)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _raise)


def check() -> None:
    """Raise again if one came."""
    if came:
        _raise(came[-1], None)


def _raise(number: int, _: object) -> NoReturn:
    came.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)

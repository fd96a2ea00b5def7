"""Name the person at this keyboard; type the callbacks by which longer work reports to them."""

import os
from collections.abc import Callable

Note = Callable[[str], object]  # takes a line for the person
Advance = Callable[[int], object]  # takes how many more are done


def who() -> str:
    """Name them as `ann@host`, as well as the system knows."""
    import getpass  # noqa: PLC0415 - every command imports this module when it starts
    import socket  # noqa: PLC0415

    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"

"""Name the person at this keyboard; type the callbacks by which longer work reports to them."""

import getpass
import os
import socket
from collections.abc import Callable

Note = Callable[[str], object]  # takes a line for the person
Advance = Callable[[int], object]  # takes how many more are done


def who() -> str:
    """Name them as `ann@host`, as well as the system knows."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"

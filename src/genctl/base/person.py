"""Who sits at this keyboard."""

import getpass
import os
import socket


def who() -> str:
    """`ann@host`, as well as the system knows."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"

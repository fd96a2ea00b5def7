"""A socket that the embedded stack bound before it told its address, and hands to the part that serves it."""

import os
import socket

VARIABLE = "_GENCTL_SOCKET"


def handed(port: int) -> socket.socket | None:
    """The socket of that port, which listens already; None where nobody has handed one down."""
    number = os.environ.pop(VARIABLE, None)
    if number is None:
        return None
    sock = socket.socket(fileno=int(number))
    sock.set_inheritable(False)
    if sock.getsockname()[1] != port:
        sock.close()
        return None
    return sock

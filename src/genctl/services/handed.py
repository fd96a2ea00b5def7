"""Take over a socket that the embedded stack has bound before it told anybody its address."""

import os
import socket

VARIABLE = "_GENCTL_SOCKET"


def handed(port: int) -> socket.socket | None:
    """Take over the socket that listens on that port; None where nobody has handed one down."""
    number = os.environ.pop(VARIABLE, None)
    if number is None:
        return None
    sock = socket.socket(fileno=int(number))
    sock.set_inheritable(False)
    if sock.getsockname()[1] != port:
        sock.close()
        return None
    return sock

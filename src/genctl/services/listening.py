"""A socket that listens, or one line that says why not."""

import os
import socket

from genctl.domain.model import GenctlError
from genctl.services.handed import handed

BACKLOG = 2048


def listening(who: str, host: str, port: int, *, option: str = "--port") -> socket.socket:
    """Open a socket that listens there. Raises GenctlError (exit 3), which names `who` wanted it."""
    if given := handed(port):
        return given
    sock = None
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as why:
        if sock:
            sock.close()
        reason = os.strerror(why.errno) if why.errno and why.errno > 0 else str(why)
        raise GenctlError(
            "CannotListen", f"{who}: cannot listen on {host}:{port}: {reason}", f"choose another {option}"
        ) from None
    return sock


def url_of(sock: socket.socket) -> str:
    """Return the URL at which it listens."""
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"

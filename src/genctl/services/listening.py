"""Open a socket that listens, or say in one line why not."""

import os
import socket

from genctl.domain.model import GenctlError

BACKLOG = 2048
VARIABLE = "_GENCTL_SOCKET"  # a socket that the embedded stack has bound before it told anybody its address


def listening(who: str, host: str, port: int, *, cure: str = "try again") -> socket.socket:
    """Open a socket that listens there. Raises GenctlError (exit 3), which names `who` wanted it."""
    if given := _handed(port):
        return given
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        both = family is socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except (OSError, UnicodeError) as why:  # UnicodeError: no name can be so long
        number = getattr(why, "errno", None) or 0  # below zero of getaddrinfo
        reason = os.strerror(number) if number > 0 else getattr(why, "strerror", "there is no such host")
        told = f"{who}: cannot listen on {_bracketed(host)}:{port}: {reason}"
        raise GenctlError("CannotListen", told, cure) from None


def _handed(port: int) -> socket.socket | None:
    """Take over the socket that listens on that port; None where nobody has handed one down."""
    if (number := os.environ.pop(VARIABLE, None)) is None:
        return None
    sock = socket.socket(fileno=int(number))
    sock.set_inheritable(False)
    if sock.getsockname()[1] == port:
        return sock
    sock.close()
    return None


def url_of(sock: socket.socket) -> str:
    """Return the URL at which it listens."""
    host, port = sock.getsockname()[:2]
    return f"http://{_bracketed(host)}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

"""Find the address at which users see this server: in the setting, from trusted proxies, in the request."""

import re
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.types import Scope

from genctl.domain.model import GenctlError

COOKIE = "genctl_token"
PORTS = {"http": 80, "https": 443}
# First segments of our own paths: what follows a prefix tells whether a path with the same name is below it.
TOPS = frozenset({"", "api", "page", "signin", "signout", "whoami", "healthz", "readyz", "metrics"})


class Site(NamedTuple):
    """Hold an origin and the path below which the page lies; `port` is None where the scheme says it."""

    scheme: str
    host: str
    port: int | None
    path: str = ""

    @classmethod
    def of(cls, url: str) -> Self:
        """Read a URL. A site of nobody stands for a URL that cannot be read."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            return cls("", "", None)
        return cls(
            parts.scheme.lower(),
            (parts.hostname or "").lower().rstrip("."),
            None if port in PORTS.values() else port,
            parts.path.rstrip("/"),
        )

    @property
    def is_secure(self) -> bool:
        return self.scheme == "https"

    @property
    def cookie(self) -> str:
        """Name the cookie after port and path: browsers send it to all ports of a host.

        Browsers take a name with `__Host-` only from https, and from no other host of the same domain.
        """
        path = re.sub(r"\W+", "-", self.path.strip("/"))
        name = "_".join(str(part) for part in (COOKIE, self.port, path) if part)
        return f"__Host-{name}" if self.is_secure else name


class Front:
    """Tell the site of a request, and who sent it."""

    def __init__(self, public_url: str | None, trusted: Sequence[str] = ()) -> None:
        self._public = Site.of(public_url) if public_url else None
        self._trusted = tuple(ip_network(network) for network in trusted)
        self.prefix = self._public.path if self._public else ""
        self.home = f"{public_url}/" if public_url else "/"  # where redirects lead

    def site(self, request: HTTPConnection) -> Site:
        """Return the public address, else that of the request with what a trusted proxy says of it."""
        if self._public:
            return self._public
        scheme, host = request.scope["scheme"], request.headers.get("host", "")
        if self.trusts(_peer(request.scope)):
            scheme = _last(request.headers.get("x-forwarded-proto")) or scheme
            host = _last(request.headers.get("x-forwarded-host")) or host
        return Site.of(f"{scheme}://{host}")

    def check_origin(self, request: HTTPConnection) -> Site:
        """Return the site as the page that sent the request sees it. Raises GenctlError ForeignOrigin.

        Every browser names the origin of a POST. Newer ones also judge it themselves (Sec-Fetch-Site), and no
        proxy's Host can spoil that. A proxy may have ended TLS, so without a public address we compare hosts,
        and take the scheme from the page's origin.
        """
        site, origin = self.site(request), Site.of(request.headers.get("origin", ""))
        judged = request.headers.get("sec-fetch-site")
        if self._public:
            ours = origin == self._public._replace(path="")
        else:
            same_host = (origin.host, origin.port) == (site.host, site.port)
            ours = origin.scheme in PORTS and bool(origin.host) and (same_host or judged == "same-origin")
        if not ours or judged not in {None, "same-origin"}:
            told = "the request does not come from this server's page"
            fix = "behind a proxy set GENCTL_PUBLIC_URL to the address that users see"
            raise GenctlError("ForeignOrigin", told, fix, exit_code=1)
        return site if self._public else site._replace(scheme=origin.scheme)

    def is_from_elsewhere(self, request: HTTPConnection) -> bool:
        """Tell whether another site may have sent the person here, also where the browser does not say."""
        if (judged := request.headers.get("sec-fetch-site")) is not None:
            return judged not in {"none", "same-origin"}
        site, referer = self.site(request), Site.of(request.headers.get("referer", ""))
        return (referer.host, referer.port) != (site.host, site.port) or not referer.host

    def cookie(self, request: HTTPConnection) -> str | None:
        """Return the page's cookie; its name also tells of TLS when only the browser knows of it."""
        site = self.site(request)
        names = (site._replace(scheme="https").cookie, site.cookie)
        return next((value for name in names if (value := request.cookies.get(name))), None)

    def is_secure(self, scope: Scope) -> bool:
        """Tell whether users come by https, as far as we know without their browsers."""
        if self._public or not self._trusted:
            return bool(self._public and self._public.is_secure)
        return self.site(HTTPConnection(scope)).is_secure

    def trusts(self, address: str | None) -> bool:
        """Tell whether the setting names this address as a proxy."""
        if not self._trusted or address is None:
            return False
        try:
            one = ip_address(address)
        except ValueError:
            return False
        one = getattr(one, "ipv4_mapped", None) or one
        return any(one in network for network in self._trusted)

    def client(self, scope: Scope) -> str | None:
        """Return the address of the client: the last one named that is not a proxy of ours."""
        peer = _peer(scope)
        if not self.trusts(peer):
            return peer
        named = ",".join(HTTPConnection(scope).headers.getlist("x-forwarded-for")).split(",")
        strangers = (one for one in map(_without_port, reversed(named)) if not self.trusts(one))
        return next(strangers, None) or peer

    def inner_path(self, path: str) -> str | None:
        """Return the path below the prefix, whether or not the proxy has taken the prefix away.

        None for the prefix without its slash: the page's relative addresses would lead nowhere from there.
        """
        if not self.prefix or not path.startswith(self.prefix):
            return path
        rest = path.removeprefix(self.prefix)
        if not rest:
            return None
        return rest if rest.startswith("/") and rest.split("/")[1] in TOPS else path


def _peer(scope: Scope) -> str | None:
    return scope["client"][0] if scope.get("client") else None


def _without_port(named: str) -> str:
    """Return the address alone: some proxies name a client with its port, which changes each time."""
    match = re.fullmatch(r"\[(.*)\](?::\d+)?|([\d.]+):\d+", named.strip())
    return (match[1] or match[2]) if match else named.strip()


def _last(header: str | None) -> str:
    """Return the value that the nearest proxy has set or added."""
    return (header or "").rpartition(",")[2].strip()

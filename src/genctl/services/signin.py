"""Sign users in to the page and out: exchange a ticket for a cookie, once; read tokens of requests."""

from datetime import UTC, datetime
from html import escape

import structlog
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from genctl.base.assets import PACKAGE
from genctl.base.tokens import SIGNED_IN_S, Claims, Tokens, refused
from genctl.domain.model import GenctlError, rfc3339
from genctl.edges.db import Database
from genctl.services.revoked import Revocations
from genctl.services.site import Front, Site
from genctl.services.web import answer, form_of, query_of

PAGE = PACKAGE / "page"
LARGEST_FORM_BYTES = 8 * 1024
LATEST = 253_402_300_799.0  # the end of the year 9999
SAFE = {"GET", "HEAD", "OPTIONS"}

log = structlog.stdlib.get_logger()


class SignIn:
    """Know who is asking, and change it."""

    def __init__(self, db: Database, tokens: Tokens, front: Front, revoked: Revocations) -> None:
        self._db = db
        self._tokens = tokens
        self._front = front
        self._revoked = revoked

    @property
    def routes(self) -> list[BaseRoute]:
        return [
            Route("/signin", self.show, methods=["GET"]),
            Route("/signin", self.sign_in, methods=["POST"]),
            Route("/signout", self.sign_out, methods=["POST"]),
            Route("/whoami", self.whoami),
        ]

    def caller(self, request: HTTPConnection) -> Claims:
        """Return whose token came; basic credentials are for a proxy. Raises TokenRefused, ForeignOrigin."""
        if (bearer := _bearer(request)) is not None:
            return self._read(bearer)
        cookie = self._front.cookie(request)
        if cookie is None:
            raise refused("there is no token")
        if request.scope["method"] not in SAFE:
            self._front.check_origin(request)
        return self._read(cookie)

    async def show(self, request: Request) -> Response:
        """Show the form that spends the ticket: a mail scanner that only looks at the link spends nothing.

        The page sends the form by itself, unless another site may have led the person here.
        """
        asks = "true" if self._front.is_from_elsewhere(request) else "false"
        return HTMLResponse((PAGE / "signin.html").read_text("utf-8").replace("{{asks}}", escape(asks)))

    async def sign_in(self, request: Request) -> Response:
        """Exchange the ticket, of the link or of a form, for a cookie, once. Raises GenctlError AskFirst."""
        site = self._front.check_origin(request)
        form = await form_of(request, LARGEST_FORM_BYTES)
        ticket, claims = self._tokens.read_ticket(query_of(request).get("ticket") or form.get("ticket", ""))
        self._revoked.check(claims)
        if "confirmed" not in form:
            self._ask(self._signed_in(request), claims.user, asks="asks" in form)
        if not await self._db.row("spend_ticket", ticket=ticket, expires_at=claims.expires_at):
            raise refused("this sign-in link was used before")
        response = self._home()
        token = self._tokens.issue(claims.user, SIGNED_IN_S)
        _set_cookie(response, site, token, SIGNED_IN_S)
        log.info("api.signed_in", userId=claims.user, tokenId=self._tokens.read(token).id)
        return response

    async def whoami(self, request: Request) -> Response:
        """Say whose token came, and when it ends."""
        claims = self.caller(request)
        until = datetime.fromtimestamp(min(claims.expires_at, LATEST), UTC)
        return answer({"userId": claims.user, "expiresAt": rfc3339(until)})

    async def sign_out(self, request: Request) -> Response:
        """Take the cookie away and revoke its token, so that a copy of it is worth nothing either."""
        bearer = _bearer(request)
        site = self._front.site(request) if bearer is not None else self._front.check_origin(request)
        response = self._home()
        for one in {site, site._replace(scheme="https")}:
            _set_cookie(response, one, "", 0.0)
        claims = self._read(bearer) if bearer is not None else self._signed_in(request)
        if claims is not None:
            try:
                await self._revoked.revoke(claims)
            except GenctlError as error:
                log.warning("api.signed_out.unrevoked", userId=claims.user, error=error.message)
            log.info("api.signed_out", userId=claims.user)
        return response

    def _ask(self, current: Claims | None, user: str, *, asks: bool) -> None:
        """Raise GenctlError AskFirst when only the person can know whether they want this sign-in."""
        is_other = current is not None and current.user != user
        if asks or is_other:
            now = f"You are signed in as {current.user}. " if current and is_other else ""
            instead = " instead" if now else ""
            raise GenctlError("AskFirst", f"{now}This link signs you in as {user}{instead}.", exit_code=1)

    def _signed_in(self, request: Request) -> Claims | None:
        """Return whose cookie came; None for a cookie that is worth nothing."""
        cookie = self._front.cookie(request)
        try:
            return None if cookie is None else self._read(cookie)
        except GenctlError:
            return None

    def _read(self, text: str) -> Claims:
        claims = self._tokens.read(text)
        self._revoked.check(claims)
        return claims

    def _home(self) -> Response:
        return RedirectResponse(self._front.home, status_code=303)


def _bearer(request: HTTPConnection) -> str | None:
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else None


def _set_cookie(response: Response, site: Site, value: str, max_age_s: float) -> None:
    response.set_cookie(
        site.cookie, value, max_age=int(max_age_s), httponly=True, samesite="strict", secure=site.is_secure
    )

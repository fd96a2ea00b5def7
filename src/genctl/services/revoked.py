"""Revoke tokens, and refuse them: each API process asks the database for new ones every few seconds."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import jwt
import structlog

from genctl.base.tokens import Claims, refused
from genctl.domain.model import GenctlError, camel
from genctl.domain.orders import check_name
from genctl.edges.db import EARLIEST, Database, Row

EVERY_S = 5.0
OVERLAP = timedelta(minutes=1)  # a statement that began earlier may commit later

NEVER = 1e12  # Unix time that stands for the end of a token of which we know only the id

log = structlog.stdlib.get_logger()


class Revocations:
    """Hold what somebody has revoked: single tokens by their ids, and all that users had at a moment."""

    def __init__(self, db: Database, changed: Callable[[], object]) -> None:
        """Call `changed` when there are more, so that its owner can end open streams."""
        self._db = db
        self._changed = changed
        self._ids: dict[str, datetime] = {}  # with the time after which the token has expired anyway
        self._users: dict[str, float] = {}  # tokens issued up to then (Unix time) are revoked
        self._since = EARLIEST

    def refuses(self, one: Claims) -> bool:
        """Tell whether a token or ticket is revoked; one without its time of issue counts as an old one."""
        if one.id in self._ids:
            return True
        revoked_at = self._users.get(one.user)
        return revoked_at is not None and (one.issued_at or 0.0) <= revoked_at

    def check(self, one: Claims) -> None:
        """Raise GenctlError TokenRefused for a revoked token or ticket."""
        if self.refuses(one):
            raise refused("the token was revoked")

    async def revoke(self, one: Claims) -> None:
        """Revoke one token, here at once; nobody can revoke one without an id alone. Raises GenctlError."""
        if one.id is None:
            return
        await revoke(self._db, one.id, one.expires_at)
        await self.look()

    async def run(self) -> None:
        """Look again and again until cancelled; the database may come and go."""
        while True:
            try:
                await self.look()
            except GenctlError as error:
                log.warning("api.revocations.unread", error=error.message, fix=error.fix)
                self._since = EARLIEST  # the clock of whoever takes over may be behind
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Read what is new. Raises GenctlError."""
        rows = await self._db.rows("revocations", since=self._since)
        read_at = rows[0]["read_at"]
        tokens = {row["token_id"]: row["expires_at"] for row in rows if row["token_id"] is not None}
        users = {row["user_id"]: row["revoked_at"].timestamp() for row in rows if row["user_id"] is not None}
        is_news = bool(tokens.keys() - self._ids.keys() or users.items() - self._users.items())
        known = self._ids | tokens
        self._ids = {token: until for token, until in known.items() if until > read_at}
        self._users |= users
        self._since = read_at - OVERLAP
        if is_news:
            self._changed()


async def revoke(db: Database, token: str, expires_at: float = NEVER) -> Row:
    """Revoke one token by its id. Raises GenctlError."""
    check_name("token", token)
    return camel(await db.row("revoke_token", token=token, expires_at=expires_at) or {})


async def revoke_all(db: Database, user: str) -> Row:
    """Revoke all tokens that a user has by now. Raises GenctlError."""
    check_name("user", user)
    return camel(await db.row("revoke_tokens_of", user=user) or {})


def named(text: str) -> str:
    """Return the id of a token that the text names by its id or is. Raises GenctlError (exit 2)."""
    if text.count(".") != 2:
        return text
    try:
        token = jwt.decode(text, options={"verify_signature": False}).get("jti")
    except jwt.InvalidTokenError:
        return text
    if not isinstance(token, str):
        fix = "revoke all that its user has: --user U"
        raise GenctlError("NoTokenId", "this token has no id", fix, exit_code=2)
    return token

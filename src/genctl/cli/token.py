"""`genctl token`."""

import click

from genctl.cli.command import DURATION, Command, Group
from genctl.cli.output import Output


@click.group(cls=Group, default="issue")
def token() -> None:
    """Issue a user token or a sign-in link, or revoke tokens."""


@token.command(
    "issue",
    cls=Command,
    within=None,
    examples=(
        "genctl token --user ann",
        "genctl token --user ann --ttl 15m -o json",
        "genctl token --user ann --link   # for the page, good for one use",
    ),
)
@click.option("--user", required=True, metavar="U", help="The user of the token.")
@click.option("--ttl", type=DURATION, default="1h", metavar="D", help="How long it is valid.")
@click.option("--link", is_flag=True, help="Print a link that signs in to the page once instead.")
def issue(out: Output, *, user: str, ttl: float, link: bool) -> None:
    """Issue a user token, or a sign-in link. `genctl token` alone means this.

    genctl signs it with GENCTL_SECRET (HS256); every API process with that secret accepts it. A link leads to
    GENCTL_PUBLIC_URL, or to GENCTL_API_URL if that is not set.
    """
    from datetime import UTC, datetime

    from genctl.base.tokens import Tokens
    from genctl.domain.model import rfc3339

    if ttl < 1:
        raise click.UsageError("--ttl is less than a second: nobody could use the token in time")
    tokens = Tokens.of(out.settings)
    if link:
        url = tokens.sign_in_url(out.settings.page_url, user)
        out.emit({"userId": user, "signIn": url}, text=lambda: f"{url}\n")
        return
    text = tokens.issue(user, ttl)
    until = rfc3339(datetime.fromtimestamp(tokens.read(text).expires_at, UTC))
    out.emit({"userId": user, "token": text, "expiresAt": until}, text=lambda: f"{text}\n")


@token.command(
    "revoke", cls=Command, examples=("genctl token revoke --user ann", "genctl token revoke --id ID")
)
@click.option("--user", metavar="U", help="All tokens and sign-in links that this user has now.")
@click.option("--id", "one", metavar="ID", help="One token: its id (`jti`), or the token itself.")
def revoke(out: Output, *, user: str | None, one: str | None) -> None:
    """Revoke tokens before they expire.

    Every API process refuses them within 30 s, and ends their streams. New tokens of the user are valid.
    """
    from genctl.services import revoked

    if (user is None) == (one is None):
        raise click.UsageError("name a user or a token: --user U or --id ID")
    token = "" if one is None else revoked.named(one)
    out.target()
    out.emit(
        out.ask(lambda db: revoked.revoke_all(db, user) if user is not None else revoked.revoke(db, token))
    )

"""`genctl token`."""

import click

from genctl.cli.command import DURATION, Command
from genctl.cli.output import Output


@click.command(
    cls=Command,
    examples=(
        "genctl token --user ann",
        "genctl token --user ann --ttl 15m -o json",
        "genctl token --user ann --link   # for the page, good for one use",
    ),
)
@click.option("--user", required=True, metavar="U", help="Whose token it is.")
@click.option("--ttl", type=DURATION, default="1h", metavar="D", help="How long it is good.")
@click.option("--link", is_flag=True, help="A link that signs in to the page instead, once.")
def token(out: Output, *, user: str, ttl: float, link: bool) -> None:
    """Issue a user token, or a sign-in link.

    It is signed with GENCTL_SECRET (HS256), so every API process with that secret takes it.
    """
    from datetime import UTC, datetime

    from genctl.base.tokens import Tokens
    from genctl.domain.model import rfc3339

    if ttl < 1:
        raise click.UsageError("--ttl is less than a second: nobody could use the token in time")
    tokens = Tokens(out.settings.secret)
    if link:
        url = tokens.sign_in_url(out.settings.api_url, user)
        out.emit({"userId": user, "signIn": url}, text=lambda: f"{url}\n")
        return
    text = tokens.issue(user, ttl)
    until = rfc3339(datetime.fromtimestamp(tokens.read(text).expires_at, UTC))
    out.emit({"userId": user, "token": text, "expiresAt": until}, text=lambda: f"{text}\n")

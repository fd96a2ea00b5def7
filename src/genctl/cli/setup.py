"""`genctl config`, `migrate`, `token`, `tools`, `completion` and `version`."""

import os
import platform
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genctl import __version__
from genctl.base.files import named
from genctl.cli import complete, terminal
from genctl.cli.command import DURATION, Command, Group, yes_option
from genctl.cli.output import Output, write

if TYPE_CHECKING:
    from genctl.base.settings import Entry

HEAD = """\
# genctl.yaml: settings of genctl. Flags and the environment win over this file, and this file wins over the
# user's own. Remove the # before what you want to change. Keep keys and passwords in the environment instead.
# `genctl config show` tells which value is in force and where it came from.
"""


@click.group(cls=Group)
def config() -> None:
    """Show the settings and where they come from, or write a file."""


@config.command(
    "show",
    within=None,
    examples=(
        "genctl config show",
        "genctl config show -S max_attempts=5",
        "genctl config show -o json | jq '.[] | select(.origin != \"default\")'",
    ),
)
def show(out: Output) -> None:
    """Show every setting in force and where it came from.

    Secrets are masked, also the password in a URL.
    """
    from genctl.base.settings import TABLE
    from genctl.tools.found import found

    settings = out.settings
    if settings.embedded:
        terminal.note(f"DATABASE_URL is not set: everything is the embedded stack in {settings.home}")
    rows = [
        {
            "setting": entry.key,
            "value": _shown(entry, settings.of(entry)),
            "origin": settings.origins[entry.name],
            "environment": entry.env,
            "meaning": entry.meaning,
        }
        for entry in (*TABLE, *found().settings)
    ]
    out.emit(rows, columns=("setting", "value", "origin"))


@config.command(
    "init", within=None, examples=("genctl config init", "genctl config init --force /etc/genctl/genctl.yaml")
)
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), default="genctl.yaml")
@click.option("--force", is_flag=True, help="Overwrite the file if there is one.")
def init(out: Output, path: Path, *, force: bool) -> None:
    """Write a commented genctl.yaml with every setting at its default."""
    from genctl.base.settings import TABLE, Settings
    from genctl.domain.model import GenctlError
    from genctl.tools.found import found

    of_others = {"queue": Settings().queue}  # its default depends on another setting
    entries = "\n".join(
        f"\n# {entry.meaning} ({entry.env})\n"
        f"#{entry.key}: {entry.default or of_others.get(entry.key, '')}".rstrip()
        for entry in (*TABLE, *found().settings)
    )
    how = os.O_TRUNC if force else os.O_EXCL
    try:
        # only the owner may read it: it may come to hold a password
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600)
        with named(path), os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(f"{HEAD}{entries}\n")
    except FileExistsError:
        told = f"{path} exists already"
        raise GenctlError("FileExists", told, "--force overwrites it", exit_code=2) from None
    out.emit({"path": path.absolute()}, text=lambda: f"wrote {path}\n")


@click.command(cls=Command, within=None, examples=("genctl version", "genctl version -o json"))
def version(out: Output) -> None:
    """Show the version. Python and the machine stand beside it."""
    about = {"version": __version__, "python": platform.python_version(), "platform": platform.platform()}
    text = f"genctl {__version__}, Python {about['python']}, {about['platform']}\n"
    out.emit(about, text=lambda: text)


def _shown(entry: "Entry", value: Any) -> Any:
    """Write a value as a settings file would, with secrets masked."""
    from genctl.base import dsn
    from genctl.base.durations import format_duration
    from genctl.domain.masking import without_login

    if entry.secret and value is not None:
        return value if value == "off" else dsn.masked(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return without_login(value)
    return format_duration(value) if entry.name.endswith("_s") else value


@click.group(cls=Group, default="up")
def migrate() -> None:
    """Apply or undo the migrations, or show their state."""


@migrate.command("up", within="2h", examples=("genctl migrate", "genctl migrate up -o json"))
def up(out: Output) -> None:
    """Apply the pending migrations. Any number of these commands may run at once: they take turns."""
    from genctl.edges import migrate as runner

    out.target(direct=True)
    applied = out.run(runner.up(out.settings.direct_dsn(), terminal.note))
    rows = [{"name": name, "state": "applied"} for name in applied]
    out.emit(rows, empty="nothing to apply: the database is up to date")


@migrate.command(
    "down",
    within="2h",
    examples=("genctl migrate down", "genctl migrate down --to 20251106_spent_tickets.sql --yes"),
)
@click.option("--to", metavar="NAME", help="Undo all files back to this one, inclusive.")
@click.option("--dry-run", is_flag=True, help="Name the files and undo none.")
@yes_option
def down(out: Output, *, to: str | None, dry_run: bool, yes: str | None) -> None:
    """Undo the newest applied file: drop what it made, with all data in it.

    Tables and columns that existed before genctl stay.
    """
    from genctl.edges import migrate as runner

    dsn = out.settings.direct_dsn()
    if not dry_run:
        out.asks(yes, direct=True)

    async def work() -> list[str]:
        names = await runner.undoable(dsn, to)
        if names and not dry_run:
            out.confirm(f"Undo {', '.join(names)}, and drop what they made?", yes, direct=True)
            await runner.down(dsn, names, terminal.note)
        return names

    state = "applied" if dry_run else "pending"
    out.emit([{"name": name, "state": state} for name in out.run(work())], empty="nothing is applied")


@migrate.command("status", examples=("genctl migrate status", "genctl migrate status -o json"))
def status(out: Output) -> int:
    """Show each file as applied, pending, drifted (its content changed since) or missing.

    Exit code 1 means that one is drifted or missing.
    """
    from genctl.domain.model import camel
    from genctl.edges import migrate as runner

    found = out.run(runner.status(out.settings.direct_dsn()))
    out.emit([camel(migration._asdict()) for migration in found])
    return int(any(migration.state in {"drifted", "missing"} for migration in found))


@click.group(cls=Group, default="issue")
def token() -> None:
    """Issue a user token or a sign-in link, or revoke tokens."""


@token.command(
    "issue",
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
    from genctl.base.tokens import Tokens
    from genctl.domain.model import rfc3339

    if ttl < 1:
        raise click.UsageError("--ttl is less than a second: nobody could use the token in time")
    tokens = Tokens.of(out.settings)
    if link:
        from genctl.ops import peer

        if out.settings.page_url == out.settings.api_url:
            out.run(peer.keep_away(out.settings))
        url = tokens.sign_in_url(out.settings.page_url, user)
        out.emit({"userId": user, "signIn": url}, text=lambda: f"{url}\n")
        return
    text = tokens.issue(user, ttl)
    until = rfc3339(datetime.fromtimestamp(tokens.read(text).expires_at, UTC))
    out.emit({"userId": user, "token": text, "expiresAt": until}, text=lambda: f"{text}\n")


@token.command("revoke", examples=("genctl token revoke --user ann", "genctl token revoke --id ID"))
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
    revoke = partial(revoked.revoke, token=token) if user is None else partial(revoked.revoke_all, user=user)
    out.emit(out.ask(revoke))


TOOLS = ("tool", "provider", "models", "price", "queue", "gate", "trouble")


@click.command(
    cls=Command, examples=("genctl tools", "genctl tools fal -o json | jq .parameters   # a JSON Schema")
)
@click.argument("name", required=False, shell_complete=complete.names("tools"))
def tools(out: Output, *, name: str | None) -> None:
    """List the installed tools: provider, models, price, queue and gate.

    With NAME it shows only that one, with the parameters of its orders.

    genctl finds tools by the entry points of the group genctl.tools. It also lists a tool that it cannot use,
    and says why.
    """
    from genctl.ops.tools import shown
    from genctl.tools.found import Tools

    found = out.run(shown(out.settings))
    if name is None:
        out.emit(found, columns=TOOLS)
        return
    Tools.of(out.settings).check_named(name)
    out.emit(next(row for row in found if row["tool"] == name))


@click.command(
    cls=Command,
    data=False,
    within=None,
    examples=(
        "genctl completion fish > ~/.config/fish/completions/genctl.fish",
        "genctl completion bash > ~/.local/share/bash-completion/completions/genctl",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(out: Output, *, shell: str) -> None:  # noqa: ARG001 (each command has one)
    """Write the script that completes genctl's command lines in a shell.

    Put `eval "$(genctl completion bash)"` into ~/.bashrc, or the same with zsh into ~/.zshrc.

    It completes commands, options, scenarios, codes, categories, runbooks, tools, and the ids of the newest
    sessions. Another process reads these when the shell starts, and again at each TAB that finds them old.
    """
    write(complete.script(click.get_current_context().find_root().command, shell) + "\n")

"""`genctl config` and `genctl version`."""

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genctl import __version__
from genctl.cli import terminal
from genctl.cli.command import Command, Group
from genctl.cli.output import Output

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
    out.emit(
        [
            {
                "setting": entry.key,
                "value": _shown(entry, settings.of(entry)),
                "origin": settings.origins[entry.name],
                "environment": entry.env,
                "meaning": entry.meaning,
            }
            for entry in (*TABLE, *found().settings)
        ],
        columns=("setting", "value", "origin"),
    )


@config.command(
    "init",
    within=None,
    examples=("genctl config init", "genctl config init --force /etc/genctl/genctl.yaml"),
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
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(f"{HEAD}{entries}\n")
    except FileExistsError:
        raise GenctlError(
            "FileExists", f"{path} exists already", "--force overwrites it", exit_code=2
        ) from None
    out.emit({"path": path.absolute()}, text=lambda: f"wrote {path}\n")


@click.command(cls=Command, within=None, examples=("genctl version", "genctl version -o json"))
def version(out: Output) -> None:
    """Show the version."""
    about = {"version": __version__, "python": platform.python_version(), "platform": platform.platform()}
    out.emit(about, text=lambda: f"genctl {__version__}\n")


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

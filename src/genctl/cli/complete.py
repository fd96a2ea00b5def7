"""Complete command lines in the user's shell, with the words that only genctl knows.

A shell waits for us at each TAB, so we ask neither the database nor the installed tools: a process beside us
does, and leaves what it found in a file for the next TAB.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import click

from genctl.cli import ASKED

PROGRAM = "genctl"
FRESH_S = 5.0  # then another process reads all anew
KEPT_S = 86_400.0  # an older file counts as none
MOST = 50  # sessions
LIMIT_S = 3.0
PLACES = ("DATABASE_URL", "GENCTL_HOME", "GENCTL_CONFIG", "XDG_DATA_HOME", "XDG_CONFIG_HOME")

Completer = Callable[[click.Context, click.Parameter, str], list[Any]]


def script(root: click.Command, shell: str) -> str:
    """Return what the shell shall read, and look for ids now, so that its first TAB finds them."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made  # noqa: S101 - click has bash, zsh and fish
    _remembered("sessions")
    return made(root, {}, PROGRAM, ASKED).source()


def answer(root: click.Command, instruction: str) -> int:
    """Answer a shell's script; say nothing, whatever happens."""
    from click.shell_completion import get_completion_class

    shell, _, what = instruction.partition("_")
    with suppress(Exception):
        if what == "complete" and (made := get_completion_class(shell)):
            sys.stdout.write(made(root, {}, PROGRAM, ASKED).complete() + "\n")
    return 0


def sessions(*states: str) -> Completer:
    """Complete ids of the newest sessions, only of those in these states if any are given."""

    def begun_so(_: click.Context, __: click.Parameter, begun: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        found = [row for row in _remembered("sessions") if not states or row["status"] in states]
        return [CompletionItem(row["id"], help=row["says"]) for row in found if row["id"].startswith(begun)]

    return begun_so


def names(kind: str) -> Completer:
    """Complete names of a kind that needs the installed tools: `codes`, `tools`, `providers`."""

    def begun_so(_: click.Context, __: click.Parameter, begun: str) -> list[Any]:
        return [name for name in _remembered(kind) if name.startswith(begun)]

    return begun_so


def runbooks(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """Complete names of the runbooks that came with genctl."""
    from genctl.base.assets import folder

    return [path.stem for path in sorted(folder("runbooks").glob(f"{begun}*.yaml"))]


def _remembered(kind: str) -> list[Any]:
    """Read what the file has of this kind; when it is old or missing, have another process write it."""
    file, found = _file(), list[Any]()
    age_s = _age_s(file)
    with suppress(OSError, ValueError):
        if age_s < KEPT_S:
            found = json.loads(file.read_text(encoding="utf-8"))[kind]
    if age_s > FRESH_S:
        _refresh(file)
    return found


def _file() -> Path:
    """Name the file: another database or home has another, and so has a working folder with settings."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / PROGRAM
    folder = Path.cwd().as_posix() if Path("genctl.yaml").exists() else ""
    place = "\0".join([folder, *(os.environ.get(name, "") for name in PLACES)])
    return home / f"{sha256(place.encode()).hexdigest()[:16]}.json"


def _age_s(file: Path) -> float:
    try:
        return time.time() - file.stat().st_mtime
    except OSError:
        return float("inf")


def _refresh(file: Path) -> None:
    """Start the process that writes the file, and make it look new, so that nobody starts a second one."""
    import subprocess

    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600)
        nothing = subprocess.DEVNULL
        env = {name: value for name, value in os.environ.items() if name != ASKED}
        subprocess.Popen(  # noqa: S603 - of our own words
            # (-P: nothing that lies in the working folder is imported)
            [sys.executable, "-P", "-m", "genctl.cli.complete", str(file)],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            start_new_session=True,
            env=env,
        )


def remember(file: Path) -> None:
    """Write the file at once and whole, beside the shell that waits; only its owner may read it."""
    import asyncio
    from tempfile import NamedTemporaryFile

    from genctl.ops.meaning import known_codes
    from genctl.tools.found import found

    tools, newest = found(), list[dict[str, str]]()
    with suppress(Exception):  # nobody waits for what we would say
        newest = asyncio.run(_newest())
    known = {
        "tools": [*tools.by_name],
        "providers": [*tools.providers],
        "codes": sorted({*known_codes([*tools.providers.values()])}),
        "sessions": newest,
    }
    with NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as new:
        json.dump(known, new)
    os.replace(new.name, file)  # noqa: PTH105


async def _newest() -> list[dict[str, str]]:
    import asyncio

    from genctl.base.printable import printable
    from genctl.edges.db import Database
    from genctl.ops.sessions import listed
    from genctl.tools.found import load

    filters = dict.fromkeys(("user", "status", "code", "since", "until"))
    async with asyncio.timeout(LIMIT_S), Database.open(load().dsn(), size=1) as db:
        rows = await listed(db, lambda _: None, **filters, limit=MOST)

    def says(row: dict[str, Any]) -> str:
        return printable(f"{(row['error_details'] or {}).get('code', row['status'])} of {row['userId']}")

    return [{"id": str(row["sessionId"]), "status": str(row["status"]), "says": says(row)} for row in rows]


if __name__ == "__main__":
    remember(Path(sys.argv[1]))

"""Complete command lines in the user's shell: `genctl completion`, and the words that only genctl knows.

A shell waits for us at each TAB, so we ask neither the database nor the installed tools: a process beside us
does, and leaves what it found in a file. We wait a moment for it, and go without when it is late.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genctl.cli import ASKED
from genctl.cli.command import Command

if TYPE_CHECKING:
    from genctl.cli.output import Output

PROGRAM = "genctl"
PATIENCE_S = 0.08  # of the 200 ms that a person does not notice, most are gone when we get here
AWAITED_S = 5.0  # so long we start no second process for the same file
FRESH_S = {"sessions": 5.0, "names": 3600.0}
KEPT_S = {"sessions": 86_400.0, "names": 7 * 86_400.0}  # an older file counts as none
PLACES = ("DATABASE_URL", "GENCTL_HOME", "GENCTL_CONFIG", "XDG_DATA_HOME", "XDG_CONFIG_HOME")

Completer = Callable[[click.Context, click.Parameter, str], list[Any]]


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
def completion(out: "Output", *, shell: str) -> None:  # noqa: ARG001 (each command has one)
    """Write the script that completes genctl's command lines in a shell.

    Put `eval "$(genctl completion bash)"` into ~/.bashrc, or the same with zsh into ~/.zshrc.

    It completes commands, options, scenarios, codes, categories, runbooks, tools, and the ids of the newest
    sessions. Another process reads these when the shell starts, and again at each TAB that finds them old.
    """
    from click.shell_completion import get_completion_class

    from genctl.cli.output import write

    made = get_completion_class(shell)
    assert made  # noqa: S101 - click has all three
    for what in FRESH_S:  # so that the first TAB of a new shell finds them
        _refresh(what, _file(what))
    write(made(click.get_current_context().find_root().command, {}, PROGRAM, ASKED).source() + "\n")


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
        found = (row for row in _remembered("names") if row["kind"] == kind)
        return [row["name"] for row in found if row["name"].startswith(begun)]

    return begun_so


def runbooks(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """Complete names of the runbooks that came with genctl."""
    from genctl.base.assets import folder

    return [path.stem for path in sorted(folder("runbooks").glob(f"{begun}*.yaml"))]


def _remembered(what: str) -> list[dict[str, str]]:
    """Read the file; when it is old or missing, have another process write it, and wait a moment."""
    file = _file(what)
    if _age_s(file) > FRESH_S[what]:
        deadline = time.monotonic() + PATIENCE_S
        _refresh(what, file)
        while _age_s(file) > FRESH_S[what] and time.monotonic() < deadline:
            time.sleep(0.005)
    with suppress(OSError, ValueError):
        if _age_s(file) < KEPT_S[what]:
            found: list[dict[str, str]] = json.loads(file.read_text(encoding="utf-8"))
            return found
    return []


def _file(what: str) -> Path:
    """Name the file: another database or home has another, and so has a working folder with settings."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / PROGRAM
    folder = Path.cwd().as_posix() if Path("genctl.yaml").exists() else ""
    place = "\0".join([folder, *(os.environ.get(name, "") for name in PLACES)])
    return home / f"{what}-{sha256(place.encode()).hexdigest()[:16]}.json"


def _age_s(file: Path) -> float:
    try:
        return time.time() - file.stat().st_mtime
    except OSError:
        return float("inf")


def _refresh(what: str, file: Path) -> None:
    """Start the process that writes the file, unless that is fresh or one is at work."""
    import subprocess

    awaited = file.with_suffix(".awaited")
    if _age_s(awaited) < AWAITED_S or _age_s(file) < FRESH_S[what]:
        return
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        awaited.touch(mode=0o600)
        nothing = subprocess.DEVNULL
        env = {name: value for name, value in os.environ.items() if name != ASKED}
        subprocess.Popen(  # noqa: S603 - of our own words
            # (-P: nothing that lies in the working folder is imported)
            [sys.executable, "-P", "-m", "genctl.cli.remember", what, str(file)],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            start_new_session=True,
            env=env,
        )

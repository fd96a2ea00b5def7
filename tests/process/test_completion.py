"""Completion: by click's own protocol, and by real shells; and what a wrong verb may have meant."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from tests.kit import until_sync
from tests.process import forks
from tests.process.place import Place, Places
from tests.process.test_cli_manner import HEAVY, every_command

from genctl import cli
from genctl.cli import complete, manual, verbs

REFUSED = "OutputImageSensitiveContentDetected"
BASH = """
eval "$(genctl completion bash)"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
"$(complete -p genctl | sed 's/.* -F \\([^ ]*\\) .*/\\1/')" genctl
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def small(places: Places) -> Iterator[Place]:
    """A place with a genctl on its path."""
    with places() as place:
        forks.program(place.folder / "genctl")
        place.env |= {"PATH": f"{place.folder}:{os.environ['PATH']}", "TERM": "dumb"}
        yield place


def in_shell(place: Place, *command: str, **env: str) -> str:
    """What a shell with genctl on its path prints; nothing on stderr."""
    done = subprocess.run(
        command,
        env=place.env | env,
        cwd=place.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout


def in_bash(place: Place, *words: str, **env: str) -> list[str]:
    return in_shell(place, "bash", "--norc", "-c", BASH, "bash", "genctl", *words, **env).split()


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [
        ([], "se", ["serve", "sessions"]),
        (["sessions"], "re", ["retry"]),
        (["migrate"], "", ["down", "status", "up"]),
        (["token"], "--us", ["--user"]),
        (["dlq", "redrive"], "--ca", ["--category", "--canary"]),
        (["dlq", "redrive", "--category"], "re", []),
        (["dlq", "redrive", "--category"], "ra", ["rate_limit"]),
        (["enqueue", "--scenario"], "rate-", ["rate-limit", "rate-limit-bare", "rate-limit-once"]),
        (["runbook", "run"], "p", ["port-to-another-tool", "provider-outage"]),
        (["completion"], "", ["bash", "zsh", "fish"]),
        (["help"], "exit", ["exit-codes"]),
    ],
)
def test_words_are_completed(words: list[str], begun: str, expected: list[str]) -> None:
    found = ShellComplete(cli.genctl, {}, "genctl", cli.ASKED).get_completions(words, begun)
    assert sorted(item.value for item in found) == sorted(expected)


def test_bash_completes_the_ids_of_the_newest_sessions_and_the_codes(small: Place) -> None:
    trap = small.folder / "asyncio.py"
    trap.write_text("open('sprung', 'w')")
    session = small.enqueue()
    assert until_sync(lambda: in_bash(small, "sessions", "show", session[:6])) == [session]
    assert in_bash(small, "sessions", "retry", session[:6]) == [], "it has not failed"
    assert REFUSED in in_bash(small, "explain", "OutputImageSens")
    assert in_bash(small, "worker", "--tool", "see") == ["seedream4"]
    trap.unlink()
    assert not (small.folder / "sprung").exists(), "nothing is imported from the working folder"
    for file in (small.folder / "CACHE" / "genctl").iterdir():
        assert file.stat().st_mode & 0o077 == 0


def test_while_the_database_is_away_codes_are_completed_and_no_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/away")
    complete.remember(tmp_path / "known.json")
    known = json.loads((tmp_path / "known.json").read_text())
    assert known["sessions"] == []
    assert REFUSED in known["codes"]


SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
STARTS = {
    "bash": 'eval "$(genctl completion bash)"',
    "zsh": 'autoload -U compinit; compinit -u -D; eval "$(genctl completion zsh)"',
    "fish": "genctl completion fish | source",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_at_its_first_tab_also_what_only_the_database_knows(
    small: Place, shell: str
) -> None:
    """The script that it reads at its start has another process read the ids."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    session = small.enqueue()
    cache = small.folder / shell
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(small.folder)
        env = {"PS1": "> ", "HOME": str(small.folder), "XDG_CACHE_HOME": str(cache)}
        os.execvpe(SHELLS[shell][0], SHELLS[shell], small.env | {forks.IN_A_SHELL: "1"} | env)
    os.write(terminal, f"{STARTS[shell]}; echo rea''dy\n".encode())
    until_sync(lambda: [file for file in cache.glob("genctl/*.json") if file.stat().st_size])
    for typed, expected in (
        ("genctl tail-f", "tail-failures"),
        (f"genctl sessions show {session[:6]}", session),
    ):
        os.write(terminal, f"{typed}\t".encode())
        seen = ""
        while expected not in seen.replace("\r", "").replace("\n", ""):
            seen += os.read(terminal, 4096).decode(errors="replace")
        os.write(terminal, b"\x15")  # the line goes
    os.close(terminal)
    os.waitpid(pid, 0)


def test_a_completion_imports_nothing_heavy(small: Place) -> None:
    """So it takes little more than `import click`; of the rest only msgspec, some 10 ms, is let in."""
    code = f"""
import os, sys
from genctl.cli import main
for line in sys.argv[1:]:
    os.environ |= {{"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "{cli.ASKED}": "bash_complete"}}
    sys.argv[1:] = []
    main()
print([name for name in {HEAVY} if name in sys.modules and name != "msgspec"])
"""
    lines = ("genctl se", "genctl sessions show ", "genctl dlq redrive --code ")
    assert in_shell(small, sys.executable, "-c", code, *lines).splitlines()[-1] == "[]"


def test_nobody_waits_for_what_hangs(small: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete, "_refresh", lambda *_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(small.folder / "nothing"))
    assert complete.sessions()(click.Context(cli.genctl), click.Option(["--x"]), "") == []


# Verbs of other tools


def test_each_verb_of_another_tool_means_a_command_of_ours() -> None:
    paths = {path.removeprefix("genctl ") for path, _ in every_command()}
    for verb, lines in verbs.VERBS.items():
        assert verb not in paths
        for line in lines.split(", "):
            assert re.sub(" --.*", "", line) in paths, verb


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["retry"], "Did you mean `genctl sessions retry` or `genctl dlq redrive`?"),
        (["purge"], "Did you mean `genctl dlq discard`?"),
        (["peek"], "Did you mean `genctl dlq list` or `genctl dlq show`?"),
        (["redrive"], "Did you mean `genctl dlq redrive`?"),
        (["sessions", "ls"], "Did you mean `genctl sessions list`?"),
        (["dlq", "peek"], "Did you mean `genctl dlq list` or `genctl dlq show`?"),
    ],
)
def test_a_verb_of_another_tool_is_told_what_it_is_called_here(words: list[str], said: str) -> None:
    with pytest.raises(click.UsageError) as told:
        cli.genctl.make_context("genctl", words).command.invoke(cli.genctl.make_context("genctl", words))
    assert said in told.value.format_message()


# Help


def test_every_topic_is_a_page_of_the_docs_that_the_wheel_has() -> None:
    listed = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for page in (*manual.PAGES, manual.SECTIONS):
        assert f'"docs/{page}.md" = "genctl/_assets/docs/{page}.md"' in listed
    assert {"exit-codes", "settings", "dlq", "credits", "gate"} <= manual.topics().keys()

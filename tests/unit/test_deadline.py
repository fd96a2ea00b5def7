"""What the time of a command's questions is, and what an error says of a wait."""

import re
import shlex

import click
import pytest

from genctl.cli import genctl
from genctl.cli.command import Command, typed_again
from genctl.domain.refusals import terminate
from genctl.edges.deadline import Awaited

UNBOUND = {
    "config init", "config show", "version", "completion", "help", "explain", "health", "classify",  # ask no database
    "runbook history", "runbook lint", "runbook list", "runbook show", "token issue", "watch",
    "demo", "serve", "simulator", "up", "worker",  # run until they are told to stop
    "runbook run", "smoke",  # bound each step by itself
}  # fmt: skip


def commands(group: click.Group, *path: str) -> dict[str, Command]:
    found: dict[str, Command] = {}
    for name in group.list_commands(click.Context(group)):
        one = group.get_command(click.Context(group), name)
        if isinstance(one, click.Group):
            found |= commands(one, *path, name)
        elif isinstance(one, Command):
            found[" ".join((*path, name))] = one
    return found


def test_every_command_that_asks_the_database_has_a_time() -> None:
    found = commands(genctl)
    assert {name for name, command in found.items() if not command.within} == UNBOUND
    timed = {name for name, one in found.items() if any("--timeout" in param.opts for param in one.params)}
    assert timed == found.keys() - UNBOUND | {"smoke"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sessions list", ""),
        ("report", "--since 2026-11-30T08:00:00Z --timeout 30s"),
        ("report", "--timeout=30s --since 2026-11-30T08:00:00Z -o json"),
        ("sessions show", "-- -3f"),
        ("credits adjust", "--user u --to-balance --reason 'paid in cash'"),
        ("dlq discard", "--yes --code Timeout"),
    ],
)
def test_the_same_command_again_has_twice_the_time(name: str, words: str) -> None:
    command = commands(genctl)[name]
    context = command.make_context(f"genctl {name}", shlex.split(words))
    meant = context.params | {"timeout": 60.0}
    line = shlex.split(typed_again(context)(timeout=60.0, output=meant["output"]))
    assert line[: len(name.split()) + 1] == ["genctl", *name.split()]
    assert command.make_context(f"genctl {name}", line[len(name.split()) + 1 :]).params == meant


def test_every_command_that_is_written_again_has_each_flag_by_itself() -> None:
    """Of two flags that are one parameter, the last one typed would win in silence."""
    for name, command in commands(genctl).items():
        names = [param.name for param in command.params]
        assert len(names) == len(set(names)), name


def test_the_help_of_a_group_has_whole_sentences() -> None:
    for name in genctl.list_commands(click.Context(genctl)):
        one = genctl.get_command(click.Context(genctl), name)
        if isinstance(one, click.Group):
            said = one.get_help(click.Context(one, info_name=f"genctl {name}", terminal_width=80))
            assert not re.search(r"\w\.\.\.$", said, re.MULTILINE), name


def test_only_an_idle_holder_is_ended() -> None:
    works = Awaited(
        pid=1, holder_pid=7, holder_state="active", holder_user="ann", holder_name="", holder_s=240
    )
    assert (works.holder, works.cure) == ("pid 7 (ann, active for 4 min)", None)
    idle = Awaited(pid=1, holder_pid=7, holder_state="idle in transaction (aborted)", holder_user="ann")
    assert (idle.holder, idle.cure) == ("pid 7 (ann, idle in transaction (aborted))", terminate(7))
    hidden = Awaited(pid=1, holder_pid=7, holder_user="boss")  # of another role, whose state we may not see
    assert (hidden.holder, hidden.cure) == ("pid 7 (boss)", None)
    prepared = Awaited(pid=1, holder_pid=0)
    assert (prepared.holder, "pg_prepared_xacts" in str(prepared.cure)) == ("a prepared transaction", True)

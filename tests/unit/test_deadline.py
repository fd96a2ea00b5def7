"""What the time of a command's questions is, and what an error says of a wait."""

import click
import pytest

from genctl.cli import genctl
from genctl.cli.command import Command, TimeLimit
from genctl.edges.deadline import Awaited

UNBOUND = {
    "config init", "config show", "version", "completion", "help", "explain", "classify",  # ask no database
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
    ("line", "again"),
    [
        ("genctl sessions list", "genctl sessions list --timeout 1m"),
        ("genctl report --since 1h --timeout 30s", "genctl report --since 1h --timeout 1m"),
        ("genctl report --timeout=30s --since 1h", "genctl report --since 1h --timeout 1m"),
        ("genctl sessions show -- -3f", "genctl sessions show --timeout 1m -- -3f"),
    ],
)
def test_the_same_command_again_has_twice_the_time(line: str, again: str) -> None:
    assert TimeLimit(30.0, None, tuple(line.split())).again() == again


def test_only_an_idle_holder_is_ended() -> None:
    works = Awaited(
        pid=1, holder_pid=7, holder_state="active", holder_user="ann", holder_name="", holder_s=240
    )
    assert (works.holder, works.cure) == ("pid 7 (ann, active for 4 min)", None)
    idle = Awaited(pid=1, holder_pid=7, holder_state="idle in transaction (aborted)", holder_user="ann")
    assert (idle.holder, "pg_terminate_backend(7)" in str(idle.cure)) == (
        "pid 7 (ann, idle in transaction (aborted))", True,
    )  # fmt: skip
    hidden = Awaited(pid=1, holder_pid=7, holder_user="boss")  # of another role, whose state we may not see
    assert (hidden.holder, hidden.cure) == ("pid 7 (boss)", None)
    prepared = Awaited(pid=1, holder_pid=0)
    assert (prepared.holder, "pg_prepared_xacts" in str(prepared.cure)) == ("a prepared transaction", True)

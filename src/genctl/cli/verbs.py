"""Guess which command a verb means that is another tool's, or that stands below another group of ours."""

from collections.abc import Iterator

import click

VERBS = {
    "balance": "credits show",
    "delete": "dlq discard, sessions cancel",
    "drain": "worker --drain",
    "get": "sessions show, dlq show",
    "login": "token issue --link",
    "logs": "sessions trace, tail-failures",
    "ls": "sessions list, dlq list, runbook list",
    "peek": "dlq list, dlq show",
    "ps": "status, sessions list",
    "publish": "enqueue",
    "purge": "dlq discard",
    "refund": "refunds check",
    "replay": "dlq redrive, sessions retry",
    "requeue": "dlq redrive, sessions retry",
    "retry": "sessions retry, dlq redrive",
    "rm": "dlq discard, sessions cancel",
    "send": "enqueue",
    "start": "up, worker, serve",
    "stop": "pause",
    "tail": "tail-failures",
    "top": "status --watch",
}


def meant(context: click.Context, verb: str) -> list[str]:
    """List the command lines that a verb may mean, first of all those of the group that was named."""
    group = context.command
    root = context.find_root()
    known = VERBS.get(verb, "").split(", ")
    own = [path for path in _paths(root.command, root) if path.endswith(f" {verb}")]
    lines = dict.fromkeys(line for line in (*known, *own) if line)
    below = [line for line in lines if group is root.command or line.startswith(f"{context.info_name} ")]
    return [f"genctl {line}" for line in below or lines]


def _paths(command: click.Command, context: click.Context, path: str = "") -> Iterator[str]:
    """Yield the path of each command below this one."""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if inner := command.get_command(context, name):
                yield from _paths(inner, context, f"{path} {name}".strip())
    else:
        yield path

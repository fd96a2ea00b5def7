"""Writes docs/cli.md: every command with its options and examples, from the commands themselves.

make docs
"""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import click

from genctl.cli import TABLE, genctl

PAGE = Path(__file__).parent / "cli.md"
HEAD = """\
# Commands

`-h` behind a command shows the same in a terminal. Data goes to stdout, everything else to stderr; [the
reference](reference.md) has settings, exit codes and JSON.

"""
SHARED = {  # options that mean the same wherever they are
    "output": "the format of the data",
    "setting": "overrides a setting for this call",
    "timeout": "the longest wait for an answer of the database",
    "tool": "the tool that it is about (`GENCTL_TOOL`)",
    "debug": "shows tracebacks",
}


def page() -> str:
    """Write the whole page."""
    with click.Context(genctl, info_name="genctl") as root:
        sections = [_section(root, title, [*names]) for title, names in TABLE.items()]
    shared = "".join(
        f"- `{_spelled(option)}`: {SHARED[option.name or '']}\n"
        for option in _shared(next(one for _, one in _commands(root, "dlq", [])))
    )
    told = f"Most commands also take these; each says so with `-h`:\n\n{shared}"
    return HEAD + told + "".join(sections) + "\nMade from the commands by `make docs`.\n"


def _section(root: click.Context, title: str, names: list[str]) -> str:
    return f"\n## {title}\n" + "".join(
        _told(path, one) for name in names for path, one in _commands(root, name, [])
    )


def _commands(ctx: click.Context, name: str, path: list[str]) -> Iterator[tuple[str, click.Command]]:
    """Yield a command, or those of a group, each with its path."""
    group = cast("click.Group", ctx.command)
    command = cast("click.Command", group.get_command(ctx, name))
    if not isinstance(command, click.Group):
        yield " ".join([*path, name]), command
        return
    with click.Context(command, info_name=name, parent=ctx) as inner:
        for member in command.list_commands(inner):
            yield from _commands(inner, member, [*path, name])


def _told(path: str, command: click.Command) -> str:
    arguments = "".join(f" {_metavar(one)}" for one in _arguments(command))
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    examples = "".join(f"{line}\n" for line in getattr(command, "examples", ()))
    parts = [
        f"\n### genctl {path}{arguments}\n",
        "\n\n".join(paragraphs) + "\n",
        "".join(_line(option) for option in _own(command)),
        f"```\n{examples}```\n",
    ]
    return "\n".join(part for part in parts if part)


def _arguments(command: click.Command) -> list[click.Argument]:
    return [param for param in command.params if isinstance(param, click.Argument)]


def _metavar(argument: click.Argument) -> str:
    name = argument.metavar or (argument.name or "").upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _own(command: click.Command) -> list[click.Option]:
    options = [param for param in command.params if isinstance(param, click.Option)]
    return [option for option in options if option.name not in SHARED and not option.hidden]


def _shared(command: click.Command) -> list[click.Option]:
    options = [param for param in command.params if isinstance(param, click.Option)]
    return [option for option in options if option.name in SHARED]


def _line(option: click.Option) -> str:
    more = [
        option.help or "",
        "Required." if option.required else "",
        "May be repeated." if option.multiple else "",
        f"Default: `{option.default}`." if _has_default(option) else "",
    ]
    return f"- `{_spelled(option)}`: {' '.join(filter(None, more))}\n"


def _has_default(option: click.Option) -> bool:
    return isinstance(option.default, str | int | float) and not option.is_flag


def _spelled(option: click.Option) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    values = "|".join(map(str, option.type.choices)) if isinstance(option.type, click.Choice) else ""
    metavar = option.metavar or values or "VALUE"
    return names + (metavar if metavar.startswith("[=") else f" {metavar}")


if __name__ == "__main__":
    PAGE.write_text(page())

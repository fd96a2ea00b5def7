"""Check the words of a runbook's `genctl` step against the command line, and complete them."""

from collections.abc import Mapping, Sequence

import click

from genctl.cli.command import Command, Group

OURS = {
    "-o": "the output is JSON anyway",
    "--output": "the output is JSON anyway",
    "--yes": "the runbook asks: mark the step dangerous",
    "-h": "help is no step",
    "--help": "help is no step",
    "--version": "the command version tells it",
}
NEVER = {"runbook": "a runbook runs no runbook", "demo": "it has a stack of its own", "up": "it never ends"}


def complaint(words: Sequence[str | int]) -> str | None:
    """Say what is wrong with the words of a step; those with `${` stand for values."""
    texts = [str(word) for word in words]
    for text in texts:
        if why := OURS.get(text.split("=")[0] if text.startswith("--") else text[:2]):  # -oyaml is -o yaml
            return f"{text}: {why}"
    if why := NEVER.get(texts[0]):
        return f"{texts[0]}: {why}"
    return usage_mistake(texts)


def usage_mistake(words: Sequence[str]) -> str | None:
    """Say why the command line would refuse these words."""
    try:
        command, context, rest = _resolved([*words])
        _check(command, context, rest)
    except click.UsageError as error:
        return error.format_message()
    return None


def completed(words: Sequence[str], *, yes: str | None, flags: Mapping[str, str]) -> list[str]:
    """Make a command line with JSON output of a step's words; `yes` is the value of its `--yes`."""
    command, _, rest = _resolved([*words])
    shared = {option for param in command.params for option in param.opts}
    more = ["-o", "json"] if isinstance(command, Command) and "-o" in shared else []
    more += [word for key, value in flags.items() for word in ("-S", f"{key}={value}")]
    more += [f"--yes={yes}"] if yes is not None and "--yes" in shared else []
    return [*words[: len(words) - len(rest)], *more, *rest]


def _resolved(texts: list[str]) -> tuple[click.Command, click.Context, list[str]]:
    """Return the command that the words name, and the words after it. Raises click.UsageError."""
    from genctl.cli import genctl

    command: click.Command = genctl
    context = click.Context(command, info_name="genctl")
    while isinstance(command, Group):
        if texts and (not texts[0].startswith("-") or not command.default):
            _, found = command.resolve_command(context, texts)[:2]
            texts = texts[1:]
        elif command.default:
            found = command.get_command(context, command.default)
        else:
            known = ", ".join(command.list_commands(context))
            raise click.UsageError(f"{context.command_path} needs one of {known}")
        assert found  # noqa: S101 - resolve_command has raised otherwise
        command = found
        context = click.Context(command, context, info_name=command.name)
    return command, context, texts


def _check(command: click.Command, context: click.Context, rest: list[str]) -> None:
    given, left, _ = command.make_parser(context).parse_args(list(rest))
    if left:
        raise click.UsageError(f"{context.command_path} takes no {left[0]!r}")
    for param in command.params:
        value = given.get(param.name or "")
        if param.required and param.value_is_missing(value):
            raise click.MissingParameter(ctx=context, param=param)
        if value is None or param.value_is_missing(value):
            continue
        if "${" not in str(value) and not isinstance(param.type, click.File):
            param.type_cast_value(context, value)

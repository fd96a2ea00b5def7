"""Build commands that are imported when used, have the shared options, and show examples in their help."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from math import isfinite
from typing import Any

import click
from click.core import ParameterSource

FORMATS = ("table", "json", "jsonl", "yaml", "csv")
WHOLE = 1_000  # characters, which no sentence has


class Formatter(click.HelpFormatter):
    """Write help; on a narrow terminal long options leave room for what they are for."""

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        super().write_dl(rows, min(col_max, self.width * 2 // 5), col_spacing)


class Context(click.Context):
    formatter_class = Formatter


class Command(click.Command):
    """Call the callback with an Output as its first argument `out`; it may return an exit code.

    `examples` are whole command lines. With `data=False` the command has no `--output`; with `tool=True` it
    has `--tool`, which overrides the setting of that name. `within` is the time for each question to the
    database, unless `--timeout` says another; None: the command asks none, or bounds its time by itself.
    """

    context_class = Context

    def __init__(
        self,
        *args: Any,
        examples: Sequence[str],
        data: bool = True,
        tool: bool = False,
        within: str | None = "30s",
        **more: Any,
    ) -> None:
        super().__init__(*args, **more)
        self.examples = tuple(examples)
        self.within = within
        own = [
            *([TOOL] if tool else []),
            *([_timeout(within)] if within else []),
            *([OUTPUT] if data else []),
        ]
        self.params += [*own, SETTING, DEBUG]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # the value of --yes is optional and never the next word: in `discard --yes ID` that is the ID
        if any("--yes" in param.opts for param in self.params):
            args = ["--yes=" if arg == "--yes" else arg for arg in args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        from genctl.cli.output import Output, TimeLimit

        again = typed_again(ctx)
        shared = {name: ctx.params.pop(name, None) for name in ("output", "debug", "setting", "tool")}
        flags = (shared["setting"] or {}) | ({"tool": shared["tool"]} if shared["tool"] else {})
        limit = None
        if self.within:
            chosen_s = ctx.params.pop("timeout")
            limit = TimeLimit(ctx.command_path, chosen_s or duration(self.within), chosen_s)
        form = shared["output"] or "table"
        ctx.params["out"] = Output(form, debug=shared["debug"], flags=flags, limit=limit, again=again)
        return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (of click)
        _write_examples(formatter, self.examples)


class Group(click.Group):
    """Group commands. A command line that names none of them means `default`, if there is one.

    Its `examples` are the first ones of its members, unless it has some of its own.
    """

    command_class = Command
    context_class = Context

    def __init__(
        self, *args: Any, default: str | None = None, examples: Sequence[str] = (), **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self.default = default
        self.examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_typed = not ctx.resilient_parsing  # a shell that completes it may want another command
        if self.default and (
            (not args and is_typed)
            or (args and args[0].startswith("-") and args[0] not in ctx.help_option_names)
        ):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as unknown:
            from genctl.cli import verbs

            if not (lines := verbs.meant(ctx, args[0])):
                raise
            told = f"No such command {args[0]!r}. Did you mean `{'` or `'.join(lines)}`?"
            raise click.exceptions.NoSuchCommand(args[0], told, ctx=ctx) from unknown

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-") and self.default and (command := self.get_command(ctx, self.default)):
            with command.make_context(self.default, [], ctx, resilient_parsing=True) as inner:
                found += command.shell_complete(inner, incomplete)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):  # click alone would cut a long sentence
            formatter.write_dl([(name, one.get_short_help_str(WHOLE)) for name, one in commands if one])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        members = () if self.examples else (self.get_command(ctx, name) for name in self.list_commands(ctx))
        first = [one.examples[0] for one in members if isinstance(one, Command)]
        _write_examples(formatter, self.examples or first)


class LazyGroup(Group):
    """Hold the table of all commands: section -> name -> (module:attribute, its one line of help).

    Help and completion import no command, so that they stay fast.
    """

    def __init__(self, *args: Any, table: Mapping[str, Mapping[str, tuple[str, str]]], **more: Any) -> None:
        every = {name: entry for section in table.values() for name, entry in section.items()}
        commands = {name: click.Command(name, help=line) for name, (_, line) in every.items()}
        super().__init__(*args, commands=commands, **more)
        self.table = table
        self._targets = {name: target for name, (target, _) in every.items()}

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002 (of click)
        """Import the command when somebody asks for it."""
        if target := self._targets.pop(name, None):
            module, attribute = target.split(":")
            self.commands[name] = getattr(import_module(f"genctl.cli.{module}"), attribute)
        return self.commands.get(name)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (of click)
        return list(self.commands)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=command.get_short_help_str(WHOLE))
            for name, command in self.commands.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, self.list_commands(ctx)))
        for title, section in self.table.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:{widest}}", line) for name, (_, line) in section.items()])


class Rate(click.FloatRange):
    """Take a rate a second; click alone would accept nan in any range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        rate: float = super().convert(value, param, ctx)
        if not isfinite(rate):
            self.fail(f"{value} is not a rate.", param, ctx)
        return rate


def duration(text: str) -> float:
    """Read `30s`, `15m`, `2h` as seconds."""
    from genctl.base.durations import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: expected {error}") from None


def when(text: str) -> datetime:
    """Read a point in time: a duration back from now, or RFC 3339."""
    from genctl.base.durations import parse_when

    try:
        return parse_when(text, datetime.now(UTC))
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: expected {error}") from None


DURATION = click.types.FuncParamType(duration)
WHEN = click.types.FuncParamType(when)
yes_option = click.option("--yes", metavar="[=NAME]", help="Answer the question with yes.")


def typed_again(ctx: click.Context) -> Callable[..., str]:
    """Return what writes the command line once more, for any time: a time is written as the point it was.

    It takes values of options by name: None leaves an option out. It leaves out `--output` and `--debug`.
    """
    typed = {
        name: value
        for name, value in ctx.params.items()
        if name not in {OUTPUT.name, DEBUG.name}
        and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }

    def again(**changed: Any) -> str:
        import shlex

        values, options, arguments = typed | changed, list[str](), list[str]()
        for param in ctx.command.params:
            value = values.get(param.name or "")
            if value is None or value is False or value == ():
                continue
            many = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else value
            for one in many if isinstance(many, (list, tuple)) else [many]:
                if isinstance(param, click.Argument):
                    arguments.append(str(one))
                else:
                    options += _words(param, one)
        if any(argument.startswith("-") for argument in arguments):
            options.append("--")
        return shlex.join([*ctx.command_path.split(), *options, *arguments])

    return again


def _words(option: click.Parameter, value: Any) -> list[str]:
    from genctl.base.durations import format_duration

    name = max(option.opts, key=len)
    match value:
        case True:
            return [name]
        case str() if name == "--yes":  # its value is never the next word
            return [f"{name}={value}" if value else name]
        case datetime():
            return [name, value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")]
        case float():
            return [name, f"{value:g}" if isinstance(option.type, Rate) else format_duration(value)]
    return [name, str(value)]


def again_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of commands that give sessions another run."""
    for option in (
        click.option(
            "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Run them with this parameter."
        ),
        click.option("--edit-prompt", metavar="T", help="Run them with this prompt."),
        click.option(
            "--max-redrives",
            type=click.IntRange(1),
            default=3,
            metavar="N",
            help="At most so many redrives of one session.",
        ),
    ):
        command = option(command)
    return command


def _write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    with formatter.section("Examples"):
        formatter.write("".join(f"{'':{formatter.current_indent}}{example}\n" for example in examples))


def _time_for_an_answer(text: str) -> float:
    if not (seconds := duration(text)):
        raise click.BadParameter("0 gives the database no time to answer")
    return seconds


def _timeout(within: str) -> click.Option:
    return click.Option(
        ["--timeout"],
        type=click.types.FuncParamType(_time_for_an_answer),
        metavar="D",
        help=f"Longest wait for an answer of the database. [default: {within}, 2s of it for a lock]",
    )


def _tools(ctx: click.Context, param: click.Parameter, begun: str) -> list[str]:
    from genctl.cli.complete import names

    return names("tools")(ctx, param, begun)


def _settings(ctx: click.Context, param: click.Parameter, given: Sequence[str]) -> dict[str, str]:
    if bad := [text for text in given if "=" not in text]:
        raise click.BadParameter(f"{bad[0]!r}: expected KEY=VALUE", ctx, param)
    return dict(text.split("=", 1) for text in given)


OUTPUT = click.Option(
    ["-o", "--output"],
    type=click.Choice(FORMATS),
    default="table",
    metavar="FORM",
    help="Format of the data: table, json, jsonl, yaml or csv.",
)
TOOL = click.Option(
    ["--tool"],
    metavar="T",
    shell_complete=_tools,
    help="The tool; see `genctl tools`. [setting: tool]",
)
SETTING = click.Option(
    ["-S", "--setting"],
    multiple=True,
    metavar="KEY=VALUE",
    callback=_settings,
    help="Override a setting for this call; see `genctl config show`.",
)
DEBUG = click.Option(["--debug"], is_flag=True, help="Show tracebacks, and log at level debug.")

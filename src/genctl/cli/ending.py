"""End a command: turn every error into one line and its fix, or one JSON object, and an exit code."""

import json
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import click

from genctl.base.hidden import hide
from genctl.base.printable import escape_json, printable
from genctl.cli import signals, streams, terminal


class Exit(NamedTuple):
    """Hold the exit code, and the error to print, if any."""

    exit_code: int
    code: str = ""
    message: str = ""
    fix: str = ""


def of(error: BaseException, args: Sequence[str]) -> int:
    """Print the error that ended the command `args`; return the exit code."""
    try:
        sys.stdout.flush()
    except streams.OutputLost:
        streams.abandon_stdout()
    cause = next(iter(sorted(_leaves(error), key=_rank)))
    if isinstance(cause, click.exceptions.NoArgsIsHelpError):
        terminal.note(cause.ctx.get_help())
        return 2
    end = Exit(128 + signals.came[-1]) if signals.came else _exit_of(cause)
    if end.message:
        if "--debug" in args:
            terminal.note("".join(traceback.format_exception(error)))
        _tell(end, as_json=_wants_json(args))
    return end.exit_code


def _exit_of(error: BaseException) -> Exit:  # noqa: PLR0911 (a table)
    match error:
        case streams.OutputLost(reader_gone=True):
            return Exit(0)
        case streams.OutputLost():
            return Exit(3, "OutputLost", f"cannot write to stdout: {error}")
        case SystemExit():
            return Exit(error.code if isinstance(error.code, int) else int(error.code is not None))
        case KeyboardInterrupt() | click.Abort():
            return Exit(128 + signal.SIGINT)
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "genctl"
            return Exit(2, "Usage", error.format_message(), f"`{path} -h` shows how it is used")
        case click.ClickException():
            return Exit(2, "Usage", error.format_message())
    from genctl.domain.model import GenctlError

    if isinstance(error, GenctlError):
        return Exit(error.exit_code, error.code, error.message, error.fix)
    if isinstance(error, OSError) and error.filename is not None:
        fix = "free some space there, or name one that you may read and write"
        return Exit(3, type(error).__name__, f"{error.filename}: {error.strerror}", fix)
    kind = type(error).__name__
    return Exit(3, "InternalError", f"unexpected {kind}: {error}", "add --debug to see where, and report it")


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _rank(error: BaseException) -> int:
    """Rank the errors of a task group: lost output first, then GenctlErrors and click's."""
    return 0 if isinstance(error, streams.OutputLost) else 1 if hasattr(error, "exit_code") else 2


def _tell(end: Exit, *, as_json: bool) -> None:
    message, fix = (re.sub(r"\s*\n\s*", " ", hide(text)).strip() for text in (end.message, end.fix))
    if as_json:
        error = {"error": {"code": end.code, "message": message, "fix": fix}}
        sys.stderr.write(escape_json(json.dumps(error, ensure_ascii=False)) + "\n")
        return
    sys.stderr.write(f"{terminal.paint('genctl:', 'red')} {printable(message)}\n")
    if fix:
        terminal.note(f"  fix: {fix}")


def _wants_json(args: Sequence[str]) -> bool:
    """Look for `-o json` or `jsonl` in the arguments: click may have failed to parse them."""
    return bool(re.search(r"(^|\0)(-o\0?|--output[=\0])jsonl?($|\0)", "\0".join(args)))

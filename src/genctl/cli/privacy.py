"""`genctl privacy`."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genctl.cli import terminal
from genctl.cli.command import Group, yes_option
from genctl.cli.output import Output

if TYPE_CHECKING:
    from genctl.cli.formats import Writer

COLUMNS = {"record": 12, "sessionId": 36, "status": 10, "createdAt": 24, "prompt": 0}


@click.group(cls=Group)
def privacy() -> None:
    """Hand out what is stored about a user, or erase what it says."""


@privacy.command(
    "export",
    within="5m",
    examples=(
        "genctl privacy export --user ann -o json",
        "genctl privacy export --user ann --to ann.json",
        "genctl privacy export --user ann --to ann.jsonl   # a line a record",
    ),
)
@click.option("--user", required=True, metavar="U", help="About whom.")
@click.option(
    "--to",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write JSON into a new file that only you can read; a name in .jsonl has a line for each record.",
)
def export(out: Output, *, user: str, path: Path | None) -> None:
    """Hand out every record about a user: account, sessions, movements, refused values, DLQ messages.

    A session has its prompt, parameters, result, error, reservations and trace. It looks into the DLQ of each
    installed tool and leaves it as it is.
    """
    from genctl.cli import formats
    from genctl.ops import privacy as ops

    if path is None:
        with out.stream(COLUMNS, flush=False) as put:
            out.run(ops.export(out.settings, user, put, terminal.note))
        return
    writer = formats.JSON_LINES if path.suffix == ".jsonl" else formats.JSON
    with _new_file(path, writer) as put:
        out.run(ops.export(out.settings, user, put, terminal.note))
    terminal.note(f"written: {path}")


@contextmanager
def _new_file(path: Path, writer: "Writer") -> "Iterator[Callable[[Any], None]]":
    """Yield what writes a record; the file has its name only once all are in it. Raises GenctlError."""
    from genctl.domain.model import GenctlError

    if path.exists():
        raise GenctlError("FileExists", f"{path} exists already", "name a new file", exit_code=2)
    part, count = path.with_name(f".{path.name}.part"), 0
    try:
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:

            def put(record: Any) -> None:
                nonlocal count
                file.write(writer.row(record, count))
                count += 1

            yield put
            file.write(writer.end(count))
        part.rename(path)
    except OSError as error:
        told = f"cannot write {path}: {error.strerror}"
        raise GenctlError("CannotWrite", told, "name a file in another folder") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@privacy.command(
    "erase",
    within="5m",
    examples=(
        "genctl privacy erase --user ann --reason 'request of 30 November' --dry-run",
        "genctl privacy erase --user ann --reason 'request of 30 November' --yes",
    ),
)
@click.option("--user", required=True, metavar="U", help="Whose words.")
@click.option("--reason", required=True, metavar="T", help="Why; `genctl dlq history` tells it.")
@click.option("--dry-run", is_flag=True, help="Count the sessions and erase nothing.")
@yes_option
def erase(out: Output, *, user: str, reason: str, dry_run: bool, yes: str | None) -> int:
    """Erase what a user and the provider have said; the ledger, ids, costs and codes stay.

    Prompts, parameters, results, the provider's messages and bodies go, in sessions and traces, with the
    user's DLQ copies. While a session of the user lives, it does nothing. You can interrupt it anywhere and
    run it again. An erased session gets no further run. `genctl help operating` lists what stays where.
    """
    from genctl.base.printable import many
    from genctl.ops import privacy as ops
    from genctl.ops.bulk import Purpose

    why = Purpose("privacy erase", out.again, reason)
    if not dry_run:
        out.asks(yes, queue=True)
    found = out.run(ops.stored(out.settings, user))
    if dry_run:
        out.emit({"sessions": found["sessions"], "live": found["live"]})
        return 0
    if found["live"]:
        raise ops.live(user, found["live"])
    out.confirm(f"Erase what {many(found['sessions'], 'session')} of {user} say, for good?", yes)
    done = out.run(ops.erase(out.settings, user, why, progress=terminal.progress, note=terminal.note))
    out.emit(done)
    if left := done.live + done.locked:
        terminal.note(f"{many(left, 'session')} began meanwhile or are locked: run it again")
    return int(bool(left))

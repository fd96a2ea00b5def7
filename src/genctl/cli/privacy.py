"""`genctl privacy`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genctl.cli import terminal
from genctl.cli.command import Group
from genctl.cli.errand import errand_options
from genctl.cli.output import Output

if TYPE_CHECKING:
    from genctl.ops.bulk import Errand

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
    from genctl.ops.export import new_file

    if path is None:
        with out.stream(COLUMNS, flush=False) as put:
            out.run(ops.export(out.settings, user, put, terminal.note))
        return
    writer, count = formats.JSON_LINES if path.suffix == ".jsonl" else formats.JSON, 0
    with new_file(path, out.again) as file:

        def put_into(record: Any) -> None:
            nonlocal count
            file.write(writer.row(record, count).encode())
            count += 1

        try:
            out.run(ops.export(out.settings, user, put_into, terminal.note))
        except BaseException:
            path.unlink()
            raise
        file.write(writer.end(count).encode())
    terminal.note(f"written: {path}")


@privacy.command(
    "erase",
    within="5m",
    examples=(
        "genctl privacy erase --user ann --reason 'request of 30 November' --dry-run",
        "genctl privacy erase --user ann --reason 'request of 30 November' --yes",
    ),
)
@click.option("--user", required=True, metavar="U", help="Whose words.")
@errand_options(needs_reason=True)
def erase(out: Output, *, user: str, errand: "Errand") -> int:
    """Erase what a user and the provider have said; the ledger, ids, costs and codes stay.

    Prompts, parameters, results, the provider's messages and bodies go, in sessions and traces, with the
    user's DLQ copies. While a session of the user lives, it does nothing. You can interrupt it anywhere and
    run it again. An erased session gets no further run. `genctl help operating` lists what stays where.
    """
    from genctl.ops import privacy as ops

    done = out.run(ops.erase(out.settings, user, errand))
    out.emit(done)
    return int(not errand.dry_run and any(done[what] for what in ops.LEFT))

"""Print what a command returns: data to stdout in the chosen format, everything else to stderr."""

import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, Unpack

from genctl.base.printable import printable_lines
from genctl.cli import terminal

if TYPE_CHECKING:
    from genctl.base.settings import Settings
    from genctl.cli.formats import Writer
    from genctl.cli.running import How
    from genctl.edges.db import Database
    from genctl.services.processes import Parent

T = TypeVar("T")


class TimeLimit(NamedTuple):
    """Bound each question of a command to the database; `lock_s` is set if the person chose the time."""

    command: str
    within_s: float
    lock_s: float | None


class Output:
    """Print the data of a command, and hold the settings of this call: the first argument of commands."""

    def __init__(
        self,
        form: str = "table",
        *,
        debug: bool = False,
        flags: Mapping[str, str] | None = None,
        limit: TimeLimit | None = None,
        again: Callable[..., str] = lambda **_: "genctl",
    ) -> None:
        """Take what the command line says; `again` writes it once more, with changed options."""
        self.form = form
        self.debug = debug
        self.flags = dict(flags or {})
        self.limit = limit
        self.again = again

    @cached_property
    def settings(self) -> "Settings":
        """Load the settings, with this call's `--setting`s. Raises GenctlError as settings.load() does."""
        from genctl.tools import found

        return found.load({"log_level": "debug", **self.flags} if self.debug else self.flags)

    def emit(
        self,
        data: Any,
        *,
        columns: Sequence[str] = (),
        rows: Iterable[Any] | None = None,
        text: Callable[[], str] | None = None,
        answer: str = "",
        empty: str = "nothing found",
    ) -> None:
        """Print one thing (a mapping or struct) or many (any other iterable), once in a command's life.

        Table and CSV have these `columns`, else all keys (CSV: of the first row). `rows` are the many
        that matter inside one thing: table, CSV and JSON lines show them instead. `text` replaces the
        table. `answer` are lines below both: what the command found out, in words. Where a table would have
        no row, it says only `answer`, or else `empty`. Beside data in other forms `answer` goes to stderr.
        """
        from genctl.cli import formats, tables

        one = isinstance(data, Mapping) or hasattr(data, "__struct_fields__")
        many = rows if rows is not None else [data] if one else data
        said = formats.prose(answer, terminal.room())
        if self.form != "table":
            terminal.note(answer)
        match self.form:
            case "table" if text is not None:
                write(text() + said)
            case "table" if one and rows is None:
                write(formats.sheet(formats.plain(data), terminal.room()))
            case "table":
                found = [formats.plain(row) for row in many]
                every = dict.fromkeys(key for row in found for key in row)
                if found:
                    write(tables.table(found, columns or list(every), terminal.room()))
                write(said if said or found else f"{empty}\n")
            case "json" if one:
                _put(formats.to_json(formats.plain(data), indent=2) + "\n")
            case "yaml" if one:
                _put(formats.to_yaml(formats.plain(data)))
            case _:
                with self.stream(dict.fromkeys(columns, 0), flush=False) as put:
                    for row in many:
                        put(row)
        sys.stdout.flush()

    @contextmanager
    def stream(self, columns: Mapping[str, int], *, flush: bool = True) -> Iterator[Callable[[Any], None]]:
        """Yield a function that prints a row; `columns` have their widths, 0 is the rest of the line.

        The document is complete when the block ends, even by a signal.
        """
        from genctl.cli import formats, tables

        writers: dict[str, Callable[[], Writer]] = {
            "table": lambda: tables.lines_writer(columns, terminal.room()),
            "json": lambda: formats.JSON,
            "jsonl": lambda: formats.JSON_LINES,
            "yaml": lambda: formats.YAML,
            "csv": lambda: formats.csv_writer(columns),
        }
        writer, count = writers[self.form](), 0

        def put(row: Any) -> None:
            nonlocal count
            _put(writer.row(row, count))
            count += 1
            if flush:
                sys.stdout.flush()

        is_empty = False
        try:
            yield put
        except Exception:
            is_empty = count == 0  # a command that failed before its first row leaves stdout empty
            raise
        finally:
            if not is_empty:
                _put(writer.end(count))
                sys.stdout.flush()

    def run(self, work: Coroutine[Any, Any, T], **how: Unpack["How"]) -> T:
        """Run `work` in the process's only event loop, as running.run() does, within the time limit."""
        import structlog

        from genctl.base import log
        from genctl.cli import running

        if not structlog.is_configured():  # services log; other commands only with --debug
            log.configure(self.settings.log, "debug" if self.debug else "critical")
        with self._limited(), self._granting():
            return running.run(work, **how)

    @contextmanager
    def _granting(self) -> Iterator[None]:
        """Say how the tables' owner gives a command, which acts for a person, the rights that it lacks."""
        from genctl.domain.model import GenctlError

        try:
            yield
        except GenctlError as error:
            if error.code != "DatabaseDenied" or self.limit is None or error.fix.startswith("psql "):
                raise
            from genctl.cli import running
            from genctl.ops.doctor import grants

            grant = running.run(grants(self.settings)) or error.fix
            raise GenctlError(error.code, error.message, grant, exit_code=error.exit_code) from None

    @contextmanager
    def _limited(self) -> Iterator[None]:
        if self.limit is None:
            yield
            return
        from secrets import token_hex

        from genctl.edges import deadline

        command, within_s, lock_s = self.limit
        name = f"{command} {token_hex(4)}"  # in pg_stat_activity
        again = self.again(timeout=2 * within_s, output=None if self.form == "table" else self.form)
        with deadline.kept(deadline.Deadline(within_s, lock_s, name=name, again=again, note=terminal.note)):
            yield

    def serve(self, work: Coroutine[Any, Any, None], **how: Unpack["How"]) -> None:
        """Run a service: it logs, and a signal is its proper end."""
        from genctl.base import log
        from genctl.cli.running import Stopped

        log.configure(self.settings.log, self.settings.log_level)
        self.limit = None  # what it asks runs for ever
        with suppress(Stopped):
            self.run(work, **how | {"serves": True})

    def serve_many(self, parent: "Parent") -> int:
        """Run the processes of a service; return the exit code, in the parent and in each of them."""
        import uvloop  # noqa: F401 (once, for all processes)

        from genctl.base import log
        from genctl.cli.running import heeded

        log.configure(self.settings.log, self.settings.log_level)
        with heeded(parent.heed):
            came = parent.tend()
        if isinstance(came, int):
            return came
        self.serve(came)
        return 0

    def ask(self, question: Callable[["Database"], Coroutine[Any, Any, T]], *, follow: bool = False) -> T:
        """Run work that needs only the database. Raises GenctlError (exit 3) when it cannot be reached."""
        from genctl.edges.db import Database

        async def asked() -> T:
            async with Database.open(self.settings.dsn()) as db:
                return await question(db)

        return self.run(asked(), follow=follow)

    def target(self, *, queue: bool = False, tool: str | None = None, direct: bool = False) -> None:
        """Name on stderr what the command will change: the database, and with `queue` the tool's queue.

        A `direct` command goes past a pooler. Raises GenctlError (exit 3) when the embedded stack never ran.
        """
        host, name = self._place(direct=direct)
        queue_name = self.settings.queue_of(tool or self.settings.tool)
        where = f"database {host}/{name}" + (f", queue {queue_name}" if queue else "")
        terminal.note(f"target: {where}" + (" (embedded stack)" if self.settings.embedded else ""))

    def _place(self, *, direct: bool) -> tuple[str, str]:
        from genctl.base import dsn

        return dsn.place(self.settings.direct_dsn() if direct else self.settings.dsn())

    def asks(self, yes: str | None, *, queue: bool = False, direct: bool = False) -> None:
        """Name the target, and raise GenctlError (exit 2) now when confirm() would have nobody to ask."""
        self.target(queue=queue, direct=direct)
        if yes is not None or not terminal.can_ask():
            self.confirm("", yes, direct=direct)

    def asking(self, yes: str | None) -> Callable[[str], None] | None:
        """Return what asks a question as confirm() does; None where `--yes` has answered all of them."""
        return None if yes is not None else lambda question: self.confirm(question, yes)

    def confirm(self, question: str, yes: str | None, *, direct: bool = False) -> None:
        """Go on only when `--yes` or a person says so; `yes` is the value of the option of that name.

        With GENCTL_PROTECTED on, the answer is the database's name. Raises GenctlError: exit 2 where we
        can ask nobody or the name is another, exit 1 when the answer is no.
        """
        _, name = self._place(direct=direct)
        terminal.confirm(question, yes, name, protected=self.settings.protected)


def write(text: str) -> None:
    """Write lines to stdout without what is secret or steers a terminal."""
    from genctl.base.hidden import hide

    _put(hide(text))


def _put(document: str) -> None:
    """Write what plain() has masked; to mask it again could break a number that looks like a secret."""
    sys.stdout.write(printable_lines(document))

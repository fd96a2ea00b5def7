"""Print what a command says: data to stdout in the wanted form, everything else to stderr."""

import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from genctl.base.hidden import hide
from genctl.base.printable import printable_lines
from genctl.cli import terminal

if TYPE_CHECKING:
    from genctl.base.settings import Settings
    from genctl.cli.formats import Writer
    from genctl.edges.db import Database

T = TypeVar("T")


class Output:
    """Hold the form of a command's data and the settings of this call: every command's first argument."""

    def __init__(
        self, form: str = "table", *, debug: bool = False, flags: Mapping[str, str] | None = None
    ) -> None:
        self.form = form
        self.debug = debug
        self.flags = dict(flags or {})

    @cached_property
    def settings(self) -> "Settings":
        """Load them, with this call's `--setting`s. Raises GenctlError as settings.load() does."""
        from genctl.tools import found

        return found.load({"log_level": "debug", **self.flags} if self.debug else self.flags)

    def emit(
        self,
        data: Any,
        *,
        columns: Sequence[str] = (),
        rows: Iterable[Any] | None = None,
        text: Callable[[], str] | None = None,
        empty: str = "nothing found",
    ) -> None:
        """Print one thing (a mapping or struct) or many (any other iterable), once in a command's life.

        Table and CSV have these `columns`, else all keys (CSV: of the first row). `rows` are the many
        that matter inside one thing: table, CSV and JSON lines show them instead. `text` replaces the
        table. `empty` goes to stderr where a table would have no row.
        """
        from genctl.cli import formats

        one = isinstance(data, Mapping) or hasattr(data, "__struct_fields__")
        many = rows if rows is not None else [data] if one else data
        match self.form:
            case "table" if text is not None:
                write(text())
            case "table" if one and rows is None:
                write(formats.sheet(formats.plain(data), terminal.room()))
            case "table" if found := [formats.plain(row) for row in many]:
                every = dict.fromkeys(key for row in found for key in row)
                write(formats.table(found, columns or list(every), terminal.room()))
            case "table":
                terminal.note(empty)
            case "json" if one:
                write(formats.to_json(formats.plain(data), indent=2) + "\n")
            case "yaml" if one:
                write(formats.to_yaml(formats.plain(data)))
            case _:
                with self.stream(dict.fromkeys(columns, 0)) as put:
                    for row in many:
                        put(row, flush=False)
        sys.stdout.flush()

    def stream(self, columns: Mapping[str, int]) -> "RowPrinter":
        """Print rows that come one by one; `columns` have their widths, 0 is the rest of the line."""
        from genctl.cli import formats

        writers: dict[str, Callable[[], Writer]] = {
            "table": lambda: formats.LinesWriter(columns, terminal.room()),
            "json": lambda: formats.JSON,
            "jsonl": lambda: formats.JSON_LINES,
            "yaml": lambda: formats.YAML,
            "csv": lambda: formats.CsvWriter(list(columns)),
        }
        return RowPrinter(writers[self.form](), formats.plain)

    def run(
        self,
        work: Coroutine[Any, Any, T],
        *,
        follow: bool = False,
        gone_after_s: float | None = None,
        heed: Callable[[int], object] | None = None,
    ) -> T:
        """Carry out `work` in the project's only event loop; the rest as in running.run()."""
        import structlog

        from genctl.base import log
        from genctl.cli import running

        if not structlog.is_configured():  # only services log, and other commands with --debug
            log.configure(self.settings.log, "debug" if self.debug else "critical")
        return running.run(work, follow=follow, gone_after_s=gone_after_s, heed=heed)

    def serve(self, work: Coroutine[Any, Any, None], *, gone_after_s: float | None = None) -> None:
        """Carry out a service: it logs, and a signal is its proper end."""
        from genctl.base import log
        from genctl.cli.running import Stopped

        log.configure(self.settings.log, self.settings.log_level)
        with suppress(Stopped):
            self.run(work, gone_after_s=gone_after_s)

    def ask(self, question: Callable[["Database"], Coroutine[Any, Any, T]], *, follow: bool = False) -> T:
        """Carry out what needs the database and nothing else. Raises GenctlError (exit 3) without one."""
        from genctl.edges.db import Database

        async def asked() -> T:
            async with Database.open(self.settings.dsn()) as db:
                return await question(db)

        return self.run(asked(), follow=follow)

    def target(self, *, queue: bool = False, tool: str | None = None) -> None:
        """Say on stderr what the command will change: database host and name, with `queue` the tool's queue.

        Raises GenctlError (exit 3) when the embedded stack never ran.
        """
        from genctl.base import dsn

        host, name = dsn.place(self.settings.dsn())
        queue_name = self.settings.queue_of(tool or self.settings.tool)
        where = f"database {host}/{name}" + (f", queue {queue_name}" if queue else "")
        terminal.note(f"target: {where}" + (" (embedded stack)" if self.settings.embedded else ""))

    def askable(self, yes: str | None) -> None:
        """Raise GenctlError (exit 2) before any work where confirm() could neither ask nor go on."""
        if yes is not None or not terminal.can_ask():
            self.confirm("", yes)

    def confirm(self, question: str, yes: str | None) -> None:
        """Go on only when `--yes` or a person says so; `yes` is the value of the option of that name.

        With GENCTL_PROTECTED on, the answer is the database's name. Raises GenctlError: exit 2 where we
        can ask nobody or the name is another, exit 1 when the answer is no.
        """
        from genctl.base import dsn

        _, name = dsn.place(self.settings.dsn())
        terminal.confirm(question, yes, name, protected=self.settings.protected)


class RowPrinter:
    """Print each row it is called with. Its document is complete when the block ends, also by a signal."""

    def __init__(self, writer: "Writer", plain: Callable[[Any], Any]) -> None:
        self._writer = writer
        self._plain = plain
        self._count = 0

    def __call__(self, row: Any, *, flush: bool = True) -> None:
        write(self._writer.row(self._plain(row), self._count))
        self._count += 1
        if flush:
            sys.stdout.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = isinstance(error, Exception) and self._count == 0
        if not failed:  # a command that failed before its first row leaves stdout empty
            write(self._writer.end(self._count))
            sys.stdout.flush()


def write(text: str) -> None:
    """Write lines to stdout; here at the latest what is secret, or steers a terminal, is masked."""
    sys.stdout.write(printable_lines(hide(text)))

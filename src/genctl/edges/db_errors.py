"""Turn errors of PostgreSQL and of the connection into ours: what was done, and whether to try again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors
from psycopg_pool import PoolTimeout

from genctl.base.dsn import place
from genctl.domain.adoption import ROWS_SEEN, cure
from genctl.domain.model import GenctlError, rough
from genctl.edges.deadline import Watch

NO_ACCOUNT = "NoAccount"


class DataRefusedError(GenctlError):
    """Say that the database refused the data of a statement (a constraint, a range): do not try again.

    The code is NO_ACCOUNT where the user has no account, and only the product can make one.
    """

    def __init__(self, reason: str, fix: str = "", code: str = "DataRefused") -> None:
        super().__init__(code, f"the database refused the data: {reason}", fix, exit_code=1)


class NotifyRefusedError(DataRefusedError):
    """Say that the database refused a NOTIFY, as its queue is full; without the NOTIFY it does the rest."""


class DatabaseGoneError(GenctlError):
    """Say that the connection or the server failed: the statement may work on a new connection."""


class DatabaseSilentError(DatabaseGoneError):
    """Say that no answer came in time: the server hangs, or only this statement does."""


class LockedError(GenctlError):
    """Say that another transaction holds a lock that the statement needs: it did nothing, try later.

    `held` ends the sentence with who holds it, where we know it; the default fix names who may.
    """

    def __init__(self, message: str, fix: str = "genctl doctor", *, held: str = "") -> None:
        super().__init__("Locked", message + held, fix)
        self.held = held


class ConflictError(GenctlError):
    """Say that others have changed the same rows meanwhile: the statement did nothing, try again."""

    def __init__(self, reason: str) -> None:
        super().__init__("Conflict", f"the database gave way to others: {reason}", "try again")


READ_ONLY = errors.ReadOnlySqlTransaction  # a server answers so after it has become the standby
ENDS = ("FATAL", "PANIC")  # severities after which the server closes the connection
SLOW = (errors.QueryCanceled, errors.TransactionTimeout)
POOLERS = errors.ProtocolViolation  # PgBouncer answers everything so


@contextmanager
def errors_told(dsn: str, watch: Watch | None = None) -> Iterator[None]:
    """Turn psycopg's errors into ours, each with its cure; say what the `watch` has seen of the statement."""
    try:
        yield
    except (psycopg.Error, PoolTimeout, TimeoutError, UnicodeEncodeError) as error:
        cause = TimeoutError() if watch and watch.is_late() else error
        tell = _gone if _is_gone(cause) else next(tell for kinds, tell in _TOLD if isinstance(cause, kinds))
        told = tell(cause, "/".join(place(dsn)))
        raise (_explained(told, watch) if watch else told) from error


def _explained(told: GenctlError, watch: Watch) -> GenctlError:
    """Add what the statement waited for."""
    seen, cure = watch.seen()
    if isinstance(told, LockedError):
        return LockedError(told.message, cure or told.fix, held=watch.holder)
    if isinstance(told, DatabaseSilentError):
        message = told.message.replace("in time", f"in {rough(watch.within_s)}") + seen
        return DatabaseSilentError(told.code, message, cure or told.fix)
    return told


def _is_gone(error: Exception) -> bool:
    """Tell whether the connection is gone. A server that lives on has refused the statement, for instance for
    a stack that is too deep, or because a trigger could not reach another database.
    """
    if isinstance(error, PoolTimeout):
        return True
    if not isinstance(error, psycopg.Error) or isinstance(error, SLOW):
        return False
    return error.diag.severity_nonlocalized in ENDS or (
        isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
        and (error.sqlstate is None or isinstance(error, POOLERS))
    )


def first_line(error: BaseException) -> str:
    """Return the first line of the error's text, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _where(error: Exception) -> str:
    """Name the row and its table, in PostgreSQL's words; of a whole table it names nothing."""
    context = error.diag.context if isinstance(error, psycopg.Error) else None
    return f" ({context.splitlines()[-1]})" if context else ""


def _refusal(error: Exception) -> str:
    """Say in PostgreSQL's words what it refused, and which trigger's function did, by the context."""
    context = error.diag.context if isinstance(error, psycopg.Error) else None
    functions = (line for line in (context or "").splitlines() if line.startswith("PL/pgSQL function"))
    who = next(
        (line for line in functions if "inline_code_block" not in line), None
    )  # a block is a migration's
    return f"{first_line(error)} ({who})" if who else first_line(error)


def _row_refused(error: Exception, _: str) -> DataRefusedError:
    """Name the column that an adopted table needs, or the constraint, and who can make such a row."""
    diag = error.diag if isinstance(error, psycopg.Error) else None
    table, column = (diag.table_name or "", diag.column_name) if diag else ("", None)
    said = _refusal(error)
    if column:
        said = f"{table}.{column} must not be null, and genctl has no value for it"
    code = NO_ACCOUNT if table == "credit_accounts" else "DataRefused"
    return DataRefusedError(said, cure(table, column=bool(column)), code)


Tell = Callable[[Exception, str], GenctlError]


def _said(code: str, text: str, fix: str, kind: type[GenctlError] = GenctlError) -> Tell:
    return lambda error, where: kind(code, text.format(at=where, said=_refusal(error)), fix)


_gone = _said(
    "DatabaseUnreachable",
    "cannot use PostgreSQL at {at}: {said}",
    "check that it runs, and DATABASE_URL and GENCTL_LISTEN_URL; where they are unset: `genctl up`",
    DatabaseGoneError,
)


def _denied(error: Exception, where: str) -> GenctlError:
    hidden = "row-level security" in str(error)  # we switch the filter off, so that PostgreSQL says so
    fix = ROWS_SEEN if hidden else "grant the rights to the user of DATABASE_URL"
    return GenctlError("DatabaseDenied", f"database {where} refuses: {_refusal(error)}", fix)


# The first kind that fits counts.
_TOLD: tuple[tuple[type[Exception] | tuple[type[Exception], ...], Tell], ...] = (
    ((errors.UndefinedTable, errors.UndefinedColumn),
     _said("NotMigrated", "database {at} lacks what genctl needs: {said}", "run `genctl migrate`")),
    (errors.InsufficientPrivilege, _denied),
    (errors.ProgramLimitExceeded, lambda error, _: NotifyRefusedError(first_line(error))),
    ((errors.NotNullViolation, errors.ForeignKeyViolation), _row_refused),
    ((psycopg.DataError, psycopg.IntegrityError, errors.RaiseException),
     lambda error, _: DataRefusedError(_refusal(error))),
    (errors.DiskFull,
     _said("DatabaseFull", "PostgreSQL at {at} has no space: {said}", "make room on its disk")),
    (errors.LockNotAvailable,
     lambda error, _: LockedError(f"another transaction holds a lock{_where(error)}")),
    ((errors.SerializationFailure, errors.DeadlockDetected),
     lambda error, _: ConflictError(first_line(error))),
    ((TimeoutError, *SLOW),
     _said("DatabaseSilent", "PostgreSQL at {at} did not answer in time",
           "look for a lock that is held for long (pg_stat_activity), or for the network",
           DatabaseSilentError)),
    (READ_ONLY,
     _said("DatabaseReadOnly", "PostgreSQL at {at} only reads: {said}",
           "it is a standby, or default_transaction_read_only is on: name the primary in DATABASE_URL",
           DatabaseGoneError)),
    (psycopg.OperationalError,
     _said("DatabaseFailed", "PostgreSQL at {at} failed: {said}",
           "read PostgreSQL's log; a trigger of your own may have said so")),
    (UnicodeEncodeError,
     lambda *_: GenctlError("BadText", "a text is not valid UTF-8",
                            "check the terminal's encoding", exit_code=2)),
    (psycopg.Error,  # a URL that libpq does not take, a trigger with errors of its own
     _said("DatabaseMisused", "PostgreSQL at {at}: {said}",
           "check DATABASE_URL and run `genctl migrate status`")),
)  # fmt: skip

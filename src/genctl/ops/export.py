"""Messages of the DLQ in a file, a line of JSON each, as SQS had them: the whole body, every attribute.

Each batch is on the disk before the next is taken (with gzip as a member of its own), so that a file which a
kill or a full disk cut short is good up to the cut. Going on drops a torn last line, and skips what is there;
it is refused where a gzip file is not whole.
"""

import fcntl
import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

import msgspec

from genctl.base.printable import escape_json, many
from genctl.base.settings import Settings
from genctl.domain.deadletters import Choice
from genctl.domain.model import GenctlError, rfc3339
from genctl.edges.db import Database
from genctl.edges.sqs import Message
from genctl.ops.dlq import opened
from genctl.ops.sampling import Progress, Survey
from genctl.redrive import chosen


class Export:
    """A file that is being written; `known` are the messages in it."""

    def __init__(self, path: Path, file: IO[bytes], known: set[str]) -> None:
        self.path = path
        self.known = known
        self.written = 0
        self._file = file

    @classmethod
    @contextmanager
    def to(cls, path: Path, *, resume: bool) -> Iterator[Self]:
        """A new file, or with `resume` the rest of one.

        Raises GenctlError: exit 2 when it is there already or being written, exit 3 when it cannot be.
        """
        try:
            with path.open("r+b" if resume and path.is_file() else "xb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two writers would overwrite each other
                one = cls(path, file, _read_up_to_the_cut(file, path) if resume else set())
                if _is_gzip(path) and not file.tell():
                    file.write(gzip.compress(b""))  # also a file of nothing is gzip
                yield one
        except FileExistsError:
            raise GenctlError(
                "FileExists",
                f"{path} is there already",
                "go on with it by `dlq export --resume`, or name another",
                exit_code=2,
            ) from None
        except BlockingIOError:
            raise GenctlError(
                "FileInUse", f"{path} is being written by another command", "wait for its end", exit_code=2
            ) from None
        except OSError as error:
            raise GenctlError(
                "CannotWrite",
                f"cannot write {path}: {error.strerror}",
                "free some space or name another file; --resume goes on with one that is not compressed",
            ) from None

    def write(self, messages: Sequence[Message]) -> None:
        """Have these on the disk, those that are not there yet. Raises OSError."""
        lines = [_line(message) for message in messages if message.message_id not in self.known]
        self.known.update(message.message_id for message in messages)
        if lines:
            text = b"".join(lines)
            self._file.write(gzip.compress(text) if _is_gzip(self.path) else text)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.written += len(lines)


async def export(
    settings: Settings,
    choice: Choice,
    path: Path,
    *,
    resume: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Write the messages that are meant; all stay in the DLQ. Raises GenctlError."""
    async with opened(settings) as (db, dlq), Survey.over(dlq, bounded=True) as over:
        with Export.to(path, resume=resume) as file, progress(over.approximate, "export") as step:
            while messages := await over.receive(wait_s=1):
                file.write([message for message, _ in await chosen(messages, db, choice)])
                step(len(messages))
        approximate = max(over.approximate, over.seen)
        return {"exported": file.written, "seen": over.seen, "approximate": approximate, "file": path}


async def counted(over: Survey, db: Database, choice: Choice) -> dict[str, Any]:
    """How many messages are meant, and of them of runs that still wait; all are shown again."""
    count = active = 0
    while messages := await over.receive():
        meant = await chosen(messages, db, choice)
        count, active = count + len(meant), active + sum(letter.state == "active" for _, letter in meant)
    found = _shown(over, meant=count) | {"active": active}
    await over.show()
    return found


def question(found: dict[str, Any], name: str) -> str:
    """What a person is asked before they are deleted."""
    active = found["active"]
    of_runs = (
        f" {active} of them may be all that is left of runs that wait; those fail in time." if active else ""
    )
    return f"Delete {many(found['meant'], 'message')} of {name}?{of_runs}"


async def discard(
    over: Survey,
    db: Database,
    choice: Choice,
    file: Export | None,
    step: Callable[[int], object],
    most: int | None = None,
) -> dict[str, Any]:
    """Delete the messages that are meant, at most `most`; each batch after it is in `file`.

    Raises GenctlError.
    """
    count = discarded = 0
    while (most is None or count < most) and (messages := await over.receive(wait_s=1)):
        meant = [message for message, _ in await chosen(messages, db, choice)]
        meant = meant if most is None else meant[: most - count]
        if file:
            file.write(meant)
        errors = await over.queue.delete([message.receipt for message in meant]) if meant else []
        gone = [message for message, error in zip(meant, errors, strict=True) if error is None]
        over.forget(gone)
        count, discarded = count + len(meant), discarded + len(gone)
        step(len(messages))
    return _shown(over, meant=count, discarded=discarded, file=file.path if file else None)


def _shown(over: Survey, *, meant: int, discarded: int = 0, file: Path | None = None) -> dict[str, Any]:
    counts = {"meant": meant, "discarded": discarded, "seen": over.seen}
    return counts | {"approximate": max(over.seen, over.approximate), "file": file}


def _line(message: Message) -> bytes:
    found = {
        "messageId": message.message_id,
        "sentAt": rfc3339(message.sent_at),
        "receiveCount": message.receive_count,
        "attributes": message.sent,
        "body": message.body,
    }
    return escape_json(msgspec.json.encode(found).decode()).encode() + b"\n"  # people look into it with zcat


class _Known(msgspec.Struct, rename="camel"):
    message_id: str


def _is_gzip(path: Path) -> bool:
    return path.suffix == ".gz"


def _read_up_to_the_cut(file: IO[bytes], path: Path) -> set[str]:
    """The messages in the file, which ends behind the last whole line from now on."""
    known: set[str] = set()
    good = 0
    try:
        for line in gzip.GzipFile(fileobj=file) if _is_gzip(path) else file:
            if not line.endswith(b"\n"):
                break
            known.add(msgspec.json.decode(line, type=_Known).message_id)
            good += len(line)
    except (msgspec.DecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        fix = "name another file; this one was left as it is"
        raise GenctlError("NoExport", f"{path} is no whole export: {error}", fix, exit_code=2) from None
    if _is_gzip(path):
        file.seek(0, os.SEEK_END)
    else:
        file.seek(good)
        file.truncate()
    return known

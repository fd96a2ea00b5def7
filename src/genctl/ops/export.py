"""Write messages of the DLQ to a file, a line of JSON each, with the whole body and every attribute.

Each batch is on the disk before we take the next (with gzip as a member of its own), so that a file which a
kill or a full disk cuts short is good up to the cut. With `resume` an export to a plain file drops a torn
last line, and skips the messages that it has.
"""

import fcntl
import gzip
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from tempfile import gettempdir
from typing import IO, Any, Self

import msgspec

from genctl.base.person import Advance, Note
from genctl.base.printable import escape_json, many
from genctl.base.settings import Settings
from genctl.domain.deadletters import Choice
from genctl.domain.model import GenctlError, rfc3339
from genctl.edges.db import Database
from genctl.edges.sqs_shapes import Message
from genctl.ops.bulk import Purpose, recorded
from genctl.ops.dlq import opened
from genctl.ops.sampling import Progress, Survey
from genctl.redrive import chosen


class Export:
    """Write one file; `known` are the ids of the messages in it."""

    def __init__(self, path: Path, file: IO[bytes], known: set[str]) -> None:
        self.path = path
        self.known = known
        self.written = 0
        self._file = file

    @classmethod
    @contextmanager
    def to(cls, path: Path, *, resume: bool, again: Callable[..., str]) -> Iterator[Self]:
        """Begin a new file, or with `resume` continue one; `again` writes the command for another file.

        Raises GenctlError: exit 2, or 3: cannot write.
        """
        if resume and _is_gzip(path):
            told = f"{path} is compressed, and --resume continues only plain files"
            raise GenctlError("NoExport", told, again(path=_beside(path), resume=None), exit_code=2)
        try:
            with path.open("r+b" if resume and path.is_file() else "xb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two writers would overwrite each other
                one = cls(path, file, _read_up_to_the_cut(file, path) if resume else set())
                if _is_gzip(path):
                    file.write(gzip.compress(b""))  # an empty export is gzip too
                yield one
        except FileExistsError:
            raise GenctlError(
                "FileExists", f"{path} exists already", again(path=_beside(path), resume=None), exit_code=2
            ) from None
        except BlockingIOError:
            told = f"another command is writing {path}"
            raise GenctlError("FileInUse", told, "wait for its end", exit_code=2) from None
        except OSError as error:
            told = f"cannot write {path}: {error.strerror}; the DLQ still has what is not in it"
            fix = again(path=_elsewhere(path), resume=None)
            raise GenctlError("CannotWrite", told, fix) from None

    def write(self, messages: Sequence[Message]) -> None:
        """Write the messages that the file does not have yet, and sync it. Raises OSError."""
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
    again: Callable[..., str],
    *,
    resume: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Write the chosen messages to a file and leave them in the DLQ; `again` writes the command for another.

    Raises GenctlError.
    """
    async with opened(settings) as (db, dlq), Survey.over(dlq, bounded=True) as over:
        with (
            Export.to(path, resume=resume, again=again) as file,
            progress(over.approximate, "export") as advance,
        ):
            while messages := await over.receive(wait_s=1):
                file.write([message for message, _ in await chosen(messages, db, choice)])
                advance(len(messages))
        approximate = max(over.approximate, over.seen)
        return {"exported": file.written, "seen": over.seen, "approximate": approximate, "file": path}


class Discarded(msgspec.Struct):
    """Count the chosen messages, and those that are gone."""

    meant: int = 0
    discarded: int = 0


class DiscardOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Say which messages to delete, and which file keeps them: None for no file."""

    choice: Choice
    path: Path | None
    dry_run: bool


async def discard(
    settings: Settings,
    options: DiscardOptions,
    purpose: Purpose,
    *,
    confirm: Callable[[str], object] | None,
    progress: Progress,
    note: Note,
) -> dict[str, Any]:
    """Delete the chosen messages, each batch once it is in the file; `confirm` asks a person first."""
    choice, path = options.choice, options.path
    async with opened(settings) as (db, dlq), Survey.over(dlq, bounded=True) as over:
        most, done = None, Discarded()
        if options.dry_run or confirm:
            found = await _counted(over, db, choice)
            most = found["meant"]  # no more than the person agrees to
            if not most:
                note(f"nothing to discard: {over.why_nothing(found['seen'], {})}")
            if options.dry_run or not confirm:
                return found
            if not most:
                async with recorded(db, purpose, done, tool=settings.tool):  # the history tells that, too
                    return found
            confirm(_question(found, dlq.name))
        async with recorded(db, purpose, done, tool=settings.tool, left=lambda: {"path": None}):
            with ExitStack() as files, progress(over.approximate, "discard") as advance:
                to = Export.to(path, resume=False, again=purpose.again) if path else nullcontext()
                await delete(over, db, choice, files.enter_context(to), advance, done, most)
        if path and not done.meant:
            path.unlink()
            note(f"nothing to discard: {over.why_nothing(over.seen, {})}")
        return _shown(over, done, path if done.meant else None)


async def _counted(over: Survey, db: Database, choice: Choice) -> dict[str, Any]:
    """Count the chosen messages, and those of runs that still wait; make all visible again."""
    count = active = 0
    while messages := await over.receive():
        meant = await chosen(messages, db, choice)
        count, active = count + len(meant), active + sum(letter.state == "active" for _, letter in meant)
    found = _shown(over, Discarded(count), None) | {"active": active}
    await over.show()
    return found


def _question(found: dict[str, Any], name: str) -> str:
    active = found["active"]
    waiting = f" {active} of them may be the only messages of runs that wait, which would fail in time."
    return f"Delete {many(found['meant'], 'message')} of {name}?{waiting if active else ''}"


async def delete(
    over: Survey,
    db: Database,
    choice: Choice,
    file: Export | None,
    advance: Advance,
    done: Discarded,
    most: int | None = None,
) -> None:
    """Delete the chosen messages of a pass, at most `most`, each batch once it is in `file`."""
    while (most is None or done.meant < most) and (messages := await over.receive(wait_s=1)):
        meant = [message for message, _ in await chosen(messages, db, choice)]
        meant = meant if most is None else meant[: most - done.meant]
        if file:
            file.write(meant)
        errors = await over.queue.delete([message.receipt for message in meant]) if meant else []
        gone = [message for message, error in zip(meant, errors, strict=True) if error is None]
        over.forget(gone)
        done.meant += len(meant)
        done.discarded += len(gone)
        advance(len(messages))


def _shown(over: Survey, done: Discarded, file: Path | None) -> dict[str, Any]:
    counts = msgspec.structs.asdict(done) | {"seen": over.seen}
    return counts | {"approximate": max(over.seen, over.approximate), "file": file}


def _line(message: Message) -> bytes:
    found = {
        "messageId": message.message_id,
        "sentAt": rfc3339(message.sent_at),
        "receiveCount": message.system.receive_count,
        "attributes": message.sent,
        "body": message.body,
    }
    return escape_json(msgspec.json.encode(found).decode()).encode() + b"\n"  # people look into it with zcat


class _Known(msgspec.Struct, rename="camel"):
    message_id: str


def _beside(path: Path) -> Path:
    """Name a new file in the same folder."""
    name, dot, kind = path.name.partition(".")
    return path.with_name(f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}{dot}{kind}")


def _elsewhere(path: Path) -> Path:
    """Name a new file in another folder, on another disk where there is one."""
    folders = [Path(gettempdir()), Path.home()]
    others = [folder for folder in folders if folder != path.absolute().parent and os.access(folder, os.W_OK)]
    return next(iter(others), folders[0]) / _beside(path).name


def _is_gzip(path: Path) -> bool:
    return path.suffix == ".gz"


def _read_up_to_the_cut(file: IO[bytes], path: Path) -> set[str]:
    """Return the ids of the messages in the file, and cut it after the last whole line."""
    known: set[str] = set()
    good = 0
    try:
        for line in file:
            if not line.endswith(b"\n"):
                break
            known.add(msgspec.json.decode(line, type=_Known).message_id)
            good += len(line)
    except msgspec.DecodeError as error:
        fix = "name another file; this one was left as it is"
        raise GenctlError("NoExport", f"{path} is no export: {error}", fix, exit_code=2) from None
    file.seek(good)
    file.truncate()
    return known

"""Write messages of the DLQ to a new file, a line of JSON each, with the whole body and every attribute.

Each batch is on the disk before we take the next (with gzip as a member of its own), so that a file which a
kill or a full disk cuts short is good up to the cut.
"""

import gzip
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import IO, Any

import msgspec

from genctl.base.person import Advance, Note
from genctl.base.printable import escape_json, many
from genctl.base.settings import Settings
from genctl.domain.deadletters import Choice
from genctl.domain.model import GenctlError, rfc3339
from genctl.edges.db import Database
from genctl.edges.sqs_shapes import Message
from genctl.ops.bulk import Errand, recorded
from genctl.ops.dlq import MOST_AT_ONCE, opened, walk
from genctl.ops.sampling import Progress, Survey


@contextmanager
def new_file(path: Path, again: Callable[..., str]) -> Iterator[IO[bytes]]:
    """Open a new file that only its owner may read; `again` writes the command for another one.

    Raises GenctlError: exit 2 where there is a file, 3 where we cannot write one.
    """
    try:
        with open(path, "xb", opener=partial(os.open, mode=0o600)) as file:
            yield file
    except FileExistsError:
        fix = again(path=_another(path, path.parent))
        raise GenctlError("FileExists", f"{path} exists already", fix, exit_code=2) from None
    except OSError as error:
        told = f"cannot write {path}: {error.strerror}; what is not in it is where it was"
        raise GenctlError("CannotWrite", told, again(path=_another(path, Path(gettempdir())))) from None


def write(file: IO[bytes], messages: Sequence[Message]) -> None:
    """Write the messages, and sync the file; one whose name ends with .gz is compressed. Raises OSError."""
    text = b"".join(map(_line, messages))
    file.write(gzip.compress(text) if file.name.endswith(".gz") else text)
    file.flush()
    os.fsync(file.fileno())


async def export(
    settings: Settings,
    choice: Choice,
    path: Path,
    again: Callable[..., str],
    progress: Progress,
    note: Note,
) -> dict[str, Any]:
    """Write the chosen messages to a file and leave them in the DLQ; `again` writes the command for another.

    Raises GenctlError.
    """
    count = 0
    async with opened(settings, note, bounded=True) as (db, over):
        with new_file(path, again) as file, progress(over.approximate, "export") as advance:
            write(file, ())  # an empty export is gzip too
            async for pairs in walk(over, db, choice, advance, wait_s=1):
                write(file, [message for message, _ in pairs])
                count += len(pairs)
        return {"exported": count, **over.counts, "file": path}


async def discard(settings: Settings, choice: Choice, path: Path | None, errand: Errand) -> dict[str, Any]:
    """Delete the chosen messages, each batch once it is in the file; without a `path` keep none.

    Raises GenctlError, also what `errand.confirm` raises.
    """
    most, nothing, done, again = None, "", {"meant": 0, "discarded": 0}, {"path": None}
    async with opened(settings, errand.note, bounded=True) as (db, over):
        if errand.dry_run or errand.confirm:
            with errand.progress(over.approximate, "look") as advance:
                pages = walk(over, db, choice, advance, limit=MOST_AT_ONCE)
                active = [letter.state == "active" async for page in pages for _, letter in page]
            most, nothing = len(active), over.why_nothing(over.seen, {})
            if errand.dry_run:
                if not most:
                    errand.note(f"nothing to discard: {nothing}")
                return {"meant": most, "discarded": 0, **over.counts, "file": None, "active": sum(active)}
            await over.show()
            if most and errand.confirm:  # we delete no more than the person agrees to
                told = " of them may be the only messages of runs that wait, which would fail in time."
                waiting = f" {sum(active)}{told}" if any(active) else ""
                errand.confirm(f"Delete {many(most, 'message')} of the DLQ?{waiting}")
        async with recorded(db, errand, done, tool=settings.tool, left=lambda: again):
            with ExitStack() as files, errand.progress(over.approximate, "discard") as advance:
                to = files.enter_context(new_file(path, errand.again)) if path else None
                await delete(over, db, choice, to, advance, done, most)
        if not done["meant"]:
            if path:
                path.unlink()
            errand.note(f"nothing to discard: {nothing or over.why_nothing(over.seen, {})}")
        return {**done, **over.counts, "file": path if done["meant"] else None}


async def delete(
    over: Survey,
    db: Database,
    choice: Choice,
    file: IO[bytes] | None,
    advance: Advance,
    done: dict[str, int],
    most: int | None = None,
) -> None:
    """Delete the chosen messages of a pass, at most `most`, each once it is in `file`; count in `done`."""
    async for pairs in walk(over, db, choice, advance, wait_s=1):
        meant = [message for message, _ in pairs][: None if most is None else most - done["meant"]]
        if file and meant:
            write(file, meant)
        errors = await over.delete([message.message_id for message in meant])
        done["meant"] += len(meant)
        done["discarded"] += errors.count(None)
        if done["meant"] == most:
            return


def _line(message: Message) -> bytes:
    found = {
        "messageId": message.message_id,
        "sentAt": rfc3339(message.sent_at),
        "receiveCount": message.system.receive_count,
        "attributes": message.sent,
        "body": message.body,
    }
    return escape_json(msgspec.json.encode(found).decode()).encode() + b"\n"  # people look into it with zcat


def _another(path: Path, folder: Path) -> Path:
    """Name a new file in the folder."""
    name, dot, kind = path.name.partition(".")
    return folder / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}{dot}{kind}"

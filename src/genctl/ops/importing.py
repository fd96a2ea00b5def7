"""Send the messages of an export back to the DLQ, each as it was, and none that is there already.

The file stays as it is. You can kill an import anywhere and run it again: it looks into the DLQ first, and
knows a copy by its session and run, and any other message by its body and attributes.
"""

import fcntl
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple
from uuid import UUID

import msgspec

from genctl.base.person import Note
from genctl.base.printable import many
from genctl.base.settings import Settings
from genctl.domain.deadletters import Letter
from genctl.domain.decide import read_job
from genctl.domain.model import GenctlError, MalformedMessageError
from genctl.edges.db import Database
from genctl.edges.sqs import Queue
from genctl.edges.sqs_shapes import MAX_BYTES, Attribute, Message, Outgoing, System
from genctl.ops.bulk import Purpose, recorded
from genctl.ops.dlq import opened
from genctl.ops.sampling import Progress, Survey
from genctl.redrive import letters, unjoined
from genctl.tools.found import Tools

BATCH = 100
MOST_TOLD = 20  # lines that we name one by one
LONGEST = 8 * MAX_BYTES  # of a line, whose escapes take room
GZIP = b"\x1f\x8b"


class Numbered(NamedTuple):
    """Hold the message of a line, or why it holds none."""

    line: int
    message: Message | None
    why: str = ""


class Imported(msgspec.Struct):
    """Count what became of the lines: `failed` are messages that SQS did not take."""

    meant: int = 0
    imported: int = 0
    skipped: dict[str, int] = {}
    unreadable: int = 0
    failed: int = 0

    def skip(self, why: str) -> None:
        """Count a message that does not go back."""
        self.skipped[why] = self.skipped.get(why, 0) + 1


class Import:
    """Choose the messages that go back to the DLQ, send them, and count what becomes of each."""

    def __init__(self, db: Database, dlq: Queue, tools: Tools, tool: str, note: Note) -> None:
        self.counts = Imported()
        self._db = db
        self._dlq = dlq
        self._tools = tools
        self._tool = tools.named(tool)
        self._note = note
        self._told = 0
        self._runs: set[tuple[UUID, int | None]] = set()  # that have a copy in the DLQ
        self._others = Counter[bytes]()  # the other messages there, by what they say: equal ones are several
        self._ids: set[str] = set()  # of the messages that the file has had so far

    async def look(self, progress: Progress) -> None:
        """Learn what the DLQ holds; make all visible again."""
        async with Survey.over(self._dlq, bounded=True) as over:
            with progress(over.approximate, "look") as advance:
                while messages := await over.receive(wait_s=1):
                    for message in messages:
                        if copy := _copy(unjoined(message)):
                            self._runs.add(copy)
                        else:
                            self._others[_said(message)] += 1
                    advance(len(messages))

    async def take(self, lines: Sequence[Numbered], *, dry_run: bool) -> None:
        """Send the messages of these lines that have to go back. Raises GenctlError, exit 3."""
        for line in lines:
            if line.message is None:
                self.counts.unreadable += 1
                self._tell(line.line, line.why)
        found = [line for line in lines if line.message is not None]
        messages = [line.message for line in found if line.message]
        chosen: list[tuple[int, Outgoing]] = []
        for line, message, letter in zip(found, messages, await letters(messages, self._db), strict=True):
            if why := self._objection(message, letter):
                self.counts.skip(why)
            else:
                chosen.append((line.line, Outgoing(message.body, message.sent, user=letter.user)))
        self.counts.meant += len(chosen)
        if dry_run or not chosen:
            return
        results = await self._dlq.send([outgoing for _, outgoing in chosen])
        for (number, _), result in zip(chosen, results, strict=True):
            if result.error is None:
                self.counts.imported += 1
            else:
                self.counts.failed += 1
                self._tell(number, f"SQS did not take it: {result.error}")

    def tell_rest(self) -> None:
        """Say how many lines more have gone wrong than we have named."""
        if self._told > MOST_TOLD:
            self._note(f"and {many(self._told - MOST_TOLD, 'line')} more")

    def _tell(self, line: int, why: str) -> None:
        self._told += 1
        if self._told <= MOST_TOLD:
            self._note(f"line {line}: {why}")

    def _objection(self, message: Message, letter: Letter) -> str | None:
        """Say why the message does not go back; None: it does."""
        if message.message_id in self._ids:
            return "twice in the file"
        self._ids.add(message.message_id)
        if not self._is_ours(message, letter):
            return "another tool's"
        if letter.state in {"stale", "done"}:  # a redrive would only drop it
            return letter.state
        if copy := _copy(letter):
            is_there = copy in self._runs
            self._runs.add(copy)
        else:
            said = _said(message)
            is_there = self._others[said] > 0
            self._others[said] -= is_there
        return "in the DLQ already" if is_there else None

    def _is_ours(self, message: Message, letter: Letter) -> bool:
        if letter.row is not None:
            return self._tools.tells(self._tool, letter.row.model)
        try:
            return read_job(message.body).tool == self._tool.name
        except MalformedMessageError:  # nobody's, so it belongs where it was
            return True


async def carry_out(
    settings: Settings, path: Path, purpose: Purpose, *, dry_run: bool, progress: Progress, note: Note
) -> Imported:
    """Send the messages of a file back to the DLQ; `note` hears of each line that cannot go.

    Raises GenctlError: exit 2 for a file that is no export, 3 when a dependency goes away.
    """
    with _opened(path) as file:
        total = _check(file, path)
        async with opened(settings) as (db, dlq):
            one = Import(db, dlq, Tools.of(settings), settings.tool, note)
            await one.look(progress)
            if dry_run:
                await _through(one, file, total, progress, dry_run=True)
            else:
                async with recorded(db, purpose, one.counts, tool=settings.tool):
                    await _through(one, file, total, progress, dry_run=False)
            one.tell_rest()
            return one.counts


async def _through(one: Import, file: IO[bytes], total: int, progress: Progress, *, dry_run: bool) -> None:
    with progress(total, "import") as advance:
        numbered = read(file)
        while lines := list(islice(numbered, BATCH)):
            await one.take(lines, dry_run=dry_run)
            advance(len(lines))


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open the file. Raises GenctlError: exit 2 when it is no file, or a command is writing it."""
    if not path.is_file():
        told = f"{path} is no file" if path.exists() else f"there is no file {path}"
        fix = "name a file that an export or a discard has written"
        raise GenctlError("NoExport", told, fix, exit_code=2)
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            told = f"another command is writing {path}"
            raise GenctlError("FileInUse", told, "wait for its end", exit_code=2) from None
        yield file


def _check(file: IO[bytes], path: Path) -> int:
    """Count the lines. Raises GenctlError (exit 2) when there are some, and none is a message."""
    found = Counter(line.message is not None for line in read(file))
    if found[False] and not found[True]:
        first = next(read(file))
        fix = "name a file that an export or a discard has written"
        raise GenctlError(
            "NoExport", f"{path} is no export: line {first.line}: {first.why}", fix, exit_code=2
        )
    return found.total()


class _Written(msgspec.Struct, rename="camel"):
    message_id: str
    sent_at: datetime
    receive_count: int
    attributes: dict[str, Attribute]
    body: str


def read(file: IO[bytes]) -> Iterator[Numbered]:
    """Read the lines of an export, compressed or not, from its beginning; leave out empty ones.

    It ends where a compressed file is cut short or damaged.
    """
    file.seek(0)
    is_gzip = file.read(len(GZIP)) == GZIP
    file.seek(0)
    source: Any = gzip.GzipFile(fileobj=file) if is_gzip else file
    number = 0
    while True:
        number += 1
        try:
            line = source.readline(LONGEST)
            is_whole = line.endswith(b"\n")
            rest = line
            while len(rest) == LONGEST and not rest.endswith(b"\n"):
                rest = source.readline(LONGEST)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield Numbered(
                number, None, f"the file is cut short or damaged here ({error}); we cannot read the rest"
            )
            return
        if not line:
            return
        if line.strip():
            yield _numbered(number, line, is_whole=is_whole)


def _numbered(number: int, line: bytes, *, is_whole: bool) -> Numbered:
    try:
        found = msgspec.json.decode(line, type=_Written)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Numbered(number, None, f"no message: {error}" if is_whole else "it is cut short")
    return Numbered(
        number,
        Message(
            found.message_id,
            "",
            found.body,
            found.attributes,
            System(found.receive_count, round(found.sent_at.timestamp() * 1000)),
        ),
    )


def _copy(letter: Letter) -> tuple[UUID, int | None] | None:
    return (letter.session_id, letter.run) if letter.session_id else None


def _said(message: Message) -> bytes:
    return sha256(msgspec.json.encode([message.body, sorted(message.sent.items())])).digest()

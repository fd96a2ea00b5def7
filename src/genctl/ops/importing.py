"""Send the messages of an export back to the DLQ, each as it was, and none that is there already.

The file stays as it is. You can kill an import anywhere and run it again: it looks into the DLQ first, and
knows a copy by its session and run, and any other message by its body and attributes.
"""

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from genctl.base.settings import Settings
from genctl.domain.deadletters import Letter
from genctl.domain.decide import read_job
from genctl.domain.model import GenctlError, MalformedMessageError
from genctl.edges.db import Database
from genctl.edges.sqs_shapes import MAX_BYTES, Attribute, Message, Outgoing, System
from genctl.ops.bulk import Errand, recorded
from genctl.ops.dlq import opened
from genctl.ops.sampling import Survey
from genctl.redrive import letters, unjoined
from genctl.tools.found import Tools

BATCH = 100
LONGEST = 8 * MAX_BYTES  # of a line, whose escapes take room
GZIP = b"\x1f\x8b"

Said = tuple[UUID, int | None] | int  # what a message is known by


class Numbered(NamedTuple):
    """Hold the message of a line, or why it holds none."""

    line: int
    message: Message | None
    why: str = ""


class Import:
    """Choose the messages that go back to the DLQ, send them, and count what becomes of each."""

    def __init__(self, db: Database, over: Survey, settings: Settings, errand: Errand) -> None:
        self.counts: dict[str, Any] = {"meant": 0, "imported": 0, "skipped": {}, "unreadable": 0, "failed": 0}
        self._db = db
        self._over = over
        self._tools = Tools.of(settings)
        self._tool = self._tools.named(settings.tool)
        self._errand = errand
        self._there = Counter[Said]()  # the messages in the DLQ
        self._ids: set[str] = set()  # of the messages that the file has had so far

    async def look(self) -> None:
        """Learn what the DLQ holds; make all visible again."""
        with self._errand.progress(self._over.approximate, "look") as advance:
            while messages := await self._over.receive(wait_s=1):
                self._there.update(_said(message, unjoined(message)) for message in messages)
                advance(len(messages))
        self._over.tell_unseen(self._errand.note)
        await self._over.show()

    async def send(self, path: Path, total: int) -> None:
        """Send the messages of the file that have to go back. Raises GenctlError, exit 3."""
        with self._errand.progress(total, "import") as advance:
            numbered = read(path)
            while lines := list(islice(numbered, BATCH)):
                await self._take(lines)
                advance(len(lines))

    async def _take(self, lines: Sequence[Numbered]) -> None:
        found = {line.line: line.message for line in lines if line.message}
        self._tell({line.line: line.why for line in lines if not line.message})
        self.counts["unreadable"] += len(lines) - len(found)
        chosen, skipped = dict[int, Outgoing](), self.counts["skipped"]
        joined = await letters([*found.values()], self._db)
        for (number, message), letter in zip(found.items(), joined, strict=True):
            if why := self._objection(message, letter):
                skipped[why] = skipped.get(why, 0) + 1
            else:
                chosen[number] = Outgoing(message.body, message.sent, user=letter.user)
        self.counts["meant"] += len(chosen)
        if self._errand.dry_run or not chosen:
            return
        results = zip(chosen, await self._over.queue.send([*chosen.values()]), strict=True)
        failed = {
            number: f"SQS did not take it: {result.error}" for number, result in results if result.error
        }
        self._tell(failed)
        self.counts["failed"] += len(failed)
        self.counts["imported"] += len(chosen) - len(failed)

    def _tell(self, whys: Mapping[int, str]) -> None:
        for line, why in whys.items():
            self._errand.note(f"line {line}: {why}")

    def _objection(self, message: Message, letter: Letter) -> str | None:
        """Say why the message does not go back; None: it does."""
        if message.message_id in self._ids:
            return "twice in the file"
        self._ids.add(message.message_id)
        if not self._is_ours(message, letter):
            return "another tool's"
        if letter.state in {"stale", "done"}:  # a redrive would only drop it
            return letter.state
        said = _said(message, letter)
        if self._there[said]:
            self._there[said] -= letter.session_id is None  # equal ones that are no copies are several
            return "in the DLQ already"
        self._there[said] += letter.session_id is not None
        return None

    def _is_ours(self, message: Message, letter: Letter) -> bool:
        if letter.row is not None:
            return self._tools.tells(self._tool, letter.row.model)
        try:
            return read_job(message.body).tool == self._tool.name
        except MalformedMessageError:  # nobody's, so it belongs where it was
            return True


async def carry_out(settings: Settings, path: Path, errand: Errand) -> dict[str, Any]:
    """Send the messages of a file back to the DLQ, and count what became of the lines.

    `errand.note` hears of each line that cannot go; `failed` are messages that SQS did not take. Raises
    GenctlError: exit 2 for a file that is no export, 3 when a dependency goes away.
    """
    total = _check(path)
    async with opened(settings, errand.note, bounded=True) as (db, over):
        one = Import(db, over, settings, errand)
        await one.look()
        async with recorded(db, errand, one.counts, tool=settings.tool):
            await one.send(path, total)
        return one.counts


def _check(path: Path) -> int:
    """Count the lines. Raises GenctlError (exit 2) when there is no file, or no line of it is a message."""
    why = "" if path.is_file() else "that is no file" if path.exists() else "there is no such file"
    found = [0, 0]  # that hold no message, that hold one
    for line in () if why else read(path):
        found[line.message is not None] += 1
        why = why or (line.why and f"line {line.line}: {line.why}")
    if why and not found[True]:
        fix = "name a file that an export or a discard has written"
        raise GenctlError("NoExport", f"{path} is no export: {why}", fix, exit_code=2)
    return sum(found)


class _Written(msgspec.Struct, rename="camel"):
    message_id: str
    sent_at: datetime
    receive_count: int
    attributes: dict[str, Attribute]
    body: str


def read(path: Path) -> Iterator[Numbered]:
    """Read the lines of an export, compressed or not; leave out empty ones.

    It ends where a compressed file is cut short or damaged.
    """
    number, begins = 1, True
    with path.open("rb") as file:
        is_gzip = file.peek(len(GZIP)).startswith(GZIP)
        source: Any = gzip.GzipFile(fileobj=file) if is_gzip else file
        try:
            while line := source.readline(LONGEST):  # a longer one holds no message
                if begins and line.strip():
                    yield _numbered(number, line)
                begins = line.endswith(b"\n")
                number += begins
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            why = f"the file is cut short or damaged here ({error}); we cannot read the rest"
            yield Numbered(number, None, why)


def _numbered(number: int, line: bytes) -> Numbered:
    try:
        found = msgspec.json.decode(line, type=_Written)
        system = System(found.receive_count, round(found.sent_at.timestamp() * 1000))
    except (ValueError, OverflowError, RecursionError) as error:  # msgspec's are ValueErrors
        return Numbered(number, None, f"no message: {error}" if line.endswith(b"\n") else "it is cut short")
    return Numbered(number, Message(found.message_id, "", found.body, found.attributes, system))


def _said(message: Message, letter: Letter) -> Said:
    if letter.session_id:
        return letter.session_id, letter.run
    return hash((message.body, tuple(sorted(message.sent.items()))))

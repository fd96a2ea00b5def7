"""docs/architecture.md tells the path of a failing job as it really runs."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tests.ears import served
from tests.kit import Kit

import genctl
from genctl.edges.statements import statements
from genctl.pipeline import Pipeline, carry

MOST = 16  # files to the DLQ copy
SOURCE = Path(genctl.__file__).parent
PAGE = (SOURCE.parent.parent / "docs/architecture.md").read_text()
LEFT_OUT = {
    "services/simulator.py",  # the provider runs in this process, too
    "services/asked.py",
    "services/scenarios.py",
    "edges/spans.py",  # does nothing where nobody traces
}
LOG = str(SOURCE / "base/log.py")


def listed(heading: str) -> list[str]:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([\w/.]+)` \|", section, re.MULTILINE)


class Seen:
    """Files of genctl in the order in which a function of each first ran, and statements that were sent."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}
        self.statements: set[str] = set()

    def look(self, frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(SOURCE) and not is_logging(frame):
            if (name := str(path.relative_to(SOURCE))) not in LEFT_OUT:
                self.files.setdefault(name)
            if frame.f_code.co_name == "sql":
                self.statements.add(frame.f_locals["name"])


def is_logging(frame: FrameType | None) -> bool:
    """Whether it writes a log line; other tests of this process may have set up what that takes."""
    while frame and frame.f_code.co_filename != LOG:
        frame = frame.f_back
    return frame is not None


@contextmanager
def watched() -> Iterator[Seen]:
    seen = Seen()
    sys.setprofile(seen.look)
    try:
        yield seen
    finally:
        sys.setprofile(None)


async def test_a_refused_job_passes_the_files_that_the_page_lists_in_their_order(kit: Kit) -> None:
    statements()  # is read once
    await kit.enqueue("sensitive")
    message = await kit.receive()
    async with Pipeline.open(kit.settings) as pipeline:
        assert pipeline.wire
        await (
            pipeline.wire.knock()
        )  # connects, as an earlier job has done: to the database and SQS it is already
        with watched() as seen:
            await carry(message, pipeline)
    assert len(await kit.copies()) == 1
    assert list(seen.files) == listed("To the DLQ copy")
    assert len(seen.files) <= MOST
    of_file = {file: file.read_text() for file in (SOURCE / "edges/sql").glob("*.sql")}
    used = {
        f"edges/sql/{file.name}"
        for file, text in of_file.items()
        if any(f"-- name: {name}\n" in text for name in seen.statements)
    }
    assert used == set(re.findall(r"edges/sql/\w+\.sql", PAGE))


async def test_its_failure_passes_the_files_that_lead_to_the_card(kit: Kit) -> None:
    listed_here = listed("To the card")
    async with served(kit.settings) as client, client.stream() as ear:
        await ear.ready()
        await kit.enqueue("sensitive")
        with watched() as seen:
            await kit.work()
            await ear.until(lambda ear: ear.told)
    assert {name for name in listed_here if name.endswith(".py")} <= set(seen.files)
    imported = re.findall(r"from '\./(\w+\.js)'", (SOURCE / "page/app.js").read_text())
    assert {name.removeprefix("page/") for name in listed_here if name.endswith(".js")} <= set(imported)

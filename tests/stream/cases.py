"""The rules of the stream as data, and what a client gets to read of each story."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

STATUS = {"failed": "failed", "done": "completed", "queued": "queued"}
ENDS = {"failed": "failed", "completed": "completed"}
VOUCHES = {"fresh": True, "stale": False}
SINCE = "2026-11-24T07:58:00.000Z"
REDRIVEN, ORDERED, BACK = "redriven", "ordered", "goes back"


class Framing(msgspec.Struct):
    """How a stream begins, and how its lines end."""

    begin: str
    end: str


FRAMINGS = {
    "LF": Framing("", "\n"),
    "BOM and CRLF": Framing("\ufeff", "\r\n"),
    "BOM, a comment and CR": Framing("\ufeff: hello\r\r", "\r"),
}


class Step(msgspec.Struct, frozen=True):
    """Who does what."""

    who: str
    what: str

    @property
    def session(self) -> str:
        """The session that a server's word or a change of the database is about."""
        words = self.what.split()
        return words[-1] if self.who == "server" else words[0]

    @property
    def verb(self) -> str:
        words = self.what.split()
        return words[0] if self.who == "server" else words[-1]

    @property
    def is_elsewhere(self) -> bool:
        """Whether it befalls somebody else's session."""
        return "somebody else" in self.what


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule."""

    rule: str
    story: list[dict[str, str]]
    knows: dict[str, str]
    vouched: bool = True
    of: list[str] = msgspec.field(default_factory=lambda: ["server", "watch", "page"])

    @property
    def steps(self) -> list[Step]:
        return [Step(who, what) for step in self.story for who, what in step.items()]


class Shown(msgspec.Struct):
    """What a fetch shows of a session. `version` is that of its newest change."""

    status: str
    run: int
    version: int


Rows = dict[str, Shown]


class Frame(msgspec.Struct):
    """An event as it is written. `rows` is what a fetch at this moment would show."""

    name: str
    id: str | None
    data: dict[str, Any]
    rows: Rows

    def bytes(self, end: str) -> bytes:
        """The event with these ends of lines."""
        lines = [
            f"event: {self.name}",
            *([f"id: {self.id}"] if self.id else []),
            f"data: {json.dumps(self.data)}",
        ]
        return "".join(f"{line}{end}" for line in (*lines, "")).encode()


class Played(msgspec.Struct):
    """One connection to a server that plays the story: what the client names, what it reads, and how it ends."""

    last_id: str | None
    rows: Rows
    frames: list[Frame] = msgspec.field(default_factory=list)
    cut: Frame | None = None  # half of it comes
    end: str = ""  # what the network does; of the last one nothing: it stays open


def load() -> list[Case]:
    """All rules."""
    files = sorted(Path(__file__).parent.glob("*.yaml"))
    return [case for file in files for case in msgspec.convert(yaml.safe_load(file.read_text()), list[Case])]


def of(whom: str) -> pytest.MarkDecorator:
    """Run a test with each case that binds whom."""
    cases = [case for case in load() if whom in case.of]
    return pytest.mark.parametrize("case", cases, ids=[case.rule for case in cases])


class World:
    """What the story's database holds, and the number of its newest change."""

    def __init__(self) -> None:
        self.version = 0
        self.rows: Rows = {}

    def happen(self, step: Step) -> None:
        """Let the database's step happen."""
        if step.is_elsewhere:
            return
        if step.what == BACK:
            self.version, self.rows = 0, {}
            return
        old = self.rows.get(step.session, Shown("", 1, 0))
        if step.verb != ORDERED:
            self.version += 1
        version = old.version if step.verb == ORDERED else self.version
        run = old.run + (step.verb == REDRIVEN)
        self.rows = self.rows | {step.session: Shown(ENDS.get(step.verb, "queued"), run, version)}

    def word(self, session: str) -> str:
        """How the server calls what the session is."""
        return next(word for word, status in STATUS.items() if status == self.rows[session].status)

    def frame(self, step: Step) -> Frame:
        """What the server writes."""
        if step.verb in STATUS:
            row = self.rows[step.session]
            assert row.status == STATUS[step.verb], step
            facts = {"sessionId": step.session, "clientKey": None, "model": "m", **msgspec.to_builtins(row)}
            return Frame(step.verb, f"v{row.version}", facts, self.rows)
        cursor = f"r{self.version}"
        if step.verb in VOUCHES:
            vouches = {"lastEventId": cursor, "fresh": VOUCHES[step.verb], "since": SINCE}
            return Frame("heartbeat", None, vouches, self.rows)
        is_ready = step.verb == "ready"
        return Frame(step.verb, cursor if is_ready else None, {"lastEventId": cursor}, self.rows)


def played(case: Case) -> Iterator[Played]:
    """The connections of the story, as a client of a server that plays it makes them."""
    world, last_id, changed = World(), None, None
    now: Played | None = None
    for step in case.steps:
        match step.who:
            case "database":
                world.happen(step)
                changed = step.session
            case "client":
                if now:
                    yield now
                last_id = step.what.partition(" with ")[2] or last_id
                now = Played(last_id, world.rows)
            case "server":
                assert now
                now.frames.append(world.frame(step))
                last_id = now.frames[-1].id or last_id
            case "network":
                assert now
                now.end = step.what
                if step.what == "cuts" and changed:
                    now.cut = world.frame(Step("server", f"{world.word(changed)} {changed}"))
    if now:
        yield now

"""Writes docs/schemas/: what API and streams send, as JSON Schema, from these structs and the model's.

make docs
"""

import json
from pathlib import Path
from typing import Any, Literal

import msgspec

from genctl.domain.model import ErrorDetails, Image, RefusedImage

HERE = Path(__file__).parent / "schemas"


class Result(msgspec.Struct, forbid_unknown_fields=True):
    """What a completed run brought; `refused` where a set lacks images."""

    images: list[Image]
    refused: list[RefusedImage] = []


class Reserved(msgspec.Struct, forbid_unknown_fields=True):
    """Credits of a session's current run."""

    reserved: int | None
    refunded: int


class Gate(msgspec.Struct, forbid_unknown_fields=True):
    """Whether jobs are carried out now; `until` null: nobody knows until when not."""

    state: Literal["open", "paused", "busy"]
    until: str | None


class Item(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """A session as `GET …/sessions/{id}` and the list show it."""

    session_id: str
    client_key: str | None
    status: Literal["queued", "processing", "completed", "failed"]
    model: str | None
    prompt: str | None
    run: int
    attempts: int
    created_at: str | None
    started_at: str | None
    completed_at: str | None
    result: Result | None
    error_details: ErrorDetails | None = msgspec.field(name="error_details")
    credits: Reserved
    params: dict[str, Any] | None
    version: int
    step: int


class Sessions(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """A page of the list, newest first."""

    sessions: list[Item]
    next: str | None
    last_event_id: str
    gate: Gate


class OfRow(msgspec.Struct, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """What each event says of its row."""

    session_id: str
    client_key: str | None
    model: str | None
    run: int
    version: int


class Failed(OfRow):
    """The data of a `failed` event."""

    status: Literal["failed"]
    error_details: ErrorDetails | None = msgspec.field(name="error_details")


class Done(OfRow):
    """The data of a `done` event."""

    status: Literal["completed"]
    result: Result | None


class Queued(OfRow):
    """The data of a `queued` event: another run."""

    status: Literal["queued", "processing"]


class Heartbeat(msgspec.Struct, rename="camel"):
    """The data of a `heartbeat`: whether the server vouches that nothing is missing, and since when."""

    last_event_id: str | None
    fresh: bool = True
    since: str | None = None


class Reset(msgspec.Struct):
    """The data of a `reset`: the cursor means nothing here, fetch again."""

    reason: str | None = None


class Bye(msgspec.Struct):
    """The data of a `bye`: this stream ends. `why` is `newer stream` where others took its place."""

    reason: str | None = None
    why: str | None = None


KINDS: dict[str, type[msgspec.Struct]] = {
    "error_details": ErrorDetails,
    "session": Item,
    "sessions": Sessions,
    "failed": Failed,
    "done": Done,
    "queued": Queued,
    "heartbeat": Heartbeat,
    "reset": Reset,
    "bye": Bye,
}


def schemas() -> dict[Path, str]:
    """Each file, and its text."""
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {
        HERE / f"{name}.json": json.dumps(draft | msgspec.json.schema(kind), indent=1) + "\n"
        for name, kind in KINDS.items()
    }


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for path, text in schemas().items():
        path.write_text(text)

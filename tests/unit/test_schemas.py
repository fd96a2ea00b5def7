"""The schemas of docs/schemas/ are those of the structs, and what we send is what they say."""

import json
import re
import runpy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import sseclient

from genctl.base.assets import PACKAGE
from genctl.domain import sse
from genctl.domain.model import Category, ErrorDetails, Gate, GateState, Session, Status

ROOT = Path(__file__).parents[2]
MADE = runpy.run_path(str(ROOT / "docs" / "make_schemas.py"))
KINDS: dict[str, type[msgspec.Struct]] = MADE["KINDS"]
DETAILS: dict[str, Any] = {
    "providerStatus": 400, "providerCode": "X", "providerMessage": "m", "userMessage": "m",
    "providerBody": "b", "code": "X", "category": "content_policy", "fatal": True, "outcome": "refused",
    "attempts": 1, "maxAttempts": 3, "firstAttemptAt": None, "failedAt": "2026-11-24T08:00:00.000Z",
    "reservationAmount": 4, "refundedCredits": 4, "refundedAt": None, "refundError": "x", "requestId": "r",
    "provider": "ark",
}  # fmt: skip
EVENTS = {Status.FAILED: "failed", Status.COMPLETED: "done", Status.QUEUED: "queued"}


def session(status: Status, category: str) -> Session:
    return Session(
        id=uuid4(), user_id="ann", model="seedream-4-0-250828", prompt="x", status=status, run=1, attempts=1,
        unknowns=0, lease=1, created_at=datetime(2026, 1, 1, tzinfo=UTC), version=3,
        error_details=DETAILS | {"category": category} if status is Status.FAILED else None,
        result={"images": [{"url": "https://i.example/1", "size": None, "expiresAt": None}]}
        if status is Status.COMPLETED
        else None,
    )  # fmt: skip


def conforms(kind: str, sent: str | bytes) -> None:
    """Raise where a client that trusts the schema would stumble."""
    msgspec.json.decode(sent, type=KINDS[kind])


def without_words(schema: Any) -> Any:
    """Leave out the docstrings: a better sentence changes nothing for a client."""
    if isinstance(schema, list):
        return [without_words(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: without_words(value) for key, value in schema.items() if key != "description"}


def test_the_schemas_are_made_anew_after_a_change() -> None:
    made: dict[Path, str] = MADE["schemas"]()
    for path, text in made.items():
        assert without_words(json.loads(path.read_text())) == without_words(json.loads(text)), path.name
    assert {path.name for path in made} == {path.name for path in (ROOT / "docs/schemas").iterdir()}


@pytest.mark.parametrize("category", list(Category))
@pytest.mark.parametrize("status", list(EVENTS))
def test_events_and_items_are_what_the_schemas_say(status: Status, category: Category) -> None:
    row = session(status, category)
    told = row.error_details or row.result
    change = sse.Change(
        "ann", 1, 1, str(row.id), status, row.model, row.client_key, row.run, is_old=False, told=told
    )
    (event,) = sseclient.SSEClient(iter([sse.changed(change, "c3")])).events()
    conforms(EVENTS[status], event.data)
    item = msgspec.json.encode(sse.item(row), enc_hook=str)
    conforms("session", item)
    gate = sse.gate_for_users(Gate("seedream4", GateState.CLOSED))
    page = {"sessions": [msgspec.Raw(item)], "next": None, "lastEventId": "c3", "gate": gate}
    conforms("sessions", msgspec.json.encode(page))


@pytest.mark.parametrize("path", sorted((ROOT / "docs/streams").glob("*.sse")), ids=lambda path: path.stem)
def test_recorded_streams_are_what_the_schemas_say(path: Path) -> None:
    for event in sseclient.SSEClient(iter([path.read_bytes()])).events():
        if event.event in KINDS:
            conforms(event.event, event.data)
    recorded = json.loads(path.with_suffix(".json").read_text())
    for item in [*recorded["before"], *recorded["then"]]:
        conforms("session", json.dumps(item))


def test_the_types_for_clients_name_every_field_and_category() -> None:
    types = (PACKAGE / "page" / "types.d.ts").read_text("utf-8")
    told = types.partition("interface DetailsOfAll")[2].partition("export interface ClosedDetails")[0]
    assert set(re.findall(r"^  (\w+): ", told, re.MULTILINE)) == set(ErrorDetails.__struct_encode_fields__)
    named = set(
        re.findall(r"'(\w+)'", types.partition("type OpenCategory")[2].partition("type Category ")[0])
    )
    assert named >= set(Category)

"""Events, cursors, and what users may see."""

from typing import Any
from uuid import uuid4

import pytest
import sseclient
from hypothesis import given
from hypothesis import strategies as st

from genctl.domain import sse
from genctl.domain.model import Category, Status

CURSORS = sse.Cursors(b"k" * 32)
TEXT = st.text(st.characters(), max_size=60) | st.sampled_from(
    ["a\nevent: done\ndata: {}\n\n", "\r\n\r\n", "\x00", "\u2028", "\u202eevil", "\x1b[31m", "\ud800", "\x85"]
)


def change(status: Status, told: Any, **facts: Any) -> sse.Change:
    base: dict[str, Any] = {
        "user_id": "ann", "head": 7, "version": 7, "id": str(uuid4()), "model": "seedream-4-0-250828",
        "client_key": None, "run": 1, "is_old": False,
    }  # fmt: skip
    return sse.Change(status=status, told=told, **base | facts)


@given(TEXT, TEXT, TEXT)
def test_no_text_of_anybody_can_end_a_line_or_add_an_event(key: str, model: str, message: str) -> None:
    details = {"category": "content_policy", "providerMessage": message, "userMessage": message}
    text = sse.changed(change(Status.FAILED, details, client_key=key, model=model), "ID")
    assert text.isascii()
    assert b"\0" not in text
    assert text.count(b"\n") == 4
    assert b"\r" not in text
    (event,) = sseclient.SSEClient(iter([text])).events()
    assert (event.event, event.id) == ("failed", "ID")


@given(st.text(max_size=30), st.integers(0, 2**60), st.booleans())
def test_a_cursor_reads_back_for_its_user_alone(user: str, version: int, ready: bool) -> None:
    cursor = CURSORS.write(user, version, ready=ready)
    assert CURSORS.read(user, cursor) == version
    assert CURSORS.read(user + "x", cursor) is None
    assert sse.Cursors(b"another key").read(user, cursor) is None


@given(st.text(max_size=50) | st.binary(min_size=24, max_size=24).map(lambda b: b.hex()[:32]))
def test_a_cursor_of_rubbish_means_nothing(text: str) -> None:
    assert CURSORS.read("ann", text) is None


def test_ready_and_the_row_of_the_same_version_have_two_ids() -> None:
    assert CURSORS.write("ann", 7) != CURSORS.write("ann", 7, ready=True)


@pytest.mark.parametrize(
    ("status", "name", "brings"),
    [
        (Status.FAILED, "failed", "error_details"),
        (Status.COMPLETED, "done", "result"),
        (Status.QUEUED, "queued", None),
        (Status.PROCESSING, "queued", None),
    ],
)
def test_the_event_is_the_state_of_the_row(status: Status, name: str, brings: str | None) -> None:
    (event,) = sseclient.SSEClient(iter([sse.changed(change(status, {"code": "X"}), "I")])).events()
    assert event.event == name
    for field in ("error_details", "result"):
        assert (f'"{field}"' in event.data) is (field == brings)


@pytest.mark.parametrize("category", list(Category))
def test_users_read_the_provider_only_where_it_speaks_of_their_request(category: Category) -> None:
    names = ("providerStatus", "providerCode", "providerMessage", "providerBody", "requestId")
    stored: dict[str, Any] = dict.fromkeys(names, "x") | {
        "category": str(category), "code": "C", "userMessage": "m", "refundedCredits": 4, "refundError": None,
    }  # fmt: skip
    seen = sse.for_user(stored)
    assert seen
    assert seen.keys() == stored.keys()
    spoken = category in {Category.CONTENT_POLICY, Category.INVALID_REQUEST}
    assert [seen[name] for name in names] == ["x" if spoken else None] * 5
    assert (seen["code"], seen["userMessage"], seen["refundedCredits"]) == ("C", "m", 4)


def test_what_the_database_said_of_a_refund_is_not_for_users() -> None:
    seen = sse.for_user({"category": "server", "refundError": 'violates constraint "x" of table y'})
    assert seen == {"category": "server", "refundError": sse.LATER}

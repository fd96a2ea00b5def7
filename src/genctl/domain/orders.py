"""Check what a user may order, before we reserve anything."""

from collections.abc import Iterator
from itertools import chain
from typing import Any
from uuid import UUID

import msgspec

from genctl.domain.model import GenctlError

LONGEST_PROMPT = 10_000  # characters; the providers advise far less and set no limit
LONGEST_NAME = 200  # characters of a user id, a client key, an idempotency key
MOST_CREDITS = 2**53  # JSON's readers tell numbers apart up to here


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Hold an order for one image; `cost` in credits."""

    session_id: UUID
    reservation_id: UUID
    user_id: str
    prompt: str
    model: str
    cost: int
    client_key: str | None = None
    params: dict[str, Any] | None = None
    idempotency_key: str | None = None


def check(order: Order) -> None:
    """Check an order. Raises GenctlError (exit 2), which says what is wrong with it."""
    check_name("model", order.model)
    check_prompt(order.prompt)
    check_name("user", order.user_id)
    for what, name in (("client key", order.client_key), ("idempotency key", order.idempotency_key)):
        if name is not None:
            check_name(what, name)
    if not 0 < order.cost <= MOST_CREDITS:
        raise _refused("BadCost", f"a job cannot cost {order.cost} credits", "name a whole number above 0")


def check_prompt(prompt: str) -> None:
    """Check a prompt. Raises GenctlError (exit 2)."""
    if not prompt.strip():
        raise _refused("BadPrompt", "the prompt is empty", "say what the image shall show")
    if len(prompt) > LONGEST_PROMPT:
        raise _refused("BadPrompt", f"the prompt is longer than {LONGEST_PROMPT:,} characters", "shorten it")
    check_text("prompt", prompt, "BadPrompt")


def check_name(what: str, name: str) -> None:
    """Check an id of a user or a client. Raises GenctlError (exit 2)."""
    check_text(what, name, "BadName")
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        told = f"the {what} {name[:40]!r} is empty, too long or not printable"
        raise _refused("BadName", told, f"use 1 to {LONGEST_NAME} printable characters")


def change(text: str) -> tuple[str, Any]:
    """Split `key=value`; read the value as JSON if it is, else as text. Raises GenctlError (exit 2)."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise _refused("BadChange", f"{text!r} is no change", "write key=value, such as size=2K")
    check_text(f"value of {key!r}", text, "BadChange")
    try:
        meant = msgspec.json.decode(value)
    except msgspec.DecodeError:
        meant = value
    check_value(key, meant)
    return key, meant


def check_value(what: str, value: Any) -> None:
    """Check all texts in a value of JSON, as check_text() does."""
    for part in _texts(value):
        check_text(f"value of {what}", part, "BadChange")


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            yield from chain.from_iterable(map(_texts, value))
        case dict():
            yield from chain.from_iterable(map(_texts, chain.from_iterable(value.items())))


def check_text(what: str, text: str, code: str) -> None:
    """Raise GenctlError (exit 2) for NUL and for bytes that are no UTF-8: PostgreSQL cannot store them."""
    if "\0" in text:
        raise _refused(code, f"the {what} holds a NUL character", "remove it")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _refused(code, f"the {what} is not valid UTF-8", "check the terminal's or the file's encoding")


def _refused(code: str, message: str, fix: str) -> GenctlError:
    return GenctlError(code, message, fix, exit_code=2)

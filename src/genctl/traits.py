"""Count the values that the provider keeps refusing, and refuse orders with them before anybody pays.

A user's refusals stop that user's orders with the value; those of two users stop everybody's. After a while
one order may try it; a success, or `genctl resume`, lets all orders pass again.
"""

from collections.abc import Mapping, Sequence

import msgspec

from genctl.domain.orders import Order
from genctl.domain.traits import Refused, Trait, Traits, traits_of
from genctl.edges.db import Database, Statement, as_json
from genctl.tools import Tool

ENOUGH = 5  # refusals of one user's orders with a trait, within WINDOW_S
WINDOW_S = 600.0
FIRST_S = 300.0  # orders are refused for so long, after each try that fails for twice as long
LONGEST_S = 3600.0
TRY_S = 120.0  # from one try to the next when the first shows nothing

Noted = tuple[Trait, str, str]  # and user, and code


async def tell(
    db: Database, tool: str, sound: Traits, refusals: Mapping[Noted, int], *, lock_s: float
) -> None:
    """Let orders with the traits in `sound` pass again, then count the refusals that named a trait."""
    items = [
        {"field": field, "value": value, "user_id": user, "code": code, "count": count}
        for ((field, value), user), (code, count) in _rows(refusals).items()
    ]
    times = {"enough": ENOUGH, "window_s": WINDOW_S, "first_s": FIRST_S, "longest_s": LONGEST_S}
    forget: Statement = ("forget_refused_traits", {"tool": tool, **_columns(sound)})
    note: Statement = ("note_refusals", {"tool": tool, "items": as_json(items), **times})
    await db.transact(*[forget] * bool(sound), *[note] * bool(items), lock_s=lock_s)


def _rows(refusals: Mapping[Noted, int]) -> dict[tuple[Trait, str], tuple[str, int]]:
    """Add up the refusals of each row, as one INSERT cannot change a row twice."""
    rows: dict[tuple[Trait, str], tuple[str, int]] = {}
    for (trait, user, code), count in refusals.items():
        rows[trait, user] = code, rows.get((trait, user), ("", 0))[1] + count
    return rows


async def forget_all(db: Database, tool: str) -> None:
    """Let all orders of a tool pass again."""
    await db.rows("forget_all_refused_traits", tool=tool)


async def standing(db: Database) -> list[Refused]:
    """Return the traits of all tools that we refuse now."""
    return [msgspec.convert(row, Refused) for row in await db.rows("refused_traits")]


async def check(db: Database, tool: Tool, orders: Sequence[Order]) -> None:
    """Raise GenctlError (exit 2) when an order has a value that the provider keeps refusing.

    For an order with no chosen value this asks the database nothing.
    """
    wanted = {(order.user_id, traits_of(order.model, order.params, tool.default_model)) for order in orders}
    for user, traits in sorted(wanted, key=str):
        if traits:
            await _check(db, tool.name, user, traits)


async def _check(db: Database, tool: str, user: str, traits: Traits) -> None:
    rows = await db.rows("refused_traits_of", tool=tool, user=user, **_columns(traits))
    for row in rows:
        if not row["is_due"]:
            raise msgspec.convert(row, Refused).error()
    due = frozenset((row["field"], row["value"]) for row in rows)
    if due and not await db.rows("try_refused_traits", tool=tool, try_s=TRY_S, **_columns(due)):
        raise msgspec.convert(rows[0], Refused).error()  # somebody else was faster


def _columns(traits: Traits) -> dict[str, list[str]]:
    ordered = sorted(traits)
    return {"fields": [field for field, _ in ordered], "values": [value for _, value in ordered]}

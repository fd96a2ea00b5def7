"""The gate: one row that all workers read; every change is a compare-and-set."""

import asyncio

from tests.kit import Kit

from genctl import gate
from genctl.domain.model import GateState

TOOL = "seedream4"


async def test_a_gate_that_nobody_touched_is_open_since_ever(kit: Kit) -> None:
    found = await gate.read(kit.db, TOOL)
    assert found.is_open
    assert found.open_for_s == float("inf")


async def test_a_pause_closes_and_ends_by_itself(kit: Kit) -> None:
    closed = await gate.close(kit.db, TOOL, for_s=3600, reason="trouble", who="ann")
    assert (closed.state, closed.reason, closed.who, closed.is_open) == (
        GateState.CLOSED,
        "trouble",
        "ann",
        False,
    )
    assert closed.open_for_s == 0
    await kit.query("update tool_gates set until = now() - interval '5 s'")
    over = await gate.read(kit.db, TOOL)
    assert over.is_open
    assert 4 < over.open_for_s < 60


async def test_a_person_opens_it_again(kit: Kit) -> None:
    await gate.close(kit.db, TOOL, for_s=None, reason=None, who="ann")
    opened = await gate.open_(kit.db, TOOL, reason=None, who="bob")
    assert opened.is_open
    assert opened.open_for_s < 60


async def test_a_change_of_a_row_that_changed_meanwhile_hits_nothing(kit: Kit) -> None:
    seen = (await gate.close(kit.db, TOOL, for_s=None, reason=None, who="ann")).changed_at
    await gate.open_(kit.db, TOOL, reason=None, who="bob")
    facts = {"tool": TOOL, "state": "closed", "for_s": None, "reason": None, "who": "late", "seen": seen}
    assert await kit.db.rows("turn_gate", **facts) == []
    assert (await gate.read(kit.db, TOOL)).who == "bob"


async def test_many_at_once_all_get_their_turn(kit: Kit) -> None:
    turns = [gate.close(kit.db, TOOL, for_s=60, reason=None, who=str(n)) for n in range(8)]
    assert {turned.who for turned in await asyncio.gather(*turns)} == {str(n) for n in range(8)}


async def test_a_probe_whose_time_has_run_out_lets_nobody_receive(kit: Kit) -> None:
    """Only a person's pause ends by itself; of a breaker's closing one worker wins the probe."""
    await gate.close(kit.db, TOOL, for_s=3600, reason=None, who="breaker")
    await kit.query("update tool_gates set state = 'probing', until = now() - interval '5 s'")
    assert not (await gate.read(kit.db, TOOL)).is_open

"""Bulk work names itself, is listed afterwards, and says why it did nothing."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tests.kit import Kit, until
from tests.path.test_redrive import failed, few_calls_at_once  # noqa: F401 (a fixture)

from genctl.cli.command import typed_again
from genctl.cli.dlq import redrive as redrive_command
from genctl.domain.deadletters import Choice, Tally
from genctl.domain.model import GenctlError
from genctl.ops import bulk
from genctl.ops import redrive as redriving
from genctl.ops.bulk import Errand
from genctl.ops.export import discard
from genctl.ops.redrive import RedriveOptions


def typed(*words: str) -> Callable[..., str]:
    return lambda **changed: " ".join([*words, *(f"{name}={value}" for name, value in changed.items())])


WHY = Errand("dlq redrive", typed("genctl", "dlq", "redrive"), "the provider is back")


async def redriven(
    kit: Kit, choice: Choice | None = None, *, confirm: Callable[[str], object] | None = None, **wish: Any
) -> list[str]:
    """Redrive as a person does who has said --yes, or is asked by `confirm`; what that said."""
    notes: list[str] = []
    options = RedriveOptions(choice=choice or Choice(), **wish)
    errand = msgspec.structs.replace(WHY, confirm=confirm, note=notes.append)
    await redriving.carry_out(kit.settings, options, errand)
    return notes


# -- the history -----------------------------------------------------------------------------------


async def test_bulk_work_is_listed_with_who_when_why_and_what_came_of_it(kit: Kit) -> None:
    await failed(kit)
    await redriven(kit, most=5)
    (past,) = await bulk.history(kit.db, 10)
    assert (past["command"], past["tool"], past["reason"]) == ("dlq redrive", "seedream4", WHY.reason)
    assert "@" in past["who"]
    assert past["beganAt"] <= past["endedAt"]
    assert (past["state"], past["outcome"]["redriven"], past["goOn"]) == ("done", 1, None)


@pytest.mark.parametrize(
    ("end", "state"),
    [(asyncio.CancelledError(), "interrupted"), (GenctlError("X", "SQS is away", ""), "failed")],
)
async def test_work_that_did_not_come_to_its_end_says_how_to_go_on(
    kit: Kit, end: BaseException, state: str
) -> None:
    counts = Tally()
    with pytest.raises(type(end)):
        async with bulk.recorded(kit.db, WHY, counts, left=lambda: {"most": 7 - counts.redriven}):
            counts.redriven = 3
            raise end
    (past,) = await bulk.history(kit.db, 10)
    assert (past["state"], past["outcome"]["redriven"]) == (state, 3)
    assert past["goOn"] == "genctl dlq redrive most=4"


async def test_work_that_came_to_its_end_is_done_also_where_the_database_takes_long(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "END_S", 0.05)
    await kit.query(
        "create function slow() returns trigger language plpgsql as "
        "$$ begin perform pg_sleep(0.2); return new; end $$"
    )
    await kit.query("create trigger slow before update on bulk_work for each row execute function slow()")
    async with bulk.recorded(kit.db, WHY, Tally()):
        pass
    assert [past["state"] for past in await bulk.history(kit.db, 10)] == ["done"]


async def test_work_whose_command_was_killed_stands_as_interrupted(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row has what it last knew, and is running for as long as it may still live."""
    monkeypatch.setattr(bulk, "TOUCH_S", 0.01)
    counts = Tally()

    async def touched() -> bool:
        (past,) = await bulk.history(kit.db, 10)
        return bool(past["outcome"].get("redriven") == 2)

    async with bulk.recorded(kit.db, WHY, counts):
        counts.redriven = 2
        await until(touched)
    await kit.query("update bulk_work set ending = null, ended_at = null")  # as if it had been killed now
    (past,) = await bulk.history(kit.db, 10)
    assert (past["state"], past["goOn"]) == ("running", None)
    await kit.query("update bulk_work set seen_at = now() - interval '31 s'")
    (past,) = await bulk.history(kit.db, 10)
    assert (past["state"], past["outcome"]["redriven"]) == ("interrupted", 2)
    assert past["goOn"] == "genctl dlq redrive"


async def test_work_that_found_nothing_to_ask_about_is_listed_for_a_year(kit: Kit) -> None:
    await failed(kit, "sensitive")
    assert await redriven(kit, confirm=pytest.fail) == [
        "nothing to redrive: left where it is: 1 content policy"
    ]
    nothing = msgspec.structs.replace(WHY, confirm=pytest.fail)
    await discard(kit.settings, Choice(user="bob"), None, nothing)
    discarded, past = await bulk.history(kit.db, 10)
    assert (past["state"], past["outcome"]["skipped"]) == ("done", {"content policy": 1})
    assert (discarded["state"], discarded["outcome"]["discarded"]) == ("done", 0)
    await kit.query("update bulk_work set began_at = now() - interval '366 days'")
    await redriven(kit)
    assert [work["id"] for work in await bulk.history(kit.db, 10)] == [past["id"] + 2]


async def test_a_secret_in_the_command_is_not_in_the_history(kit: Kit) -> None:
    why = Errand("dlq redrive", typed("genctl", "-S", "database_url=postgresql://ann:hunter22@db/x"))
    async with bulk.recorded(kit.db, why, Tally()):
        pass
    (row,) = await kit.query("select again from bulk_work")
    assert "hunter22" not in row["again"]


@pytest.mark.parametrize("reason", ["", " ", "x" * 1001, "a\0b"])
def test_a_reason_that_says_nothing_is_refused(reason: str) -> None:
    with pytest.raises(GenctlError) as caught:
        Errand("dlq redrive", typed("genctl"), reason)
    assert (caught.value.code, caught.value.exit_code) == ("BadReason", 2)


def test_a_command_that_is_written_again_means_the_same_at_any_time() -> None:
    words = ["--since", "2h", "--max", "9", "--rate", "0.5", "--set", "size=2K", "--set", "n=1", "-o", "json"]
    words += ["--edit-prompt", "it's dusk", "--yes=prod", "--timeout", "90s", "-S", "log=json"]
    with redrive_command.make_context("genctl dlq redrive", list(words)) as context:
        again = typed_again(context)
        since = context.params["since"]
        written = again()
    assert f"--since {since:%Y-%m-%dT%H:%M:%S}." in written
    for part in ("--max 9", "--rate 0.5", "--set size=2K --set n=1", "--yes=prod", "--setting log=json"):
        assert part in written
    assert "--edit-prompt 'it'\"'\"'s dusk'" in written
    assert ("--output" in written, "--timeout 90s" in written) == (False, True)
    assert "--max 4" in again(most=4)
    assert "--max" not in again(most=None)


# -- nothing to redrive ----------------------------------------------------------------------------


async def test_a_redrive_of_nothing_says_why(kit: Kit) -> None:
    (said,) = await redriven(kit)
    assert said.endswith("-dlq is empty")
    await failed(kit)
    await failed(kit, "sensitive")
    (said,) = await redriven(kit, Choice(user="nobody"))
    assert "the filter took none of 2 messages" in said
    assert await redriven(kit, Choice(user="ann")) == []  # one was redriven
    (said,) = await redriven(kit)
    assert said == "nothing to redrive: left where it is: 1 content policy"
    held = await kit.pipeline.dlq.receive(10, wait_s=1, visibility_s=60)
    (said,) = await redriven(kit)
    assert "somebody else has received about 1 message" in said
    await kit.query("update generation_sessions set model = 'flux-1'")
    await kit.pipeline.dlq.hide([(message.receipt, 0) for message in held])
    (said,) = await redriven(kit)
    assert said == "nothing to redrive: left where it is: 1 another tool's"

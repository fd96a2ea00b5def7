"""The judge on a deployment that is not ours: green when it is sound, and each fault is named by its hop."""

import asyncio
import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from uuid import uuid4

import psycopg
import pytest
from tests.smoke.conftest import Judged, Land, judge

from genctl.domain.model import GenctlError
from genctl.edges.sqs import Sqs
from genctl.ops.sampling import look
from genctl.ops.smoke.hop import HOPS, NOT_TRIED

# What is wrong, the hop that is broken by it, and what smoke says of it.
FAULTS = {
    "not accepted": ("accepted", "202 for the order, found 500"),
    "accepted without a row": ("accepted", "expected the session's row, found none"),
    "not enqueued": ("claimed", "0 messages waiting, 0 taken: was it sent?"),
    "no worker": ("claimed", "1 message waiting, 0 taken: nobody takes them"),
    "never settled": ("row", "found processing"),
    "the provider makes the image": ("row", "found the session completed"),
    "no completed_at": ("row", "found failed, completed_at None"),
    "no details": ("details", "it is null, not an object"),
    "keys missing": ("details", "outcome is missing; requestId is missing"),
    "our own key left in": ("details", "providerBody holds a secret"),
    "still held": ("refund", "found held"),
    "no refund": ("refund", "back at 100, found 96"),
    "a double refund": ("refund", "back at 100, found 104"),
    "a double refund that comes late": ("refund", "back at 100, found 104"),
    "a wrong amount": ("refund", "back at 100, found 99"),
    "a refund that is only told": ("refund", "expected 4 credits in error_details, with refundedAt"),
    "no NOTIFY": ("notify", "for the session, found none"),
    "NOTIFY before the commit": ("notify", "found a row that was still processing"),
    "a payload with other keys": ("notify", 'expected the NOTIFY to say {"user_id"'),
    "a payload without the session": ("notify", "which names no session"),
    "no stream": ("sse", "it answered 404"),
    "a stream that hangs": ("sse", "it has not sent `ready`"),
    "no event": ("sse", "stream, found none"),
    "an event without details": ("sse", "in the event's error_details, found None"),
    "another user's stream": ("isolation", "expected silence on another user's stream"),
    "another user's GET": ("isolation", "expected 404 for another user's GET of the session, found 200"),
    "no DLQ copy": ("dlq", "found none among 1 message"),
    "a bare DLQ copy": ("dlq", "none called code, category, sessionId"),
    "a changed DLQ body": ("dlq", "expected the original body"),
}
WAITED_FOR = {  # what is missing shows by the time-out alone
    "not enqueued", "no worker", "never settled", "no completed_at", "no stream", "a stream that hangs", "no event",
    "no DLQ copy",
}  # fmt: skip


async def judged(land: Land, fault: str | None, timeout_s: float = 20.0, user: str | None = None) -> Judged:
    async with land.foreign(fault).running() as there:
        return await judge(land.settings(there.url), timeout_s=timeout_s, user=user)


async def test_a_sound_one_is_green_and_nothing_of_ours_stays(land: Land) -> None:
    """Others' copies stay too, unhidden; the guest's credits are gone."""
    others = land.leave_in_the_dlq(3)
    said = await judged(land, None)
    assert said.broken is None, said.why
    assert list(said.hops) == list(HOPS)
    assert all(hop.evidence and hop.ms is not None and not hop.why for hop in said.hops.values())
    assert sorted(land.bodies()) == sorted(others)
    assert (land.hidden(), land.balances()) == (0, [0])
    assert [re.sub("(?<=[ -])[0-9a-f][0-9a-f-]{11,35}", "ID", note) for note in said.notes] == [
        "left behind: session ID (failed) with its reservation",
        "left behind: user genctl-smoke-ID with 0 credits",
    ]


@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_is_named_by_its_hop(land: Land, fault: str) -> None:
    """Expected, found, where to look. What comes behind was not tried; of the credits none stays."""
    hop, words = FAULTS[fault]
    land.leave_in_the_dlq(1)
    said = await judged(land, fault, timeout_s=3.0 if fault in WAITED_FOR else 20.0)
    assert (said.broken, words in said.why) == (hop, True), said.why
    assert re.fullmatch(r"(?s)expected .+, found .+; look at .+", said.why)
    place = HOPS.index(hop)
    assert [h.ok for h in said.hops.values()] == [n < place for n in range(len(HOPS))]
    assert {h.why for h in list(said.hops.values())[place + 1 :]} <= {NOT_TRIED}
    surplus = 4 if fault.startswith("a double refund") else 0
    assert (land.hidden(), land.balances()) == (0, [surplus])
    evidence = hop == "dlq" and fault != "no DLQ copy"
    assert len(land.bodies()) == 1 + evidence
    assert any("as evidence" in note for note in said.notes) == (hop == "dlq")


async def test_a_stream_without_ids_is_told_as_evidence(land: Land) -> None:
    """Who listened from the beginning is told all the same; only coming back is not possible."""
    said = await judged(land, "an event without an id")
    assert said.broken is None, said.why
    assert said.hops["sse"].evidence.endswith("but without an id of its own")


async def test_an_existing_user_pays_and_is_paid_back(land: Land) -> None:
    """Their balance and what they hold are theirs: nothing is lent, nothing taken."""
    land.sql("insert into credit_accounts values ('tester', 9)")
    land.sql("insert into credit_reservations values (gen_random_uuid(), 'tester', 5, 'held', now())")
    said = await judged(land, None, user="tester")
    assert said.broken is None, said.why
    assert land.balances() == [9]


async def test_other_jobs_of_the_user_do_not_disturb(land: Land) -> None:
    """Reserved, captured, released meanwhile: the sum of balance and reservations tells them from a refund."""
    land.sql("insert into credit_accounts values ('tester', 1000)")

    async def live() -> None:
        async with await psycopg.AsyncConnection.connect(land.dsn, autocommit=True) as conn:
            while True:
                for amount, status in ((-7, "captured"), (-3, "held"), (0, "released")):
                    async with conn.transaction():
                        await conn.execute(
                            "update credit_accounts set balance = balance + %s where user_id = 'tester'",
                            (amount,),
                        )
                        await conn.execute(
                            "insert into credit_reservations values (gen_random_uuid(), 'tester', %s, %s)",
                            (-amount, status),
                        )
                    await asyncio.sleep(0.01)

    living = asyncio.create_task(live())
    try:
        said = await judged(land, None, user="tester")
    finally:
        living.cancel()
        with suppress(asyncio.CancelledError):
            await living
    assert said.broken is None, said.why


async def test_a_ledger_of_another_shape_is_left_alone(own_land: Land) -> None:
    own_land.sql("create table credit_ledger (entry text)")
    said = await judged(own_land, None)
    assert (said.broken, own_land.balances()) == (None, [0]), said.why


async def test_a_table_without_error_details_is_named(own_land: Land) -> None:
    """Each query degrades; what is missing shows at its hop."""
    own_land.sql("alter table generation_sessions rename column error_details to details")
    foreign = own_land.foreign()
    foreign.column = "details"
    async with foreign.running() as there:
        said = await judge(own_land.settings(there.url))
    assert (said.broken, "null" in said.why) == ("details", True), said.why


# -- bad input --------------------------------------------------------------------------------------


async def test_a_token_of_another_secret_breaks_the_first_hop(land: Land) -> None:
    async with land.foreign().running() as there:
        said = await judge(land.settings(there.url, secret="another secret of at least 32 bytes"))
    assert said.broken == "accepted"
    assert "found 401" in said.why
    assert "GENCTL_SECRET" in said.why
    assert land.balances() == [0]


async def test_a_user_without_credits_breaks_the_first_hop(land: Land) -> None:
    said = await judged(land, None, user="pauper")
    assert (said.broken, said.notes) == ("accepted", [])
    assert "found 402" in said.why
    assert "the balance of pauper" in said.why


async def test_an_order_that_hangs_breaks_the_first_hop_in_time(land: Land) -> None:
    began = time.monotonic()
    said = await judged(land, "the order hangs", timeout_s=3.0)
    assert (said.broken, land.balances()) == ("accepted", [0])
    assert "no answer in the" in said.why
    assert time.monotonic() - began < 8


async def test_what_cannot_be_reached_before_the_first_hop_is_exit_3(land: Land) -> None:
    """Which, where, how to mend it; and nothing was made."""
    nobody = "http://127.0.0.1:9"
    async with land.foreign().running() as there:
        for settings, code in (
            (land.settings(nobody), "ApiUnreachable"),
            (land.settings(there.url, queue=f"no-{uuid4().hex}"), "QueueNotFound"),
            (land.settings(there.url, secret=None), "NoSecret"),
        ):
            with pytest.raises(GenctlError) as raised:
                await judge(settings)
            error = raised.value
            assert (error.code, error.exit_code) == (code, 3)
            assert error.fix
    assert land.balances() == []


async def test_an_api_that_hangs_is_exit_3_in_time(land: Land) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(GenctlError) as raised:
            await judge(land.settings(f"http://127.0.0.1:{silent.getsockname()[1]}"), timeout_s=1.0)
    assert (raised.value.code, raised.value.exit_code) == ("DeploymentSilent", 3)
    assert time.monotonic() - began < 6
    assert land.balances() == []


async def test_an_interruption_takes_credits_and_copy_back(land: Land) -> None:
    """Ctrl-C while the job is under way: its end is waited for, so that nothing of it comes later."""
    async with land.foreign("no worker").running() as there:
        smoking = asyncio.create_task(judge(land.settings(there.url)))
        while not land.sql("select from generation_sessions"):
            await asyncio.sleep(0.02)
        there.later.append(asyncio.create_task(there.work()))
        smoking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await smoking
    (row,) = land.sql("select status from generation_sessions")
    assert (row["status"], land.balances(), land.bodies(), land.hidden()) == ("failed", [0], [], 0)


async def test_a_look_that_is_cut_off_hides_nothing(land: Land, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SQS was about to hand over is waited for and shown again, also when that is cut off."""
    others = land.leave_in_the_dlq(25)
    async with await Sqs.connect(land.settings("http://127.0.0.1:9")) as sqs:
        dlq = await sqs.queue(f"{land.name}-dlq")
        for delay_s in (0.0, 0.005, 0.01, 0.02, 0.03, 0.05):
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await look(dlq)
            assert land.hidden() == 0
        hide, looking = dlq.hide, asyncio.create_task(look(dlq))

        async def cut_off(items: Sequence[tuple[str, int]]) -> list[str | None]:
            looking.cancel()
            return await hide(items)

        with monkeypatch.context() as patched, pytest.raises(asyncio.CancelledError):
            patched.setattr(dlq, "hide", cut_off)
            await looking
        assert land.hidden() == 0
        assert sorted(message.body for message in await look(dlq)) == sorted(others)

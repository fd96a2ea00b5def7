"""Every scenario of the simulator ends as the table in docs/scenarios.md says: row, refund, copy, event.

All of them go through one worker, one database and one stream at once, beside each other as in life.
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.ears import Event, served
from tests.kit import Kit, told_by_the_database

from genctl.domain.model import Failure, Session, rfc3339
from genctl.edges.sqs_shapes import Message
from genctl.enqueue import enqueue
from genctl.ops.smoke.sound import details_complaints
from genctl.services.scenarios import SCENARIOS
from genctl.tools.seedream4 import TOOL

PAGE = Path(__file__).parents[2] / "docs" / "scenarios.md"
SHOWN = ("content_policy", "invalid_request")  # of these a user reads the provider's own words


class Expected(msgspec.Struct, frozen=True):
    """A line of the page's table; cells after `attempts` are empty where there is no failure."""

    scenario: str
    does: str
    status: str
    attempts: int
    code: str
    category: str
    verdict: str
    outcome: str
    http: int | None
    reads: str


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n").split("|")]


def _expected(line: str) -> Expected:
    scenario, does, status, attempts, code, category, verdict, outcome, http, reads = _cells(line)
    return Expected(
        scenario.strip("`"), does, status, int(attempts), code.strip("`"), category, verdict, outcome,
        int(http) if http else None, reads,
    )  # fmt: skip


TABLE = [_expected(line) for line in PAGE.read_text().splitlines() if line.startswith("| `")]


@dataclasses.dataclass
class Ended:
    """What one scenario left behind."""

    row: Session
    ledger: list[tuple[str, int]]
    held_as: str
    copies: list[Message]
    events: list[Event]
    notified: int


def test_the_page_lists_what_the_simulator_can_do() -> None:
    assert [(e.scenario, e.does) for e in TABLE] == [(s.name, s.does) for s in SCENARIOS.values()]


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Retries are due at once; what Retry-After asked for."""
    asked: list[float | None] = []

    def backoff_s(failure: Failure, _: int, *, random: float) -> float:
        asked.append(failure.retry_after_s)
        return 0.0

    monkeypatch.setattr("genctl.pipeline.backoff_s", backoff_s)
    return asked


async def test_every_scenario_ends_as_the_page_says(
    kit: Kit, dsn: str, delays: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = msgspec.structs.replace(SCENARIOS["slow-success"], after_s=0.5)
    monkeypatch.setitem(SCENARIOS, "slow-success", slow)
    kit.shorten_the_call(3.0)
    with told_by_the_database(dsn) as heard:
        async with served(kit.settings) as client, client.stream() as ear:
            await ear.ready()
            orders = [kit.order(name) for name in SCENARIOS]
            made = await enqueue(orders, db=kit.db, queue=kit.pipeline.queue, tool=TOOL.name, opening=1000)
            sessions = dict(zip(SCENARIOS, made.sessions, strict=True))
            await kit.drain()
            await ear.until(lambda ear: len(ear.told) >= len(sessions))
            events = ear.told
        told = Counter(json.loads(payload)["session_id"] for payload in heard())
    copies = await dead_letters(kit)
    wrong = {}
    for expected in TABLE:
        session = sessions[expected.scenario]
        ended = Ended(
            row=await kit.row(session),
            ledger=await movements(kit, session),
            held_as=await held_as(kit, session),
            copies=[copy for copy in copies if copy.body == kit.body(session)],
            events=[event for event in events if event.data["sessionId"] == str(session.id)],
            notified=told[str(session.id)],
        )
        if complaints := complain(expected, ended, kit.pipeline.queue.name):
            wrong[expected.scenario] = complaints
    assert wrong == {}
    failed = sum(expected.status == "failed" for expected in TABLE)
    assert len(copies) == failed
    assert await kit.balance() == 1000 - 4 * (len(TABLE) - failed)
    assert await kit.violations() == []
    assert delays.count(1.0) == 3  # rate-limit twice, rate-limit-once once
    assert set(delays) == {None, 1.0}


def refused_of(expected: Expected) -> list[str | None]:
    """The codes of the images that the scenario's set lacks."""
    return [image.code for image in SCENARIOS[expected.scenario].images if image.code]


def complain(expected: Expected, ended: Ended, queue: str) -> list[str]:
    """Where the two differ."""
    row, details = ended.row, ended.row.details
    seen: dict[str, tuple[Any, Any]] = {
        "status": (row.status, expected.status),
        "attempts": (row.attempts, expected.attempts),
        "notified": (ended.notified, 1),
    }
    if expected.status == "completed":
        seen |= {
            "movements": (ended.ledger, [("reserve", -4), ("capture", 0)]),
            "refused": ([one["code"] for one in (row.result or {}).get("refused", [])], refused_of(expected)),
            "held as": (ended.held_as, "captured"),
            "copies": (len(ended.copies), 0),
            "details": (row.error_details, None),
            "events": (
                [(event.name, event.data["result"]) for event in ended.events],
                [("done", row.result)],
            ),
        }
        return differences(seen) + ([] if row.result and row.result["images"] else ["no image"])
    told = [event.data.get("error_details", {}) for event in ended.events]
    seen |= {
        "movements": (ended.ledger, [("reserve", -4), ("release", 4)]),
        "held as": (ended.held_as, "released"),
        "code": (details.get("code"), expected.code),
        "category": (details.get("category"), expected.category),
        "fatal": (details.get("fatal"), expected.verdict == "fatal"),
        "outcome": (details.get("outcome"), expected.outcome),
        "providerStatus": (details.get("providerStatus"), expected.http),
        "attempts in the details": (details.get("attempts"), expected.attempts),
        "refundedCredits": (details.get("refundedCredits"), 4),
        "refundError": (details.get("refundError"), None),
        "copies": ([copy.attributes for copy in ended.copies], [attributes(expected, row, queue)]),
        "events": ([event.name for event in ended.events], ["failed"]),
        "told code": ([one.get("code") for one in told], [expected.code]),
        "told sentence": ([one.get("userMessage") for one in told], [details.get("userMessage")]),
        "told the provider's words": (
            [bool(one.get("providerMessage")) for one in told],
            [expected.category in SHOWN],
        ),
    }
    reads, sentence = details.get("userMessage", ""), expected.reads
    fits = (
        reads.startswith(sentence[:-1]) and reads.endswith("…")
        if sentence.endswith("…")
        else reads == sentence
    )
    return differences(seen) + details_complaints(details) + ([] if fits else [f"user reads {reads}"])


def differences(seen: dict[str, tuple[Any, Any]]) -> list[str]:
    return [f"{what}: {found}, not {wanted}" for what, (found, wanted) in seen.items() if found != wanted]


def attributes(expected: Expected, row: Session, queue: str) -> dict[str, str]:
    """What the copy says beside the job's body."""
    copied = {
        "code": expected.code,
        "category": expected.category,
        "sessionId": str(row.id),
        "run": "1",
        "attempts": str(expected.attempts),
        "firstFailedAt": rfc3339(row.first_failed_at),
        "failedAt": row.details.get("failedAt"),
        "sourceQueue": queue,
        "providerStatus": str(expected.http) if expected.http else None,
    }
    return {name: value for name, value in copied.items() if value is not None}


async def dead_letters(kit: Kit) -> list[Message]:
    """All messages of the DLQ."""
    found: list[Message] = []
    while messages := await kit.pipeline.dlq.receive(10, wait_s=0, visibility_s=60):
        found += messages
    return found


async def movements(kit: Kit, session: Session) -> list[tuple[str, int]]:
    rows = await kit.query(
        "select kind, delta from credit_ledger where reservation_id = %s order by id", session.reservation_id
    )
    return [(row["kind"], row["delta"]) for row in rows]


async def held_as(kit: Kit, session: Session) -> str:
    rows = await kit.query("select status from credit_reservations where id = %s", session.reservation_id)
    return str(rows[0]["status"])

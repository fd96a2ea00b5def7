"""From figures to lines: what needs a person, in figures of a healthy and of a sick deployment."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from genctl.base.settings import Settings
from genctl.domain import status
from genctl.domain.model import Gate, GateState, GenctlError
from genctl.domain.refusals import Notifying, terminate
from genctl.domain.status import ATTENTION, OK, Depth, FailureCount, Pile, Standing, StatusLine
from genctl.ops import doctor as ops_doctor
from genctl.ops import status as ops_status

OPEN = Gate("seedream4")
CLOSED = replace(OPEN, state=GateState.CLOSED)
AT = datetime(2025, 11, 2, 9, 30, tzinfo=UTC)


def line(
    part: str,
    piles: dict[str, Pile] | None = None,
    *,
    failures: Sequence[FailureCount] = (),
    gate: Gate = OPEN,
) -> StatusLine:
    lines = status.of_database(Standing(piles or {}, failures, [gate]))
    return next(line for line in lines if line.part == part)


# part, piles -> level, message
CASES: list[tuple[str, dict[str, Pile], str, str]] = [
    ("owed", {}, OK, "none"),
    ("owed", {"jobs_owed": Pile(2, 61)}, OK, "2 without job message (the longest for 1 min)"),
    ("owed", {"copies_owed": Pile(1, 121)}, ATTENTION, "1 without DLQ copy (for 2 min): is a sweeper running?"),
    ("leases", {"dead_leases": Pile(1, 14)}, OK, "1 dead (for 14 s)"),
    ("leases", {"dead_leases": Pile(3, 90)}, ATTENTION, "3 dead (the longest for 2 min): is a sweeper running?"),
    ("refunds", {}, OK, "none is pending"),
    ("refunds", {"refunds_pending": Pile(1, 1)}, ATTENTION, "1 pending (for 1 s)"),
    ("sessions", {"queued": Pile(9, 301)}, ATTENTION, "9 queued (the longest for 5 min); 0 processing: is a worker running?"),
    ("sessions", {"queued": Pile(9, 301), "processing": Pile(1, 2)}, OK, "9 queued (the longest for 5 min); 1 processing (for 2 s)"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "piles", "level", "message"), CASES)
def test_what_waits_too_long_needs_a_person(
    part: str, piles: dict[str, Pile], level: str, message: str
) -> None:
    found = line(part, piles)
    assert (found.level, found.message) == (level, message)
    assert found.next.startswith("genctl ")


def test_what_an_ok_line_says_next_makes_no_trouble() -> None:
    """It shows more, whoever types it; only a person's own closing is offered its end."""
    lines = status.of_database(Standing({}, [], [OPEN]))
    changing = ("pause", "resume", "migrate", "worker", "refunds check --fix", "dlq redrive", "dlq discard")
    wrong = [
        one for one in lines if one.level == OK and one.next.removeprefix("genctl ").startswith(changing)
    ]
    assert [one for one in wrong if one.next != "genctl migrate status"] == []


@pytest.mark.parametrize(
    ("gate", "level"),
    [
        (OPEN, OK),
        (replace(CLOSED, who="ann@desk", reason="maintenance", until=AT), OK),
        (replace(CLOSED, who="breaker@desk", until=AT), OK),
        (replace(CLOSED, who="breaker host:1", reason="401 AuthenticationError"), ATTENTION),
        (replace(OPEN, state=GateState.PROBING, who="host:1"), ATTENTION),
    ],
    ids=["open", "by a person", "by a person of that name", "by the breaker", "probing"],
)
def test_a_gate_that_no_person_has_closed_needs_one(gate: Gate, level: str) -> None:
    found = line("gate", gate=gate)
    assert found.level == level
    assert (gate.reason or "") in found.message
    assert found.next.endswith(f" {gate.tool}")  # with several tools, the command is about this one


def test_a_code_that_no_table_has_is_a_warning_on_its_first_day() -> None:
    """The one that is newest stands first; a code that is a day old, or known, is none."""
    counts = {"Odd": 2, "Odder": 7, "Old": 1, "Timeout": 3}
    failures = [FailureCount(code, "server", count) for code, count in counts.items()]
    ages = {"Odd": 600.0, "Odder": 40.0, "Old": status.NEW_S}
    lines = status.of_database(Standing({}, failures, [OPEN], unknown=ages))
    (found,) = [line for line in lines if line.part == "codes"]
    assert found.level == "warning"
    assert found.message.startswith("no table has Odder (7, first 40 s ago), Odd (2, first 10 min ago): ")
    assert not [one for one in status.of_database(Standing({}, failures, [OPEN])) if one.part == "codes"]


def test_of_what_a_breaker_has_closed_it_is_told_when_a_job_is_tried() -> None:
    closed = replace(CLOSED, who="breaker host:1", reason="a test", until=AT)
    at = "2025-11-02T09:30:00.000Z"
    assert (
        line("gate", gate=closed).message
        == f"seedream4: closed by breaker host:1, one job is tried at {at}: a test"
    )
    probing = line("gate", gate=replace(closed, state=GateState.PROBING)).message
    assert probing == f"seedream4: one job is tried by breaker host:1 until {at}: a test"


def test_behind_a_closed_gate_waiting_is_no_alarm() -> None:
    closed = replace(CLOSED, who="ann@desk")
    assert line("sessions", {"queued": Pile(9, 3000)}, gate=closed).level == OK


def test_failures_are_named_by_their_commonest_codes() -> None:
    counts = {"A": 1, "B": 20, "C": 3, "D": 1, "E": 1}
    found = line("failures", failures=[FailureCount(code, "server", count) for code, count in counts.items()])
    assert found.message == "26 in the last hour: 20 B, 3 C, 1 A, 2 others"


MANY = [FailureCount("A", "server", 9_990), FailureCount("B", "server", 10)]


def test_of_very_many_failures_the_newest_are_counted() -> None:
    found = next(
        line
        for line in status.of_database(Standing({}, MANY, [OPEN], failures_cut=True))
        if line.part == "failures"
    )
    assert found.message == "at least 10,000 in the last hour, the newest: 9,990 A, 10 B"


def test_a_part_behind_a_lock_goes_on_with_the_command_that_frees_it() -> None:
    locked = GenctlError("Locked", "pid 7 holds it", terminate(7))
    assert [line.next for line in status.unreachable("database", locked)] == [terminate(7)]
    away = GenctlError("DatabaseUnreachable", "no answer", "check that it runs")
    assert [line.next for line in status.unreachable("database", away)] == ["genctl doctor"]


async def test_a_lock_in_the_way_of_several_parts_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has waited for it a while longer; two parts that are away for other reasons are two."""

    def locked(idle_s: float) -> Any:
        async def ask(_: Settings) -> Any:
            raise GenctlError("Locked", f"it waits for pid 7 (idle for {idle_s} s)", terminate(7))

        return ask

    async def away(_: Settings) -> Any:
        raise GenctlError("QueueUnreachable", "the queue is away", "check it")

    async def well(_: Settings) -> Any:
        return []

    parts = {"database": locked(0.4), "workers": locked(0.5), "queue": away, "listener": well}
    monkeypatch.setattr(ops_status, "PARTS", parts)
    monkeypatch.setattr(ops_doctor, "CHECKS", parts)
    said = ["it waits for pid 7 (idle for 0.4 s)", "the queue is away"]
    assert [line.message for line in await ops_status.look(Settings())] == said
    assert [line.message for line in await ops_doctor.examine(Settings(), lambda _: None)] == said


@pytest.mark.parametrize(
    ("failures", "message", "next_"),
    [
        ([FailureCount("WorkerCrashed", "internal", 2), FailureCount("SweptTimeout", "internal", 1), FailureCount("X", "server", 7)],
         "3 in the last hour that no user can mend: 2 WorkerCrashed, 1 SweptTimeout",
         "genctl tail-failures --since 1h --no-follow"),
        ([FailureCount("HTTP401", "auth", 1), FailureCount("WorkerCrashed", "internal", 1)],
         "2 in the last hour that no user can mend: 1 HTTP401, 1 WorkerCrashed", "genctl runbook run provider-outage"),
        ([FailureCount("ConnectionRefused", "network", 1)],
         "1 in the last hour that no user can mend: 1 ConnectionRefused", "genctl runbook run provider-outage"),
    ],
)  # fmt: skip
def test_a_failure_of_ours_needs_a_person(failures: list[FailureCount], message: str, next_: str) -> None:
    found = line("ours", failures=failures)
    assert (found.level, found.message, found.next) == (ATTENTION, message, next_)


def test_a_refusal_and_a_bad_day_of_the_provider_need_nobody() -> None:
    failures = [
        FailureCount("A", "content_policy", 9),
        FailureCount("B", "server", 9),
        FailureCount("C", None, 1),
    ]
    lines = status.of_database(Standing({}, failures, [OPEN]))
    assert [line.part for line in lines if line.level != OK] == []


def test_the_dlq_is_counted_hidden_messages_too() -> None:
    assert (
        status.of_queues(Depth("a", 0, 0), Depth("b", 0, 0), " --tool x")[1].next
        == "genctl dlq list --tool x"
    )
    queue, dlq = status.of_queues(Depth("jobs", 1200, 3, 4), Depth("jobs-dlq", 1, 1))
    assert queue.message == "1,200 waiting, 3 in flight, 4 delayed"
    assert dlq.message == "2 messages"


@pytest.mark.parametrize(("answer", "level"), [(200, OK), (503, ATTENTION), (404, ATTENTION)])
def test_an_api_that_is_not_ready_needs_a_person(answer: int, level: str) -> None:
    assert status.of_api(answer)[0].level == level


@pytest.mark.parametrize(
    ("notifying", "level", "command"),
    [
        (Notifying(), OK, "genctl doctor"),
        (Notifying(0.1, 7), OK, "genctl doctor"),
        (Notifying(0.11, 7), ATTENTION, terminate(7)),
        (Notifying(0.5), ATTENTION, "genctl doctor"),
        (Notifying(0.0, 7, 3, 299.0), ATTENTION, "genctl doctor"),
        (Notifying(0.0, 7, 3, 301.0), OK, "genctl doctor"),
    ],
)
def test_a_queue_of_notify_that_somebody_holds_up_needs_a_person(
    notifying: Notifying, level: str, command: str
) -> None:
    (found,) = [
        line for line in status.of_database(Standing({}, (), [], (), notifying)) if line.part == "notify"
    ]
    assert (found.level, found.next) == (level, command)
    assert ("3 runs ended without NOTIFY" in found.message) == (notifying.unnotified == 3)


@pytest.mark.parametrize(
    ("states", "level", "command"),
    [
        (["applied", "applied"], OK, "genctl migrate status"),
        (["applied", "pending"], ATTENTION, "genctl migrate"),
        (["drifted", "pending", "missing"], ATTENTION, "genctl migrate status"),
    ],
)
def test_migrations_that_are_not_applied_need_a_person(states: list[str], level: str, command: str) -> None:
    (found,) = status.of_migrations(states)
    assert (found.level, found.next) == (level, command)

"""Events become a timeline: each hop waits for what made it possible, and what took long is named."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genctl.domain.timeline import GAPS, TOLD, TraceEvent, TraceHop, hops, slowest

START = datetime(2025, 11, 2, 9, 30, tzinfo=UTC)


def at(seconds: float, kind: str, run: int = 1, **data: Any) -> TraceEvent:
    return TraceEvent(run, kind, START + timedelta(seconds=seconds), data)


def gaps(*events: TraceEvent) -> list[tuple[str, str | None, float | None]]:
    return [(hop.hop, hop.gap, hop.gap_ms) for hop in hops(events) if hop.hop != "notified"]


def hop(timeline: list[TraceHop], name: str) -> TraceHop:
    return next(hop for hop in timeline if hop.hop == name)


def test_the_wait_and_the_call_are_measured_from_what_made_them_possible() -> None:
    """The worker was faster than the note that the job was sent."""
    found = gaps(at(0, "enqueued"), at(0.01, "claimed"), at(0.02, "sent"), at(2, "failed"), at(2.5, "copied"))
    assert found == [
        ("enqueued", None, None),
        ("claimed", "wait in the queue", 10.0),
        ("sent", "send to the queue", 20.0),
        ("failed", "provider call", 1990.0),
        ("copied", "copy to the DLQ", 500.0),
    ]


def test_an_end_without_notify_shows_none() -> None:
    ended = [at(0, "enqueued"), at(0.01, "claimed"), at(2, "failed"), at(2, "unnotified")]
    assert [hop.hop for hop in hops(ended)] == ["enqueued", "claimed", "failed", "unnotified"]
    assert hop(hops([at(0, "claimed"), at(1, "answered", refused="no")]), "answered").says.endswith("; no")


@pytest.mark.parametrize(("claimed_at", "slow"), [(31, False), (36, True)])
def test_a_backoff_is_no_slowness_but_what_comes_on_top_is(claimed_at: float, slow: bool) -> None:
    _, claimed = hops([at(0, "retried", delayS=30.0), at(claimed_at, "claimed")])
    assert (claimed.gap, claimed.slow) == ("backoff", slow)


def test_a_late_result_belongs_to_its_own_claim() -> None:
    found = gaps(
        at(0, "claimed", lease=1),
        at(40, "claimed", lease=2, fromDeadLease=True),
        at(41, "failed", lease=2),
        at(50, "late_result", lease=1),
    )
    assert found[1] == ("claimed", "silence of its worker", 40_000.0)
    assert found[2:] == [("failed", "provider call", 1000.0), ("late_result", "provider call", 50_000.0)]


def test_each_end_is_notified_in_its_own_transaction() -> None:
    timeline = hops(
        [at(0, "claimed"), at(1, "failed", refundedCredits=0), at(9, "refunded", refundedCredits=4)]
    )
    told = [(hop.hop, hop.ms) for hop in timeline]
    assert told == [
        ("claimed", 0),
        ("failed", 1000),
        ("notified", 1000),
        ("refunded", 9000),
        ("notified", 9000),
    ]


def test_a_redrive_begins_anew_and_its_rest_is_nobodys_slowness() -> None:
    timeline = hops(
        [
            at(0, "claimed"),
            at(1, "failed"),
            at(90_000, "redriven", 2),
            at(90_001, "claimed", 2),
            at(90_003, "completed", 2),
        ]
    )
    assert hop(timeline, "redriven").gap_ms is None
    assert hop(timeline, "completed").gap_ms == 2000
    assert [hop.run for hop in timeline if hop.hop == "notified"] == [1, 2, 2]
    longest = slowest(timeline)
    assert longest
    assert (longest.hop, longest.run) == ("completed", 2)


def test_nothing_is_slowest_in_an_empty_trace() -> None:
    assert hops([]) == []
    assert slowest([]) is None


@given(
    st.lists(
        st.builds(
            TraceEvent,
            run=st.integers(1, 3),
            kind=st.sampled_from([*GAPS, *TOLD, "enqueued", "something new"]),
            at=st.integers(0, 10**6).map(lambda seconds: START + timedelta(seconds=seconds)),
            data=st.dictionaries(
                st.sampled_from(["lease", "attempt", "code", "fromDeadLease", "delayS"]),
                st.integers(0, 3) | st.sampled_from([None, "soon", [1]]),
            ),
        )
    )
)
def test_no_history_makes_it_fail_and_no_event_is_left_out(events: list[TraceEvent]) -> None:
    events = sorted(events, key=lambda event: event.at)
    timeline = hops(events)
    assert [hop.hop for hop in timeline if hop.hop != "notified"] == [event.kind for event in events]
    assert all(hop.gap_ms is None or hop.gap_ms <= hop.ms for hop in timeline)

"""What a worker counts is what its jobs came to; what stands in database and queue is told beside it."""

import asyncio
import math
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.kit import Kit, at_work, until

from genctl import gate
from genctl.domain.model import GenctlError
from genctl.edges.sqs_shapes import Outgoing
from genctl.services.metrics import WorkerMetrics


def told(metrics: WorkerMetrics) -> dict[str, float]:
    """Samples by name and label values: in the labels' order: `genctl_sessions queued`."""
    families = text_string_to_metric_families(metrics.text().decode())
    samples = (sample for family in families for sample in family.samples)
    return {" ".join(filter(None, [s.name, *s.labels.values()])): s.value for s in samples}


@pytest.fixture
def metrics(kit: Kit) -> WorkerMetrics:
    return kit.metrics


async def test_each_job_is_counted_by_what_it_came_to(kit: Kit, metrics: WorkerMetrics) -> None:
    await kit.enqueue("success")
    done = await kit.work()
    assert done
    await kit.pipeline.queue.send([Outgoing(kit.body(done))])
    await kit.work()
    await kit.enqueue("sensitive")
    await kit.work()
    await kit.enqueue("server-error-once")
    await kit.work()
    found = told(metrics)
    expected = {
        "settled_total completed": 1,
        "settled_total content_policy OutputImageSensitiveContentDetected failed": 1,
        "retries_total InternalServiceError": 1,
        "dlq_sends_total": 1,
        "duplicate_deliveries_total": 1,
        "unknown_outcomes_total": 0,
        "call_seconds_count image": 1,
        "call_seconds_count refused": 2,
        "settle_seconds_count": 2,
    }
    assert {name: found.get(f"genctl_worker_{name}") for name in expected} == expected


async def test_outcomes_that_nobody_knows_are_counted_as_the_rows_count_them(
    kit: Kit, metrics: WorkerMetrics
) -> None:
    """By an answer, by a claim from a worker that fell silent, and by the sweeper that sends one back."""
    await kit.enqueue("gateway-timeout")
    await kit.work()
    assert told(metrics)["genctl_worker_unknown_outcomes_total"] == 1
    assert told(metrics)["genctl_worker_call_seconds_count unknown"] == 1
    for again in (kit.work, kit.sweep):
        session = await kit.enqueue()
        await kit.pipeline.claim(session.id, 1)
        await kit.query(
            "update generation_sessions set lease_until = now() - interval '1 s' where id = %s", session.id
        )
        await again()
    unknowns = await kit.query("select sum(unknowns)::int as count from generation_sessions")
    assert unknowns == [{"count": 3}]
    assert told(metrics)["genctl_worker_unknown_outcomes_total"] == 3


async def test_a_worker_tells_of_its_calls_and_of_the_gate(kit: Kit) -> None:
    """And of a job that somebody else has taken over."""
    session = await kit.enqueue("slow-success")

    async def says(name: str, value: float) -> bool:
        return told(kit.metrics)[f"genctl_worker_{name}"] == value

    async with at_work(kit.pipeline, metrics=kit.metrics) as worker:
        await until(lambda: says("calls_in_flight", 1))
        assert (
            await says("jobs", 1)
            and await says("gate open seedream4", 1)
            and await says("gate closed seedream4", 0)
        )
        await gate.close(kit.db, "seedream4", for_s=None, reason=None, who="ann@desk")
        await until(lambda: says("gate closed seedream4", 1))
        assert await says("gate open seedream4", 0) and await says("lease_losses_total", 0)
        await kit.query("update generation_sessions set lease = lease + 1 where id = %s", session.id)
        await worker.hands.extend(list(kit.pipeline.runs))
        await until(lambda: says("lease_losses_total", 1))
        assert await says("calls_in_flight", 0)


async def test_what_cannot_be_read_is_no_number_until_it_can(
    kit: Kit, metrics: WorkerMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is told all the same: old numbers would look like good news."""
    monkeypatch.setattr("genctl.services.metrics.LOOK_EVERY_S", 0.02)
    session = await kit.enqueue()
    await kit.query(
        "update generation_sessions set queued_at = now() - interval '700 s' where id = %s", session.id
    )
    rows = kit.db.rows

    async def away(*_: Any, **__: Any) -> Any:
        raise GenctlError("DatabaseUnreachable", "away")

    async def oldest(is_so: Any) -> bool:
        return bool(is_so(told(metrics).get("genctl_sessions_oldest_seconds queued", 0.0)))

    watching = asyncio.create_task(
        metrics.watch(kit.pipeline, queued_timeout_s=kit.settings.queued_timeout_s)
    )
    try:
        await until(lambda: oldest(lambda s: 700 <= s < 760))
        found = told(metrics)
        assert found["genctl_sessions queued"] == 1 and found["genctl_sessions refunds_pending"] == 0
        monkeypatch.setattr(kit.db, "rows", away)
        await until(lambda: oldest(math.isnan))
        assert told(metrics)["genctl_queue_messages jobs waiting seedream4"] == 1
        monkeypatch.setattr(kit.db, "rows", rows)
        await until(lambda: oldest(lambda s: s >= 700))
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

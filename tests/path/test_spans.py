"""A job's trace goes from its order to its event, through queue, row and processes; without OpenTelemetry it costs nothing."""

import asyncio
import json
import sys
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.ears import BASE, served
from tests.kit import Kit, until_sync
from tests.path.test_redrive import failed, redriven
from tests.process.place import Place, Running
from tests.process.served import serve

from genctl.domain.deadletters import Choice
from genctl.domain.model import Job
from genctl.edges import spans
from genctl.edges.otel import OpenTelemetry
from genctl.pipeline import carry_unasked

ASKED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"  # of a page that orders
TRACE = int(ASKED[3:35], 16)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What this process traces."""
    exporter = InMemorySpanExporter()
    tracing = OpenTelemetry(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "tracing", lambda: tracing)
    return exporter


def trace_of(span: ReadableSpan) -> int:
    return span.context.trace_id if span.context else 0


def within(found: tuple[ReadableSpan, ...]) -> list[tuple[str, str | None]]:
    """Each span's name, and that of the span which it is in."""
    names = {span.context.span_id: span.name for span in found if span.context}
    return [(span.name, names.get(span.parent.span_id) if span.parent else None) for span in found]


async def test_a_job_is_one_trace_from_the_order_to_its_event(
    exported: InMemorySpanExporter, kit: Kit
) -> None:
    async with served(kit.settings) as client, client.stream() as ear:
        await ear.ready()
        order = {"prompt": "a secret [scenario:sensitive]"}
        status, item = await client.ask(
            "POST", f"{BASE}/generations", json=order, headers={"traceparent": ASKED}
        )
        assert status == 202
        message = await kit.receive()
        assert message.attributes["traceparent"].startswith(ASKED[:35])
        await kit.pipeline.hide(message, 0)
        await kit.work()
        await ear.until(lambda ear: ear.told)
    found = exported.get_finished_spans()
    assert {trace_of(span) for span in found} == {TRACE}
    assert sorted(within(found), key=str) == sorted(WHOLE, key=str)
    said = json.dumps([dict(span.attributes or {}) for span in found], default=str)
    assert item["sessionId"] in said
    assert not [word for word in ("secret", "ann", "sensitive information") if word in said]


WHOLE = [
    ("genctl.enqueue", None),
    ("genctl.claim", "genctl.job"),
    ("genctl.call", "genctl.run"),
    ("genctl.settle", "genctl.run"),
    ("genctl.run", "genctl.job"),
    ("genctl.event", "genctl.enqueue"),
    ("genctl.copy", "genctl.job"),
    ("genctl.job", "genctl.enqueue"),
]


async def test_a_redrive_and_a_run_without_its_message_go_on_with_the_trace_of_the_order(
    exported: InMemorySpanExporter, kit: Kit
) -> None:
    session = await failed(kit)
    (trace,) = {trace_of(span) for span in exported.get_finished_spans()}
    await redriven(kit, Choice(session=session.id))
    exported.clear()
    await carry_unasked(Job(1, "seedream4", session.id, 2), kit.pipeline)
    found = exported.get_finished_spans()
    assert {trace_of(span) for span in found} == {trace}
    assert [name for name, _ in within(found)] == [
        "genctl.call",
        "genctl.settle",
        "genctl.run",
        "genctl.copy",
    ]
    assert await kit.work() is None  # its message, which has the context too
    assert {trace_of(span) for span in exported.get_finished_spans()} == {trace}


async def test_a_job_whose_order_nobody_traced_makes_no_trace(
    exported: InMemorySpanExporter, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "tracing", lambda: None)
    await kit.enqueue()
    await kit.work()
    assert exported.get_finished_spans() == ()


def test_who_did_not_ask_for_traces_gets_none() -> None:
    """And imports nothing of OpenTelemetry: a contract of the imports keeps it to one module, which only an asker loads."""
    off: tuple[dict[str, str], ...] = ({}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"})
    for env in off:
        assert spans._wanted(env | ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"} if env else {})) is None
    with spans.span("x", root=True, session="y"):
        assert spans.here() is None


def test_who_asks_for_traces_without_the_extra_is_told_once_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "genctl.edges.otel", None)
    assert spans._wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "no-such-one"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "9999"),
    ],
)
def test_a_setting_of_opentelemetry_that_nobody_can_obey_stops_no_job(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with structlog.testing.capture_logs() as logged:
        assert spans._wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", name: value}) is None
    assert [entry["event"] for entry in logged] == ["otel.off"]


def printed(running: Running) -> list[dict[str, Any]]:
    """The spans that a process has printed, one JSON document after the other."""
    text, found, decoder = running.out.read_text(), [], json.JSONDecoder()
    while text := text.lstrip():
        try:
            span, end = decoder.raw_decode(text)
        except ValueError:
            break
        found.append(span)
        text = text[end:]
    return found


def test_the_processes_of_a_job_are_joined_by_its_trace(place: Place) -> None:
    """API and worker, each with the SDK as its users set it up."""
    env = {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "50"}

    async def ordered(api: Any) -> None:
        async with api.client.stream() as ear:
            await ear.ready()
            order = {"prompt": "explicit nudity"}
            headers = {"traceparent": ASKED}
            assert (await api.client.ask("POST", f"{BASE}/generations", json=order, headers=headers))[
                0
            ] == 202
            await ear.until(lambda ear: ear.told)

    place.sql("insert into credit_accounts (user_id, balance) values ('ann', 9)")
    with serve(place, 0, "ann", **env) as api, place.worker(**env) as worker:
        asyncio.run(ordered(api))

        def whole() -> bool:
            told = {span["name"] for span in printed(api.running)} | {
                span["name"] for span in printed(worker)
            }
            return told >= {name for name, _ in WHOLE}

        until_sync(whole)
        both = [printed(api.running), printed(worker)]
    assert {span["context"]["trace_id"] for some in both for span in some} == {f"0x{TRACE:032x}"}
    assert [{span["resource"]["attributes"]["service.name"] for span in some} for some in both] == [
        {"genctl"}
    ] * 2

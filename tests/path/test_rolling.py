"""What is another tool's, or of a version that knows more: the row decides, and others get it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs
from tests.kit import Kit

from genctl.domain import decide
from genctl.domain.deadletters import Choice
from genctl.domain.decide import LEFT_HIDE_S, Hide, dispose
from genctl.domain.model import Job, Session, Status
from genctl.edges.sqs_shapes import Outgoing, System
from genctl.enqueue import enqueue
from genctl.ops.redrive import Redrive, RedriveOptions
from genctl.pipeline import Pipeline, carry
from genctl.tools import Tool
from genctl.tools.seedream4 import TOOL

OLDER = TOOL
NEWER = msgspec.structs.replace(TOOL, models=(*TOOL.models, "seedream-9-*"))
OTHER = msgspec.structs.replace(TOOL, name="other", models=("other-*",), default_model="other-1")


@asynccontextmanager
async def version(kit: Kit, tool: Tool) -> AsyncIterator[Pipeline]:
    """A process of another version, or of another tool, on the same queue and rows."""
    wire = kit.wire
    wire.tool = tool.bound(kit.settings)
    yield Pipeline(
        db=kit.db,
        queue=kit.pipeline.queue,
        dlq=kit.pipeline.dlq,
        limits=kit.pipeline.limits,
        tool=wire.tool,
        wire=wire,
    )


async def ordered(kit: Kit, model: str, tool: str = "seedream4", scenario: str = "success") -> Session:
    order = msgspec.structs.replace(kit.order(scenario), model=model)
    made = await enqueue([order], db=kit.db, queue=kit.pipeline.queue, tool=tool, opening=1000)
    return made.sessions[0]


async def shown_again(kit: Kit, pipeline: Pipeline) -> Any:
    """The next delivery, whatever hides it, carried by a process."""
    message = await kit.receive()
    return await carry(message, pipeline)


async def nothing_was_done(kit: Kit, session: Session) -> None:
    row = await kit.row(session)
    assert (row.status, row.attempts, row.lease, row.unknowns) == (Status.QUEUED, 0, 0, 0)
    assert await kit.copies() == []
    assert await kit.balance() == 996


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left for others is shown to them at once."""
    decided = dispose

    def at_once(*args: Any, ours: bool = True) -> Any:
        fate = decided(*args, ours=ours)
        return Hide(0) if isinstance(fate, Hide) and not ours else fate

    monkeypatch.setattr(decide, "dispose", at_once)


@pytest.mark.usefixtures("impatient")
async def test_a_worker_that_is_older_than_a_model_leaves_its_job_for_newer_ones(kit: Kit) -> None:
    session = await ordered(kit, "seedream-9-0-270101")
    async with version(kit, OLDER) as older:
        for _ in range(5):
            assert await shown_again(kit, older) is None
    await nothing_was_done(kit, session)
    async with version(kit, NEWER) as newer:
        row = await shown_again(kit, newer)
    assert row is not None and row.completed_at and row.attempts == 1


@pytest.mark.usefixtures("impatient")
async def test_a_worker_that_is_newer_than_a_model_leaves_its_job_for_older_ones(kit: Kit) -> None:
    """The other direction: a model was taken out of the tool while its jobs still waited."""
    session = await ordered(kit, TOOL.default_model, scenario="sensitive")
    narrower = msgspec.structs.replace(TOOL, models=("seedream-9-*",))
    async with version(kit, narrower) as newer:
        assert await shown_again(kit, newer) is None
    await nothing_was_done(kit, session)
    async with version(kit, OLDER) as older:
        row = await shown_again(kit, older)
    assert row is not None and row.status is Status.FAILED
    assert [copy.attributes["code"] for copy in await kit.copies()] == ["OutputImageSensitiveContentDetected"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("said", ["other", "never-heard-of"])
async def test_a_job_of_another_tool_is_left_and_told_once(kit: Kit, said: str) -> None:
    session = await ordered(kit, "other-1", tool=said)
    structlog.reset_defaults()
    with capture_logs() as logs:
        for _ in range(3):
            assert await shown_again(kit, kit.pipeline) is None
    await nothing_was_done(kit, session)
    told = [entry for entry in logs if entry["event"] == "message.left"]
    assert [(entry["tool"], entry["model"]) for entry in told] == [(said, "other-1")]
    async with version(kit, OTHER) as other:
        row = await shown_again(kit, other)
    assert row is not None and row.completed_at and row.attempts == 1


@pytest.mark.usefixtures("impatient")
async def test_the_row_decides_whose_a_job_is_and_not_what_its_message_says(kit: Kit) -> None:
    session = await ordered(kit, TOOL.default_model, tool="other")
    row = await kit.work()
    assert row is not None and (row.id, row.status) == (session.id, Status.COMPLETED)


async def test_a_message_of_another_tool_without_a_row_is_never_copied(kit: Kit) -> None:
    """Its row may be in another database."""
    body = {"version": 1, "tool": "other", "sessionId": str(uuid4()), "run": 1}
    await kit.pipeline.queue.send([Outgoing(msgspec.json.encode(body).decode())])
    message = await kit.receive()
    await carry(msgspec.structs.replace(message, system=System(40)), kit.pipeline)
    assert await kit.copies() == []


async def test_what_is_over_is_deleted_whoever_finds_it(kit: Kit) -> None:
    session = await ordered(kit, "other-1", tool="other")
    await kit.query("update generation_sessions set status = 'completed', completed_at = now()")
    await carry(await kit.receive(), kit.pipeline)
    facts = await kit.pipeline.queue.attributes()
    assert facts["ApproximateNumberOfMessages"] == facts["ApproximateNumberOfMessagesNotVisible"] == "0"
    assert (await kit.row(session)).status is Status.COMPLETED


def test_the_pauses_grow_and_outlast_no_deploy() -> None:
    job = Job(version=1, tool="other", session_id=uuid4())
    fates = [dispose(job, None, count, ours=False) for count in (1, 2, 3, 10, 1000)]
    pauses: Sequence[int] = [fate.seconds for fate in fates if isinstance(fate, Hide)]
    assert [*pauses] == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (5, LEFT_HIDE_S)


async def test_a_sweeper_touches_nothing_of_another_tool_but_its_credits(kit: Kit) -> None:
    """It could send to no queue of theirs, and knows nothing of their gate."""
    waits = await ordered(kit, "other-1", tool="other")
    dead = await ordered(kit, "other-1", tool="other")
    failed = await ordered(kit, "other-1", tool="other")
    await kit.query(
        "update generation_sessions set enqueued_at = null, queued_at = now() - interval '9 days'"
    )
    await kit.query(
        "update generation_sessions set status = 'processing', lease_until = now() - interval '1 h' where id = %s",
        dead.id,
    )
    await kit.query(
        "update generation_sessions set status = 'failed', completed_at = now() - interval '1 h' where id = %s",
        failed.id,
    )
    assert [(swept.action, swept.session and swept.session.id) for swept in await kit.sweep()] == [
        ("refund", failed.id)
    ]
    async with version(kit, OTHER) as other:
        kit.pipeline = other
        assert {swept.action for swept in await kit.sweep()} >= {"send", "requeue", "copy"}
    assert (await kit.row(waits)).enqueued_at


async def test_a_redrive_leaves_the_copies_of_another_tool(kit: Kit) -> None:
    """Two tools may share a DLQ: a run that is sent to the wrong queue would wait for ever."""
    session = await ordered(kit, "other-1", tool="other", scenario="invalid-parameter")
    async with version(kit, OTHER) as other:
        await carry(await kit.receive(), other)
    assert len(await kit.copies()) == 1
    async with Redrive.open(kit.settings, RedriveOptions(choice=Choice(), edit_prompt="a boat")) as under_way:
        done = await under_way.run()
    assert (done.tally.redriven, done.tally.skipped) == (0, {"another tool's": 1})
    assert (await kit.row(session)).run == 1
    assert len(await kit.copies()) == 1

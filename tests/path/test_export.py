"""The file of an export: lossless, and good up to any cut."""

import gzip
import json
import resource
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kit import Kit, QueueServer, redrives_to
from tests.path.test_redrive import failed, few_calls_at_once  # noqa: F401 (a fixture)

from genctl.base.printable import is_printable
from genctl.cli import terminal
from genctl.domain.deadletters import Choice
from genctl.domain.model import GenctlError
from genctl.edges.sqs_shapes import Attribute, Message, System
from genctl.ops import export as ops
from genctl.ops import importing
from genctl.ops import redrive as redriving
from genctl.ops.bulk import Errand
from genctl.ops.dlq import look_at, shown
from genctl.ops.export import new_file, write
from genctl.ops.redrive import RedriveOptions
from genctl.ops.sampling import Survey


def again(**changed: object) -> str:
    return f"genctl dlq export {changed['path']}"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in raw(path).splitlines()]


def raw(path: Path) -> str:
    return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()


async def exported(kit: Kit, path: Path) -> dict[str, Any]:
    return await ops.export(kit.settings, Choice(), path, again, terminal.progress, terminal.note)


async def test_an_export_holds_every_message_once_and_leaves_all_in_the_dlq(kit: Kit, tmp_path: Path) -> None:
    await failed(kit)
    await kit.pipeline.send_copy("no job \u2028\u202e\x7f of ours", "MalformedMessage")
    path = tmp_path / "x.jsonl.gz"
    assert (await exported(kit, path))["exported"] == 2
    copies = {message.message_id: message for message in await kit.copies()}
    assert len(copies) == 2
    assert all(map(is_printable, raw(path).split("\n")))
    for line in lines(path):
        message = copies[line["messageId"]]
        assert line["body"] == message.body
        assert {k: v["StringValue"] for k, v in line["attributes"].items()} == message.attributes
    with pytest.raises(GenctlError) as caught:
        await exported(kit, path)
    assert caught.value.exit_code == 2


async def test_what_is_discarded_is_in_the_file(kit: Kit, tmp_path: Path) -> None:
    await failed(kit)
    await kit.pipeline.send_copy("poison", "MalformedMessage")
    path = tmp_path / "gone.jsonl"
    async with Survey.over(kit.pipeline.dlq, bounded=True) as over:
        with new_file(path, again) as file:
            done = {"meant": 0, "discarded": 0}
            choice = Choice(code="MalformedMessage")
            await ops.delete(over, kit.db, choice, file, lambda _: None, done)
    assert done == {"meant": 1, "discarded": 1}
    assert [line["body"] for line in lines(path)] == ["poison"]
    assert [copy.attributes["code"] for copy in await kit.copies()] == ["InvalidParameter"]


async def test_no_message_is_discarded_that_came_after_the_look_that_a_person_agreed_to(
    kit: Kit, sqs_server: QueueServer, tmp_path: Path
) -> None:
    await kit.pipeline.send_copy("old", "MalformedMessage")
    url, client = kit.pipeline.dlq.url, sqs_server.client

    def meanwhile(question: str) -> None:
        assert question == "Delete 1 message of the DLQ?"
        client.receive_message(QueueUrl=url, VisibilityTimeout=1)
        client.send_message(QueueUrl=url, MessageBody="new")

    errand = Errand("dlq discard", lambda **_: "genctl dlq discard", confirm=meanwhile)
    done = await ops.discard(kit.settings, Choice(), tmp_path / "gone.jsonl", errand)
    assert done["discarded"] <= 1
    assert "new" in [copy.body for copy in await kit.copies()]


async def test_whoever_looks_into_a_dlq_with_a_policy_of_its_own_is_warned(
    kit: Kit, sqs_server: QueueServer, tmp_path: Path
) -> None:
    """Receiving too often moves its messages on; the person hears it before."""
    await failed(kit)
    sqs_server.client.set_queue_attributes(
        QueueUrl=kit.pipeline.dlq.url, Attributes=redrives_to(kit.pipeline.queue.name)
    )
    (copy,), path, notes = await kit.copies(), tmp_path / "x.jsonl", list[str]()
    errand = Errand("a test", lambda **_: "genctl", confirm=lambda _: None, note=notes.append)
    note, anything = notes.append, Choice()
    for look in (
        look_at(kit.settings, anything, terminal.progress, note),
        shown(kit.settings, copy.message_id, note),
        ops.export(kit.settings, anything, path, again, terminal.progress, note),
        importing.carry_out(kit.settings, path, errand),
        redriving.carry_out(kit.settings, RedriveOptions(most=1), errand),
        ops.discard(kit.settings, anything, None, errand),
    ):
        await look
        assert "has a redrive policy" in notes[0]
        notes.clear()


async def test_a_disk_that_takes_no_more_is_told_and_nothing_is_deleted(kit: Kit, tmp_path: Path) -> None:
    await failed(kit)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(GenctlError) as caught:
        async with Survey.over(kit.pipeline.dlq, bounded=True) as over:
            with new_file(tmp_path / "x.jsonl", again) as file:
                resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
                try:
                    await ops.delete(
                        over, kit.db, Choice(), file, lambda _: None, {"meant": 0, "discarded": 0}
                    )
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.exit_code == 3
    assert "File too large" in caught.value.message
    assert len(await kit.copies()) == 1


def message(number: int) -> Message:
    sent = {"code": Attribute(string_value="X"), "raw": Attribute("Binary", None, "AAE=")}
    return Message(
        f"m{number}",
        "receipt",
        "body " * number,
        sent,
        System(1, round(datetime.now(UTC).timestamp() * 1000)),
    )


@given(batches=st.lists(st.integers(1, 4), min_size=1, max_size=5), cut=st.floats(0, 1))
def test_a_compressed_file_that_was_cut_holds_its_whole_batches(
    tmp_path_factory: pytest.TempPathFactory, batches: list[int], cut: float
) -> None:
    """What was discarded is in no other place."""
    path = tmp_path_factory.mktemp("cut") / "x.jsonl.gz"
    ends, numbers = list[int](), iter(range(1, 100))
    with new_file(path, again) as file:
        for size in batches:
            write(file, [message(next(numbers)) for _ in range(size)])
            ends.append(path.stat().st_size)
    whole = path.read_bytes()
    torn = whole[: int(len(whole) * cut)]
    batches_there = len([end for end in ends if end <= len(torn)])
    assert readable(torn).count(b"\n") >= sum(batches[:batches_there])


def readable(data: bytes) -> bytes:
    """What `gzip -dc` makes of it, up to the cut."""
    text = b""
    while data:
        member = zlib.decompressobj(wbits=31)
        text += member.decompress(data)
        data = member.unused_data
    return text

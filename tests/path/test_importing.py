"""What export and discard wrote goes back to the DLQ as it was, once, and what cannot is named."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.kit import Kit
from tests.path.test_bulk import redriven, typed
from tests.path.test_export import exported
from tests.path.test_redrive import failed, few_calls_at_once  # noqa: F401 (a fixture)

from genctl.domain.model import GenctlError
from genctl.edges.sqs import Queue
from genctl.edges.sqs_shapes import Attribute, EntryResult, Outgoing
from genctl.ops import importing as ops
from genctl.ops.bulk import Errand
from genctl.ops.importing import read

WHY = Errand("dlq import", typed("genctl", "dlq", "import"))


async def imported(
    kit: Kit, path: Path, *, notes: list[str] | None = None, dry_run: bool = False
) -> dict[str, Any]:
    told = (notes if notes is not None else []).append
    errand = msgspec.structs.replace(WHY, dry_run=dry_run, note=told)
    return await ops.carry_out(kit.settings, path, errand)


def counted(**counts: Any) -> dict[str, Any]:
    return {"meant": 0, "imported": 0, "skipped": {}, "unreadable": 0, "failed": 0} | counts


async def said(kit: Kit) -> Counter[str]:
    """What the messages of the DLQ say, their attributes too."""
    return Counter(f"{one.body} {sorted(one.sent.items())}" for one in await kit.copies())


async def emptied(kit: Kit) -> None:
    await kit.pipeline.dlq.delete([message.receipt for message in await kit.copies()])


async def test_what_was_discarded_goes_back_as_it_was_and_once(kit: Kit, tmp_path: Path) -> None:
    for user in ("ann", "bob"):
        await failed(kit, user=user)
    binary = {"raw": Attribute("Binary", None, "AAE="), "n": Attribute("Number.int", "7")}
    await kit.pipeline.dlq.send([Outgoing("poison \u2028", binary), Outgoing("poison"), Outgoing("poison")])
    before, path = await said(kit), tmp_path / "x.jsonl.gz"
    await exported(kit, path)
    assert (await imported(kit, path))["skipped"] == {"in the DLQ already": 5}
    await emptied(kit)
    assert await imported(kit, path, dry_run=True) == counted(meant=5)
    assert await imported(kit, path) == counted(meant=5, imported=5)
    assert await said(kit) == before
    assert await imported(kit, path) == counted(skipped={"in the DLQ already": 5})
    assert await said(kit) == before


async def test_an_import_that_stopped_in_the_middle_is_finished_by_the_next(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        await failed(kit)
    before, path = await said(kit), tmp_path / "x.jsonl"
    await exported(kit, path)
    await emptied(kit)
    monkeypatch.setattr(ops, "BATCH", 2)
    send, calls = Queue.send, 0

    async def away(self: Queue, out: list[Outgoing]) -> list[EntryResult]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise GenctlError("QueueUnreachable", "SQS is away", "")
        if calls == 3:
            return [EntryResult("AccessDenied: no"), *await send(self, out[1:])]
        return await send(self, out)

    monkeypatch.setattr(Queue, "send", away)
    with pytest.raises(GenctlError, match="SQS is away"):
        await imported(kit, path)
    notes: list[str] = []
    done = await imported(kit, path, notes=notes)
    assert (done["imported"], done["skipped"], done["failed"]) == (2, {"in the DLQ already": 2}, 1)
    assert notes == ["line 3: SQS did not take it: AccessDenied: no"]
    assert (await imported(kit, path))["imported"] == 1
    assert await said(kit) == before


async def test_what_a_redrive_would_drop_or_leave_to_another_tool_stays_in_the_file(
    kit: Kit, tmp_path: Path
) -> None:
    again, _, other = [await failed(kit, user=user) for user in ("ann", "bob", "cem")]
    path = tmp_path / "x.jsonl"
    await exported(kit, path)
    await emptied(kit)
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    await kit.query("update generation_sessions set run = 2 where id = %s", again.id)
    await kit.query("update generation_sessions set model = 'flux-1' where id = %s", other.id)
    done = await imported(kit, path)
    assert (done["imported"], done["skipped"]) == (
        1,
        {"stale": 1, "another tool's": 1, "twice in the file": 1},
    )
    assert "cem" not in str(await redriven(kit))


async def test_an_import_that_has_seen_a_part_of_the_dlq_says_so(kit: Kit, tmp_path: Path) -> None:
    """A copy that another receiver has hidden may come twice."""
    await failed(kit)
    path, notes = tmp_path / "x.jsonl", list[str]()
    await exported(kit, path)
    assert await kit.pipeline.dlq.receive(1, wait_s=1, visibility_s=600)
    assert (await imported(kit, path, notes=notes, dry_run=True))["meant"] == 1
    assert "0 messages seen of about 1" in notes[0]


async def test_a_line_that_holds_no_message_is_named_and_the_others_go_back(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "LONGEST", 40_000)
    for _ in range(2):
        await failed(kit)
    path = tmp_path / "x.jsonl"
    await exported(kit, path)
    await emptied(kit)
    one, two = path.read_text().splitlines()
    undated = msgspec.json.encode(msgspec.json.decode(one) | {"sentAt": "0001-01-01T00:00:00"}).decode()
    lines = ["dear diary", one, "", '{"messageId": "m"}', "[" * 100_000, two, undated, one[:40]]
    path.write_text("\n".join(lines))
    notes: list[str] = []
    done = await imported(kit, path, notes=notes)
    assert (done["imported"], done["unreadable"]) == (2, 5)
    assert [note.partition(":")[0] for note in notes] == [f"line {number}" for number in (1, 4, 5, 7, 8)]
    assert notes[-1] == "line 8: it is cut short"
    assert path.read_text() == "\n".join(lines)


def test_a_compressed_file_is_read_up_to_its_cut(tmp_path: Path) -> None:
    whole = {
        "messageId": "m",
        "sentAt": "2026-01-01T00:00:00Z",
        "receiveCount": 1,
        "attributes": {},
        "body": "b",
    }
    member = gzip.compress(f"{json.dumps(whole)}\n".encode())
    path = tmp_path / "x.jsonl"  # people rename files
    path.write_bytes(member + member + member[:-9])
    found = [(line.line, line.message is not None) for line in read(path)]
    assert found[:2] == [(1, True), (2, True)]
    assert not found[-1][1]


@pytest.mark.parametrize("text", ["dear diary\n", "\0\1\2", "[1]\n[2]\n"])
async def test_a_file_that_is_no_export_changes_nothing(kit: Kit, tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    for no_export in (path, tmp_path, tmp_path / "none", Path("/dev/zero")):
        with pytest.raises(GenctlError) as caught:
            await imported(kit, no_export)
        assert (caught.value.code, caught.value.exit_code) == ("NoExport", 2)
    assert await kit.query("select from bulk_work") == []

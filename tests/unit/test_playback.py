"""A recorded stream is played to whoever follows, with the list as it was before and as it is then."""

from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from genctl.domain.model import GenctlError
from genctl.services import playback
from genctl.services.playback import Recording
from genctl.services.simulator import app

STREAMS = Path(__file__).parents[2] / "docs" / "streams"


async def test_a_front_end_gets_the_recorded_stream_and_the_rows_that_belong_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(playback, "PAUSE_S", 0.0)
    async with TestClient(TestServer(app(Recording(STREAMS / "redriven.sse")))) as client:
        base, origin = "/api/seedream4", {"Origin": "http://127.0.0.1:3000"}
        first = await (await client.get(f"{base}/sessions")).json()
        assert [row["status"] for row in first["sessions"]] == ["failed"]
        stream = await client.get(f"{base}/events", headers=origin)
        assert stream.headers["Access-Control-Allow-Origin"] == origin["Origin"]
        wanted = (STREAMS / "redriven.sse").read_bytes()
        assert await stream.content.readexactly(len(wanted)) == wanted
        then = await (await client.get(f"{base}/sessions/a", headers=origin)).json()
        assert (then["status"], then["run"]) == ("completed", 2)
        assert (await client.get(f"{base}/sessions/b")).status == 404
        asked = await client.options(f"{base}/events", headers=origin)
        assert (asked.status, asked.headers["Access-Control-Allow-Origin"]) == (204, origin["Origin"])


@pytest.mark.parametrize("name", ["none.sse", "bad.sse"])
def test_a_file_that_is_no_recording_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.sse").write_text("data: x\n\n")
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(GenctlError) as refused:
        Recording(tmp_path / name)
    assert refused.value.exit_code == 2
    assert name in refused.value.message

"""Logs: one event a line, which names the session and can neither break a terminal nor the worker."""

import asyncio
import errno
import io
import json
import logging
import re
import select
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest
import structlog

from genctl.base import hidden, log


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    plain = log._Lines.plain
    yield
    log._Lines.plain = plain
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_json_line_has_time_level_event_and_the_ids(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json", "info")
    structlog.get_logger().info(
        "session.failed.updated", sessionId=UUID(int=1), userId="a\x1b\u202e", odd={(1, 2)}
    )
    structlog.get_logger().debug("too quiet")
    (line,) = lines(capsys)
    event = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("timestamp"))
    assert list(event.items())[:2] == [("level", "info"), ("event", "session.failed.updated")]
    assert (event["sessionId"], event["userId"]) == (str(UUID(int=1)), "a\x1b\u202e")
    assert line.isprintable()


@pytest.mark.parametrize("value", ["\ud800", {(1, 2): 3}, 10**30, float("nan"), ..., [..., b"\xff"]])
@pytest.mark.parametrize("form", ["json", "text"])
def test_no_value_can_make_logging_fail(form: str, value: object, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(form, "info")  # type: ignore[arg-type]  # of the parameters above
    structlog.get_logger().info("odd", value=value)
    (line,) = lines(capsys)
    assert "odd" in line


def test_a_text_line_escapes_what_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("text", "info")
    structlog.get_logger().warning("x\x1b[31m", message="two words\r\n", key="a\u202eb", n=1, none=None)
    (line,) = lines(capsys)
    assert line.split(" ", 1)[1] == 'warning x\\x1b[31m message="two words\\r\\n" key=a\\u202eb n=1 none=null'


def test_an_exception_is_one_line_and_its_traceback_only_for_debug(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for level in ("info", "debug"):
        log.configure("json", level)
        try:
            int("no\nway")
        except ValueError:
            structlog.get_logger().exception("job.bug")
    at_info, at_debug = map(json.loads, lines(capsys))
    assert at_info["exception"] == "ValueError: invalid literal for int() with base 10: 'no\\nway'"
    assert __file__ in at_info["position"]
    assert "trace" not in at_info
    assert "Traceback" in at_debug["trace"]


def test_libraries_are_heard_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json", "debug")
    logging.getLogger("psycopg.pool").warning("error connecting in %r", "pool-1")
    logging.getLogger("aiohttp").info("no")
    logging.getLogger("aiohttp").error("%d", "does not fit")
    (line,) = lines(capsys)
    event = json.loads(line)
    assert (event["event"], event["logger"]) == ("error connecting in 'pool-1'", "psycopg.pool")


class Gone(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "full")


def test_a_stderr_that_is_gone_costs_only_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    log.configure("json", "info")
    closed = io.StringIO()
    closed.close()
    for stream in (Gone(), closed):
        monkeypatch.setattr(sys, "stderr", stream)
        structlog.get_logger().info("lost")


def test_a_warning_that_repeats_itself_is_written_a_few_times_and_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also a library's, whose text differs; what speaks of a session, and what is no warning, is written always."""
    log.configure("json", "info")
    for number in range(500):
        logging.getLogger("asyncio").error("socket.accept() out of system resource\nsocket: %s", number)
        structlog.get_logger().warning("api.foreign", host=f"h{number}")
    for number in range(50):
        structlog.get_logger().warning("sse.odd_row", sessionId=number)
        structlog.get_logger().info("sse.emit")
    written = Counter(json.loads(line)["event"].partition("\n")[0] for line in lines(capsys))
    assert written == {
        "socket.accept() out of system resource": log.Throttle.MOST,
        "api.foreign": log.Throttle.MOST,
        "sse.odd_row": 50,
        "sse.emit": 50,
    }


def test_after_a_while_the_next_line_says_how_many_were_left_out() -> None:
    now = 0.0
    throttle = log.Throttle(clock=lambda: now)
    for _ in range(25):
        with suppress(structlog.DropEvent):
            throttle(None, "warning", {"event": "x"})
    now = log.Throttle.WHILE_S
    assert throttle(None, "warning", {"event": "x"}) == {"event": "x", "leftOut": 15}
    assert throttle(None, "warning", {"event": "x"}) == {"event": "x"}


def test_what_was_left_out_is_told_however_late_the_next_line_comes() -> None:
    now = 0.0
    throttle = log.Throttle(clock=lambda: now)
    for _ in range(25):
        with suppress(structlog.DropEvent):
            throttle(None, "warning", {"event": "x"})
    for while_ in (2, 4):
        now = while_ * log.Throttle.WHILE_S
        assert throttle(None, "warning", {"event": "another"}) == {"event": "another"}
    assert throttle(None, "warning", {"event": "x"}) == {"event": "x", "leftOut": 15}


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_cheap_line_is_the_usual_one(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where it tells a secret, and where a terminal would obey it."""
    hidden.know("test", ["correct horse battery"])
    try:
        log.configure(form, "info")  # type: ignore[arg-type]  # of the parameters above
        told = {"sessionId": "s", "userId": "a\x7f\u202e correct horse battery", "streams": 2, "none": None}
        structlog.get_logger().info("sse.emit", **told)
        log.info("sse.emit", **told)
        usual, cheap = (re.sub(r"\d{4}-\S+Z", "TIME", line) for line in lines(capsys))
        assert cheap == usual
        assert "horse" not in cheap
        log.configure(form, "warning")  # type: ignore[arg-type]
        log.info("sse.emit", **told)
        assert lines(capsys) == []
    finally:
        hidden.know("test", [])


@pytest.mark.parametrize("word", ["a" * 300, "\u20ac" * 300])
async def test_lines_that_are_written_together_reach_a_pipe_untorn(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several processes may share it, and a pipe keeps only so much of a write together."""

    class Pipe(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any, /) -> int:
            writes.append(bytes(data))
            return len(writes[-1])

    writes: list[bytes] = []
    stream = io.TextIOWrapper(io.BufferedWriter(Pipe()), "utf-8", line_buffering=True)
    monkeypatch.setattr(sys, "stderr", stream)
    log.configure("json", "info")
    for n in range(100):
        log.info("some.event", n=n, word=word * 20 if n == 50 else word)
    await asyncio.sleep(2 * log.SOON_S)
    assert [json.loads(line)["n"] for line in b"".join(writes).splitlines()] == list(range(100))
    assert all(write.endswith(b"\n") for write in writes)
    assert sum(len(write) > select.PIPE_BUF for write in writes) == 1, "one line is too long by itself"
    assert len(writes) < 60, "a write costs more than a line"

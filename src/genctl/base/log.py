"""Log by structlog: each event is a line on stderr, JSON for programs or text for people.

Keys are camelCase: `timestamp` (RFC 3339, UTC, milliseconds), `level`, `event`, then those of the event:
`sessionId`, `userId`, ... Lines that libraries log through `logging` look the same. One processor throttles
repeated warnings of all.
"""

import asyncio
import atexit
import logging
import os
import re
import select
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar, Literal

import msgspec
import structlog

from genctl.base.hidden import hide
from genctl.base.printable import escape_json, printable

Event = MutableMapping[str, Any]

SOON_S = 0.05

_ENCODER = msgspec.json.Encoder(enc_hook=str)
_KIND = "_kind"  # of a library's line: its text before the arguments are filled in
_COLOURS = {"debug": 2, "warning": 33, "error": 31, "critical": 31}


def configure(form: Literal["text", "json"], level: str) -> None:
    """Set up the logging of this process; libraries log from level warning on.

    An exception shows its name, its text and its line of source; at level debug also its traceback.
    """
    least = logging.getLevelNamesMapping()[level.upper()]
    _Lines.plain = form == "json" and least <= logging.INFO
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            Throttle(),
            _head,
            _exceptions(traced=least <= logging.DEBUG),
            _as_json if form == "json" else _as_text(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=lambda *_: _Lines(),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_FromLibraries()], level=max(least, logging.WARNING), force=True)


def info(event: str, **facts: object) -> None:
    """Log as structlog's logger does, at a quarter of its price: for lines of which each change has some.

    It takes at least one fact, and is written a moment later.
    """
    if not _Lines.plain:
        structlog.get_logger().info(event, **facts)
        return
    line = f'{{"timestamp":"{_now()}","level":"info","event":"{event}",{_as_json(None, "info", facts)[1:]}'
    _Lines.write_soon(line)


class _Lines:
    """Write lines to stderr, without secrets; if that is closed or full we lose them and go on."""

    plain = False  # those of info() are JSON, and are wanted
    waiting: ClassVar[list[str]] = []  # for the next write

    @classmethod
    def write_soon(cls, line: str) -> None:
        """Write it with those of the next `SOON_S`, as a write costs more than a line."""
        cls.waiting.append(line)
        if len(cls.waiting) == 1:
            try:
                asyncio.get_running_loop().call_later(SOON_S, cls.flush)
            except RuntimeError:
                cls.flush()

    @classmethod
    def flush(cls) -> None:
        lines, cls.waiting[:] = hide("".join(cls.waiting)), []
        with suppress(OSError, ValueError):
            for some in _untorn(lines) if lines else ():
                sys.stderr.write(some)
                sys.stderr.flush()

    def msg(self, line: str) -> None:
        self.waiting.append(line)  # the order stays
        self.flush()

    debug = info = warning = error = critical = msg


def _untorn(lines: str) -> Iterator[str]:
    """Cut lines into as many as a pipe takes in one piece, also where several processes write to it."""
    most = select.PIPE_BUF if lines.isascii() else select.PIPE_BUF // 4  # bytes, characters
    start = 0
    while len(lines) - start > most:
        end = lines.rfind("\n", start, start + most) + 1 or lines.index("\n", start) + 1
        yield lines[start:end]
        start = end
    yield lines[start:]


atexit.register(_Lines.flush)


class Throttle:
    """Drop warnings about no session that a stranger or an outage repeats without end.

    A kind of line passes `MOST` times in `WHILE_S`; the next one after that says how many were left out.
    """

    MOST, WHILE_S = 10, 10.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._seen, self._left_out = Counter[object](), Counter[object]()

    def __call__(self, _: object, level: str, event: Event) -> Event:
        kind = (level, event.get("logger"), event.pop(_KIND, event["event"]))
        if level in {"debug", "info"} or "sessionId" in event:
            return event
        if (now := self._clock()) - self._since >= self.WHILE_S:
            self._since = now
            self._left_out += Counter({kind: count - self.MOST for kind, count in self._seen.items()})
            self._seen.clear()
        self._seen[kind] += 1
        if self._seen[kind] > self.MOST:
            raise structlog.DropEvent
        if left_out := self._left_out.pop(kind, 0):
            event["leftOut"] = left_out
        return event


class _FromLibraries(logging.Handler):
    """Pass on what aiohttp, psycopg, asyncio and others log; `logger` names them."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(LookupError, TypeError, ValueError):  # a message that does not fit its arguments
            text, kind = record.getMessage(), str(record.msg).partition("\n")[0]
            fields: dict[str, Any] = {"logger": record.name, "exc_info": record.exc_info, _KIND: kind}
            structlog.get_logger().log(record.levelno, text, **fields)


def _head(_: object, level: str, event: Event) -> Event:
    return {"timestamp": _now(), "level": level, "event": event.pop("event"), **event}


def _now() -> str:
    second, ms = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{_written(second)}.{ms:03d}Z"


@lru_cache(1)  # most lines of a busy second differ by milliseconds alone
def _written(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat().removesuffix("+00:00")


def _exceptions(*, traced: bool) -> Callable[[object, str, Event], Event]:
    def processor(_: object, __: str, event: Event) -> Event:
        error = event.pop("exc_info", None)
        error = sys.exc_info()[1] if error is True else error[1] if isinstance(error, tuple) else error
        if isinstance(error, BaseException):
            event["exception"] = f"{type(error).__name__}: {error}"
            if frames := traceback.extract_tb(error.__traceback__):
                event["position"] = f"{frames[-1].filename}:{frames[-1].lineno}"
            if traced:
                event["trace"] = "".join(traceback.format_exception(error))
        return event

    return processor


def _as_json(_: object, __: str, event: Event) -> str:
    try:
        data = _ENCODER.encode(event)
        line = data.decode()
        if data.isascii() and b"\x7f" not in data:  # JSON has escaped all else that a terminal would obey
            return line + "\n"
    except (ValueError, TypeError, OverflowError, RecursionError):  # lone surrogates, odd keys
        texts = {printable(str(key)): printable(str(event[key])) for key in event}
        line = msgspec.json.encode(texts).decode()
    return escape_json(line) + "\n"


def _as_text() -> Callable[[object, str, Event], str]:
    coloured = sys.stderr is not None and sys.stderr.isatty() and not os.environ.get("NO_COLOR")

    def render(_: object, level: str, event: Event) -> str:
        trace = str(event.pop("trace", ""))
        head = f"{event.pop('timestamp')} {event.pop('level'):<7} {printable(str(event.pop('event')))}"
        if coloured and (colour := _COLOURS.get(level)):
            head = f"\x1b[{colour}m{head}\x1b[0m"
        pairs = [f"{printable(str(key))}={_value(value)}" for key, value in event.items()]
        lines = [" ".join([head, *pairs]), *(f"  {printable(line)}" for line in trace.splitlines())]
        return "\n".join(lines) + "\n"

    return render


def _value(value: Any) -> str:
    """Write one word as it is, anything else in quotes."""
    with suppress(ValueError, TypeError, OverflowError, RecursionError):
        value = msgspec.to_builtins(value, enc_hook=str)
    if not isinstance(value, str):
        return printable(msgspec.json.encode(value, enc_hook=str).decode())
    text = printable(value)
    return text if re.fullmatch(r'[^ ="]+', text) else '"{}"'.format(text.replace('"', r"\""))

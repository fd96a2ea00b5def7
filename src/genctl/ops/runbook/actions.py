"""Do what a step asks for. Each kind returns one document, which conditions and saved paths search."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec

from genctl.base.durations import format_duration
from genctl.base.jsontext import TooDeepError, jsonable, read_json
from genctl.base.person import Note
from genctl.base.settings import Settings
from genctl.domain.masking import Masker
from genctl.domain.model import GenctlError
from genctl.domain.runbooks import as_word, fill, names_in, statement, with_path
from genctl.edges import db, http
from genctl.ops.runbook.model import Http, Sql, Step

LARGEST_BYTES = 2**20  # of an output
LARGEST_OF_OURS_BYTES = 2**26  # of a command of ours: it may list a whole queue
ENDS_WITHIN_S = 5.0  # after SIGTERM
GONE_WITHIN_S = 1.0
ANSWERS_WITHIN_S = 60.0  # where a step waits: a request that hangs leaves time for the next
SKIPPED = 77  # exit code of a script that cannot run here
# The words come by stdin: some are secrets, and all users of the machine can read arguments.
GENCTL = (
    "import json, sys; sys.argv[1:] = json.load(sys.stdin); import genctl.__main__ as g; sys.exit(g.main())"
)
Document = dict[str, Any]
Values = Mapping[str, Any]


class SkippedError(Exception):
    """Skip the step: what it needs is not here."""


class Actions(NamedTuple):
    """Hold what the steps of a run need.

    `complete` makes a command line of a step's words and the value of its `--yes`; `note` takes each line
    that a command writes to stderr. `mask` hides secrets.
    """

    settings: Settings
    mask: Masker
    complete: Callable[[list[str], str | None], list[str]]
    note: Note

    async def perform(self, step: Step, values: Values, yes: str | None, within_s: float) -> Document:
        """Do a step once. Raises TimeoutError, KeyError for an unknown value, GenctlError, SkippedError."""
        if step.wait and step.http:
            within_s = min(within_s, ANSWERS_WITHIN_S)
        try:
            async with asyncio.timeout(within_s):
                return await self._performed(step.kind, step.action, values, yes)
        except TimeoutError:
            why = f"no end within {format_duration(max(round(within_s, 1), 0.1))}"
            if step.http:
                return unanswered(why)
            raise TimeoutError(why) from None

    async def _performed(self, kind: str, what: Any, values: Values, yes: str | None) -> Document:
        match kind:
            case "genctl":
                words = self.complete(arguments(what, values), yes)
                return await _command(words, self.note, self.settings.log)
            case "sql":
                params = {name: _bound(values[name]) for name in names_in(what.query)}
                return await _asked(self.settings, what, params)
            case "http":
                return await _requested(what, values)
        return await _shell(what, {name: as_word(values[name]) for name in names_in(what)})


def arguments(words: list[str | int], values: Values) -> list[str]:
    """Fill in the words of a command. Raises GenctlError for a value that looks like an option."""
    found = [as_word(fill(word, values)) for word in words]
    for word, given in zip(words, found, strict=True):
        if given.startswith("-") and str(word) != given:
            told = f"{word} begins with -: it would be read as an option"
            raise GenctlError("BadValue", told, "give another value", exit_code=1)
    return found


async def _command(words: list[str], note: Note, log: str) -> Document:
    """Run a genctl command as a child process of the same Python, whose log has the form of ours."""
    code, out, err = await _child(
        (sys.executable, "-P", "-c", GENCTL),
        env={"GENCTL_LOG": log},
        given=json.dumps(words).encode(),
        most=LARGEST_OF_OURS_BYTES,
        note=lambda line: None if line.startswith('{"error": ') else note(line),  # the step reports errors
    )
    last = (err.strip().splitlines() or [b""])[-1]
    error = _read(last)["json"]
    error = error.get("error") if isinstance(error, dict) else None
    found = _read(out.rstrip(b"\n"), LARGEST_OF_OURS_BYTES)
    return {"exit": code, **found, "stderr": err.decode(errors="replace"), "error": error}


def _read(output: bytes, most: int = LARGEST_BYTES) -> Document:
    """Return `json` and `text` of an output; `unread` says why we did not look for JSON."""
    found: Document = {"json": None, "text": output[:most].decode(errors="replace")}
    why = f"longer than {most >> 20} MiB" if len(output) > most else ""
    try:
        found["json"] = None if why else read_json(found["text"])
    except TooDeepError as error:
        why = str(error)
    except ValueError:
        pass
    return found | ({"unread": f"the output is {why}: its JSON is not read"} if why else {})


def _bound(value: Any) -> Any:
    """Return a value as a parameter: a list of one kind is an array, another list or a map JSON."""
    kinds = {type(one) for one in value if one is not None} if isinstance(value, list) else {type(value)}
    return as_word(value) if len(kinds) > 1 or kinds & {dict, list} else value


async def _asked(settings: Settings, sql: Sql, params: Mapping[str, Any]) -> Document:
    """Ask the database. Raises TooDeepError for a value that is nested too deeply."""
    rows = await db.ask(settings.dsn(), statement(sql.query), params, writes=sql.writes)
    return {"rows": jsonable(msgspec.to_builtins(rows, enc_hook=str)), "count": len(rows)}


async def _requested(what: Http, values: Values) -> Document:
    """Send a request into which the values are filled. Raises KeyError."""
    given = fill(msgspec.to_builtins(what), values)
    url = with_path(given["url"], [as_word(part) for part in given.pop("path", ())])
    query, headers = (
        {k: as_word(v) for k, v in given.pop(part, {}).items()} for part in ("query", "headers")
    )
    if "bearer" in given:
        headers["Authorization"] = f"Bearer {as_word(given['bearer'])}"
    body = {key: given[key] for key in ("json",) if key in given}
    try:
        async with (
            http.session(url) as client,
            client.request(
                what.method, url, params=query, headers=headers, allow_redirects=False, **body
            ) as answer,
        ):
            read = _read(await _first_bytes(answer.content))
            told = {name.lower(): value for name, value in answer.headers.items()}
            return {"status": answer.status, "headers": told, **read, "error": None}
    except (aiohttp.ClientError, OSError, ValueError) as error:
        why, fix = http.unreachable(error, url)
        return unanswered(f"{what.method} {url}: {why}", fix or "")


def unanswered(why: str, fix: str = "") -> Document:
    """Make the document of a request without an answer: a step may expect just that."""
    error = {"code": "NoAnswer", "message": why, "fix": fix}
    return {"status": None, "headers": {}, "json": None, "text": "", "error": error}


async def _first_bytes(
    stream: aiohttp.StreamReader | asyncio.StreamReader | None,
    most: int = LARGEST_BYTES,
    note: Note | None = None,
) -> bytes:
    """Read to the end; return at most `most` bytes, and one more when there were more.

    `note` takes each line as it comes.
    """
    kept, rest = bytearray(), b""
    while stream and (data := await stream.read(65_536)):
        kept += data[: max(most + 1 - len(kept), 0)]
        if note:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                note(line.decode(errors="replace"))
    return bytes(kept)


async def _shell(script: str, env: Mapping[str, str]) -> Document:
    """Run a script. It finds the `python` and `genctl` that run the runbook first in its PATH."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    try:
        code, out, err = await _child(("/bin/sh", "-c", script), env={**env, "PATH": path})
    except (OSError, ValueError) as error:
        given, why = ", ".join(env) or "this script", getattr(error, "strerror", "") or error
        fix = "a value for a script is text without NUL, of less than 128 KiB"
        raise GenctlError("NotStarted", f"no process starts with {given}: {why}", fix, exit_code=1) from None
    found, stderr = _read(out.rstrip(b"\n")), err.decode(errors="replace").rstrip("\n")
    if code == SKIPPED:
        raise SkippedError((stderr or found["text"] or "it cannot be run here").splitlines()[-1])
    return {"exit": code, **found, "stderr": stderr}


async def _child(
    argv: tuple[str, ...],
    *,
    env: Mapping[str, str] | None = None,
    given: bytes = b"",
    most: int = LARGEST_BYTES,
    note: Note | None = None,
) -> tuple[int, bytes, bytes]:
    """Run a process; return exit code, stdout and stderr. Afterwards kill all that it has started.

    When we are cancelled it gets SIGTERM first, and may put things in order.
    """
    pipe, env = asyncio.subprocess.PIPE, {**os.environ, **(env or {})}
    begin = asyncio.create_subprocess_exec(
        *argv, env=env, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    )
    starting = asyncio.ensure_future(begin)  # asyncio would wait for ever for a start that is cancelled
    heard = asyncio.ensure_future(_heard(starting, given, most, note))
    try:
        return await asyncio.shield(heard)  # else nobody would empty its pipes while it ends
    finally:
        await asyncio.wait({starting})
        if not starting.exception():
            await _ended(starting.result(), heard)


async def _heard(
    starting: asyncio.Task[Process], given: bytes, most: int, note: Note | None
) -> tuple[int, bytes, bytes]:
    process = await starting
    assert process.stdin  # noqa: S101 - a pipe
    process.stdin.write(given)
    process.stdin.close()
    reading = _first_bytes(process.stdout, most), _first_bytes(process.stderr, most, note)
    out, err = await asyncio.gather(*reading)
    return await process.wait(), out, err


async def _ended(process: Process, heard: asyncio.Task[Any]) -> None:
    """End the process group: by SIGTERM if we were cut off, in the end by SIGKILL."""
    try:
        if not heard.done() and _signal(process, signal.SIGTERM):
            await asyncio.wait({heard}, timeout=ENDS_WITHIN_S)
    finally:
        _signal(process, signal.SIGKILL)
        await asyncio.wait({heard}, timeout=GONE_WITHIN_S)
        heard.cancel()  # a process that has left the group may hold the pipes


def _signal(process: Process, number: int) -> bool:
    """Signal all processes of the group; return False when none is left."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True

"""What a step does: each kind gives one document, which conditions and saved paths are asked of."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode

import aiohttp
import msgspec

from genctl.base.jsontext import TooDeepError, jsonable, read_json
from genctl.base.settings import Settings
from genctl.domain.masking import Masker
from genctl.domain.model import GenctlError
from genctl.domain.runbooks import (
    as_word,
    fill,
    names_in,
    statement,
)
from genctl.edges import db, http
from genctl.ops.runbook.model import Http, Sql

LARGEST_BYTES = 2**20  # of an output that is kept
GONE_WITHIN_S = 1.0
SKIPPED = 77  # how a script says that it cannot be run here
Document = dict[str, Any]
Values = Mapping[str, Any]


class SkippedError(Exception):
    """What a step needs is not here."""


class Within(Protocol):
    """Work that is ended after so long, by TimeoutError, or by a signal, by SystemExit."""

    def __call__(self, seconds: float, work: Callable[[], Any]) -> Any: ...


class Actions(NamedTuple):
    """The means of a run. `invoke` runs a command: words and the value of its `--yes`; its exit code,
    stdout and stderr. `run` is the event loop. `mask` hides what is secret.
    """

    settings: Settings
    mask: Masker
    invoke: Callable[[list[str], str | None], tuple[int, str, str]]
    run: Callable[[Coroutine[Any, Any, Document]], Document]
    within: Within

    def perform(self, kind: str, what: Any, values: Values, timeout_s: float, yes: str | None) -> Document:
        """Do it once. Raises KeyError for a value that is not known, GenctlError, TimeoutError,
        SkippedError, and SystemExit when a signal came.
        """
        work = self.prepared(kind, what, values, yes)
        found: Document = self.within(timeout_s, work)
        return found

    def prepared(self, kind: str, what: Any, values: Values, yes: str | None) -> Callable[[], Document]:
        """What there is to do, its values filled in."""
        match kind:
            case "genctl":
                words = arguments(what, values)
                return lambda: _command(*self.invoke(words, yes))
            case "sql":
                sql: Sql = what
                params = {name: values[name] for name in names_in(sql.query)}
                return lambda: self.run(_asked(self.settings, sql, params))
            case "http":
                request = filled_request(what, values)
                return lambda: self.run(_requested(request))
        env = {name: as_word(values[name]) for name in names_in(what)}
        return lambda: self.run(_shell(what, env))

    def pause(self, seconds: float) -> None:
        """Wait so long. Raises SystemExit when a signal came."""
        with suppress(TimeoutError):
            self.within(seconds, lambda: time.sleep(seconds + 60))


def arguments(words: list[str | int], values: Values) -> list[str]:
    """The words of a command. Raises GenctlError for a value that would be read as an option."""
    found = [as_word(fill(word, values)) for word in words]
    for word, given in zip(words, found, strict=True):
        if given.startswith("-") and str(word) != given:
            raise GenctlError("BadValue", f"{word} begins with -: it would be read as an option", exit_code=1)
    return found


def _command(code: int, out: str, err: str) -> Document:
    last = (err.strip().splitlines() or [""])[-1]
    error = _read(last)["json"]
    error = error.get("error") if isinstance(error, dict) else None
    return {"exit": code, **_read(out.rstrip("\n")), "stderr": err, "error": error}


def _read(output: str | bytes) -> Document:
    """`json` and `text` of an output; `unread` says why its JSON cannot be read, though it may be some."""
    text = output if isinstance(output, str) else output[:LARGEST_BYTES].decode(errors="replace")
    if isinstance(output, bytes) and len(output) > LARGEST_BYTES:
        return {"json": None, "text": text, "unread": "the output is longer than 1 MiB: its JSON is not read"}
    try:
        return {"json": read_json(text), "text": text}
    except TooDeepError as error:
        return {"json": None, "text": text, "unread": f"the JSON of the output is {error}: it is not read"}
    except ValueError:
        return {"json": None, "text": text}


async def _asked(settings: Settings, sql: Sql, params: Mapping[str, Any]) -> Document:
    rows = await db.ask(settings.dsn(), statement(sql.query), params, writes=sql.writes)
    try:
        found: Document = jsonable(msgspec.to_builtins({"rows": rows, "count": len(rows)}, enc_hook=str))
    except TooDeepError as error:
        told = f"a value of a row is {error}"
        raise GenctlError("TooDeep", told, "select what is looked at", exit_code=1) from None
    return found


def filled_request(what: Http, values: Values) -> Http:
    """The request with its values, the whole address in `url`. Raises KeyError."""
    plain = fill(msgspec.to_builtins(what), values)
    url = str(plain["url"]).rstrip("/") if plain.get("path") else str(plain["url"])
    url += "".join(f"/{quote(as_word(part), safe='')}" for part in plain.get("path", ()))
    if query := {key: as_word(value) for key, value in plain.get("query", {}).items()}:
        url += ("&" if "?" in url else "?") + urlencode(query)
    headers = {key: as_word(value) for key, value in plain.get("headers", {}).items()}
    if bearer := plain.get("bearer"):
        headers["Authorization"] = f"Bearer {as_word(bearer)}"
    return Http(method=what.method, url=url, headers=headers, json=plain.get("json", msgspec.UNSET))


async def _requested(what: Http) -> Document:
    body = {} if what.json is msgspec.UNSET else {"json": what.json}
    try:
        async with (
            http.session(what.url) as client,
            client.request(
                what.method, what.url, headers=what.headers, allow_redirects=False, **body
            ) as answer,
        ):
            read = _read(await _first_bytes(answer.content))
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return {"status": answer.status, "headers": headers, **read}
    except (aiohttp.ClientError, OSError, ValueError) as error:
        said = str(error) or type(error).__name__
        raise GenctlError("NoAnswer", f"{what.method} {what.url}: {said}", exit_code=1) from None


async def _first_bytes(stream: aiohttp.StreamReader | asyncio.StreamReader | None) -> bytes:
    """All of it is read, and as much kept as we keep, with a byte more where there was more."""
    kept = b""
    while stream and (data := await stream.read(65_536)):
        kept += data[: max(LARGEST_BYTES + 1 - len(kept), 0)]
    return kept


async def _shell(script: str, env: Mapping[str, str]) -> Document:
    """`python` and `genctl` in it are those that run the runbook."""
    ours = str(Path(sys.executable).parent)
    try:
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", script),
            env={**os.environ, **env, "PATH": f"{ours}:{os.environ.get('PATH', os.defpath)}"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise GenctlError("NoShell", f"the script cannot be run: {error}", exit_code=1) from None
    try:
        out, err = await asyncio.gather(_first_bytes(process.stdout), _first_bytes(process.stderr))
        code = await process.wait()
    finally:
        with suppress(ProcessLookupError):  # with all that it has started
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(TimeoutError):  # asyncio sees the end of what it has read to the end alone
            async with asyncio.timeout(GONE_WITHIN_S):
                await process.communicate()
    read, said = _read(out.rstrip(b"\n")), err.decode(errors="replace").rstrip("\n")
    if code == SKIPPED:
        raise SkippedError((said or read["text"] or "it cannot be run here").splitlines()[-1])
    return {"exit": code, **read, "stderr": said}

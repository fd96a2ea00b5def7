"""The facts of `doctor`, asked of every dependency at once; domain.findings judges them."""

import asyncio
import platform
import resource
import time
from collections.abc import Awaitable, Callable, Coroutine
from importlib.metadata import version
from typing import Any, NamedTuple, TypeVar

import aiohttp
import msgspec

from genctl import __version__
from genctl.base import dsn
from genctl.base.settings import Settings
from genctl.base.tokens import Tokens
from genctl.domain import findings
from genctl.domain.findings import Finding
from genctl.domain.model import GenctlError
from genctl.domain.refusals import Kept, Notifying
from genctl.domain.rights import RIGHTS
from genctl.edges import http, listener, migrate
from genctl.edges.db import Database, as_json
from genctl.edges.sqs import Sqs
from genctl.ops import peer
from genctl.tools.found import Tools
from genctl.tools.wire import Wire

T = TypeVar("T")

WITHIN_S = 7.0  # of each check
HEARD_WITHIN_S = 2.0
FIRST_BYTE_WITHIN_S = 4.0
USER = "genctl-doctor"  # whose stream is opened
LIBRARIES = ("psycopg", "aiohttp", "botocore")


class Check(NamedTuple):
    """A dependency that is asked by itself."""

    name: str
    findings: Callable[[Settings], Coroutine[Any, Any, list[Finding]]]


async def examine(settings: Settings, step: Callable[[int], object]) -> list[Finding]:
    """All findings, in the order of CHECKS; `step` hears of each check that is done. Raises nothing.

    What several checks find is told once: a database that is away is one finding.
    """

    async def checked(check: Check) -> list[Finding]:
        found = await answered(check.name, check.findings(settings), WITHIN_S)
        step(1)
        return findings.of_error(check.name, found) if isinstance(found, GenctlError) else found

    told: dict[str, Finding] = {}
    for found in await asyncio.gather(*map(checked, CHECKS)):
        for finding in found:
            told.setdefault(finding.message, finding)
    return list(told.values())


async def answered(part: str, asking: Awaitable[T], within_s: float) -> T | GenctlError:
    """What the part said, or as a value why it said nothing within the time."""
    try:
        async with asyncio.timeout(within_s):
            return await asking
    except GenctlError as error:
        return error
    except TimeoutError:
        fix = "see whether it hangs, and whether the network between drops what is sent"
        return GenctlError("Silent", f"{part}: no answer within {within_s:g} s", fix)


class Readiness(NamedTuple):
    """What /readyz answers: 200, or 503 and why."""

    status: int
    why: str = ""


async def readiness(settings: Settings) -> Readiness:
    """What the API says of itself. Raises GenctlError."""
    await peer.check(settings)
    url = f"{settings.api_url}/readyz"
    try:
        async with http.session(url) as client, client.get(url, allow_redirects=False) as answer:
            return Readiness(answer.status, _why(await answer.read()))
    except (aiohttp.ClientError, OSError, ValueError) as why:
        raise _api_away(settings, why) from None


class _Unready(msgspec.Struct):
    why: str


def _why(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Unready).why
    except (msgspec.DecodeError, RecursionError):  # not ours, or ready
        return ""


def _api_away(settings: Settings, why: Exception) -> GenctlError:
    cause = getattr(why, "os_error", why)
    said = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return GenctlError(
        "ApiUnreachable",
        f"no API at {settings.api_url}: {said}",
        "check GENCTL_API_URL, and that `genctl serve` or `genctl up` runs there",
    )


async def _versions(_: Settings) -> list[Finding]:
    ours = {"genctl": __version__, "Python": platform.python_version()}
    all_ = ours | {name: version(name) for name in LIBRARIES}
    told = ", ".join(f"{name} {number}" for name, number in all_.items())
    return [Finding("versions", findings.OK, told)]


async def _settings(settings: Settings) -> list[Finding]:
    if settings.embedded and not settings.secret:
        told = f"the embedded stack is not running (nothing in {settings.home})"
        return [Finding("settings", findings.WARNING, told, "genctl up, or set DATABASE_URL")]
    if not settings.secret:
        told = (
            "GENCTL_SECRET is not set: no API can be served, no token issued, and no stream is checked here"
        )
        return [Finding("settings", findings.WARNING, told, "set it to at least 32 random bytes")]
    where = f"the embedded stack in {settings.home}" if settings.embedded else "real services"
    return [Finding("settings", findings.OK, f"complete, for {where}")]


async def _database(settings: Settings) -> list[Finding]:
    needed = [
        {"part": part, "relation": relation, "privilege": privilege}
        for part, tables in RIGHTS.items()
        for relation, privileges in tables.items()
        for privilege in privileges
    ]
    async with Database.open(settings.dsn(), size=1) as db:
        before = time.time()
        (server,) = await db.rows("server", idle_after_s=findings.IDLE_AFTER_S)
        clocks_s = server["now"].timestamp() - (before + time.time()) / 2
        missing = await db.rows("missing_rights", needed=as_json(needed))
        kept, notifying = await _refused(db)
    place = "/".join(dsn.place(settings.dsn()))
    facts = server | {"notify_pid": notifying.idle_pid}
    return [
        *findings.of_server(facts, place, clocks_s),
        *findings.of_rights(missing),
        *findings.of_refused(kept, notifying),
    ]


async def _refused(db: Database) -> tuple[list[Kept], Notifying]:
    try:
        kept, (notifying,) = await db.transact(("answers_kept", {}), ("notify_queue", {}))
    except GenctlError as error:
        if error.code in {"NotMigrated", "DatabaseDenied"}:  # that is a finding of its own
            return [], Notifying()
        raise
    return [Kept(**row) for row in kept], Notifying(**notifying)


async def _migrations(settings: Settings) -> list[Finding]:
    return findings.of_migrations(
        {one.name: one.state for one in await migrate.status(settings.direct_dsn())}
    )


async def _listen(settings: Settings) -> list[Finding]:
    direct = settings.listen_dsn()
    heard = direct and await listener.is_heard(direct, settings.dsn(), within_s=HEARD_WITHIN_S)
    return findings.of_listen(heard=None if direct is None else bool(heard))


async def _queues(settings: Settings) -> list[Finding]:
    async with await Sqs.connect(settings) as sqs:
        queue = await sqs.queue(settings.queue)
        dlq = await queue.dead_letter_queue(settings.dlq)
        facts, dlq_facts = await queue.attributes(), await dlq.attributes()
        forbidden = [error for each in (queue, dlq) for error in await each.forbidden()]
    there = Finding("sqs", findings.OK, f"{queue.name} and {dlq.name} at {sqs.endpoint}")
    judged = findings.of_queues(queue.url, facts, dlq.url, dlq_facts, settings.queued_timeout_s)
    return [there, *judged, *findings.of_permissions(forbidden)]


async def _tools(settings: Settings) -> list[Finding]:
    tools = Tools.of(settings)
    return findings.of_tools([*tools.by_name], tools.troubles)


async def _provider(settings: Settings) -> list[Finding]:
    tool = Tools.of(settings).named(settings.tool)
    async with Wire(tool, longest_s=settings.provider_timeout_s) as wire:
        return findings.of_provider(tool.address, tool.base.upper(), tool.key.upper(), await wire.knock())


async def _api(settings: Settings) -> list[Finding]:
    ready = findings.of_readiness(settings.api_url, *await readiness(settings))
    return ready + (await _stream(settings) if settings.secret else [])


async def _stream(settings: Settings) -> list[Finding]:
    """Open a stream as browsers do: through the public URL, and whatever is before the API there."""
    await peer.check(settings)
    url = f"{settings.api_url}/api/{settings.tool}/events"
    headers = {
        "Accept": "text/event-stream",
        "Accept-Encoding": "gzip",  # as browsers do: a proxy that compresses holds back too
        "Authorization": f"Bearer {Tokens(settings.secret).issue(USER)}",
    }
    began, status, first_byte_s = time.monotonic(), None, None
    try:
        async with (
            asyncio.timeout(FIRST_BYTE_WITHIN_S),
            http.session(url) as client,
            client.get(url, headers=headers, allow_redirects=False) as answer,
        ):
            status = answer.status
            if await answer.content.readany():
                first_byte_s = time.monotonic() - began
    except TimeoutError:
        pass
    except (aiohttp.ClientError, OSError, ValueError) as why:
        raise _api_away(settings, why) from None
    return findings.of_stream(url, status, first_byte_s, FIRST_BYTE_WITHIN_S)


async def _files(_: Settings) -> list[Finding]:
    return findings.of_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


CHECKS = (
    Check("versions", _versions),
    Check("settings", _settings),
    Check("postgresql", _database),
    Check("listen", _listen),
    Check("migrations", _migrations),
    Check("sqs", _queues),
    Check("tools", _tools),
    Check("provider", _provider),
    Check("api", _api),
    Check("files", _files),
)

"""Ask all dependencies at once for the facts of `doctor`; domain.findings judges them."""

import asyncio
import platform
import resource
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from importlib.metadata import version
from typing import Any, TypeVar

import aiohttp
import msgspec

from genctl import __version__
from genctl.base import dsn
from genctl.base.person import Advance
from genctl.base.settings import Settings
from genctl.base.tokens import Tokens
from genctl.domain import findings
from genctl.domain.findings import Finding
from genctl.domain.model import GenctlError
from genctl.domain.refusals import Kept, Notifying
from genctl.domain.rights import RIGHTS
from genctl.domain.status import trouble
from genctl.edges import credentials, deadline, http, listener, migrate
from genctl.edges.db import Database, as_json
from genctl.edges.sqs import Sqs
from genctl.ops import peer, workers
from genctl.ops.sending import send_through
from genctl.tools.found import Tools
from genctl.tools.wire import Wire

T = TypeVar("T")

WITHIN_S = 7.0  # for each check
HEARD_WITHIN_S = 2.0
FIRST_BYTE_WITHIN_S = 4.0
USER = "genctl-doctor"  # whose stream we open
LIBRARIES = ("psycopg", "aiohttp", "botocore")


async def examine(
    settings: Settings, advance: Advance, within_s: float = WITHIN_S, *, send: bool = False
) -> list[Finding]:
    """Return all findings in the order of the checks, each once: several find that a database is away.

    Each check has `within_s`. `send` is for a message through each queue.
    """
    checks = {**CHECKS, **(SENDING if send else {})}

    async def checked(name: str) -> dict[str, Finding]:
        answer = await answered(name, checks[name](settings), within_s)
        advance(1)
        if isinstance(answer, GenctlError):
            return {trouble(answer): Finding(name, findings.ERROR, answer.message, answer.fix)}
        return {finding.message: finding for finding in answer}

    every: dict[str, Finding] = {}
    for found in await asyncio.gather(*map(checked, checks)):
        every |= {key: finding for key, finding in found.items() if key not in every}
    return list(every.values())


async def answered(part: str, asking: Awaitable[T], within_s: float) -> T | GenctlError:
    """Return the part's answer, or the error that says why there is none in time.

    A question to the database ends by itself in that time and says more, so it comes first.
    """
    try:
        async with asyncio.timeout(within_s + deadline.ENDED_AFTER_S):
            return await asking
    except GenctlError as error:
        return error
    except TimeoutError:
        if hangs := credentials.hanging():
            return hangs
        fix = "see whether it hangs, and whether the network between drops packets"
        return GenctlError("Silent", f"{part}: no answer within {within_s:g} s", fix)


class _Unready(msgspec.Struct):
    why: str


async def readiness(settings: Settings) -> tuple[int, str]:
    """Ask the API's /readyz: 200, or 503 and why. Raises GenctlError."""
    await peer.check(settings)
    url = f"{settings.api_url}/readyz"
    try:
        async with http.session(url) as client, client.get(url, allow_redirects=False) as answer:
            body = await answer.read()
    except (aiohttp.ClientError, OSError, ValueError) as why:
        raise peer.unreachable(settings.api_url, why) from None
    try:
        return answer.status, msgspec.json.decode(body, type=_Unready).why
    except (msgspec.DecodeError, RecursionError):  # not ours, or ready
        return answer.status, ""


async def _here(settings: Settings) -> list[Finding]:
    """Judge what nobody else has to answer for."""
    numbers = {"genctl": __version__, "Python": platform.python_version()}
    numbers |= {name: version(name) for name in LIBRARIES}
    text = ", ".join(f"{name} {number}" for name, number in numbers.items())
    tools = Tools.of(settings)
    return [
        Finding("versions", findings.OK, text),
        _settings(settings),
        *findings.of_tools(tools.by_name, tools.troubles),
        findings.of_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    ]


def _settings(settings: Settings) -> Finding:
    if settings.secret:
        where = f"the embedded stack in {settings.home}" if settings.embedded else "real services"
        return Finding("settings", findings.OK, f"complete, for {where}")
    if settings.embedded:
        text = f"the embedded stack is not running (nothing in {settings.home})"
        return Finding("settings", findings.WARNING, text, "`genctl up`, or set DATABASE_URL")
    text = "GENCTL_SECRET is not set: genctl can serve no API, issue no token and check no stream here"
    return Finding("settings", findings.WARNING, text, "set it to at least 32 random bytes")


async def grants(settings: Settings) -> str:
    """Write the command that gives our role what a person's commands need; empty: it lacks nothing."""
    async with Database.open(settings.dsn(), size=1) as db:
        missing = await db.rows("missing_rights", needed=as_json({"operator": RIGHTS["operator"]}))
    return findings.granting(missing, *dsn.place(settings.dsn()))


async def _database(settings: Settings) -> list[Finding]:
    async with Database.open(settings.dsn(), size=1) as db:
        before = time.time()
        (server,) = await db.rows("server", idle_after_s=findings.IDLE_AFTER_S)
        clocks_s = server["now"].timestamp() - (before + time.time()) / 2
        missing = await db.rows("missing_rights", needed=as_json(RIGHTS))
        table = await db.row("sessions_settings") or {"settings": [findings.FILLFACTOR]}
        base = await db.rows("base_findings", **migrate.base_asked())
        kept, notifying = await _refused(db)
    place = dsn.place(settings.dsn())
    return [
        *findings.of_server(server, "/".join(place), clocks_s),
        *findings.of_rights(missing, *place),
        *findings.of_settings(table["settings"]),
        *findings.of_base(base),
        *findings.of_refused(kept, notifying),
    ]


async def _refused(db: Database) -> tuple[list[Kept], Notifying]:
    try:
        kept, (notifying,) = await db.transact(("answers_kept", {}), ("notify_queue", {}))
    except GenctlError as error:
        if error.code in {"NotMigrated", "DatabaseDenied"}:  # another check finds that
            return [], Notifying()
        raise
    return [Kept(**row) for row in kept], Notifying(**notifying)


async def _migrations(settings: Settings) -> list[Finding]:
    known = await migrate.status(settings.direct_dsn())
    return findings.of_migrations({one.name: one.state for one in known})


async def _endpoint(settings: Settings) -> list[Finding]:
    direct = settings.listen_dsn()
    return findings.of_endpoint(dsn.place(direct)[0]) if direct else []


async def _listen(settings: Settings) -> list[Finding]:
    direct, heard = settings.listen_dsn(), None
    if direct is not None:
        heard = await listener.is_heard(direct, settings.dsn(), within_s=HEARD_WITHIN_S)
    return [findings.of_listen(heard=heard)]


async def _queues(settings: Settings) -> list[Finding]:
    async with await Sqs.connect(settings) as sqs:
        queue = await sqs.queue(settings.queue)
        dlq = await queue.dead_letter_queue(settings.dlq)
        facts, dlq_facts = await queue.attributes(), await dlq.attributes()
        forbidden = [error for each in (queue, dlq) for error in await each.forbidden()]
    limits = settings.queued_timeout_s, settings.sqs_endpoint
    return [
        Finding("sqs", findings.OK, f"{queue.name} and {dlq.name} at {sqs.endpoint}"),
        *findings.of_queues(queue.url, facts, dlq.url, dlq_facts, *limits),
        findings.of_groups(on=settings.fair),
        *findings.of_permissions(forbidden),
        *findings.of_keys({queue.name: facts, dlq.name: dlq_facts}),
    ]


async def _sending(settings: Settings) -> list[Finding]:
    both = await send_through(settings)
    return [
        *(findings.of_sent(one.queue, one.error, one.left, is_dlq=one is both[1]) for one in both),
        *findings.of_refused_groups(one.queue for one in both if one.refuses_groups),
    ]


async def _workers(settings: Settings) -> list[Finding]:
    async with Database.open(settings.dsn(), size=1) as db:
        return findings.of_workers((await workers.look(db, Tools.of(settings))).workers)


async def _provider(settings: Settings) -> list[Finding]:
    tool = Tools.of(settings).named(settings.tool)
    if settings.origins.get(tool.base) == "embedded stack":
        settings.check_stack()
    async with Wire(tool, longest_s=settings.provider_timeout_s) as wire:
        answer = await wire.knock()
    return [findings.of_provider(tool.address, tool.base.upper(), tool.key.upper(), answer)]


async def _api(settings: Settings) -> list[Finding]:
    ready = findings.of_readiness(settings.api_url, *await readiness(settings))
    return [ready, await _stream(settings)] if settings.secret else [ready]


async def _stream(settings: Settings) -> Finding:
    """Open a stream as browsers do: through the public URL, and the proxies before it."""
    await peer.check(settings)
    url = f"{settings.api_url}/api/{settings.tool}/events"
    headers = {
        "Accept": "text/event-stream",
        "Accept-Encoding": "gzip",  # as browsers do: a proxy that compresses may delay events
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
        raise peer.unreachable(settings.api_url, why) from None
    return findings.of_stream(url, status, first_byte_s, FIRST_BYTE_WITHIN_S)


Checks = Mapping[str, Callable[[Settings], Coroutine[Any, Any, list[Finding]]]]

CHECKS: Checks = {
    "versions": _here,
    "postgresql": _database,
    "endpoint": _endpoint,
    "listen": _listen,
    "migrations": _migrations,
    "sqs": _queues,
    "workers": _workers,
    "provider": _provider,
    "api": _api,
}
SENDING: Checks = {"send": _sending}  # it changes something, so only who is told to does it

"""Try verdicts on the failures that are stored; write nothing."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache, partial

import msgspec

from genctl.base.others import is_in_a_table, rules_of_others
from genctl.base.person import Advance, Note
from genctl.base.settings import Settings
from genctl.domain.classify import OURS
from genctl.domain.decide import Limits
from genctl.domain.providers import UNKNOWN, Provider
from genctl.domain.rules import CODE
from genctl.domain.verdicts import KeptFailure, SecondJudgment, Trial, judged_again
from genctl.edges.db import Database, Row
from genctl.tools.found import Tools
from genctl.tools.wire import CODES

OF_CALLS = frozenset({*OURS, *(name for _, name in CODES)})
MOST_ASKED = 100  # codes of which we ask when they were first seen


def merged(standing: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """Return the verdicts in force with those given instead of the ones on the same codes."""
    return tuple({verdict.partition("=")[0]: verdict for verdict in (*standing, *given)}.values())


def is_known(code: str, tools: Tools) -> bool:
    """Tell whether genctl knows the code: its own, that of a status, or one in some provider's table."""
    if code in OF_CALLS or (code.startswith("HTTP") and code[4:].isdecimal()):
        return True
    return is_in_a_table(code, tools.providers.values())


async def first_seen(db: Database, codes: Sequence[str], tools: Tools) -> list[Row]:
    """Return of those codes that no table has when they first ended a session: code, first_seen, age_s."""
    unknown = [code for code in codes if CODE.fullmatch(code) and not is_known(code, tools)][:MOST_ASKED]
    return await db.rows("first_seen", codes=unknown) if unknown else []


async def tried(
    db: Database,
    settings: Settings,
    verdicts: Sequence[str],
    since: datetime,
    *,
    note: Note,
    advance: Advance = lambda _: None,
    show: Callable[[SecondJudgment], object] = lambda _: None,
) -> Trial:
    """Judge the failures since then again, with these verdicts and the tables of this version.

    `show` gets each that would be judged otherwise, `advance` the seconds of the period that are done, and
    `note` names the rows that we cannot read. Raises GenctlError, exit 3.
    """
    tools, others = Tools.of(settings), rules_of_others()
    limits = Limits(settings.max_attempts, settings.max_unknown_retries, tuple(verdicts))
    trial = Trial(verdicts, lru_cache(4_096)(partial(is_known, tools=tools)))
    now: datetime = (await db.rows("clock"))[0]["now"]
    async with db.snapshot() as rows:
        async for row in rows("judged_failures", since=since, until=now):
            if seconds := int((row["completed_at"] - since).total_seconds()):
                advance(seconds)
                since += timedelta(seconds=seconds)
            try:
                kept = msgspec.convert(row, KeptFailure)
            except msgspec.ValidationError as error:
                note(f"genctl cannot read session {row['id']}: {error}")
                trial.add(None)
                continue
            judged = judged_again(kept, _provider(kept, tools), limits, others, now=now)
            trial.add(judged)
            if judged and judged.is_changed:
                show(judged)
    for row in await first_seen(db, trial.unknown_codes, tools):
        trial.seen(row["code"], row["first_seen"])
    return trial


def _provider(kept: KeptFailure, tools: Tools) -> Provider:
    """Return the provider whose answer a row keeps: the one that it names, else that of its model's tool."""
    if found := tools.providers.get(str(kept.details.get("provider"))):
        return found
    tool = tools.serving(kept.model)
    return tool.provider if tool else UNKNOWN

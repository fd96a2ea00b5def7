"""Write figures as lines for a person: how things stand, whether they need somebody, how to go on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from genctl.domain.model import Category, Gate, GateState, GenctlError, is_breaker, rfc3339, rough
from genctl.domain.pace import Pace
from genctl.domain.refusals import Kept, Notifying, terminate, way_on, words_of
from genctl.domain.traits import Refused
from genctl.domain.workers import WorkerSeen, by_tool, differences

OK, WARNING, ATTENTION = "ok", "warning", "attention"
OWED_S = 120.0  # a sweeper sends an owed message after 60 to 75 s
DEAD_S = 60.0  # it takes dead leases back every 15 s
IDLE_S = 300.0  # jobs are due, the gate is open, and nobody works
STREAMS = "streams may be late or miss something"  # what an API says while its listener is silent
UNNOTIFIED_S = 300.0  # if a run has ended so recently without NOTIFY, others may
REFUSED = 5  # lines about orders that are refused
CODES = 3  # failure codes by name; the others are a number
NEW_S = 86_400.0  # a code that no table has is new for so long
# Neither a user nor a better day of the provider mends these: account, settings, network, and inside.
OF_THE_WAY = {Category.AUTH, Category.QUOTA, Category.CONFIG, Category.NETWORK}
OURS = {*OF_THE_WAY, Category.INTERNAL}


class StatusLine(msgspec.Struct, frozen=True):
    """Hold one line; `level` is ok, warning or attention, `next` the command that goes on from there.

    Attention needs a person now; a warning can wait for a quiet hour.
    """

    part: str
    level: str
    message: str
    next: str


class Pile(msgspec.Struct, frozen=True):
    """Count things of one kind, with the age of the oldest; None: there are none."""

    count: int = 0
    oldest_s: float | None = None


class FailureCount(msgspec.Struct, frozen=True):
    """Count the failures of one code and category; some rows tell no category."""

    code: str
    category: str | None
    count: int


class Depth(NamedTuple):
    """Hold the depth of a queue, which SQS counts roughly."""

    name: str
    waiting: int
    in_flight: int
    delayed: int = 0


class Standing(NamedTuple):
    """Hold the database's figures: piles by name, the failures of an hour, the gates, its refusals."""

    piles: Mapping[str, Pile]
    failures: Sequence[FailureCount]
    gates: Sequence[Gate]
    kept: Sequence[Kept] = ()
    notifying: Notifying = Notifying()
    unserved: Mapping[str, int] = {}  # queued jobs of models that no installed tool serves
    unusable: Mapping[str, str] = {}  # installed tools, and what is wrong with them
    refused: Sequence[Refused] = ()  # values that orders may not have
    failures_cut: bool = False  # only the newest failures are counted
    unknown: Mapping[str, float] = {}  # codes of `failures` that no table has, with their age in seconds

    def pile(self, name: str) -> Pile:
        """Return the pile of this name, or an empty one."""
        return self.piles.get(name, Pile())


def unreachable(part: str, error: GenctlError) -> list[StatusLine]:
    """Write the line of a part that we cannot reach; the next command frees a lock, if one keeps us."""
    way = error.fix if trouble(error) == error.fix else "genctl doctor"
    return [StatusLine(part, ATTENTION, error.message, way)]


def trouble(error: GenctlError) -> str:
    """Return what tells it from another: the command that ends it, else its words, which may hold a time."""
    return error.fix if error.fix.startswith(("psql ", "genctl ")) else error.message


def of_queues(queue: Depth, dlq: Depth, flag: str = "") -> list[StatusLine]:
    """Write the lines of the queue and its DLQ. Copies in the DLQ are no alarm, as each failure leaves one.

    `flag` names their tool, if the next command would otherwise look at another's.
    """
    delayed = f", {queue.delayed:,} delayed" if queue.delayed else ""
    moving = f"{queue.waiting:,} waiting, {queue.in_flight:,} in flight{delayed}"
    dead = _count(dlq.waiting + dlq.in_flight, "message")
    return [
        StatusLine("queue", OK, moving, "genctl sessions list --status queued"),
        StatusLine("dlq", OK, dead, f"genctl dlq list{flag}"),
    ]


def of_database(now: Standing) -> list[StatusLine]:
    """Write the lines of sessions, failures, gates, owed messages, dead leases and refunds."""
    return [
        _sessions(now),
        *_failures(now.failures, is_cut=now.failures_cut),
        *_new_codes(now),
        *map(_gate, now.gates),
        *_orders(now.refused),
        _swept(
            "owed",
            {"without job message": now.pile("jobs_owed"), "without DLQ copy": now.pile("copies_owed")},
            OWED_S,
        ),
        _swept("leases", {"dead": now.pile("dead_leases")}, DEAD_S),
        _answers(now.kept),
        _refunds(now.pile("refunds_pending")),
        _notify(now.notifying),
        *_tools(now),
    ]


def of_migrations(states: Sequence[str]) -> list[StatusLine]:
    """Say whether all migrations are applied; `states` are as the runner names them."""
    counts = {state: states.count(state) for state in ("pending", "drifted", "missing")}
    wrong = [f"{count} {state}" for state, count in counts.items() if count]
    if not wrong:
        return [StatusLine("migrations", OK, f"all {len(states)} applied", "genctl migrate status")]
    command = "genctl migrate" if set(states) <= {"applied", "pending"} else "genctl migrate status"
    return [StatusLine("migrations", ATTENTION, ", ".join(wrong), command)]


def of_workers(workers: Sequence[WorkerSeen], paces: Mapping[str, Pace]) -> list[StatusLine]:
    """Write a line for the workers of each tool, and one for what limits their calls."""
    lines = [
        StatusLine("workers", *_workers_of(tool, those), "genctl workers")
        for tool, those in by_tool(workers).items()
    ] or [StatusLine("workers", OK, "none lives", "genctl worker")]
    for tool, pace in paces.items():
        if pace.rate is not None or pace.max_in_flight is not None or pace.paused_s >= 1:
            way = f"genctl resume --tool {tool}" if pace.is_taught else "genctl workers"
            lines.append(StatusLine("pace", OK, f"{tool}: {pace.words()}", way))
    return lines


def _workers_of(tool: str, workers: Sequence[WorkerSeen]) -> tuple[str, str]:
    full, hands = sum(one.jobs or 0 for one in workers), sum(one.concurrency or 0 for one in workers)
    waits = Counter(one.waits_for for one in workers if one.waits_for not in {None, "jobs"})
    told = [f"{tool}: {_count(len(workers), 'worker')}, {full:,} of {hands:,} hands full"]
    told += [f"{count} wait{'s' if count == 1 else ''} for {what}" for what, count in sorted(waits.items())]
    differ = differences(workers)
    return WARNING if differ else OK, "; ".join([", ".join(told), *differ])


def of_api(status: int, why: str = "") -> list[StatusLine]:
    """Write the line of the API's answer to /readyz."""
    if status == 200:
        return [StatusLine("listener", OK, "the API is ready: its streams miss nothing", "genctl watch")]
    if status == 503 and why in {"", STREAMS}:
        message = "silent: what streams show may be late or missing"
        return [StatusLine("listener", ATTENTION, message, "genctl runbook run listener-silent")]
    message = f"the API is not ready: {why}" if why else f"/readyz was answered {status}: is it the API?"
    return [StatusLine("listener", ATTENTION, message, "genctl doctor")]


def _sessions(now: Standing) -> StatusLine:
    queued, processing = now.pile("queued"), now.pile("processing")
    message = f"{_pile(queued, 'queued')}; {_pile(processing, 'processing')}"
    if not processing.count and (queued.oldest_s or 0) > IDLE_S and all(gate.is_open for gate in now.gates):
        return StatusLine("sessions", ATTENTION, f"{message}: is a worker running?", "genctl worker")
    return StatusLine("sessions", OK, message, "genctl sessions list --since 1h")


def _failures(found: Sequence[FailureCount], *, is_cut: bool) -> list[StatusLine]:
    """Write the line of all failures and, if some are ours, a second one that needs somebody."""
    look = "genctl tail-failures --since 1h --no-follow"
    least, newest = ("at least ", ", the newest") if is_cut else ("", "")
    lines = [StatusLine("failures", OK, f"{least}{_by_code(found, newest)}", look)]
    if ours := [one for one in found if one.category in OURS]:
        is_outage = any(one.category in OF_THE_WAY for one in ours)
        way = "genctl runbook run provider-outage" if is_outage else look
        lines.append(StatusLine("ours", ATTENTION, _by_code(ours, " that no user can mend"), way))
    return lines


def _by_code(found: Sequence[FailureCount], which: str = "") -> str:
    counts = _counts(found)
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    names = [f"{count:,} {code}" for code, count in most[:CODES]]
    if rest := sum(count for _, count in most[CODES:]):
        names.append(f"{rest:,} others")
    listed = f": {', '.join(names)}" if names else ""
    return f"{counts.total():,} in the last hour{which}{listed}"


def _counts(found: Sequence[FailureCount]) -> Counter[str]:
    return sum((Counter({one.code: one.count}) for one in found), Counter[str]())


def _new_codes(now: Standing) -> list[StatusLine]:
    """Write a line about the codes of the last hour that no table has, and nobody has seen for a day."""
    new = sorted((age_s, code) for code, age_s in now.unknown.items() if age_s < NEW_S)
    if not new:
        return []
    counts = _counts(now.failures)
    names = [f"{code} ({counts[code]:,}, first {rough(age_s)} ago)" for age_s, code in new[:CODES]]
    more = f" and {len(new) - CODES:,} others" if len(new) > CODES else ""
    message = f"no table has {', '.join(names)}{more}: the HTTP status judges"
    return [StatusLine("codes", WARNING, message, "genctl verdicts try --since 1d")]


def _gate(gate: Gate) -> StatusLine:
    if gate.is_open:
        return StatusLine("gate", OK, f"{gate.tool}: open", f"genctl tools {gate.tool}")
    probing = gate.state is GateState.PROBING
    state = "one job is tried" if probing else "closed"
    by_itself = probing or is_breaker(gate.who)
    then = ", one job is tried at" if by_itself and not probing else " until"
    until = f"{then} {rfc3339(gate.until)}" if gate.until else ""
    message = f"{gate.tool}: {state} by {gate.who}{until}: {gate.reason or 'no reason given'}"
    if by_itself:
        outage = f"genctl runbook run provider-outage --tool {gate.tool}"
        return StatusLine("gate", ATTENTION, message, outage)
    return StatusLine("gate", OK, message, f"genctl resume --tool {gate.tool}")


def _orders(refused: Sequence[Refused]) -> list[StatusLine]:
    """Write a line for each refused value. One that all users meet needs somebody, one user's does not."""
    return [
        StatusLine(
            "orders",
            ATTENTION if one.for_all else OK,
            f"{one.tool}: those with {one.words} are refused to {'all' if one.for_all else 'one user'}"
            f" until {rfc3339(one.until)}: the provider said {one.code}",
            f"genctl resume --tool {one.tool}",
        )
        for one in sorted(refused, key=lambda one: not one.for_all)[:REFUSED]
    ]


def _tools(now: Standing) -> list[StatusLine]:
    """Write a line for each trouble of the tools."""
    lines = [
        StatusLine("tools", ATTENTION, f"{name} cannot be used: {why}", "genctl tools")
        for name, why in now.unusable.items()
    ]
    if now.unserved:
        waiting, models = _count(sum(now.unserved.values()), "job"), ", ".join(now.unserved)
        message = f"{waiting} for tools that are not installed here, left for others: {models}"
        lines.append(StatusLine("tools", ATTENTION, message, "genctl tools"))
    return lines


def _swept(part: str, piles: Mapping[str, Pile], late_s: float) -> StatusLine:
    """Write a line of what a sweeper takes care of."""
    late = any((pile.oldest_s or 0) > late_s for pile in piles.values())
    message = "; ".join(_pile(pile, what) for what, pile in piles.items() if pile.count) or "none"
    message += ": is a sweeper running?" if late else ""
    return StatusLine(part, ATTENTION if late else OK, message, "genctl sweep --dry-run")


def _refunds(pending: Pile) -> StatusLine:
    if not pending.count:
        return StatusLine("refunds", OK, "none is pending", "genctl refunds check")
    return StatusLine("refunds", ATTENTION, _pile(pending, "pending"), "genctl runbook run missing-refunds")


def _answers(kept: Sequence[Kept]) -> StatusLine:
    if not kept:
        return StatusLine("answers", OK, "all are in their rows", "genctl sessions list --since 1h")
    return StatusLine("answers", ATTENTION, words_of(kept), way_on(kept))


def _notify(now: Notifying) -> StatusLine:
    words = now.words()
    if now.is_clogged:
        return StatusLine("notify", ATTENTION, words, terminate(now.idle_pid))
    recent = now.newest_s is not None and now.newest_s < UNNOTIFIED_S
    return StatusLine("notify", ATTENTION if recent else OK, words or "its queue has room", "genctl doctor")


def _pile(pile: Pile, what: str) -> str:
    if not pile.oldest_s:
        return f"{pile.count:,} {what}"
    return f"{pile.count:,} {what} ({'the longest ' if pile.count > 1 else ''}for {rough(pile.oldest_s)})"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"

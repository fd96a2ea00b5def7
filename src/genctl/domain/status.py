"""From figures to lines for a person: what stands where, whether it needs somebody, how to go on."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from genctl.domain.model import Gate, GateState, GenctlError, is_breaker, rfc3339, rough
from genctl.domain.refusals import Kept, Notifying, terminate, way_on, words_of
from genctl.domain.traits import Refused

OK, ATTENTION = "ok", "attention"
OWED_S = 120.0  # a sweeper sends what is owed for 60 s within 15 s more
DEAD_S = 60.0  # and takes dead leases back each 15 s
IDLE_S = 300.0  # jobs are due, the gate is open, and nobody is at any of them
STREAMS = "streams may be late or miss something"  # why an API is not ready, when its listener is silent
UNNOTIFIED_S = 300.0  # a run that ended without NOTIFY so recently may not be the last one
REFUSED = 5  # lines about orders that are refused
CODES = 3  # failure codes by name; the rest is a number


class Line(msgspec.Struct, frozen=True):
    """One line; `level` is ok or attention, `next` the command that goes on from there."""

    part: str
    level: str
    message: str
    next: str


class Pile(msgspec.Struct, frozen=True):
    """How many, and for how long the oldest of them; None where there is none."""

    count: int = 0
    oldest_s: float | None = None


class Depth(NamedTuple):
    """What SQS says of a queue, approximately."""

    name: str
    waiting: int
    in_flight: int
    delayed: int = 0


class Standing(NamedTuple):
    """The database's figures: piles by name, failures of an hour by code, the gates, what it refuses."""

    piles: Mapping[str, Pile]
    failures: Mapping[str, int]
    gates: Sequence[Gate]
    kept: Sequence[Kept] = ()
    notifying: Notifying = Notifying()
    unserved: Mapping[str, int] = {}  # queued jobs of models that no tool here serves
    unusable: Mapping[str, str] = {}  # tools that are installed, and what is wrong with them
    refused: Sequence[Refused] = ()  # what orders may not have

    def pile(self, name: str) -> Pile:
        """An empty one where there is nothing."""
        return self.piles.get(name, Pile())


def unreachable(part: str, error: GenctlError) -> list[Line]:
    """The line of a part that gave no figures."""
    return [Line(part, ATTENTION, error.message, "genctl doctor")]


def of_queues(queue: Depth, dlq: Depth, flag: str = "") -> list[Line]:
    """The queue and its DLQ. A DLQ that holds copies is how it should be after failures.

    `flag`: which tool's they are, where the next command would look at those of another.
    """
    delayed = f", {queue.delayed:,} delayed" if queue.delayed else ""
    moving = f"{queue.waiting:,} waiting, {queue.in_flight:,} in flight{delayed}"
    dead = _count(dlq.waiting + dlq.in_flight, "message")
    return [
        Line("queue", OK, moving, "genctl sessions list --status queued"),
        Line("dlq", OK, dead, f"genctl dlq list{flag}"),
    ]


def of_database(now: Standing) -> list[Line]:
    """Sessions, failures, gates, and what is owed, dead or unpaid."""
    return [
        _sessions(now),
        _failures(now.failures),
        *map(_gate, now.gates),
        *_orders(now.refused),
        _owed(now.pile("jobs_owed"), now.pile("copies_owed")),
        _leases(now.pile("dead_leases")),
        _answers(now.kept),
        _refunds(now.pile("refunds_pending")),
        _notify(now.notifying),
        *_tools(now),
    ]


def of_migrations(states: Sequence[str]) -> list[Line]:
    """Whether each file is applied, as the runner names their states."""
    wrong = [
        f"{states.count(state)} {state}" for state in ("pending", "drifted", "missing") if state in states
    ]
    if not wrong:
        return [Line("migrations", OK, f"all {len(states)} applied", "genctl migrate status")]
    command = "genctl migrate" if set(states) <= {"applied", "pending"} else "genctl migrate status"
    return [Line("migrations", ATTENTION, ", ".join(wrong), command)]


def of_api(status: int, why: str = "") -> list[Line]:
    """What the API answered to /readyz."""
    match status:
        case 200:
            return [Line("listener", OK, "the API is ready: its streams miss nothing", "genctl watch")]
        case 503 if why in {"", STREAMS}:
            told = "silent: what streams show may be late or missing"
            return [Line("listener", ATTENTION, told, "genctl runbook run listener-silent")]
        case 503:
            return [Line("listener", ATTENTION, f"the API is not ready: {why}", "genctl doctor")]
    return [Line("listener", ATTENTION, f"/readyz was answered {status}: is it the API?", "genctl doctor")]


def _sessions(now: Standing) -> Line:
    queued, processing = now.pile("queued"), now.pile("processing")
    idle = not processing.count and (queued.oldest_s or 0) > IDLE_S and all(g.is_open for g in now.gates)
    message = f"{_pile(queued, 'queued')}; {_pile(processing, 'processing')}"
    if idle:
        return Line("sessions", ATTENTION, f"{message}: is a worker running?", "genctl worker")
    return Line("sessions", OK, message, "genctl sessions list --since 1h")


def _failures(by_code: Mapping[str, int]) -> Line:
    most = sorted(by_code.items(), key=lambda item: (-item[1], item[0]))
    names = [f"{count:,} {code}" for code, count in most[:CODES]]
    if rest := sum(count for _, count in most[CODES:]):
        names.append(f"{rest:,} others")
    told = f": {', '.join(names)}" if names else ""
    message = f"{sum(by_code.values()):,} in the last hour{told}"
    return Line("failures", OK, message, "genctl tail-failures --since 1h --no-follow")


def _gate(gate: Gate) -> Line:
    if gate.is_open:
        return Line("gate", OK, f"{gate.tool}: open", f"genctl pause --tool {gate.tool}")
    probing = gate.state is GateState.PROBING
    state = "one job is tried" if probing else "closed"
    by_itself = probing or is_breaker(gate.who)
    then = ", one job is tried at" if by_itself and not probing else " until"
    until = f"{then} {rfc3339(gate.until)}" if gate.until else ""
    message = f"{gate.tool}: {state} by {gate.who}{until}: {gate.reason or 'no reason given'}"
    if by_itself:
        return Line("gate", ATTENTION, message, f"genctl runbook run provider-outage --tool {gate.tool}")
    return Line("gate", OK, message, f"genctl resume --tool {gate.tool}")


def _orders(refused: Sequence[Refused]) -> list[Line]:
    """Lines only where orders are refused. What many users meet needs somebody, one user's order does not."""
    return [
        Line(
            "orders",
            ATTENTION if one.for_all else OK,
            f"{one.tool}: those with {one.words} are refused to {'all' if one.for_all else 'one user'}"
            f" until {rfc3339(one.until)}: the provider said {one.code}",
            f"genctl resume --tool {one.tool}",
        )
        for one in sorted(refused, key=lambda one: not one.for_all)[:REFUSED]
    ]


def _tools(now: Standing) -> list[Line]:
    """Lines only where something is wrong."""
    lines = [
        Line("tools", ATTENTION, f"{name} cannot be used: {why}", "genctl tools")
        for name, why in now.unusable.items()
    ]
    if now.unserved:
        waiting, models = _count(sum(now.unserved.values()), "job"), ", ".join(now.unserved)
        told = f"{waiting} for tools that are not installed here, left for others: {models}"
        lines.append(Line("tools", ATTENTION, told, "genctl tools"))
    return lines


def _owed(jobs: Pile, copies: Pile) -> Line:
    owed = [(jobs, "job message"), (copies, "DLQ copy")]
    told = [
        f"{_count(pile.count, what)} for {rough(pile.oldest_s or 0)}" for pile, what in owed if pile.count
    ]
    late = any((pile.oldest_s or 0) > OWED_S for pile, _ in owed)
    message = ", ".join(told) + (": is a sweeper running?" if late else "") if told else "nothing"
    return Line("owed", ATTENTION if late else OK, message, "genctl sweep --dry-run")


def _leases(dead: Pile) -> Line:
    late = (dead.oldest_s or 0) > DEAD_S
    message = (
        f"{_pile(dead, 'dead')}{': is a sweeper running?' if late else ''}" if dead.count else "none is dead"
    )
    return Line("leases", ATTENTION if late else OK, message, "genctl sweep --dry-run")


def _refunds(pending: Pile) -> Line:
    if not pending.count:
        return Line("refunds", OK, "none is pending", "genctl refunds check")
    return Line("refunds", ATTENTION, _pile(pending, "pending"), "genctl runbook run missing-refunds")


def _answers(kept: Sequence[Kept]) -> Line:
    if not kept:
        return Line("answers", OK, "all are in their rows", "genctl sessions list --since 1h")
    return Line("answers", ATTENTION, words_of(kept), way_on(kept))


def _notify(now: Notifying) -> Line:
    words = now.words()
    if now.is_clogged:
        return Line("notify", ATTENTION, words, terminate(now.idle_pid))
    recent = now.newest_s is not None and now.newest_s < UNNOTIFIED_S
    return Line("notify", ATTENTION if recent else OK, words or "its queue has room", "genctl doctor")


def _pile(pile: Pile, what: str) -> str:
    longest = (
        f" ({'the longest ' if pile.count > 1 else ''}for {rough(pile.oldest_s)})" if pile.oldest_s else ""
    )
    return f"{pile.count:,} {what}{longest}"


def _count(count: int, what: str) -> str:
    plural = what.replace("copy", "copies") if what.endswith("copy") else f"{what}s"
    return f"{count:,} {what if count == 1 else plural}"

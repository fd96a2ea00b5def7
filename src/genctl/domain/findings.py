"""Judge the facts that `doctor` has collected: pure, from facts to findings, each with a cure."""

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from genctl.domain import adoption
from genctl.domain.model import PROBE, Answer, GenctlError, NoAnswer, rough
from genctl.domain.refusals import Kept, Notifying, terminate, way_on, words_of
from genctl.domain.rights import OF_KEY, RIGHTS
from genctl.domain.workers import WorkerSeen, by_tool, differences

OK, WARNING, ERROR = "ok", "warning", "error"
FILLFACTOR = "fillfactor=90"  # of a migration
OLDEST_SERVER = 140000  # PostgreSQL 14, as server_version_num
IDLE_AFTER_S = 60.0
CLOCKS_S = 2.0
FEWEST_RECEIVES, ENOUGH_RECEIVES = 10, 50
VISIBILITY_S = (30, 3600)
SLOW_BYTE_S = 1.0
FILES = 4096  # each stream and each call takes one


class Finding(msgspec.Struct, frozen=True):
    """Hold one finding; `fix` is a command where there is one, empty when all is well."""

    check: str
    level: str
    message: str
    fix: str = ""


def _judged(check: str, level: str, wrong: Iterable[tuple[str, str]], fine: str) -> list[Finding]:
    """Report all that is wrong with a part, as messages and fixes; if nothing is, that it is `fine`."""
    return [Finding(check, level, *one) for one in wrong] or [Finding(check, OK, fine)]


def of_server(facts: Mapping[str, Any], place: str, clocks_s: float) -> Iterator[Finding]:
    """Judge the database server by the row of `server`; `clocks_s` is how far its clock is ahead of ours."""
    old = [(f"{place} is {facts['version']}", "use PostgreSQL 14 or newer")]
    old *= facts["version_number"] < OLDEST_SERVER
    yield from _judged("postgresql", ERROR, old, f"PostgreSQL {facts['version']} at {place}")
    if facts["is_replica"]:
        fix = "name the primary in DATABASE_URL"
        yield Finding("replica", ERROR, f"{place} is a replica: it takes no writes", fix)
    if facts["idle_count"]:
        longest = f"the longest for {rough(facts['idle_s'])} (pid {facts['idle_pid']})"
        text = f"{facts['idle_count']} idle in transaction, {longest}"
        yield Finding("idle-in-transaction", WARNING, text, terminate(facts["idle_pid"]))
    if abs(clocks_s) > CLOCKS_S:
        text = f"the database's clock is {rough(abs(clocks_s))} {'before' if clocks_s > 0 else 'behind'} ours"
        yield Finding("clocks", WARNING, text, "let NTP set both: timedatectl set-ntp true")


def of_rights(missing: Sequence[Mapping[str, str]], host: str, database: str) -> list[Finding]:
    """Name what the role may not do, from the rows of `missing_rights`, as the part that it nearly is.

    The cure is for a terminal of the tables' owner, which may know no DATABASE_URL.
    """
    lacks = {part: [row for row in missing if row["part"] == part] for part in RIGHTS if part != "auditor"}
    nearest = []
    for row in min(lacks.values(), key=len):
        fix = granting([row], host, database)
        nearest.append((f"{row['role']} may not {row['privileges']} on {row['relation']}", fix))
    enough = ", ".join(part for part, rows in lacks.items() if not rows)
    return _judged("rights", ERROR, nearest, f"enough on our tables for: {enough}")


def granting(missing: Sequence[Mapping[str, str]], host: str, database: str) -> str:
    """Write the command by which the owner of the tables gives our role what it lacks; empty for nothing."""
    url = f"postgresql://OWNER@{quote(host, safe=':,[]')}/{quote(database, safe='')}"
    grants = [
        'grant {} on {} to "{}"'.format(row["privileges"], row["relation"], row["role"].replace('"', '""'))
        for row in missing
    ]
    return f"psql {url} -c {shlex.quote('; '.join(grants))}" if grants else ""


def of_base(rows: Sequence[Mapping[str, str]]) -> list[Finding]:
    """Report what is wrong with tables that a product made, from the rows of `base_findings`."""
    return [
        Finding("tables", WARNING if row["kind"] in adoption.LIMITS else ERROR, *adoption.told(row))
        for row in rows
        if row["kind"] not in adoption.BEFOREHAND
    ]


def of_settings(settings: Sequence[str]) -> list[Finding]:
    """Recommend for an adopted table of sessions what a migration sets where the table is ours."""
    if any(setting.startswith("fillfactor=") for setting in settings):
        return []
    text = "generation_sessions was adopted: its pages have no room, so renewals write to all indexes"
    fix = f"psql \"$DATABASE_URL\" -c 'alter table generation_sessions set ({FILLFACTOR})'"
    return [Finding("fillfactor", WARNING, text, fix)]


def of_refused(kept: Sequence[Kept], notifying: Notifying) -> Iterator[Finding]:
    """Report the answers and NOTIFYs that the database refuses, or has refused lately."""
    if kept:
        yield Finding("answers", ERROR, words_of(kept), way_on(kept))
    pid = notifying.idle_pid
    cure = terminate(pid) if pid else "end the longest transaction in pg_stat_activity"
    if notifying.is_clogged:
        yield Finding("notify-queue", WARNING, notifying.clogged, cure)
    if notifying.unnotified:
        text = f"{notifying.lost}: streams saw them late"
        yield Finding("unnotified", WARNING, text, cure if notifying.is_clogged else "genctl status")


def of_migrations(states: Mapping[str, str]) -> list[Finding]:
    wrong = {name: state for name, state in states.items() if state != "applied"}
    text = ", ".join(f"{name} is {state}" for name, state in wrong.items())
    fix = "genctl migrate" if set(wrong.values()) == {"pending"} else "genctl migrate status"
    return _judged("migrations", ERROR, [(text, fix)] if wrong else [], f"all {len(states)} are applied")


def of_listen(*, heard: bool | None) -> Finding:
    """Judge whether a NOTIFY reached a LISTEN; None: LISTEN is off."""
    fix = "set GENCTL_LISTEN_URL to a direct connection"
    if heard is None:
        text = "LISTEN is off: streams ask the database every 15 to 30 s instead"
        return Finding("listen", WARNING, text, fix)
    if heard:
        return Finding("listen", OK, "a NOTIFY reaches a LISTEN")
    text = "a NOTIFY does not reach a LISTEN: a transaction pooler is between, or it leads elsewhere"
    return Finding("listen", ERROR, text, fix)


def of_endpoint(host: str) -> list[Finding]:
    """Judge the host of LISTEN by its name, if it is one of RDS or Aurora."""
    fix = "set GENCTL_LISTEN_URL to the writer endpoint of the cluster (*.cluster-*, not *.cluster-ro-*)"
    match re.search(r"\.(cluster-ro|proxy)-[^.]+\.[^.]+\.rds\.amazonaws\.com", host):
        case None:
            return []
        case found if found[1] == "proxy":
            text = f"{host} is RDS Proxy: it pins a database connection to each LISTEN, and may end it"
            return [Finding("endpoint", WARNING, text, fix)]
    return [Finding("endpoint", ERROR, f"{host} is the reader endpoint: a reader takes no LISTEN", fix)]


def of_queues(
    url: str,
    facts: Mapping[str, str],
    dlq_url: str,
    dlq_facts: Mapping[str, str],
    queued_timeout_s: float,
    endpoint: str | None = None,
) -> Iterator[Finding]:
    """Judge the job queue and its DLQ by their attributes, as SQS names them.

    The cures name the `endpoint` where it is not AWS's own: a terminal may have it from no variable.
    """
    there = f" --endpoint-url {endpoint}" if endpoint else ""
    url, dlq_url = url + there, dlq_url + there
    arn = dlq_facts.get("QueueArn", "")
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": str(ENOUGH_RECEIVES)})
    yield from _redrive(facts, arn, _mended(url, RedrivePolicy=policy))

    shortest, longest = VISIBILITY_S
    hidden_s = int(facts.get("VisibilityTimeout", 30))
    text = f"the queue hides a received message for {rough(hidden_s)}"
    if shortest <= hidden_s <= longest:
        yield Finding("visibility", OK, text)
    else:
        harm = "two consumers may have one message" if hidden_s < shortest else "a crash delays a job so long"
        fix = _mended(url, VisibilityTimeout=str(shortest))
        yield Finding("visibility", WARNING, f"{text}: {harm}", fix)

    kept_s, dlq_kept_s = (int(one.get("MessageRetentionPeriod", 345_600)) for one in (facts, dlq_facts))
    kept, dlq_kept, waits = rough(kept_s), rough(dlq_kept_s), rough(queued_timeout_s)
    short = []
    if kept_s < queued_timeout_s:
        text = f"the queue forgets after {kept}, the queued time-out is {waits}"
        short.append((text, _mended(url, MessageRetentionPeriod="345600")))
    if dlq_kept_s <= kept_s:
        text = f"the DLQ forgets after {dlq_kept}, and the queue after {kept}"
        short.append((text, _mended(dlq_url, MessageRetentionPeriod="1209600")))
    yield from _judged("retention", WARNING, short, f"queue {kept}, DLQ {dlq_kept}")


def _mended(queue: str, **attribute: str) -> str:
    return f"aws sqs set-queue-attributes --queue-url {queue} --attributes '{json.dumps(attribute)}'"


def _redrive(facts: Mapping[str, str], arn: str, fix: str) -> Iterator[Finding]:
    if not facts.get("RedrivePolicy"):
        text = "the queue has no redrive policy: a message that nobody can read comes back for ever"
        yield Finding("redrive", WARNING, text, fix)
        return
    stored = json.loads(facts["RedrivePolicy"])
    receives, target = int(stored["maxReceiveCount"]), stored["deadLetterTargetArn"]
    if target != arn:
        text = f"SQS itself moves messages to {target}, and GENCTL_DLQ names {arn}"
        yield Finding("redrive", WARNING, text, fix)
    if receives < ENOUGH_RECEIVES:
        text = f"maxReceiveCount is {receives}: crashes count too, and then SQS itself moves a good job away"
        yield Finding("redrive", ERROR if receives < FEWEST_RECEIVES else WARNING, text, fix)
    elif target == arn:
        yield Finding("redrive", OK, f"after {receives} receives to {arn.rpartition(':')[2]}")


def of_groups(*, on: bool) -> Finding:
    """Say whether messages have a group; only a message shows whether an endpoint takes it."""
    if on:
        text = "messages have their user's group; `genctl doctor --send` tests whether the queues take it"
        return Finding("groups", OK, text)
    text = "messages have no group, as GENCTL_FAIR is off: SQS does not know whose they are"
    return Finding("groups", OK, text)


def of_refused_groups(queues: Iterable[str]) -> list[Finding]:
    """Name the queues that took our message only without its group."""
    text = "{} refuses groups, so that SQS does not serve quiet users first"
    return [Finding("groups", WARNING, text.format(name), "set GENCTL_FAIR=off") for name in queues]


def of_keys(queues: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Name the keys of our own that encrypt queues; whether our role may use them shows only a message."""
    text = "{name} is encrypted by {key}: our role needs {rights} on it, which `genctl doctor --send` tests"
    return [
        Finding("key", OK, text.format(name=name, key=key, rights=" and ".join(OF_KEY)))
        for name, facts in queues.items()
        if (key := facts.get("KmsMasterKeyId"))
    ]


def of_sent(queue: str, error: GenctlError | None, left: str, *, is_dlq: bool) -> Finding:
    """Judge a message that went through a queue; `left` is its id where we did not get it back."""
    if error:
        still = f"; message {left} is in {queue}" if left else ""
        return Finding("send", ERROR, f"{error.message}{still}", error.fix)
    if left and is_dlq:
        text = f"{queue} took message {left} of ours, and did not give it back among the first ones"
        return Finding("send", WARNING, text, f"genctl dlq discard --session {PROBE}")
    if left:
        return Finding("send", OK, f"{queue} took message {left} of ours, which a worker drops")
    return Finding("send", OK, f"a message went through {queue}, and is deleted")


def of_permissions(forbidden: Sequence[GenctlError]) -> list[Finding]:
    wrong = ((error.message, error.fix) for error in forbidden)
    return _judged("permissions", ERROR, wrong, "queue and DLQ let us receive, send, delete and hide")


def of_tools(usable: Iterable[str], troubles: Mapping[str, str]) -> list[Finding]:
    """Judge the installed tools, from the names of the usable ones and the troubles of the others."""
    fix = "mend or uninstall its package"
    wrong = ((f"{name} cannot be used: {why}", fix) for name, why in troubles.items())
    return _judged("tools", ERROR, wrong, ", ".join(usable))


def of_workers(workers: Sequence[WorkerSeen]) -> list[Finding]:
    """Judge the workers that live: those of a tool should be alike."""
    fix = "start them alike, by the same genctl: `genctl workers`"
    unlike = (
        (f"{tool}: {told}", fix) for tool, some in by_tool(workers).items() for told in differences(some)
    )
    return _judged("workers", WARNING, unlike, f"{len(workers)} live" if workers else "none lives")


def of_provider(url: str, base: str, key: str, answer: Answer | NoAnswer) -> Finding:
    """Judge a request that asks for nothing; `base` and `key` name the variables of address and key."""
    match answer:
        case NoAnswer(code, why):
            text = f"no answer from {url}: {code}: {why}"
            return Finding("provider", ERROR, text, f"check {base} and the network")
        case Answer(401 | 403 as status):
            text = f"{url} refuses the key ({status})"
            return Finding("provider", ERROR, text, f"set {key} to a key of that provider")
        case Answer(status) if status == 404 or not 400 <= status < 500:
            text = f"{url} answers {status} to a request without a model: a wrong path, or a proxy there?"
            return Finding("provider", WARNING, text, f"check {base}, the provider's address and path")
    return Finding("provider", OK, f"{url} takes the key (asked without a model: {answer.status})")


def of_readiness(url: str, status: int, why: str = "") -> Finding:
    match status:
        case 200:
            return Finding("api", OK, f"{url} is ready")
        case 503:
            fix = "`genctl runbook run listener-silent`; api.not_ready in its log says why"
            return Finding("api", ERROR, f"{url} is not ready: {why or 'it does not say why'}", fix)
    return Finding("api", ERROR, f"{url}/readyz answers {status}", "check GENCTL_API_URL: is it the API?")


def of_stream(url: str, status: int | None, first_byte_s: float | None, waited_s: float) -> Finding:
    """Judge a stream by its status and the time to the first byte of its body; None: no byte came."""
    if status == 401:
        fix = "set GENCTL_SECRET to the one of the API's processes"
        return Finding("stream", ERROR, f"{url} refuses our token", fix)
    if status not in {None, 200}:
        return Finding("stream", ERROR, f"{url} answers {status}", "check GENCTL_API_URL")
    unbuffered = "let the proxy pass text/event-stream on at once (nginx: proxy_buffering off, gzip off)"
    if first_byte_s is None:
        text = f"{url} sent nothing within {waited_s:g} s, though the API is there: a proxy holds it back"
        return Finding("stream", ERROR, text, unbuffered)
    text = f"the first byte of {url} came after {rough(first_byte_s)}"
    if first_byte_s > SLOW_BYTE_S:
        return Finding("stream", WARNING, text, unbuffered)
    return Finding("stream", OK, text)


def of_files(most: int) -> Finding:
    """Judge the limit of open files of a process that starts here."""
    text = f"a process may open {most:,} files here"
    if most >= FILES:
        return Finding("files", OK, text)
    fix = "`ulimit -n $(ulimit -Hn)`, or LimitNOFILE=65536 in the systemd unit"
    return Finding("files", WARNING, f"{text}: each stream and call takes one", fix)

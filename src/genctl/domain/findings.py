"""Judge the facts that `doctor` has collected: pure, from facts to findings, each with a cure."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from genctl.domain import adoption
from genctl.domain.model import PROBE, Answer, GenctlError, NoAnswer, rough
from genctl.domain.refusals import NOTIFY_USAGE, Kept, Notifying, terminate, way_on, words_of
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


def of_error(check: str, error: GenctlError) -> list[Finding]:
    """Report a part that cannot be used."""
    return [Finding(check, ERROR, error.message, error.fix)]


def of_server(facts: Mapping[str, Any], place: str, clocks_s: float) -> list[Finding]:
    """Judge the database server by the row of `server`; `clocks_s` is how far its clock is ahead of ours."""
    found = []
    if facts["version_number"] < OLDEST_SERVER:
        text = f"{place} is {facts['version']}"
        found.append(Finding("postgresql", ERROR, text, "use PostgreSQL 14 or newer"))
    if facts["is_replica"]:
        text = f"{place} is a replica: it takes no writes"
        found.append(Finding("replica", ERROR, text, "name the primary in DATABASE_URL"))
    if facts["notify_usage"] > NOTIFY_USAGE:
        text = f"the queue of NOTIFY is {facts['notify_usage']:.0%} full: a listener holds a transaction open"
        pid = facts.get("notify_pid")
        fix = terminate(pid) if pid else "end the longest transaction in pg_stat_activity"
        found.append(Finding("notify-queue", WARNING, text, fix))
    if facts["idle_count"]:
        longest = f"the longest for {rough(facts['idle_s'])} (pid {facts['idle_pid']})"
        text = f"{facts['idle_count']} idle in transaction, {longest}"
        found.append(Finding("idle-in-transaction", WARNING, text, terminate(facts["idle_pid"])))
    if abs(clocks_s) > CLOCKS_S:
        text = f"the database's clock is {rough(abs(clocks_s))} {'before' if clocks_s > 0 else 'behind'} ours"
        found.append(Finding("clocks", WARNING, text, "let NTP set both: timedatectl set-ntp true"))
    return found or [Finding("postgresql", OK, f"PostgreSQL {facts['version']} at {place}")]


def of_rights(missing: Sequence[Mapping[str, str]], host: str, database: str) -> list[Finding]:
    """Name what the role may not do, from the rows of `missing_rights`, as the part that it nearly is.

    The cure is for a terminal of the tables' owner, which may know no DATABASE_URL.
    """
    lacks = {part: [row for row in missing if row["part"] == part] for part in RIGHTS if part != "auditor"}
    enough = [part for part, rows in lacks.items() if not rows]
    if enough:
        return [Finding("rights", OK, f"enough on our tables for: {', '.join(enough)}")]
    found = []
    for row in min(lacks.values(), key=len):
        told = f"{row['role']} may not {row['privileges']} on {row['relation']}"
        found.append(Finding("rights", ERROR, told, granting([row], host, database)))
    return found


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


def of_refused(kept: Sequence[Kept], notifying: Notifying) -> list[Finding]:
    """Report the answers and NOTIFYs that the database refuses, or has refused lately."""
    found = [Finding("answers", ERROR, words_of(kept), way_on(kept))] if kept else []
    if notifying.unnotified:
        text = f"{notifying.unnotified:,} runs ended without NOTIFY in the last hour: streams saw them late"
        fix = terminate(notifying.idle_pid) if notifying.is_clogged else "genctl status"
        found.append(Finding("unnotified", WARNING, text, fix))
    return found


def of_migrations(states: Mapping[str, str]) -> list[Finding]:
    """Judge the migrations, each file with the state that the runner names."""
    wrong = {name: state for name, state in states.items() if state != "applied"}
    if not wrong:
        return [Finding("migrations", OK, f"all {len(states)} are applied")]
    text = ", ".join(f"{name} is {state}" for name, state in wrong.items())
    pending = set(wrong.values()) == {"pending"}
    return [Finding("migrations", ERROR, text, "genctl migrate" if pending else "genctl migrate status")]


def of_listen(*, heard: bool | None) -> list[Finding]:
    """Judge whether a NOTIFY reached a LISTEN; None: LISTEN is off."""
    if heard is None:
        text = "LISTEN is off: streams ask the database every 15 to 30 s instead"
        return [Finding("listen", WARNING, text, "set GENCTL_LISTEN_URL to a direct connection")]
    if heard:
        return [Finding("listen", OK, "a NOTIFY reaches a LISTEN")]
    text = "a NOTIFY does not reach a LISTEN: a transaction pooler is between, or it leads elsewhere"
    return [Finding("listen", ERROR, text, "set GENCTL_LISTEN_URL to a direct connection")]


_READERS = re.compile(r"\.cluster-ro-[^.]+\.[^.]+\.rds\.amazonaws\.com")
_RDS_PROXIES = re.compile(r"\.proxy-[^.]+\.[^.]+\.rds\.amazonaws\.com")


def of_endpoint(host: str) -> list[Finding]:
    """Judge the host of LISTEN by its name, if it is one of RDS or Aurora."""
    fix = "set GENCTL_LISTEN_URL to the writer endpoint of the cluster (*.cluster-*, not *.cluster-ro-*)"
    if _READERS.search(host):
        return [Finding("endpoint", ERROR, f"{host} is the reader endpoint: a reader takes no LISTEN", fix)]
    if _RDS_PROXIES.search(host):
        text = f"{host} is RDS Proxy: it pins a database connection to each LISTEN, and may end it"
        return [Finding("endpoint", WARNING, text, fix)]
    return []


def of_queues(
    url: str,
    facts: Mapping[str, str],
    dlq_url: str,
    dlq_facts: Mapping[str, str],
    queued_timeout_s: float,
    endpoint: str | None = None,
) -> list[Finding]:
    """Judge the job queue and its DLQ by their attributes, as SQS names them.

    The cures name the `endpoint` where it is not AWS's own: a terminal may have it from no variable.
    """
    there = f" --endpoint-url {endpoint}" if endpoint else ""
    url, dlq_url = f"{url}{there}", f"{dlq_url}{there}"
    kept_s, dlq_kept_s = (int(one.get("MessageRetentionPeriod", 345_600)) for one in (facts, dlq_facts))
    return [
        *_redrive(url, facts, dlq_facts),
        *_visibility(url, int(facts.get("VisibilityTimeout", 30))),
        *_retention(url, kept_s, dlq_url, dlq_kept_s, queued_timeout_s),
    ]


def _redrive(url: str, facts: Mapping[str, str], dlq_facts: Mapping[str, str]) -> list[Finding]:
    arn = dlq_facts.get("QueueArn", "")
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": str(ENOUGH_RECEIVES)})
    fix = _set(url, RedrivePolicy=policy)
    if not facts.get("RedrivePolicy"):
        text = "the queue has no redrive policy: a message that nobody can read comes back for ever"
        return [Finding("redrive", WARNING, text, fix)]
    stored = json.loads(facts["RedrivePolicy"])
    receives = int(stored["maxReceiveCount"])
    found = []
    if stored["deadLetterTargetArn"] != arn:
        text = f"SQS itself moves messages to {stored['deadLetterTargetArn']}, and GENCTL_DLQ names {arn}"
        found.append(Finding("redrive", WARNING, text, fix))
    if receives < ENOUGH_RECEIVES:
        text = f"maxReceiveCount is {receives}: crashes count too, and then SQS itself moves a good job away"
        found.append(Finding("redrive", ERROR if receives < FEWEST_RECEIVES else WARNING, text, fix))
    return found or [Finding("redrive", OK, f"after {receives} receives to {arn.rpartition(':')[2]}")]


def _visibility(url: str, seconds: int) -> list[Finding]:
    shortest, longest = VISIBILITY_S
    if shortest <= seconds <= longest:
        return [Finding("visibility", OK, f"the queue hides a received message for {rough(seconds)}")]
    harm = "two consumers may have one message" if seconds < shortest else "a job waits so long after a crash"
    text = f"the queue hides a received message for {seconds} s: {harm}"
    return [Finding("visibility", WARNING, text, _set(url, VisibilityTimeout=str(shortest)))]


def _retention(
    url: str, kept_s: int, dlq_url: str, dlq_kept_s: int, queued_timeout_s: float
) -> list[Finding]:
    found = []
    if kept_s < queued_timeout_s:
        text = f"the queue forgets after {rough(kept_s)}, the queued time-out is {rough(queued_timeout_s)}"
        found.append(Finding("retention", WARNING, text, _set(url, MessageRetentionPeriod="345600")))
    if dlq_kept_s <= kept_s:
        text = f"the DLQ forgets after {rough(dlq_kept_s)}, and the queue after {rough(kept_s)}"
        found.append(Finding("retention", WARNING, text, _set(dlq_url, MessageRetentionPeriod="1209600")))
    return found or [Finding("retention", OK, f"queue {rough(kept_s)}, DLQ {rough(dlq_kept_s)}")]


def _set(url: str, **attribute: str) -> str:
    return f"aws sqs set-queue-attributes --queue-url {url} --attributes '{json.dumps(attribute)}'"


def of_groups(*, on: bool) -> list[Finding]:
    """Say whether messages have a group; only a message shows whether an endpoint takes it."""
    if on:
        text = "messages have their user's group; `genctl doctor --send` tests whether the queues take it"
    else:
        text = "messages have no group, as GENCTL_FAIR is off: SQS does not know whose they are"
    return [Finding("groups", OK, text)]


def of_refused_groups(queues: Sequence[str]) -> list[Finding]:
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
    """Report the calls that SQS does not let us make."""
    found = [Finding("permissions", ERROR, error.message, error.fix) for error in forbidden]
    return found or [Finding("permissions", OK, "queue and DLQ let us receive, send, delete and hide")]


def of_tools(usable: Sequence[str], troubles: Mapping[str, str]) -> list[Finding]:
    """Judge the installed tools, from the names of the usable ones and the troubles of the others."""
    fix = "mend or uninstall its package"
    found = [Finding("tools", ERROR, f"{name} cannot be used: {why}", fix) for name, why in troubles.items()]
    return found or [Finding("tools", OK, ", ".join(usable))]


def of_workers(workers: Sequence[WorkerSeen]) -> list[Finding]:
    """Judge the workers that live: those of a tool should be alike."""
    found = [
        Finding(
            "workers", WARNING, f"{tool}: {told}", "start them alike, by the same genctl: `genctl workers`"
        )
        for tool, those in by_tool(workers).items()
        for told in differences(those)
    ]
    return found or [Finding("workers", OK, f"{len(workers)} live" if workers else "none lives")]


def of_provider(base_url: str, base: str, key: str, answer: Answer | NoAnswer) -> list[Finding]:
    """Judge a request that asks for nothing; `base` and `key` name the variables of address and key."""
    match answer:
        case NoAnswer(code, why):
            text = f"no answer from {base_url}: {code}: {why}"
            return [Finding("provider", ERROR, text, f"check {base} and the network")]
        case Answer(401 | 403 as status):
            text = f"{base_url} refuses the key ({status})"
            return [Finding("provider", ERROR, text, f"set {key} to a key of that provider")]
        case Answer(404):
            text = f"{base_url} answers 404 to the key check: a wrong path or endpoint, or a proxy there"
            return [Finding("provider", WARNING, text, f"set {base} to the provider's address and path")]
        case Answer(status) if status >= 500 or status < 400:
            text = f"{base_url} answers {status} to a request without a model"
            return [Finding("provider", WARNING, text, f"check {base}")]
    return [Finding("provider", OK, f"{base_url} takes the key (asked without a model: {answer.status})")]


def of_readiness(api_url: str, status: int, why: str = "") -> list[Finding]:
    """Judge the answer of /readyz."""
    match status:
        case 200:
            return [Finding("api", OK, f"{api_url} is ready")]
        case 503:
            text = f"{api_url} is not ready: {why or 'it does not say why'}"
            fix = "`genctl runbook run listener-silent`; api.not_ready in its log says why"
            return [Finding("api", ERROR, text, fix)]
    text = f"{api_url}/readyz answers {status}"
    return [Finding("api", ERROR, text, "check GENCTL_API_URL: is it the API?")]


def of_stream(url: str, status: int | None, first_byte_s: float | None, waited_s: float) -> list[Finding]:
    """Judge a stream by its status and the time to the first byte of its body; None: no byte came."""
    if status == 401:
        text = f"{url} refuses our token"
        return [Finding("stream", ERROR, text, "set GENCTL_SECRET to the one of the API's processes")]
    if status not in {None, 200}:
        return [Finding("stream", ERROR, f"{url} answers {status}", "check GENCTL_API_URL")]
    unbuffered = "let the proxy pass text/event-stream on at once (nginx: proxy_buffering off, gzip off)"
    if first_byte_s is None:
        text = f"{url} sent nothing within {waited_s:g} s, though the API is there: a proxy holds it back"
        return [Finding("stream", ERROR, text, unbuffered)]
    text = f"the first byte of {url} came after {rough(first_byte_s)}"
    if first_byte_s > SLOW_BYTE_S:
        return [Finding("stream", WARNING, text, unbuffered)]
    return [Finding("stream", OK, text)]


def of_files(most: int) -> list[Finding]:
    """Judge the limit of open files of a process that starts here."""
    if most < FILES:
        text = f"a process may open {most} files here: each stream and call takes one"
        return [
            Finding(
                "files", WARNING, text, "`ulimit -n $(ulimit -Hn)`, or LimitNOFILE=65536 in the systemd unit"
            )
        ]
    return [Finding("files", OK, f"a process may open {most:,} files")]

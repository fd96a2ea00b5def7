"""Hold every setting of genctl in one table, and tell where its value came from.

The table is the class: one field for each setting, with its parser, default and meaning. In files and behind
`--setting` the name of a setting is that of its attribute without `_s`. Tools declare theirs in their own
files: rows of the same kind, whose values are in `of_tools`.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec
from platformdirs import user_data_path

from genctl.base import dsn, hidden, settings_sources, trust, values
from genctl.domain.model import GenctlError

API_URL = "http://127.0.0.1:8787"
SIMULATOR = "http://127.0.0.1:8788"
# W3C, Sentry, Zipkin, Datadog, AWS, and the ids that gateways add
TRACING_HEADERS = (
    "traceparent,tracestate,baggage,sentry-trace,b3,x-b3-traceid,x-b3-spanid,x-b3-sampled,x-datadog-trace-id,"
    "x-datadog-parent-id,x-datadog-origin,x-datadog-sampling-priority,x-datadog-tags,x-amzn-trace-id,"
    "x-request-id,x-correlation-id"
)
STACK_FILE = "stack.json"  # in `home`: the embedded stack writes its addresses and keys there


class Entry(NamedTuple):
    """Describe a row of the table; `key` is its name in files and behind `--setting`.

    `parse` raises ValueError, whose text says what we expect. `simulated` is the path behind the address of
    the embedded stack's simulator, where that stands in for the default.
    """

    name: str
    key: str
    env: str
    parse: Callable[[str], Any]
    default: str | None
    meaning: str
    secret: bool = False
    simulated: str | None = None

    @property
    def value(self) -> Any:
        """Parse the default."""
        return None if self.default is None else self.parse(self.default)


def row(
    env: str,
    parse: Callable[[str], Any],
    default: str | None,
    meaning: str,
    *,
    secret: bool = False,
    simulated: str | None = None,
) -> Entry:
    """Declare a row of a tool; its name in files is that of its environment variable in lower case."""
    return Entry(env.lower(), env.lower(), env, parse, default, meaning, secret, simulated)


def setting(
    parse: Callable[[str], Any], default: str | None, meaning: str, *, env: str = "", secret: bool = False
) -> Any:
    """Declare a row as a dataclass field; its variable is `env`, else `GENCTL_` and the key in capitals."""
    entry = Entry("", "", env, parse, default, meaning, secret)
    return dataclasses.field(default=entry.value, repr=not secret, metadata={"entry": entry})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Hold the effective values: durations in seconds; None means unset or without limit."""

    database_url: str | None = setting(
        dsn.check, None, "PostgreSQL 14+; unset: the embedded stack", env="DATABASE_URL", secret=True
    )
    db_iam: bool = setting(values.as_switch, "off", "each new connection asks AWS for an RDS login token")
    listen_url: str | None = setting(
        values.as_listen_url, None, "direct connection for LISTEN, or off; unset: database_url", secret=True
    )
    tool: str = setting(
        values.as_tool, "seedream4", "the tool that a command is about, and that a worker serves"
    )
    models: tuple[str, ...] = setting(
        values.as_patterns,
        "",
        "models that may be ordered, of those that the tools serve; unset: all of them",
    )
    # __post_init__ fills it in
    queue: str = setting(values.as_queue, None, "SQS queue of its jobs: name, URL or ARN; unset: <tool>-jobs")
    dlq: str | None = setting(
        values.as_queue, None, "its DLQ; unset: as its redrive policy says, else <queue>-dlq"
    )
    sqs_endpoint: str | None = setting(
        values.as_url, None, "where SQS requests go; unset: as boto3 finds it", env="AWS_ENDPOINT_URL_SQS"
    )
    api_url: str = setting(values.as_url, API_URL, "where watch and smoke find the API")
    public_url: str | None = setting(
        values.as_public_url,
        None,
        "the address that users see, where a proxy stands before the API; unset: the request's own",
    )
    trusted_proxies: tuple[str, ...] = setting(
        values.as_networks, "", "addresses whose X-Forwarded headers count, such as 10.0.0.0/8"
    )
    secret: str | None = setting(
        values.as_secret_key, None, "HS256 key of user tokens, at least 32 bytes", secret=True
    )
    token_audience: str | None = setting(
        values.as_text, None, "the aud that a user token must have; unset: any, or none"
    )
    max_attempts: int = setting(values.as_count(1), "3", "attempts of one run before a failure is final")
    max_unknown_retries: int = setting(
        values.as_count(0), "1", "of those, after an outcome that nobody knows"
    )
    verdicts: tuple[str, ...] = setting(
        values.as_verdicts, "", "exceptions from the rule, such as 408=retry, SetLimitExceeded=fatal, advice"
    )
    provider_timeout_s: float = setting(values.as_duration, "300s", "longest legal provider call")
    queued_timeout_s: float = setting(
        values.as_duration, "24h", "age at which a run that still waits is failed"
    )
    rate: float | None = setting(
        values.as_rate, None, "provider calls a minute of all workers of the tool; unset: no limit"
    )
    max_in_flight: int | None = setting(
        values.as_count(1), None, "calls at once of all workers of the tool; unset: no limit"
    )
    fair: bool = setting(
        values.as_switch,
        "on",
        "messages have a MessageGroupId, a keyed hash of their user: SQS serves quiet users first",
    )
    breaker: bool = setting(values.as_switch, "on", "close the gate when our account or the provider fails")
    breaker_failures: int = setting(values.as_count(1), "20", "such failures in a row that close it")
    cors_origins: tuple[str, ...] = setting(values.as_origins, "", "origins that may call the API")
    cors_headers: tuple[str, ...] = setting(
        values.as_headers,
        TRACING_HEADERS,
        "request headers that pages of those origins may send, beside ours",
    )
    image_hosts: tuple[str, ...] = setting(
        values.as_hosts, "", "hosts whose images the page may show and save (img-src, connect-src)"
    )
    streams_per_user: int = setting(values.as_count(1), "16", "open SSE streams of one user")
    connections_per_address: int = setting(
        values.as_count(1), "100", "connections of one address that may keep the API waiting"
    )
    trace_retention_s: float = setting(values.as_duration, "90d", "age at which session_events are pruned")
    protected: bool = setting(values.as_switch, "off", "what destroys or spends asks for the database's name")
    log: Literal["text", "json"] = setting(
        values.as_choice("text", "json"), "json", "unset: text on a terminal, else json"
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        values.as_choice("debug", "info", "warning", "error"), "info", "debug, info, warning or error"
    )
    home: Path = setting(  # noqa: RUF009 (a field)
        values.as_folder, None, "folder of the embedded stack; unset: the XDG data folder"
    )

    # of the tools, by key; one that is not here has its default
    of_tools: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    embedded: bool = False  # database_url was not set: everything is the embedded stack's
    simulator_url: str = SIMULATOR  # of the embedded stack
    aws_access_key_id: str | None = None  # of the embedded stack; real ones are boto3's business
    aws_secret_access_key: str | None = dataclasses.field(default=None, repr=False)
    # attribute -> where its value came from
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.queue:
            object.__setattr__(self, "queue", _queue_of(self.tool))

    def of(self, entry: Entry) -> Any:
        """Return the value of a row, ours or a tool's."""
        return self.of_tools.get(entry.key, entry.value) if entry not in TABLE else getattr(self, entry.name)

    @property
    def page_url(self) -> str:
        """Return the address at which users find the page."""
        return self.public_url or self.api_url

    def is_flag(self, name: str) -> bool:
        """Tell whether a flag of this command gave the value, so that the next command would not have it."""
        return self.origins.get(name, "").startswith("flag")

    def queue_of(self, tool: str) -> str:
        """Name the job queue of a tool: `queue` for the tool that the settings are about."""
        return self.queue if tool == self.tool else _queue_of(tool)

    def dlq_of(self, tool: str) -> str | None:
        """Name the DLQ of a tool; None: its queue's redrive policy names it."""
        return self.dlq if tool == self.tool else None

    def dsn(self) -> str:
        """Return the database's URL. Raises GenctlError (exit 3) when the embedded stack never ran."""
        if self.database_url is None:
            raise self.not_running()
        return self._login(self.database_url)

    def direct_dsn(self) -> str:
        """Return the URL that goes through no pooler, as migrate needs it. Raises as dsn() does."""
        return self.dsn() if self.listen_url in {None, "off"} else self._login(str(self.listen_url))

    def check_stack(self) -> None:
        """Raise GenctlError (exit 3) while the embedded stack is down, as its ports may be strangers' then.

        Its database's socket proves that it runs: nobody else can make one in that folder.
        """
        if self.embedded and self.database_url is not None and dsn.is_abandoned(self.database_url):
            raise self.not_running()

    def not_running(self) -> GenctlError:
        """Make the error for an embedded stack that is down, or has never run."""
        told = f"the embedded stack is not running (nobody listens in {self.home})"
        return GenctlError("StackNotRunning", told, "start it with `genctl up`, or set DATABASE_URL")

    def _login(self, url: str) -> str:
        return dsn.TokenUrl(url) if self.db_iam else url

    def listen_dsn(self) -> str | None:
        """Return the URL for LISTEN, None where it is off. Raises as dsn() does."""
        return None if self.listen_url == "off" else self.direct_dsn()


def _queue_of(tool: str) -> str:
    return f"{tool}-jobs"


def _entry(field: "dataclasses.Field[Any]") -> Entry:
    key = field.name.removesuffix("_s")
    entry: Entry = field.metadata["entry"]
    return entry._replace(name=field.name, key=key, env=entry.env or f"GENCTL_{key.upper()}")


TABLE = tuple(_entry(field) for field in dataclasses.fields(Settings) if field.metadata)


def load(
    flags: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    *,
    of_tools: Iterable[Entry] = (),
    more: bool = False,
) -> Settings:
    """Read the settings: flag, environment, genctl.yaml, the user's file, embedded stack, default.

    `flags` go by key; `more` is as for settings_sources.sources(). Raises GenctlError: exit 2 for what is
    unknown or wrong in any of them, exit 3 for a file of the embedded stack that cannot be read.
    """
    rows = (*TABLE, *of_tools)
    environment = os.environ if env is None else env
    hidden.know("environment", hidden.of_environment(environment))
    keys = {entry.key: entry.env for entry in rows}
    sources = settings_sources.sources(keys, flags or {}, environment, cwd or Path(), more=more)
    _hide_secrets(rows, sources)
    given = {key: one for source in reversed(sources) for key, one in source.items()}
    parsed = {entry.name: _parsed(entry, given[entry.key]) for entry in rows if entry.key in given}
    origins = {entry.name: given[entry.key].origin if entry.key in given else "default" for entry in rows}
    theirs = {entry.key: parsed.pop(entry.name) for entry in of_tools if entry.name in parsed}
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    implied = {"home": user_data_path("genctl"), "log": "text" if on_terminal else "json"}
    embedded = "database_url" not in parsed
    settings = Settings(
        **implied | parsed, embedded=embedded, of_tools=theirs, origins=MappingProxyType(origins)
    )
    if not embedded:
        return settings
    _refuse_real_services(given)
    return with_stack(settings, read_stack(settings.home), of_tools)


def with_stack(settings: Settings, stack: Mapping[str, str], of_tools: Iterable[Entry]) -> Settings:
    """Take the values that the embedded stack has written, except those that the user has set."""
    # its keys, and the password of its database
    own = {text for name, text in stack.items() if name.endswith("secret") or "secret_" in name}
    hidden.know("embedded stack", own | {one for text in stack.values() for one in hidden.in_urls(text)})

    def is_free(name: str) -> bool:
        return settings.origins.get(name, "default") in {"default", "embedded stack"}

    known = Settings.__dataclass_fields__
    ours: dict[str, Any] = {name: text for name, text in stack.items() if name in known and is_free(name)}
    theirs = {name: text for name, text in simulated(of_tools, stack).items() if is_free(name)}
    origins = dict.fromkeys([*ours, *(theirs.keys() & stack.keys())], "embedded stack")
    return dataclasses.replace(
        settings,
        **ours,
        of_tools={**settings.of_tools, **theirs},
        origins=MappingProxyType({**settings.origins, **origins}),
    )


def simulated(rows: Iterable[Entry], stack: Mapping[str, str]) -> dict[str, str]:
    """Return the values of the rows for which the embedded stack's simulator stands in."""
    address = stack.get("simulator_url", SIMULATOR)
    return {
        entry.key: stack.get(entry.key, address + entry.simulated)
        for entry in rows
        if entry.simulated is not None
    }


def _hide_secrets(rows: Iterable[Entry], sources: Sequence[Mapping[str, settings_sources.Given]]) -> None:
    """Hide those of all sources, also one that another wins over, before any complaint repeats it."""
    texts = [(entry, source[entry.key].text) for entry in rows for source in sources if entry.key in source]
    own = {text for entry, text in texts if entry.secret and not dsn.is_url(text)}
    in_urls = {secret for _, text in texts for secret in hidden.in_urls(text)}
    hidden.know("settings", own | in_urls)


def _parsed(entry: Entry, given: settings_sources.Given) -> Any:
    try:
        return entry.parse(given.text)
    except ValueError as error:
        got = "" if entry.secret else f", got {hidden.hide(given.text)[:80]!r}"
        raise GenctlError("BadSetting", f"{given.position}: expected {error}{got}", exit_code=2) from None


def _refuse_real_services(given: Mapping[str, settings_sources.Given]) -> None:
    """Refuse settings that name a real service: without DATABASE_URL everything is embedded."""
    is_url = re.compile("://").search
    is_real: dict[str, Callable[[str], Any]] = dict.fromkeys(("queue", "dlq", "listen_url"), is_url)
    is_real |= {"sqs_endpoint": bool, "db_iam": values.as_switch}
    for key, meant in is_real.items():
        if key in given and meant(given[key].text):
            told = f"{given[key].position} names a real service, but DATABASE_URL is not set"
            fix = "set DATABASE_URL too, or unset this one to use the embedded stack"
            raise GenctlError("BadSetting", told, fix, exit_code=2)


def read_stack(home: Path) -> dict[str, str]:
    """Read the embedded stack's file; empty if it never ran. Raises GenctlError (exit 2 or 3)."""
    path = home / STACK_FILE
    if path.is_file():
        trust.check(path, "unset GENCTL_HOME", folders=False)  # a folder that somebody has named
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}
    except NotADirectoryError:
        told = f"GENCTL_HOME: {home} is no folder"
        raise GenctlError("BadSetting", told, "name one", exit_code=2) from None
    except (OSError, msgspec.DecodeError) as error:
        raise GenctlError("StackFile", f"{path} cannot be read: {error}", f"remove {path}") from None

"""Settings: their order, their origins, and what is refused."""

import json
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genctl.base import dsn, settings
from genctl.base.durations import doubled_s, format_duration, parse_duration, parse_when, reconnect_s
from genctl.base.settings import SIMULATOR, STACK_FILE, TABLE, Settings
from genctl.domain.classify import OURS
from genctl.domain.model import GenctlError
from genctl.tools.found import load
from genctl.tools.seedream4 import BYTEPLUS, SETTINGS, TOOL

DATABASE = "postgresql://ann:s3cret@db.example.com:5432/shop"
REAL = {"DATABASE_URL": DATABASE}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this checkout's folder nor the user's own files count."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def refused(
    flags: dict[str, str] | None = None, env: dict[str, str] | None = None, exit_code: int = 2
) -> GenctlError:
    with pytest.raises(GenctlError) as caught:
        load(flags or {}, env or {})
    assert caught.value.exit_code == exit_code
    assert "\n" not in caught.value.message
    return caught.value


def test_without_anything_set_the_defaults_of_the_contract_hold() -> None:
    settings = load({}, REAL)
    assert settings == Settings(
        database_url=DATABASE,
        db_iam=False,
        listen_url=None,
        queue="seedream4-jobs",
        dlq=None,
        sqs_endpoint=None,
        api_url="http://127.0.0.1:8787",
        secret=None,
        max_attempts=3,
        max_unknown_retries=1,
        verdicts=(),
        provider_timeout_s=300.0,
        queued_timeout_s=86400.0,
        rate=None,
        max_in_flight=None,
        breaker=True,
        breaker_failures=20,
        cors_origins=(),
        image_hosts=(),
        streams_per_user=16,
        trace_retention_s=90 * 86400.0,
        protected=False,
        log=settings.log,
        log_level="info",
        home=settings.home,
        origins=settings.origins,
    )
    assert settings.home.name == "genctl"
    assert settings.home.is_absolute()


def test_a_flag_wins_over_the_environment_over_the_file_over_the_users_file(tmp_path: Path) -> None:
    """Every value knows where it came from."""
    own = tmp_path / "config" / "genctl" / "genctl.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("max_attempts: 4\nbreaker_failures: 4\nstreams_per_user: 4\nrate: 4\n")
    (tmp_path / "genctl.yaml").write_text("max_attempts: 3\nbreaker_failures: 3\nstreams_per_user: 3\n")
    env = REAL | {"GENCTL_MAX_ATTEMPTS": "2", "GENCTL_BREAKER_FAILURES": "2"}
    settings = load({"max_attempts": "1"}, env)
    assert (settings.max_attempts, settings.breaker_failures) == (1, 2)
    assert (settings.streams_per_user, settings.rate) == (3, 4.0)
    assert {name: origin for name, origin in settings.origins.items() if origin != "default"} == {
        "database_url": "environment DATABASE_URL",
        "max_attempts": "flag --setting",
        "breaker_failures": "environment GENCTL_BREAKER_FAILURES",
        "streams_per_user": f"file {tmp_path}/genctl.yaml",
        "rate": f"file {own}",
    }


def test_the_file_that_the_environment_names_is_read_instead_of_the_working_folders(tmp_path: Path) -> None:
    (tmp_path / "genctl.yaml").write_text("max_attempts: 7\n")
    (tmp_path / "other.yaml").write_text("breaker_failures: 8\n")
    settings = load({}, REAL | {"GENCTL_CONFIG": "other.yaml"})
    assert (settings.max_attempts, settings.breaker_failures) == (3, 8)
    assert "there is no file" in refused(env=REAL | {"GENCTL_CONFIG": "gone.yaml"}).message


def test_an_empty_variable_or_key_counts_as_unset(tmp_path: Path) -> None:
    (tmp_path / "genctl.yaml").write_text("max_attempts:\nrate: null\nqueue: ''\n")
    env = dict.fromkeys((entry.env for entry in TABLE), "") | REAL
    settings = load({"log_level": ""}, env)
    assert set(settings.origins.values()) == {"default", "environment DATABASE_URL"}


def test_a_file_means_what_it_says_whatever_yaml_takes_it_for(tmp_path: Path) -> None:
    (tmp_path / "genctl.yaml").write_text(
        "breaker: off\nprotected: yes\nqueue: 0123\nlisten_url: off\nqueued_timeout: 90m\n"
        "cors_origins: [https://a.example, https://b.example]\nimage_hosts: a.example, *.b.example\n"
    )
    settings = load({}, REAL)
    assert (settings.breaker, settings.protected, settings.queue) == (False, True, "0123")
    assert settings.listen_url == "off"
    assert settings.listen_dsn() is None
    assert settings.direct_dsn() == DATABASE
    assert settings.queued_timeout_s == 5400.0
    assert settings.cors_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize(
    ("flags", "env", "what", "fix"),
    [
        ({"max_attempt": "3"}, {}, "--setting: 'max_attempt' is no setting", "did you mean max_attempts?"),
        ({"DATABASE_URL": "x"}, {}, "'DATABASE_URL'", "did you mean database_url?"),
        ({"genctl_queue": "x"}, {}, "'genctl_queue'", "did you mean queue?"),
        ({"zzz": "3"}, {}, "'zzz'", "`genctl config show` lists the settings"),
        ({}, {"GENCTL_MAX_ATTEMPT": "3"}, "GENCTL_MAX_ATTEMPT", "did you mean GENCTL_MAX_ATTEMPTS?"),
        ({}, {"GENCTL_DATABASE_URL": "x"}, "GENCTL_DATABASE_URL", "did you mean DATABASE_URL?"),
    ],
)
def test_an_unknown_name_is_refused_with_a_suggestion(
    flags: dict[str, str], env: dict[str, str], what: str, fix: str
) -> None:
    error = refused(flags, REAL | env)
    assert what in error.message
    assert error.fix == fix


def test_variables_of_other_programs_are_none_of_our_business() -> None:
    load({}, REAL | {"GENCTL_TEST_QUEUE": "x", "GENCTL_IMAGE_TAG": "x", "GENCTL_REPLICAS": "x", "PATH": "/"})


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("max_attempts: 3\n\nqueu: x\n", 3, "'queu' is no setting"),
        ("max_attempts: 3\nmax_attempts: 3\n", 2, "set twice"),
        ("max_attempts: many\n", 1, "max_attempts: expected a whole number from 1 to 999999999, got 'many'"),
        ("public_url: https://ann:open@x.example/\n", 1, "got 'https://ann:***@x.example/'"),
        ("max_attempts: {a: b}\n", 1, "a plain value"),
        ("max_attempts: [[1]]\n", 1, "a plain value"),
        ("- max_attempts\n", 1, "lines of `key: value`"),
        ("max_attempts: 'x\n", 2, ""),
        ("? [a]\n: b\n", 1, "lines of `key: value`"),
        ("tool: a\n---\ntool: b\n", 2, "expected a single document in the stream but found another"),
        ("max_attempts: &a 3\nbreaker_failures: *b\n", 2, "undefined alias"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int, what: str
) -> None:
    (tmp_path / "genctl.yaml").write_text(text)
    message = refused(env=REAL).message
    assert f"{tmp_path}/genctl.yaml:{line}: " in message
    assert what in message


def test_beside_a_tool_that_cannot_be_loaded_a_key_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "genctl.yaml").write_text("of_that_tool: 1\n? [a]\n: b\n")
    with pytest.raises(GenctlError, match=r"genctl.yaml:2: expected lines of `key: value`"):
        settings.load(env=REAL, more=True)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \x00", b"[" * 3_000, b"\x80"])
def test_a_file_that_is_no_yaml_is_one_line_too(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "genctl.yaml").write_bytes(content)
    assert str(tmp_path) in refused(env=REAL).message


def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "genctl.yaml").mkdir()
    assert "cannot be read" in refused(env=REAL).message


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("database_url", "mysql://x/y"),
        ("database_url", "postgresql://u:p/w@h/d"),
        ("database_url", "postgresql://u:p@w@h/d"),
        *[("database_url", f"postgresql://u:{wrong}@h/d") for wrong in ("p%w", "p w", "p%00w", "p%a")],
        ("listen_url", "postgresql://u:p%w@h/d"),
        ("listen_url", "on"),
        ("db_iam", "maybe"),
        ("queue", "a queue"),
        ("queue", "https://sqs"),
        ("sqs_endpoint", "localhost:4566"),
        ("ark_base_url", "ftp://x"),
        ("ark_base_url", "http://"),
        ("ark_base_url", "http://[::1"),
        ("ark_base_url", "http://x:99999/"),
        ("ark_api_key", "a\nb"),
        ("secret", "x" * 31),
        ("max_attempts", "0"),
        ("max_attempts", "-1"),
        ("max_attempts", "1.5"),
        ("max_attempts", "99999999999999"),
        ("max_attempts", "٣"),
        ("max_unknown_retries", "-1"),
        ("provider_timeout", "0s"),
        ("provider_timeout", "300"),
        ("queued_timeout", "9" * 12 + "d"),
        *(
            ("verdicts", bad)
            for bad in (
                "408",
                "408=",
                "408=maybe",
                "=retry",
                "*=fatal",
                "42=retry",
                "200=retry",
                "4xx=fatal",
                "advise",
                "408=retry,408=fatal",
                "X=retry=fatal",
                "a b;c=retry",
                "advice,advice",
                "advice=retry",
                "WorkerCrashed=fatal",
                "408=retry,Unknown=fatal",
            )
        ),
        ("rate", "0"),
        ("rate", "nan"),
        ("rate", "inf"),
        ("rate", "-60"),
        ("rate", "60/min"),
        ("max_in_flight", "0"),
        ("max_in_flight", "-1"),
        ("max_in_flight", "many"),
        ("breaker", "maybe"),
        ("breaker_failures", "0"),
        ("cors_origins", "https://a.example/path"),
        ("cors_origins", "*"),
        ("image_hosts", "a.example; script-src *"),
        ("log", "xml"),
        ("log_level", "loud"),
        ("home", "~nobody-of-that-name/x"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_expected(key: str, bad: str) -> None:
    message = refused({key: bad}, REAL).message
    assert message.startswith(f"--setting {key}: expected ")


def test_origins_are_read_as_browsers_write_them() -> None:
    origins = "https://Shop.Example:443, http://a.example:80/, https://[::1]:8443, http://b.example:443"
    found = load({"cors_origins": origins}, REAL).cors_origins
    assert found == ("https://shop.example", "http://a.example", "https://[::1]:8443", "http://b.example:443")


@pytest.mark.parametrize("key", ["database_url", "listen_url", "secret", "ark_api_key"])
def test_a_refused_secret_is_not_repeated(key: str) -> None:
    assert "hunter2" not in refused({key: "\x00hunter2"}).message


def test_secrets_are_not_in_the_repr() -> None:
    env = REAL | {"GENCTL_SECRET": "hunter2" * 8, "ARK_API_KEY": "hunter2"}
    assert "hunter2" not in repr(load({}, env))
    assert "s3cret" not in repr(load({}, env))


@pytest.mark.parametrize("code", OURS)
def test_no_verdict_can_be_set_on_a_code_of_ours(code: str) -> None:
    assert f"{code} is one of ours" in refused({"verdicts": f"{code}=retry"}).message


def test_verdicts_are_read_from_a_line_or_a_list(tmp_path: Path) -> None:
    (tmp_path / "genctl.yaml").write_text("verdicts: [408=retry, 'Quota*=fatal', advice]\n")
    assert load({}, REAL).verdicts == ("408=retry", "Quota*=fatal", "advice")
    assert load({"verdicts": " 408 = retry, *.Tail=fatal,"}, REAL).verdicts == ("408=retry", "*.Tail=fatal")


# The embedded stack


def write_stack(home: Path, **values: str) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / STACK_FILE).write_text(json.dumps(values))


STACK = {
    "database_url": "postgresql://genctl:pw@/genctl?host=/run/x",
    "sqs_endpoint": "http://127.0.0.1:4001",
    "ark_base_url": "http://127.0.0.1:4002/api/v3",
    "secret": "s" * 32,
    "aws_access_key_id": "GENCTL",
    "aws_secret_access_key": "key",
}


def test_without_a_database_url_everything_is_what_the_embedded_stack_wrote_down(tmp_path: Path) -> None:
    write_stack(tmp_path / "home", **STACK)
    env = {"GENCTL_HOME": str(tmp_path / "home"), "AWS_PROFILE": "prod", "AWS_ACCESS_KEY_ID": "AKIAREAL"}
    settings = load({}, env)
    assert settings.embedded
    ours = STACK.keys() - {"ark_base_url"}
    assert {name: getattr(settings, name) for name in ours} | dict(settings.of_tools) == STACK
    assert settings.origins["sqs_endpoint"] == "embedded stack"
    assert settings.dsn() == settings.listen_dsn() == STACK["database_url"]
    assert not TOOL.bound(settings).is_real


def test_a_provider_that_was_asked_for_wins_over_the_simulator(tmp_path: Path) -> None:
    write_stack(tmp_path, **STACK)
    settings = load({}, {"GENCTL_HOME": str(tmp_path), "ARK_BASE_URL": "https://ark.example.com/api/v3/"})
    assert TOOL.bound(settings).address == "https://ark.example.com/api/v3"
    assert settings.origins["ark_base_url"] == "environment ARK_BASE_URL"
    assert TOOL.bound(settings).is_real


def test_with_a_database_url_nothing_of_the_embedded_stack_counts(tmp_path: Path) -> None:
    write_stack(tmp_path, **STACK)
    settings = load({}, REAL | {"GENCTL_HOME": str(tmp_path)})
    assert not settings.embedded
    assert (settings.sqs_endpoint, settings.secret, settings.aws_access_key_id) == (None, None, None)


def test_a_stack_that_never_ran_is_exit_3_with_how_to_start_it() -> None:
    settings = load({}, {})
    assert TOOL.bound(settings).address == f"{SIMULATOR}/api/v3"
    with pytest.raises(GenctlError, match="not running") as caught:
        settings.dsn()
    assert (caught.value.exit_code, "genctl up" in caught.value.fix) == (3, True)


@pytest.mark.parametrize(
    "env",
    [
        {"GENCTL_QUEUE": "https://sqs.eu-west-1.amazonaws.com/1/jobs"},
        {"GENCTL_DLQ": "https://sqs.eu-west-1.amazonaws.com/1/jobs-dlq"},
        {"AWS_ENDPOINT_URL_SQS": "http://localhost:4566"},
        {"GENCTL_LISTEN_URL": DATABASE},
    ],
)
def test_what_names_a_real_service_is_refused_without_a_database_url(env: dict[str, str]) -> None:
    error = refused(env=env)
    assert next(iter(env)) in error.message
    assert "DATABASE_URL" in error.message
    load({}, REAL | env)


def test_a_stack_file_that_cannot_be_read_is_exit_3(tmp_path: Path) -> None:
    (tmp_path / STACK_FILE).write_text("{")
    assert str(tmp_path / STACK_FILE) in refused(env={"GENCTL_HOME": str(tmp_path)}, exit_code=3).message


@pytest.mark.parametrize(
    ("url", "real"),
    [
        ("http://127.0.0.1:8788/api/v3", False),
        ("http://127.9.9.9/api/v3", False),
        ("http://localhost/api/v3", False),
        ("http://[::1]:1/api/v3", False),
        ("http://0.0.0.0/api/v3", True),
        ("http://127.0.0.1.example.com/api/v3", True),
        ("http://localhost@example.com/api/v3", True),
        (BYTEPLUS, True),
    ],
)
def test_a_provider_is_real_unless_its_host_is_a_loopback_address(url: str, *, real: bool) -> None:
    assert TOOL.bound(load({"ark_base_url": url}, REAL)).is_real is real


# The table itself


def test_each_setting_is_in_the_table_once() -> None:
    others = {
        "of_tools",
        "simulator_url",
        "embedded",
        "aws_access_key_id",
        "aws_secret_access_key",
        "origins",
    }
    assert {entry.name for entry in TABLE} == {field.name for field in fields(Settings)} - others
    assert (
        len({e.env for e in (*TABLE, *SETTINGS)})
        == len({e.key for e in (*TABLE, *SETTINGS)})
        == len(TABLE) + 3
    )


# Durations and times


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("30s", 30.0), ("15m", 900.0), ("2h", 7200.0), ("90d", 7776000.0), ("1.5h", 5400.0)],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "s", "-1s", "1 s", "1w", "1h30m", "1e3s", "٣s", "9" * 13 + "s", "99999d"]
)
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="a duration such as"):
        parse_duration(text)


@given(st.integers(1, 10**9).map(lambda ms: ms / 1000))
def test_a_duration_is_written_so_that_it_reads_back(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-6)


def test_a_pause_grows_for_as_long_as_an_outage_lasts() -> None:
    """A float ends at the 1,024th doubling: two hours of tries every ten seconds."""
    assert [doubled_s(0.5, times, 10.0) for times in (0, 1, 4, 5, 5_000)] == [0.5, 1.0, 8.0, 10.0, 10.0]
    assert 5.0 <= reconnect_s(5_000, 10.0) <= 10.0


def test_since_is_a_duration_back_from_now_or_rfc_3339() -> None:
    now = datetime(2025, 11, 2, 12, tzinfo=UTC)
    assert parse_when("15m", now) == now - timedelta(minutes=15)
    for text in ("2025-11-02T09:30:00Z", "2025-11-02t10:30:00.000+01:00", "2025-11-02 09:30:00z"):
        assert parse_when(text, now) == datetime(2025, 11, 2, 9, 30, tzinfo=UTC)
    for text in (
        "2025-11-02",
        "2025-11-02T09:30:00",
        "2025-13-02T09:30:00Z",
        "yesterday",
        "0001-01-01T00:00:00+14:00",
    ):
        with pytest.raises(ValueError, match="a duration back from now"):
            parse_when(text, now)


# Database URLs


@pytest.mark.parametrize(
    ("url", "shown", "place"),
    [
        (DATABASE, "postgresql://ann:***@db.example.com:5432/shop", ("db.example.com:5432", "shop")),
        ("postgres://ann@h/a%20b", "postgres://ann@h/a%20b", ("h", "a b")),
        ("postgresql:///x?host=/pg&password=p", "postgresql:///x?host=/pg&password=***", ("/pg", "x")),
        ("postgresql://u:p#?w@a:1,b:2/d", "postgresql://u:***@a:1,b:2/d", ("a:1,b:2", "d")),
        ("postgresql://h/d?a=b&sslpassword=q", "postgresql://h/d?a=b&sslpassword=***", ("h", "d")),
        ("postgresql://ann@", "postgresql://ann@", ("localhost", "ann")),
        ("postgresql://u:@[::1]:5/d", "postgresql://u:@[::1]:5/d", ("[::1]:5", "d")),
    ],
)
def test_a_database_url_is_shown_and_named_without_its_secrets(
    url: str, shown: str, place: tuple[str, str]
) -> None:
    assert dsn.check(url) == url
    assert dsn.masked(url) == shown
    assert dsn.place(url) == place


def test_a_database_is_named_by_what_libpq_takes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dsn.place.cache_clear()
    for name, value in {"PGHOST": "/pg", "PGUSER": "ann", "PGDATABASE": ""}.items():
        monkeypatch.setenv(name, value)
    assert dsn.place("postgresql://") == ("/pg", "ann")
    monkeypatch.setenv("PGDATABASE", "shop")
    assert dsn.place("postgresql:///") == ("/pg", "shop")
    assert dsn.place("postgresql://bob@h/x") == ("h", "x")
    dsn.place.cache_clear()

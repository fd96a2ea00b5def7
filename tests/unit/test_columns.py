"""How columns and pages give way: ids stay unique, ages are short, Markdown is wrapped."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from genctl.cli import tables
from genctl.cli.formats import plain, width
from genctl.cli.pages import page
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


def test_what_stands_in_a_row_does_not_stand_below_it_too() -> None:
    row = {"userId": "ann", "code": "InternalServiceError", "why": "InternalServiceError"}
    assert tables.table([row], list(row), 30).splitlines()[2:] == ["ann     InternalServiceError"]


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


def test_a_table_of_a_page_is_aligned_or_what_a_row_says_stands_below_its_first_cell() -> None:
    text = "| code | meaning |\n|---|---|\n| 0 | done |\n| 130, 143 | a signal \\| `-o` ended it |\n"
    assert page(text, 40).splitlines() == [
        *("code      meaning", "--------  ------------------------"),
        *("0         done", "130, 143  a signal | `-o` ended it"),
    ]
    assert page(text, 30).splitlines() == [*("0", "    done", "130, 143", "    a signal | `-o` ended it")]
    assert page("| no table\n", 30) == "| no table\n"
    three = "| check | error | warning |\n|---|---|---|\n| `key` | | it is older than a year |\n"
    assert page(three, 30).splitlines() == ["`key`", "    warning: it is older than", "    a year"]


def test_an_item_of_a_page_hangs_by_its_marker() -> None:
    text = "- one word and\n  `-o` more\n2. an other\n"
    assert page(text, 12).splitlines() == ["- one word", "  and `-o`", "  more", "2. an other"]


def test_the_code_that_most_rows_have_stays_in_the_row_though_a_few_are_longer() -> None:
    """Users are cut further for it."""
    usual, longer = (
        "OutputImageSensitiveContentDetected",
        "OutputImageSensitiveContentDetected.PolicyViolation",
    )
    row = {"sentAt": "2026-11-30T12:00:00.000Z", "messageId": "3f2a1b4c-0000-4000-8000-000000000000"}
    row |= {"code": usual, "userId": "customer-of-the-acme-studio-1", "sessionId": row["messageId"]}
    rows = [row | {"state": "current"}, row | {"state": "stale", "code": longer}]
    _, _, first, second, under = tables.table(rows, list(rows[0]), 80).splitlines()
    assert first.split()[2:] == [usual, "cus…o-1", "3f2a1b4c", "current"]
    assert (second.split()[2:], under) == (["cus…o-1", "3f2a1b4c", "stale"], f"    {longer}")


FAILURE = {"at": 24, "sessionId": 36, "userId": 20, "code": 35, "refundedCredits": 15, "userMessage": 0}


@pytest.mark.parametrize("room", [40, 60, 80, 120, 200])
def test_the_rows_of_a_table_that_grows_stand_below_their_heads(room: int) -> None:
    """Whatever they hold: what is too wide for its column is cut, or stands below its row."""
    today = f"{datetime.now(UTC):%Y-%m-%d}T09:30:01.000Z"
    row = {
        "at": today,
        "sessionId": "3f2a1b4c-0000-4000-8000-000000000000",
        "userId": "ann",
        "code": "Timeout",
    }
    row |= {"refundedCredits": "4", "userMessage": "The request failed. " * 5}
    odd = {"userId": "作家🦊さん" * 5, "code": "C" * 51, "sessionId": None, "userMessage": None}
    writer = tables.lines_writer(FAILURE, room)
    head, *lines = "".join(writer.row(row | more, n) for n, more in enumerate([{}, odd, {}])).splitlines()
    assert max(map(width, lines)) <= room
    begins = [match.start() for match in re.finditer(r"\S+", head)]
    rows = [line for line in lines if line.startswith("09:30:01Z  ")]
    assert len(rows) == 3
    assert rows[0] == rows[2]
    assert "C" * 51 in "".join(line.strip() for line in lines)
    for line in rows:  # in columns, of which a wide character takes two
        cells = "".join(char + "\0" * (width(char) - 1) for char in line).ljust(room)
        assert all(cells[begin - 2 : begin] == "  " for begin in begins[1:] if begin < room)


def test_in_a_pipe_a_table_that_grows_shows_everything_and_runs_no_two_cells_together() -> None:
    row = {"at": None, "sessionId": None, "userId": "x" * 30, "code": "C" * 51, "refundedCredits": 4}
    later = row | {"at": "2025-01-01T09:30:01.000Z", "userId": "ann", "userMessage": "a sentence " * 20}
    writer = tables.lines_writer(FAILURE, None)
    head, first, second = "".join(writer.row(one, n) for n, one in enumerate([row, later])).splitlines()
    assert first.split() == ["-", "-", "x" * 30, "C" * 51, "4", "-"]
    assert second.split(maxsplit=5)[:5] == [later["at"], "-", "ann", "C" * 51, "4"]
    assert second.endswith("a sentence")
    assert head.index("userId") == second.index("ann")


def test_a_table_that_grows_has_room_for_the_day_where_its_first_row_has_one() -> None:
    row = {"at": "2025-01-01T09:30:01.000Z", "sessionId": "3f2a1b4c-0000-4000-8000-000000000000"}
    head, line = tables.lines_writer({"at": 24, "sessionId": 36}, 40).row(row, 0).splitlines()
    assert head.index("session") == line.index("3f2a1b4c-0000") == len("01-01 09:30:01Z") + 2

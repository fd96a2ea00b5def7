"""What a program reads from our stdout is as harmless as what a terminal shows."""

import json

import pytest
from tests.unit.test_formats import HOSTILE

from genctl.base import hidden
from genctl.base.printable import is_printable
from genctl.cli.command import FORMATS
from genctl.cli.output import Output, write

ROW = {"id": 1, "text": f"evil {HOSTILE}", "more": {HOSTILE: [HOSTILE]}}


def is_harmless(text: str) -> bool:
    return is_printable(text.replace("\r\n", "").replace("\n", ""))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("told", ["one", "many", "text", "stream"])
def test_nothing_raw_reaches_a_pipe(form: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where a command has laid out its own text."""
    out = Output(form)
    match told:
        case "one":
            out.emit(ROW)
        case "many":
            out.emit([ROW, ROW])
        case "text":
            out.emit([ROW], text=lambda: f"evil {HOSTILE}\n")
        case "stream":
            with out.stream({"id": 4, "text": 0}) as put:
                put(ROW)
    said = capsys.readouterr().out
    assert "evil" in said
    assert is_harmless(said)


def test_a_line_that_a_command_writes_itself_is_no_exception(capsys: pytest.CaptureFixture[str]) -> None:
    write(f"{HOSTILE}\n")
    assert is_harmless(capsys.readouterr().out)


def test_a_number_that_looks_like_a_secret_leaves_json_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Texts are masked one by one before they become a document."""
    hidden.know("test", ["12345678"])
    try:
        Output("json").emit({"credits": 12345678, "text": "it is 12345678"})
    finally:
        hidden.know("test", ())
    assert json.loads(capsys.readouterr().out) == {"credits": 12345678, "text": "it is ***"}

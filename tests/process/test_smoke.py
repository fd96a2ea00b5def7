"""`genctl smoke` as it is typed: its document, its report, its exit codes, and how it is interrupted."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.kit import free_port, until_sync
from tests.process.place import Place

from genctl.ops.smoke.hop import HOPS, HopResult
from genctl.ops.smoke.junit import suite

KEYS = ["hop", "ok", "ms", "evidence", "why"]


@contextmanager
def served(place: Place) -> Iterator[None]:
    """An API at the place; from now on its terminal knows where."""
    port = str(free_port())
    place.env["GENCTL_API_URL"] = f"http://127.0.0.1:{port}"
    with place.start("serve", "--port", port) as api:
        api.until("api.started")
        yield


def cases(report: Path) -> dict[str, str]:
    """What a JUnit report says of each hop: its first child's tag."""
    found = ET.parse(report).getroot()
    return {case.attrib["name"]: case[0].tag for case in found.iter("testcase")}


def test_a_sound_deployment(place: Place) -> None:
    """Exit code 0 in every form, and the audit finds nothing afterwards."""
    report = place.folder / "report.xml"
    with served(place), place.worker():
        said = place.genctl("smoke", "--junit", str(report))
        assert list(said) == ["ok", "hops"]
        assert said["ok"] is True
        assert [list(hop) for hop in said["hops"]] == [KEYS] * len(HOPS)
        assert [hop["hop"] for hop in said["hops"]] == list(HOPS)
        assert all(hop["ok"] and hop["ms"] >= 0 and hop["evidence"] for hop in said["hops"])
        assert cases(report) == dict.fromkeys(HOPS, "system-out")
        lines = place.say("smoke", "--user", "demo").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*HOPS, "smoke:"]
    assert all(" ms  " in line for line in lines[:-1])
    assert place.genctl("refunds", "check")["violations"] == []
    assert place.copies() == {}


def test_the_first_broken_hop_is_explained(place: Place) -> None:
    """Exit code 1; the report fails there and skips what was not tried."""
    report = place.folder / "report.xml"
    with served(place):
        said = place.genctl("smoke", "--timeout", "5s", "--junit", str(report), exit_code=1)
        text = place.say("smoke", "--timeout", "5s", "--junit", "/dev/full", exit_code=3)
    assert said["ok"] is False
    assert [hop["ok"] for hop in said["hops"]] == [True] + [False] * 8
    assert "nobody takes them" in said["hops"][1]["why"]
    assert list(cases(report).values()) == ["system-out", "failure"] + ["skipped"] * 7
    assert "smoke: broken at claimed" in text.stdout
    assert "left behind: session" in text.stderr
    assert "/dev/full: No space left on device" in text.stderr, "which hides no verdict"


def test_what_cannot_be_reached_is_one_line_and_a_report(place: Place) -> None:
    """Exit code 3, nothing on stdout, an error in the report."""
    report = place.folder / "report.xml"
    place.env["GENCTL_API_URL"] = f"http://127.0.0.1:{free_port()}"
    error = place.error("smoke", "--junit", str(report), exit_code=3)
    assert (error["code"], "GENCTL_API_URL" in error["fix"]) == ("ApiUnreachable", True)
    assert list(cases(report).values()) == ["error"] + ["skipped"] * 8
    assert place.sql("select from credit_accounts") == []


def test_a_report_that_cannot_be_written_is_told_before_anything_is_done(place: Place) -> None:
    error = place.error("smoke", "--junit", str(place.folder / "no" / "report.xml"), exit_code=3)
    assert "report.xml" in error["message"]
    assert place.sql("select from credit_accounts") == []


def test_a_real_provider_needs_a_yes(place: Place) -> None:
    place.env["ARK_BASE_URL"] = "https://ark.example.test/api/v3"
    assert place.error("smoke", exit_code=2)["code"] == "NotConfirmed"


def test_an_interruption_leaves_nothing_owing(place: Place) -> None:
    """The guest's credits are taken back as far as no job holds them, the report says so, no traceback."""
    report = place.folder / "report.xml"
    with served(place), place.start("smoke", "-o", "json", "--junit", str(report)) as smoking:
        until_sync(lambda: place.sql("select from generation_sessions"))
        assert smoking.end(signal.SIGINT) == 130
        assert smoking.out.read_text() == ""
        assert "Traceback" not in smoking.log.read_text()
    assert [row["balance"] for row in place.sql("select balance from credit_accounts")] == [0]
    assert "error" in cases(report).values()
    assert place.violations() == []


def test_a_kill_leaves_the_books_whole(place: Place) -> None:
    """kill -9 at any moment: what was lent is in the ledger, so the audit finds nothing; no copy is hidden."""
    place.send(place.body("00000000-0000-4000-8000-000000000000"), dlq=True)
    with served(place), place.start("smoke") as smoking:
        until_sync(lambda: place.sql("select from generation_sessions"))
        os.kill(smoking.process.pid, signal.SIGKILL)
        smoking.process.wait()
    assert place.violations() == []
    assert len(place.copies()) == 1


def test_control_characters_of_a_provider_are_no_xml_error() -> None:
    """And nothing in a hop's words ends a tag."""
    words = 'expected "a" & <b>, found \x00\x1b[31m \ud800\uffff'
    text = ET.tostring(suite([HopResult("accepted", ok=False, why=words)]), "utf-8")
    (failure,) = ET.fromstring(text).iter("failure")
    assert failure.attrib["message"] == r'expected "a" & <b>, found \x00\x1b[31m \ud800\uffff'


def test_what_breaks_at_the_end_takes_its_followers_along() -> None:
    """A refund that was doubled once all hops were seen: one failure, and what lies behind it is skipped."""
    late = HopResult("refund", ok=False, why="expected 100, found 104; look at credit_accounts")
    hops = [*(HopResult(name, ok=True, ms=1.0, evidence="seen") for name in HOPS), late]
    report = suite(hops)
    assert (report.attrib["failures"], report.attrib["skipped"]) == ("1", "4")

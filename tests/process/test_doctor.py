"""`doctor` as it is typed: its JSON, its exit codes, its screen."""

import shlex

import pytest
from tests.kit import free_port
from tests.process.place import GENCTL, Place
from tests.process.test_cli_manner import OnTerminal


def test_warnings_are_exit_0(served_place: Place) -> None:
    report = served_place.genctl("doctor")
    assert list(report) == ["ok", "findings"]
    assert report["ok"] is True
    assert all(list(one) == ["check", "level", "message", "fix"] for one in report["findings"])
    assert {one["level"] for one in report["findings"]} == {"ok", "warning"}


def test_where_nothing_can_be_reached_doctor_exits_1_and_each_command_has_one_line_for_it(
    place: Place,
) -> None:
    place.make_real()
    nowhere = f"127.0.0.1:{free_port()}"
    place.env |= {
        "DATABASE_URL": f"postgresql://ann@{nowhere}/shop",
        "AWS_ENDPOINT_URL_SQS": f"http://{nowhere}",
        "ARK_BASE_URL": f"http://{nowhere}/api/v3",
        "GENCTL_API_URL": f"http://{nowhere}",
    }
    report = place.genctl("doctor", exit_code=1)
    assert report["ok"] is False
    wrong = [one["check"] for one in report["findings"] if one["level"] == "error"]
    assert wrong == ["postgresql", "sqs", "provider", "api"]
    for command in (["status"], ["status", "--watch"], ["sessions", "trace", "3f2a"]):
        done = place.say(*command, exit_code=3)
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 2, done.stderr


def test_on_a_terminal_no_command_is_cut(served_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (served_place.env | {"GENCTL_SECRET": "y" * 32, "TERM": "xterm"}).items():
        monkeypatch.setenv(name, value)
    terminal = OnTerminal("doctor", program=GENCTL)
    assert terminal.end() == 1
    lines = terminal.seen.replace("\r", "\n").splitlines()
    command = next(line.strip() for line in lines if "aws sqs set-queue-attributes" in line)
    assert shlex.split(command)[-1] == '{"MessageRetentionPeriod": "1209600"}'
    assert any(line.startswith("ERROR") and "stream" in line for line in lines)
    assert any("doctor  [" in line for line in lines), "its progress is shown"

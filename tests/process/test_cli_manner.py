"""The manner of the CLI, on real processes, pipes and terminals: forms, streams, signals, exit codes."""

import csv
import fcntl
import io
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Self

import click
import pytest
import yaml
from click.shell_completion import ShellComplete
from tests.kit import STALL_S, until_sync
from tests.process import forks

from genctl import __version__, cli
from genctl.base.printable import is_printable
from genctl.base.settings import TABLE
from genctl.cli.command import FORMATS, Command, Group

PROGRAM = [sys.executable, str(Path(__file__).with_name("manner_program.py"))]
FORKED = [sys.executable, "-m", "tests.process.manner_program"]
GENCTL = [sys.executable, "-m", "genctl"]
DATABASE = "postgresql://ann:s3cret@db.example.com/shop"


@pytest.fixture(autouse=True)
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without files, and a working folder without any."""
    for name in list(os.environ):
        if name.startswith(("GENCTL_", "DATABASE_URL", "AWS_", "ARK_", "CI", "NO_COLOR", "COLUMNS")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for kind in ("CONFIG", "DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind.lower()))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.chdir(tmp_path)


def run(
    *args: str,
    program: Sequence[str] = FORKED,
    env: Mapping[str, str] | None = None,
    forked: bool = True,
) -> "subprocess.CompletedProcess[str]":
    """A command with nothing to read; not `forked` where the start or the end of an interpreter matters."""
    command = [*(PROGRAM if program is FORKED and not forked else program), *args]
    with Path(os.devnull).open() as stdin, TemporaryFile() as out, TemporaryFile() as err:
        streams = (stdin.fileno(), out.fileno(), err.fileno())
        if forked:
            process = forks.fork(
                command, cwd=Path.cwd(), env=forks.surroundings(**env or {}), streams=streams
            )
            code = process.wait(30)
        else:
            done = subprocess.run(
                command, stdin=stdin, stdout=out, stderr=err, env=os.environ | (env or {}), check=False
            )
            code = done.returncode
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
        return subprocess.CompletedProcess(command, code, *texts)


class Beside:
    """The program beside the test, its stdout and stderr to be read as it writes them."""

    def __init__(self, *args: str) -> None:
        self.stdout, out = pipe()
        self.stderr, err = pipe()
        with Path(os.devnull).open() as stdin, out, err:
            streams = (stdin.fileno(), out.fileno(), err.fileno())
            self.process = forks.fork(
                [*FORKED, *args], cwd=Path.cwd(), env=forks.surroundings(), streams=streams
            )

    def __enter__(self) -> Self:
        assert self.stderr.readline() == "waiting\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.stdout.close()
        self.stderr.close()

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(10)


def pipe() -> tuple[IO[str], IO[str]]:
    read, write = os.pipe()
    return os.fdopen(read), os.fdopen(write, "w")


def shell(line: str, *args: str) -> Any:
    """A line of bash in which $genctl is the program."""
    return subprocess.run(
        ["bash", "-c", line.replace("$genctl", shlex.join(PROGRAM)), "bash", *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


class OnTerminal:
    """The program with a terminal as stdin and stderr, and as stdout too unless it is `piped`.

    A `quiet` one has no stderr.
    """

    def __init__(
        self,
        *args: str,
        columns: int = 80,
        piped: bool = False,
        quiet: bool = False,
        program: Sequence[str] = FORKED,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.seen = ""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        with Path(os.devnull).open("w") as nowhere:
            nothing = nowhere.fileno()
            streams = (slave, nothing if piped else slave, nothing if quiet else slave)
            command = [*program, *args]
            given = forks.surroundings() if env is None else env
            self.process = forks.fork(command, cwd=cwd or Path.cwd(), env=given, streams=streams)
        os.close(slave)

    def until(self, text: str) -> "OnTerminal":
        while text not in self.seen and self._read():
            pass
        assert text in self.seen
        return self

    def type(self, text: str) -> "OnTerminal":
        os.write(self._master, text.encode())
        return self

    def end(self) -> int:
        while self._read():
            pass
        os.close(self._master)
        return self.process.wait(30)

    def _read(self) -> bool:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # how Linux says that no process has the terminal open any more
            return False
        self.seen += data.decode().replace("\r\n", "\n")
        return bool(data)


# Forms


@pytest.mark.parametrize("form", ["json", "jsonl", "yaml", "csv"])
def test_every_form_tells_the_same_rows(form: str) -> None:
    done = run("rows", "-o", form)
    assert (done.returncode, done.stderr) == (0, "")
    read: dict[str, Callable[[str], Any]] = {
        "json": json.loads,
        "jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
        "yaml": yaml.safe_load,
        "csv": lambda text: [dict(row, id=int(row["id"])) for row in csv.DictReader(io.StringIO(text))],
    }
    assert [row["id"] for row in read[form](done.stdout)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("form", "nothing"),
    [("json", "[]\n"), ("jsonl", ""), ("yaml", "[]\n"), ("csv", ""), ("table", "nothing found\n")],
)
def test_nothing_is_an_empty_document(form: str, nothing: str) -> None:
    done = run("rows", "--count=0", "-o", form)
    assert (done.returncode, done.stdout) == (0, nothing)
    assert done.stderr == ""


def test_one_thing_is_an_object_and_the_command_decides_the_exit_code() -> None:
    done = run("thing", "--every=2m", "--since=2025-11-02T09:30:00+01:00", "-o", "json")
    assert done.returncode == 1
    assert json.loads(done.stdout) | {"text": ""} == {
        "every": 120,
        "since": "2025-11-02T08:30:00.000Z",
        "text": "",
    }


@pytest.mark.parametrize(
    ("command", "form"),
    [
        *[("rows", form) for form in FORMATS],
        *[("thing", "table"), ("thing", "json"), ("follow", "table"), ("follow", "csv")],
    ],
)
def test_no_control_character_reaches_a_terminal_raw(command: str, form: str) -> None:
    terminal = OnTerminal(command, "-o", form)
    if command == "follow":
        terminal.until("waiting").type("\x03")
    terminal.end()
    assert "evil" in terminal.seen
    assert is_printable(terminal.seen.replace("\n", "").replace("\r", ""))


@pytest.mark.parametrize("columns", [40, 120])
def test_a_table_fits_the_terminal(columns: int) -> None:
    terminal = OnTerminal("rows", columns=columns)
    assert terminal.end() == 0
    assert max(map(len, terminal.seen.splitlines())) <= columns
    assert ("…" in terminal.seen) == (columns < 100)
    assert "…" not in run("rows").stdout


# Lost streams


@pytest.mark.parametrize("command", ["rows --count 5000 -o json", "follow", "--help"])
def test_a_reader_that_goes_away_is_no_error(command: str) -> None:
    """Also when the command has nothing more to say: a follower does not wait for the next row."""
    done = shell(f"$genctl {command} | head -1 | grep -q . ; echo ${{PIPESTATUS[*]}}")
    assert done.stdout.split() == ["0", "0", "0"]
    assert done.stderr in {"", "waiting\n"}


@pytest.mark.parametrize(
    ("command", "where"),
    [
        *[(command, ">/dev/full") for command in ("follow", "--help")],
        *[(command, ">&-") for command in ("--version", "thing")],
    ],
)
def test_output_that_cannot_be_written_is_exit_3_and_one_line(command: str, where: str) -> None:
    done = shell(f"$genctl {command} {where}")
    assert done.returncode == 3
    (line,) = [line for line in done.stderr.splitlines() if line != "waiting"]
    assert "cannot write to stdout: " in line


def test_a_stderr_or_stdin_that_is_gone_changes_nothing_else() -> None:
    full = "$genctl fail foreseen 2>/dev/full; echo $?"
    closed = "$genctl rows --count 0 2>&- <&-; echo $?"
    done = shell(f"{full}; {closed}")
    assert done.stdout.splitlines() == ["4", "nothing found", "0"]
    assert done.stderr == ""


def waiting_bytes(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    """A parent such as Node makes its pipes non-blocking; nothing is lost then."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with subprocess.Popen([*PROGRAM, "rows", "--count", "2000", "-o", "jsonl"], stdout=write) as process:
        os.close(write)
        until_sync(lambda: waiting_bytes(read) > 60_000)
        with os.fdopen(read) as lines:
            assert sum(1 for _ in lines) == 2000
    assert process.returncode == 0


def test_ctrl_c_while_it_is_loading_is_quiet() -> None:
    """It takes a tenth of a second, and click's modules have no answer to it."""
    command = [sys.executable, "-X", "importtime", "-m", "genctl", "simulator", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr
        assert any("click" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
    assert process.returncode in (-signal.SIGINT, 130, 0)  # 0: we were slow, and it was at work


# Errors


def test_an_error_is_one_line_and_its_fix() -> None:
    done = run("fail", "foreseen")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        "genctl: no session \\x1b[31m\\x9b1m\\u202eevil\\ud800\n  fix: list them\n"
    )  # fmt: skip


@pytest.mark.parametrize("flags", [["-o", "json"], ["-ojson"], ["--output=json"], ["-o", "jsonl"]])
def test_with_json_an_error_is_an_object(flags: list[str]) -> None:
    done = run("fail", "foreseen", *flags)
    assert (done.returncode, done.stdout) == (4, "")
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["error"] | {"message": ""} == {
        "code": "NotFound",
        "message": "",
        "fix": "list them",
    }
    usage = run("fail", "--nonsense", *flags)
    assert usage.returncode == 2
    assert json.loads(usage.stderr)["error"]["code"] == "Usage"


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [("bug", 3, "unexpected RuntimeError: no \\x1b"), ("group", 4, "no session"), ("forgotten", 0, "")],
)
def test_no_traceback_reaches_a_user(how: str, code: int, said: str) -> None:
    """Whatever fails, in whichever task, thread or destructor, unless --debug is given."""
    done = run("fail", how, forked=how == "group")
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    if code == 3:
        assert "Traceback" in run("fail", how, "--debug").stderr


def test_what_fails_amid_its_rows_still_ends_its_document() -> None:
    done = run("fail", "after_rows", "-o", "json")
    assert (done.returncode, json.loads(done.stdout)) == (4, [{"id": 1}])
    assert run("fail", "before_rows", "-o", "json").stdout == ""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["enqueu"], "Did you mean 'enqueue'?"),
        (["config", "shwo"], "Did you mean 'show'?"),
        (["thing", "--evry", "1s"], "--every"),
        (["thing", "--every", "soon"], "a duration such as"),
        (["thing", "--since", "soon"], "a duration back from now such as 15m"),
        (["thing", "-o", "xml"], "xml"),
        (["rows", "--count", "x"], "--count"),
        (["thing", "-S", "max_attempts"], "KEY=VALUE"),
        (["thing", "--nope\x1b[31m"], "--nope\\x1b[31m"),
    ],
)
def test_a_usage_error_is_exit_2_says_what_was_meant_and_where_help_is(args: list[str], said: str) -> None:
    done = run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    first, fix = done.stderr.splitlines()
    assert first.startswith("genctl: ")
    assert said in first
    assert "-h` shows how it is used" in fix


def test_a_command_that_is_missing_is_exit_2_with_the_help_on_stderr() -> None:
    for args in ([], ["config"]):
        done = run(*args)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Usage: genctl" in done.stderr


# Signals


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("command", ["work", "follow"])
def test_a_signal_ends_a_command_cleanly(command: str, number: signal.Signals, code: int) -> None:
    with Beside(command, "-o", "json") as beside:
        assert beside.end(number) == code
        assert beside.stderr.read() == ("cleaning up\n" if command == "work" else "")
        if command == "follow":
            assert len(json.loads(beside.stdout.read())) == 1


def test_a_service_ends_well_by_a_signal() -> None:
    with Beside("service") as beside:
        assert beside.end(signal.SIGTERM) == 0
        assert beside.stderr.read() == ""


def test_a_second_signal_ends_at_once() -> None:
    with Beside("work", "--stubborn") as beside:
        beside.process.send_signal(signal.SIGTERM)
        assert beside.stderr.readline() == "cleaning up\n"
        assert beside.end(signal.SIGTERM) == 143


def test_a_follower_is_gone_two_seconds_after_a_signal_whatever_hangs() -> None:
    with Beside("follow", "--hang", "-o", "json") as beside:
        began = time.monotonic()
        assert beside.end(signal.SIGTERM) == 143
        assert time.monotonic() - began < 2 + STALL_S


def test_sigint_counts_also_where_a_script_started_us_in_the_background() -> None:
    done = shell(
        "mkfifo err; $genctl follow 2>err & pid=$!; exec 3<err; read -r said <&3; kill -INT $pid; wait $pid"
    )
    assert done.returncode == 130


# Questions


def test_where_nobody_can_be_asked_the_command_names_the_flag_and_changes_nothing() -> None:
    env = {"DATABASE_URL": DATABASE}
    done = run("drop", env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--yes" in done.stderr
    assert "target" not in done.stderr
    protected = run("drop", "--yes", env=env | {"GENCTL_PROTECTED": "on"})
    assert protected.returncode == 2
    assert "--yes=shop" in protected.stderr


@pytest.mark.parametrize(
    ("args", "protected", "code"),
    [
        (["--yes"], "off", 0),
        (["--yes", "thing"], "off", 0),
        (["thing", "--yes=shop"], "off", 0),
        (["--yes=other"], "off", 2),
        (["--yes=shop"], "on", 0),
        (["--yes=other"], "on", 2),
    ],
)
def test_yes_answers_and_its_name_must_be_the_databases(args: list[str], protected: str, code: int) -> None:
    done = run("drop", *args, "-o", "json", env={"DATABASE_URL": DATABASE, "GENCTL_PROTECTED": protected})
    assert done.returncode == code
    if code == 0:
        assert done.stderr == "target: database db.example.com/shop, queue seedream4-jobs\n"
        assert json.loads(done.stdout) == {"dropped": "thing" if "thing" in args else None}


@pytest.mark.parametrize(
    ("answer", "protected", "code"),
    [("y\n", "", 0), ("\n", "", 1), ("n\n", "", 1), ("\x04", "", 1), ("shop\n", "on", 0), ("y\n", "on", 1)],
)
def test_a_person_is_asked(answer: str, protected: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", DATABASE)
    monkeypatch.setenv("GENCTL_PROTECTED", protected)
    terminal = OnTerminal("drop")
    assert terminal.until("Drop it?").type(answer).end() == code
    assert ("dropping" in terminal.seen) == (code == 0)
    assert ("nothing was changed" in terminal.seen.splitlines()[-1]) == (code == 1)
    assert "[y/N] \x1b" not in terminal.seen  # the answer ends its line, Ctrl-D too


@pytest.mark.parametrize("late", [[], ["--late"]])
def test_ctrl_c_at_a_question_is_130_also_inside_the_event_loop(
    late: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", DATABASE)
    assert OnTerminal("drop", *late).until("Drop it?").type("\x03").end() == 130


def test_ci_is_not_asked_even_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", DATABASE)
    monkeypatch.setenv("CI", "true")
    assert OnTerminal("drop").end() == 2


def test_a_target_without_a_database_is_exit_3_with_how_to_start_one() -> None:
    done = run("drop", "--yes")
    assert done.returncode == 3
    assert "genctl up" in done.stderr


# Help


def every_command() -> list[tuple[str, click.Command]]:
    def walk(path: str, command: click.Command) -> list[tuple[str, click.Command]]:
        if not isinstance(command, click.Group):
            return [(path, command)]
        context = click.Context(command)
        inner = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
        return [
            (path, command),
            *(found for name, one in inner if one for found in walk(f"{path} {name}", one)),
        ]

    return walk("genctl", cli.genctl)


def test_every_help_text_has_examples_that_are_command_lines() -> None:
    names = {path for path, _ in every_command()}
    for path, command in every_command():
        assert isinstance(command, Command | Group), path
        context = click.Context(command, info_name=path, terminal_width=80)
        assert "Examples:\n  genctl" in command.get_help(context), path
        assert [line for line in command.get_help(context).splitlines() if len(line) > 80] == [], path
        for example in getattr(command, "examples", ()):
            given = shlex.split(example, comments=True)
            keys = {word.partition("=")[0] for before, word in pairwise(given) if before == "-S"}
            assert keys <= {entry.key for entry in TABLE}, example
            words = [word for word in given if "=" not in word]
            assert " ".join(words[:2]) in names | {"genctl COMMAND"}, example


@pytest.mark.parametrize("columns", [40, 60])
def test_help_fits_a_narrow_terminal_but_for_its_examples(columns: int) -> None:
    for path, command in every_command():
        context = command.context_class(command, info_name="genctl", terminal_width=columns)
        lines = command.get_help(context).partition("Examples:")[0].splitlines()
        wider = [line for line in lines if len(line.rstrip()) > columns]
        assert [line for line in wider if not re.fullmatch(r"  --\S+ \[\S+\]", line)] == [], path


def test_the_tables_help_is_each_commands_own_first_sentence() -> None:
    """Else the lazy table and the commands would tell different stories."""
    context = click.Context(cli.genctl)
    for section in cli.TABLE.values():
        for name, (_, line) in section.items():
            command = cli.genctl.get_command(context, name)
            assert command
            assert command.name == name
            assert command.get_short_help_str(200).rstrip(".") == line.rstrip("."), name


def test_every_option_says_what_it_is_for() -> None:
    for path, command in every_command():
        for param in command.params:
            assert not isinstance(param, click.Option) or param.help, f"{path} {param.name}"


def test_a_scenario_is_completed() -> None:
    shell = ShellComplete(cli.genctl, {}, "genctl", "_GENCTL_COMPLETE")
    found = shell.get_completions(["enqueue", "--scenario"], "rate-")
    assert [item.value for item in found] == ["rate-limit", "rate-limit-bare", "rate-limit-once"]


def test_h_is_help_and_version_is_one_line() -> None:
    assert run("-h", program=GENCTL).stdout == run("--help", program=GENCTL).stdout
    assert run("config", "show", "-h", program=GENCTL).stdout.startswith("Usage: genctl config show")
    done = run("--version", program=GENCTL)
    assert (done.returncode, done.stdout) == (0, f"genctl {__version__}\n")
    assert json.loads(run("version", "-o", "json", program=GENCTL).stdout)["version"] == __version__


def test_help_of_a_page_or_command_that_there_is_not_says_which_was_meant() -> None:
    for typed, meant in (("enqueu", "enqueue"), ("exit-code", "exit-codes")):
        done = run("help", typed, program=GENCTL)
        assert (done.returncode, done.stdout) == (4, "")
        assert f"did you mean {meant}?" in done.stderr


HEAVY = (
    *("asyncio", "logging", "importlib.metadata", "msgspec", "yaml", "platformdirs", "tabulate", "wcwidth"),
    *("structlog", "psycopg", "boto3", "aiohttp"),
)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from genctl.cli import main;"
        "[main(line.split()) for line in sys.argv[1:]];"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    lines = ("--help", "--version", "enqueue --help", "config show -h")
    done = run("-c", code, *lines, program=[sys.executable], forked=False)
    assert (done.stdout.count("Usage: "), done.stderr) == (3, "[]\n")


def test_a_command_that_asks_only_the_database_imports_nothing_of_aws() -> None:
    """A login token needs botocore, and it would cost each command 0.2 s."""
    code = (
        "import sys; from genctl.cli import main;"
        "code = main(['credits', 'show', 'ann', '-S', 'database_url=postgresql://127.0.0.1:1/x']);"
        "print(code, [name for name in ('psycopg', 'botocore', 'aiohttp') if name in sys.modules])"
    )
    done = run("-c", code, program=[sys.executable], forked=False)
    assert done.stdout == "3 ['psycopg']\n", done.stderr


# Settings on the command line


def test_config_show_tells_values_and_origins_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "genctl.yaml").write_text("queue: from-file\n")
    env = {
        "DATABASE_URL": DATABASE,
        "GENCTL_SECRET": "hunter2" * 8,
        "GENCTL_RATE": "90",
        "ARK_API_KEY": "hunter2",
    }
    shown = {}
    for form in FORMATS:
        done = run("config", "show", "-S", "max_attempts=9", "-o", form, program=GENCTL, env=env)
        assert (done.returncode, done.stderr) == (0, "")
        assert "hunter2" not in done.stdout
        assert "s3cret" not in done.stdout
        shown[form] = done.stdout
    rows = {row["setting"]: (row["value"], row["origin"]) for row in json.loads(shown["json"])}
    assert rows["database_url"] == ("postgresql://ann:***@db.example.com/shop", "environment DATABASE_URL")
    assert rows["queue"] == ("from-file", f"file {tmp_path}/genctl.yaml")
    assert rows["max_attempts"] == (9, "flag --setting")
    assert rows["secret"] == ("***", "environment GENCTL_SECRET")
    assert rows["provider_timeout"] == ("5m", "default")
    assert rows["breaker"] == ("on", "default")


def test_bad_settings_are_exit_2_and_one_line(tmp_path: Path) -> None:
    done = run("config", "show", program=GENCTL, env={"GENCTL_MAX_ATTEMPT": "3"})
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean GENCTL_MAX_ATTEMPTS?" in done.stderr
    (tmp_path / "genctl.yaml").write_text("max_attempts: no\x1b[31m\n")
    done = run("config", "show", "-o", "json", program=GENCTL)
    assert (done.returncode, done.stdout) == (2, "")
    assert json.loads(done.stderr)["error"]["code"] == "BadSetting"


def test_config_init_writes_a_file_that_holds_every_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", DATABASE)
    assert run("config", "init", program=GENCTL).returncode == 0
    path = tmp_path / "genctl.yaml"
    assert path.stat().st_mode & 0o777 == 0o600
    before = run("config", "show", "-o", "json", program=GENCTL).stdout
    path.write_text(re.sub(r"^#(?=\w)", "", path.read_text(), flags=re.MULTILINE))
    after = json.loads(run("config", "show", "-o", "json", program=GENCTL).stdout)
    assert [row["value"] for row in after] == [row["value"] for row in json.loads(before)]
    assert len(yaml.safe_load(path.read_text())) == len(after)


def test_config_init_does_not_overwrite_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("queue: mine\n")
    done = run("config", "init", str(path), program=GENCTL)
    assert (done.returncode, path.read_text()) == (2, "queue: mine\n")
    assert "--force" in done.stderr
    forced = run("config", "init", "--force", str(path), "-o", "json", program=GENCTL)
    assert json.loads(forced.stdout) == {"path": str(path)}
    assert "#queue: seedream4-jobs" in path.read_text()
    assert run("config", "init", str(tmp_path / "no" / "x.yaml"), program=GENCTL).returncode == 3
    full = run("config", "init", "--force", "/dev/full", program=GENCTL)
    assert (full.returncode, full.stderr.split("\n")[0]) == (3, "genctl: /dev/full: No space left on device")


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in run("fail", "foreseen").stderr
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = OnTerminal("fail", "foreseen")
    terminal.end()
    assert "\x1b" not in terminal.seen


def test_a_progress_bar_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", DATABASE)
    terminal = OnTerminal("drop", "--yes", piped=True, columns=40)
    assert terminal.end() == 0
    assert "100%" in terminal.seen
    assert max(map(len, re.split(r"[\r\n]|\x1b\[\S*?[A-Za-z]", terminal.seen.partition("\n")[2]))) <= 40
    assert "100%" not in run("drop", "--yes").stderr


@pytest.mark.parametrize(
    ("number", "code", "turned"),
    [
        (signal.SIGINT, 130, "raise TypeError('expected a message argument') from None"),
        (signal.SIGTERM, 143, "pass"),
    ],
)
def test_a_signal_in_an_import_that_swallows_it_ends_the_command(
    tmp_path: Path, number: signal.Signals, code: int, turned: str
) -> None:
    """CPython's own import does both."""
    program = f"""
import os, sys
from genctl import cli
class Import:
    def find_spec(name, *_):
        if name == "genctl.ops.dlq":
            try:
                os.kill(os.getpid(), {int(number)})
            except BaseException:
                {turned}
sys.meta_path.insert(0, Import)
sys.argv = ["genctl", "dlq", "list"]
sys.exit(cli.main())
"""
    env = {"PATH": os.environ["PATH"], "GENCTL_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")

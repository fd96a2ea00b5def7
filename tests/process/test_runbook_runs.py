"""How runbooks run: order, clean-up, time-outs, Ctrl-C, resume, secrets, read-only SQL, questions, reports."""

import asyncio
import json
import os
import shlex
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import pytest
from psycopg.conninfo import conninfo_to_dict
from tests.kit import free_port, true, until, until_sync
from tests.process.forks import FORKED_STEPS
from tests.process.place import GENCTL, Place, Running, clean_env
from tests.process.test_cli_manner import OnTerminal
from tests.proxies import Relay

from genctl.base.settings import Settings
from genctl.domain.masking import Masker
from genctl.domain.model import GenctlError
from genctl.edges import db
from genctl.ops.runbook import actions
from genctl.ops.runbook.journal import Journal, Start
from genctl.ops.runbook.load import load
from genctl.ops.runbook.model import Sql, Step
from genctl.ops.runbook.run import Run

HEAD = "name: {name}\npurpose: A test.\nwhen: Now.\ntouches: Nothing.\n"
OK = "expect: [exit == `0`]"
PROGRAM = (sys.executable, "-m", "tests.process.runs_program")


class Book:
    """A runbook of this test's own, and a terminal without any database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = clean_env(folder)
        self.file = folder / "book.yaml"

    def write(self, *steps: str, variables: str = "{}") -> "Book":
        """Steps are the lines of each behind `step: s1`, `step: s2`, ..."""
        text = HEAD.format(name="book") + f"variables: {variables}\nsteps:\n"
        for number, step in enumerate(steps, 1):
            text += f"  - step: s{number}\n    does: Number {number}.\n"
            text += "".join(f"    {line}\n" for line in step.splitlines())
        self.file.write_text(text)
        return self

    def start(self, *args: str, program: tuple[str, ...] = GENCTL) -> Any:
        return Running.start(*program, "runbook", *args, env=self.env, folder=self.folder)

    def say(self, *args: str, exit_code: int = 0) -> tuple[str, str]:
        """stdout and stderr of `genctl runbook ...`."""
        with self.start(*args) as running:
            code = running.end(within_s=30)
            out, err = running.texts()
        assert code == exit_code, (out, err)
        return out, err

    def run(self, *args: str, exit_code: int = 0) -> dict[str, Any]:
        """The report of a run."""
        out, _ = self.say("run", str(self.file), *args, "-o", "json", exit_code=exit_code)
        report: dict[str, Any] = json.loads(out)
        return report

    def history(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.say("history", run, "-o", "json")[0])
        return found

    def journals(self) -> list[Path]:
        return sorted((self.folder / "STATE" / "genctl" / "runbooks").glob("*.jsonl"))


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path)


def states(report: dict[str, Any]) -> list[str]:
    return [step["state"] for step in report["steps"]]


def test_a_failure_ends_it_and_the_clean_up_hides_nothing(book: Book) -> None:
    """Exit code 1 names the step and its expectation; the clean-up fails too, and is told apart."""
    book.write(
        f"shell: echo one >> trace\n{OK}",
        f"shell: echo broken >&2; exit 4\n{OK}",
        f"shell: echo never >> trace\n{OK}",
        f"shell: echo cleaned >> trace; exit 9\nalways: true\n{OK}",
        f"shell: echo too >> trace\nalways: true\n{OK}",
    )
    report = book.run(exit_code=1)
    assert states(report) == ["ok", "failed", "not run", "failed", "ok"]
    assert report["why"] == "step s2: expected that exit == `0`; found 4; it said: broken"
    assert (report["state"], report["exitCode"]) == ("failed", 1)
    assert (book.folder / "trace").read_text().split() == ["one", "cleaned", "too"]
    book.write(f"shell: 'true'\n{OK}", f"shell: exit 9\nalways: true\n{OK}")
    assert states(book.run()) == ["ok", "failed"], "and its failure changes no exit code"


def test_a_step_that_never_ends_ends_by_its_time_out(book: Book) -> None:
    """A script with children that ignore signals, a command that follows, one that prints for ever."""
    for never in (
        "shell: trap '' TERM INT; sleep 600 & wait; sleep 600",
        "shell: setsid sleep 20",
        "shell: 'yes'",
        "http: {method: GET, url: 'http://10.255.255.1/'}",
        "genctl: [simulator, --port, 0]",
    ):
        expects = OK.replace("exit", "status") if "http" in never else OK
        report = book.write(f"{never}\ntimeout: 300ms\n{expects}", f"shell: 'true'\nalways: true\n{OK}").run(
            exit_code=1
        )
        assert states(report) == ["failed", "ok"], never
        assert "no end within 300ms" in report["why"] or "http" in never
        assert report["seconds"] < 9, never


def test_a_request_without_an_answer_is_something_to_expect(book: Book) -> None:
    """Nobody listens there, or who listens says nothing: the step says so, and a runbook can go on from it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hangs, refused = (
            f"http: {{method: GET, url: 'http://127.0.0.1:{port}/'}}\ntimeout: 300ms\n"
            for port in (silent.getsockname()[1], free_port())
        )
        without = "expect: [error != `null`, status == `null`]"
        answered = "expect: [status == `200`]"
        book.write(refused + without, hangs + without, f"shell: 'true'\n{OK}", hangs + answered)
        report = book.run("--report", "r.md", exit_code=1)
    assert states(report) == ["ok", "ok", "ok", "failed"]
    assert "\n    message: no end within 300ms\n" in (book.folder / "r.md").read_text()
    found = "step s4: expected that status == `200`; found nothing there; it said: no end within 300ms"
    assert report["why"] == found
    book.write(
        f"http: {{method: GET, url: '${{no}}'}}\n{answered}",
        variables="{no: {type: text, default: a b, help: x}}",
    )
    assert "it said: GET a b: that is no URL" in book.run(exit_code=1)["why"]


def test_a_wait_tries_until_it_is_so(book: Book) -> None:
    count = "printf x >> n; test $(wc -c < n) -ge 3"
    report = book.write(f"shell: {count}\nwait: {{every: 1ms, within: 20s}}\n{OK}").run()
    assert (states(report), report["steps"][0]["tries"]) == (["ok"], 3)
    book.write(f"shell: exit 1\nwait: {{every: 1ms, within: 50ms}}\n{OK}")
    assert states(book.run(exit_code=1)) == ["failed"]


def test_values_go_in_whole_whatever_they_hold(book: Book) -> None:
    """As environment of a script, as one word of a command: nothing in them is run or split."""
    nasty = "$(touch owned); `touch owned` '\"\n ${user} %s -- x"
    book.write(
        f'shell: printf %s "${{user}}" > got\n{OK}\nsave: {{again: exit}}',
        'genctl: [token, --user, "${user}"]\nexpect: [error.message != `null`]',
        'genctl: [explain, "${flag}"]\nexpect: [exit >= `0`]',
        variables="{user: {type: text, required: true, help: x}, flag: {type: text, default: --debug, help: x}}",
    )
    report = book.run("--var", f"user={nasty}", exit_code=1)
    assert (book.folder / "got").read_text() == nasty
    assert not (book.folder / "owned").exists()
    assert "would be read as an option" in report["why"]


def test_a_value_that_no_process_can_get_is_named(book: Book) -> None:
    book.write(
        f"shell: printf '\"a\\\\u0000b\"'\n{OK}\nsave: {{nul: json}}",
        f"shell: head -c 200000 /dev/zero | tr '\\0' a\n{OK}\nsave: {{big: text}}",
        f"shell: echo ${{nul}}\nalways: true\n{OK}",
        f"shell: echo ${{big}}\nalways: true\n{OK}",
    )
    whys = [step["why"] for step in book.run()["steps"][2:]]
    assert whys[0].startswith("no process starts with nul: embedded null byte; a value for a script is")
    assert whys[1].startswith("no process starts with big: Argument list too long; a value for a script is")


def test_a_command_that_asks_asks_once_however_often_the_step_tries(book: Book) -> None:
    """A person who has said yes has said it for the step. The question shows no secret."""
    asked = []

    def confirm(question: str) -> str:
        asked.append(question)
        return ""

    class Actions:
        mask = Masker(["hunter2"])

        async def perform(self, _: Step, __: object, yes: str | None, ___: float) -> dict[str, Any]:
            error = {"code": "NotConfirmed", "message": "Send hunter2?"} if yes is None else None
            return {"exit": 1, "error": error}

    loaded = load(
        str(book.write(f"genctl: [version]\nwait: {{every: 0s, within: 100ms}}\n{OK}").file), lambda _: None
    )
    run = Run(loaded, Start(), {}, cast("Any", Actions()), confirm)
    done = asyncio.run(run.go(Journal("one", None), lambda _: None, lambda _: None))
    assert done.steps[0].tries > 1
    assert asked == ["s1: Send ***?"]


def test_a_request_that_hangs_does_not_use_up_a_wait(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may answer the next one."""
    monkeypatch.setattr(actions, "ANSWERS_WITHIN_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        step = f"http: {{method: GET, url: '{url}'}}\nwait: {{every: 0s, within: 20s}}\nexpect: [status == `200`]"
        loaded = load(str(book.write(step).file), lambda _: None)

        def answer_the_second() -> None:
            hung, _ = server.accept()
            with hung, server.accept()[0] as asks:
                asks.recv(1000)
                asks.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        with ThreadPoolExecutor() as threads:
            threads.submit(answer_the_second)
            real = actions.Actions(Settings(), Masker(), lambda words, _: words, print)
            run = Run(loaded, Start(), {}, real, str)
            done = asyncio.run(run.go(Journal("one", None), lambda _: None, lambda _: None))
    assert (done.state, done.steps[0].tries) == ("ok", 2)


def test_conditions_skip_with_a_reason(book: Book) -> None:
    book.write(
        f"shell: |\n  echo '{{\"n\": 3}}'\n{OK}\nsave: {{n: json.n}}",
        f"if: [n < `3`]\nshell: echo a\n{OK}\nsave: {{a: text}}",
        f'shell: test "${{a}}"\n{OK}',
        f'shell: test "${{opt}}"\n{OK}',
        "if: [n == 'three']\nshell: 'true'\n" + OK,
        variables="{opt: {type: text, optional: true, help: x}}",
    )
    report = book.run(exit_code=1)
    assert states(report) == ["ok", "skipped", "skipped", "skipped", "failed"]
    assert [step["why"] for step in report["steps"]][1:4] == [
        "it runs only if n < `3`",
        "a is not known: step s2 was not run",
        "opt was not given (--var opt=...)",
    ]


SECRET = "hunter2-of-ann"
LEAKY = """\
shell: |
  printf '{"token": "%s%s", "url": "http://x/?t=%s%s", "n": 1}' hunter2 -of-ann hunter2 -of-ann
expect: [json.n == `1`]
save: {token: {path: json.token, secret: true}, url: json.url}"""


def test_a_secret_is_masked_wherever_it_turns_up(book: Book) -> None:
    """In outputs, errors, arguments, values that hold it, the report, the journal; also a secret variable."""
    book.write(
        LEAKY,
        f'shell: echo "key ${{key}}"; echo "${{token}}"; exit 3\n{OK}',
        f'shell: echo "${{token}} ${{key}}" >&2; exit 2\nalways: true\n{OK}',
        variables="{key: {type: text, required: true, secret: true, help: x}}",
    )
    for more in (("--report", "r.md"), ("-o", "json")):
        book.say("run", str(book.file), "--var", "key=open-sesame", *more, exit_code=1)
    book.say("run", str(book.file), "--var", "key=open-sesame", "--dry-run")
    texts = [path.read_bytes() for path in book.folder.rglob("*") if path.is_file() and path != book.file]
    assert len(texts) == 9
    for leak in (SECRET, "open-sesame"):
        assert [text for text in texts if leak.encode() in text] == []
    assert (book.folder / "r.md").read_text().count("***")


LEAKS = {
    "cut off": """\
shell: printf '%0590d%s' 0 "${key}"; exit 3
expect: [text == 'x']""",
    "with a space in a URL": """\
http: {method: GET, url: 'http://127.0.0.1:9/', query: {q: '${key}'}}
expect: [status == `200`]""",
    "saved by a step that failed": """\
shell: echo open-sesame; exit 3
expect: [exit == `0`]
save: {it: {path: text, secret: true}}""",
    "found where another was expected": """\
shell: echo open-sesame
expect: [text == 'x']
save: {it: {path: text, secret: true}}""",
}


@pytest.mark.parametrize("where", LEAKS)
def test_a_secret_is_masked_where_a_step_fails(book: Book, where: str) -> None:
    book.write(
        f'shell: test "${{key}}"\n{OK}',
        LEAKS[where],
        variables="{key: {type: text, required: true, secret: true, help: x}}",
    )
    out, err = book.say("run", str(book.file), "--var", "key=open-sesame of ann", exit_code=1)
    (journal,) = book.journals()
    assert [text for text in (out, err, journal.read_text()) if "open-s" in text] == []
    assert "***" in out + journal.read_text()


def test_a_plan_masks_what_a_run_masks(book: Book) -> None:
    book.write(
        f'shell: test "${{url}}" "${{key}}"\n{OK}',
        variables="{url: {type: text, required: true, help: x},"
        " key: {type: text, required: true, secret: true, help: x}}",
    )
    args = ("--var", "key=open-sesame", "--var", "url=http://x/?key=open-sesame", "--dry-run")
    out, err = book.say("run", str(book.file), *args, "-o", "json")
    assert "open-sesame" not in out + err
    assert json.loads(out)["values"]["url"] == "http://x/?key=***"


def test_an_interrupted_run_cleans_up_and_is_resumed_where_it_was(book: Book) -> None:
    """Values of the steps before are kept; a secret is asked for again, and its mask is never used."""
    book.write(
        LEAKY + "\ndangerous: false",
        f'shell: echo "$$" >> began; until test -e go; do sleep 0.02; done; echo "${{token}}" > got\n{OK}',
        f"shell: echo >> cleaned\nalways: true\n{OK}",
    )
    with book.start("run", str(book.file), "-o", "json") as running:
        until_sync((book.folder / "began").exists)
        run = json.loads(book.journals()[0].read_text().splitlines()[0])["run"]
        assert book.history(run)["state"] == "running"
        assert "still running" in book.say("run", "--resume", run, exit_code=2)[1]
        assert running.end(signal.SIGINT) == 130
        assert states(json.loads(running.out.read_text())) == ["ok", "interrupted", "ok"]
    assert (book.folder / "cleaned").read_text() == "\n"
    assert not Path(f"/proc/{(book.folder / 'began').read_text().strip()}").exists()
    (told,) = json.loads(book.say("history", "-o", "json")[0])
    assert (told["run"], told["state"], told["failed"]) == (run, "interrupted", "s2")

    (book.folder / "go").touch()
    assert "the value token is missing" in book.say("run", "--resume", run, exit_code=2)[1]
    assert "did you mean token?" in book.say("run", "--resume", run, "--var", "tokn=x", exit_code=2)[1]
    out, _ = book.say("run", "--resume", run[:13], "--var", "token=again", "-o", "json")
    assert [step["step"] for step in json.loads(out)["steps"]] == ["s2", "s3"]
    assert (book.folder / "got").read_text() == "again\n"

    book.file.write_text(book.file.read_text() + "# changed\n")
    again = ("run", "--resume", run, "--var", "token=x")
    assert "has changed since" in book.say(*again, exit_code=2)[1]
    book.say(*again, "--force")
    assert "no run" in book.say("run", "--resume", "1999", exit_code=4)[1]


def test_a_value_that_the_journal_has_masked_is_never_replaced_by_its_default(book: Book) -> None:
    """A variable that holds a secret of the settings; and a secret variable."""
    book.env["GENCTL_SECRET"] = "x1" * 16
    book.write(
        f"shell: test -e go\n{OK}",
        f'shell: test "${{url}}" = "http://y" && test "${{key}}" = k2\n{OK}',
        variables="{url: {type: text, default: z, help: x},"
        " key: {type: text, default: k, secret: true, help: x}}",
    )
    run = book.run("--var", f"url=http://{'x1' * 16}", exit_code=1)["run"]
    (book.folder / "go").touch()
    assert "the value key is missing" in book.say("run", "--resume", run, exit_code=2)[1]
    assert "the value url is missing" in book.say("run", "--resume", run, "--var", "key=k2", exit_code=2)[1]
    book.say("run", "--resume", run, "--var", "key=k2", "--var", "url=http://y")


def test_a_run_that_was_killed_is_in_the_history(book: Book) -> None:
    book.write(f"shell: touch began; sleep 30\n{OK}")
    with book.start("run", str(book.file)) as running:
        until_sync((book.folder / "began").exists)
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
    (path,) = book.journals()
    path.write_text(path.read_text() + "[" * 20_000 + '\n{"event": "step.en')
    assert book.history(path.stem)["state"] == "interrupted"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_each_signal_ends_what_is_being_done_and_the_rest_of_the_clean_up_follows(book: Book) -> None:
    book.write(
        f"shell: touch began; sleep 60\n{OK}",
        f"shell: touch cleaning; sleep 60\nalways: true\n{OK}",
        f"shell: touch clean\nalways: true\n{OK}",
    )
    with book.start("run", str(book.file), "-o", "json") as running:
        for name in ("began", "cleaning"):
            until_sync((book.folder / name).exists)
            running.process.send_signal(signal.SIGINT)
        assert running.end() == 130
        assert states(json.loads(running.out.read_text())) == ["interrupted", "interrupted", "ok"]
    assert (book.folder / "clean").exists()


ORDERLY = """
trap 'touch ordered; echo "left behind: nothing" >&2; exit 0' TERM
touch began
sleep 60 >/dev/null 2>&1 & wait
"""


@pytest.mark.parametrize(
    ("script", "is_orderly"),
    [(ORDERLY, True), (f"({ORDERLY}) & exit 0", True), ("trap '' TERM; touch began; sleep 60", False)],
)
def test_a_command_that_is_cut_off_puts_things_in_order_and_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, is_orderly: bool
) -> None:
    """With all that it has started, or that would leave what it has lent, hidden or closed; or is killed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(actions, "ENDS_WITHIN_S", 20.0 if is_orderly else 0.2)
    argv, said = ("/bin/sh", "-c", f"echo $$ > pid; {script}"), list[str]()

    async def cut_off() -> None:
        child = asyncio.ensure_future(actions._child(argv, note=said.append))
        await until(lambda: true((tmp_path / "began").exists()))
        child.cancel()
        await child

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cut_off())
    assert (tmp_path / "ordered").exists() == is_orderly
    assert said == (["left behind: nothing"] if is_orderly else [])
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_process_that_is_cut_off_while_it_starts_keeps_no_run() -> None:
    """asyncio waits for ever for a process whose start is cancelled; a step would outlive Ctrl-C."""

    async def cut_off(after_s: float) -> None:
        async with asyncio.timeout(after_s):
            await actions._child(("/bin/sh", "-c", "sleep 60"))

    async def at_many_moments() -> None:
        for number in range(150):
            started = asyncio.ensure_future(cut_off(number / 20_000))
            assert (await asyncio.wait({started}, timeout=10))[0], f"it hangs, cut off after {number / 20} ms"
            assert isinstance(started.exception(), TimeoutError)

    asyncio.run(at_many_moments())


def test_no_value_of_a_command_is_seen_among_the_processes(book: Book) -> None:
    """All users of a machine see the arguments of all its processes."""
    book.write(
        f"shell: printf 127.7.7.%s 7\n{OK}\nsave: {{host: {{path: text, secret: true}}}}",
        f'genctl: [simulator, --port, 0, --host, "${{host}}"]\n{OK}',
        f"shell: touch cleaned\nalways: true\n{OK}",
    )
    with book.start("run", str(book.file)) as running:
        until_sync(lambda: "simulator.started" in running.log.read_text())
        seen = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        assert [words for words in seen if b"127.7.7.7" in words] == []
        assert running.end(signal.SIGTERM) == 143
        assert "***" in running.log.read_text()
    assert (book.folder / "cleaned").exists(), "and the command is ended"


def test_a_command_may_list_a_whole_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the MiB that is read of a script."""
    monkeypatch.setattr(actions, "GENCTL", "print([0] * 600_000)")
    found = asyncio.run(actions._command([], print, "json"))
    assert len(found["json"]) == 600_000


@pytest.mark.parametrize(
    ("first", "number", "slow", "code"),
    [
        ("shell: exit 1\nwait: {every: 0s, within: 9s}", signal.SIGINT, "complaint", 130),
        ("shell: 'true'", signal.SIGHUP, "shortened", 129),
        ("shell: exit 1", signal.SIGTERM, "shortened", 1),
    ],
)
def test_a_signal_between_two_steps_cleans_up_too(
    book: Book, first: str, number: signal.Signals, slow: str, code: int
) -> None:
    """Between two looks of a wait, behind a step, and behind one that failed: it cuts off no clean-up."""
    book.write(f"{first}\n{OK}", f"shell: touch never\n{OK}", f"shell: touch clean\nalways: true\n{OK}")
    with book.start("run", "book.yaml", "-o", "json", program=(*PROGRAM, "slow", slow)) as running:
        until_sync((book.folder / "begun").exists)
        assert running.end(number) == code
        out, _ = running.texts()
    assert states(json.loads(out))[-1] == "ok"
    assert (book.folder / "clean").exists()
    assert not (book.folder / "never").exists()


def test_questions_need_a_person_or_yes_before_the_first_step(book: Book) -> None:
    first = f"shell: touch began\n{OK}"
    for asking in (f"shell: 'true'\ndangerous: true\n{OK}", "ask: Is it so?"):
        book.write(first, asking)
        assert "answer with --yes" in book.say("run", str(book.file), exit_code=2)[1]
        assert not (book.folder / "began").exists()
        book.run("--yes")
        (book.folder / "began").unlink()


@pytest.fixture
def on_terminal(book: Book, monkeypatch: pytest.MonkeyPatch) -> Book:
    for name, value in (book.env | {"TERM": "xterm"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.chdir(book.folder)
    return book


def test_a_person_answers_on_a_terminal(on_terminal: Book) -> None:
    book = on_terminal.write(
        "ask: 'Is it you, ${who}?'",
        f'shell: echo "${{who}}" > got\ndangerous: true\n{OK}',
        f"shell: touch never\ndangerous: true\n{OK}",
        variables="{who: {type: text, default: ann, help: x}}",
    )
    terminal = OnTerminal("runbook", "run", "book.yaml", program=GENCTL, columns=200)
    terminal.until("Is it you, ann? [y/N]").type("y\n").until("s2: Number 2. [y/N]").type("y\n")
    terminal.until("s3: Number 3. [y/N]").type("n\n")
    assert terminal.end() == 1
    assert "s3: the answer was no" in terminal.seen
    assert (book.folder / "got").read_text() == "ann\n"
    assert not (book.folder / "never").exists()


def test_a_secret_is_asked_for_unseen(on_terminal: Book) -> None:
    book = on_terminal.write(
        f'shell: echo "${{key}}"; test "${{key}}" = hush-hush\n{OK}\nshow: text',
        variables="{key: {type: text, secret: true, required: true, help: Of the provider}}",
    )
    terminal = OnTerminal("runbook", "run", "book.yaml", program=GENCTL, columns=200)
    terminal.until("key (Of the provider): ").type("hush-hush\n")
    assert terminal.end() == 0
    (journal,) = (book.folder / "STATE").rglob("*.jsonl")
    for told in (terminal.seen, journal.read_text()):
        assert "hush" not in told


def test_ctrl_c_at_a_question_ends_its_line_and_cleans_up(on_terminal: Book) -> None:
    on_terminal.write("ask: Really?", f"shell: touch clean\nalways: true\n{OK}")
    terminal = OnTerminal("runbook", "run", "book.yaml", program=GENCTL, columns=200)
    terminal.until("Really? [y/N] ").type("\x03")
    assert terminal.end() == 130
    assert "\n  INTERRUPTED" in terminal.seen
    assert (on_terminal.folder / "clean").exists()


def test_a_condition_whose_value_is_missing_skips_and_one_on_an_earlier_step_is_asked_for(book: Book) -> None:
    """Resumed, a step is not passed over for want of what its condition looks at."""
    book.write(
        f"shell: echo one\n{OK}\nsave: {{one: {{path: text, secret: true}}}}",
        f"if: [one == opt]\nshell: 'true'\n{OK}",
        f"if: [one == 'one']\nshell: test -e go\n{OK}",
        variables="{opt: {type: text, optional: true, help: x}}",
    )
    report = book.run(exit_code=1)
    assert states(report) == ["ok", "skipped", "failed"]
    assert report["steps"][1]["why"].startswith("it runs only if")
    (book.folder / "go").touch()
    again = ("--resume", report["run"])
    assert "the value one is missing" in book.say("run", *again, exit_code=2)[1]
    out, _ = book.say("run", *again, "--var", "one=one", "-o", "json")
    assert states(json.loads(out)) == ["ok"]


def test_a_variable_that_is_wrong_missing_or_unknown_is_told_before_the_first_step(book: Book) -> None:
    book.write(
        f'shell: touch "ran-${{it}}"\n{OK}', variables="{it: {type: integer, required: true, help: x}}"
    )
    for given, told in {
        "it=x": "--var it: expected a whole number, got 'x'",
        "at=x": "no variable 'at'",
        "it": "expected NAME=VALUE",
    }.items():
        assert told in book.say("run", str(book.file), "--var", given, exit_code=2)[1]
    assert "the value it is missing" in book.say("run", str(book.file), exit_code=2)[1]
    book.run("--var", "it=7")
    assert [path.name for path in book.folder.glob("ran-*")] == ["ran-7"]


def test_reports_and_dry_run(book: Book) -> None:
    book.write(f"shell: touch ran\n{OK}", f"shell: 'echo \"<|>\" >&2; exit 2'\n{OK}", f"shell: 'true'\n{OK}")
    plan = book.run("--dry-run")["plan"]
    assert plan[0]["action"] == "touch ran"
    assert not (book.folder / "ran").exists()
    assert book.journals() == []
    book.run("--report", "r.md", exit_code=1)
    assert r"<\|>" in (book.folder / "r.md").read_text()
    (book.folder / "ran").unlink()
    for name in ("r.xml", "r.json", "r"):
        assert "name it .md" in book.say("run", str(book.file), "--report", name, exit_code=2)[1]
    assert book.say("run", str(book.file), "--report", "no/r.md", exit_code=3)
    assert not (book.folder / "ran").exists()


def test_a_step_shows_what_a_person_is_to_see(book: Book) -> None:
    """Rows as a table, a text as it is, masked, never too long; also in the report."""
    rows = [{"job": "a\x1b[31m", "why": "key open-sesame"}, {"job": "b", "credits": 4}]
    book.write(
        f"shell: |\n  echo '{json.dumps(rows)}'\n{OK}\nshow: json",
        f"shell: seq 40\n{OK}\nshow: text",
        f"shell: echo '[]'\n{OK}\nshow: json",
        f"shell: echo '\"\\ud800\"'\n{OK}\nshow: json",
        f"shell: echo '${{key}}'\n{OK}\nshow: 'length(exit)'",
        variables="{key: {type: text, required: true, secret: true, help: x}}",
    )
    out, _ = book.say("run", str(book.file), "--var", "key=open-sesame")
    lines = [line.rstrip() for line in out.splitlines()]
    below = lines.index(next(line for line in lines if line.endswith("  s1")))
    assert [line.split() for line in lines[below + 1 : below + 5]] == [
        ["job", "why", "credits"],
        ["---------", "-------", "-------"],
        ["a\\x1b[31m", "key", "***", "-"],
        ["b", "-", "4"],
    ]
    assert "    25" in lines
    assert "    26" not in lines
    assert "    … and 15 more lines" in lines
    assert "    nothing" in lines
    assert "    ?" in lines
    assert [line for line in lines if "invalid type" in line]
    report = book.run("--var", "key=open-sesame", "--report", "r.md")
    assert report["steps"][0]["shown"][0]["why"] == "key ***"
    told = (book.folder / "r.md").read_text().partition("\n## s1\n\nNumber 1.\n\n")[2].splitlines()
    assert [line.split() for line in told[:4]] == [
        ["job", "why", "credits"],
        ["---------", "-------", "-------"],
        ["a\\x1b[31m", "key", "***", "-"],
        ["b", "-", "4"],
    ]
    assert "    40" in told, "of s2, below its own head"
    assert told.count("## s2") == 1


def test_a_report_holds_what_each_step_got_masked_and_cut(book: Book) -> None:
    """Of a step that shows nothing its whole output, of one that failed in any case."""
    book.write(
        f"shell: 'echo one; echo open-sesame; echo aside >&2'\n{OK}",
        f"shell: seq 9000\n{OK}",
        f'shell: |\n  echo \'{{"a": 1, "b": [2, 3]}}\'; exit 3\n{OK}\nshow: json.a',
        f"shell: 'true'\n{OK}",
        variables="{key: {type: text, required: true, secret: true, help: x}}",
    )
    book.file.write_text(book.file.read_text().replace("open-sesame", '"${key}"'))
    report = book.run("--var", "key=open-sesame", "--report", "r.md", exit_code=1)
    assert report["steps"][0]["output"] == {"exit": 0, "json": None, "text": "one\n***", "stderr": "aside"}
    assert report["steps"][3]["output"] is None, "it was not run"
    sections = (book.folder / "r.md").read_text().split("\n## ")[1:]
    of = {
        text.partition("\n")[0]: [x.strip() for x in text.splitlines() if x[:4] == "    "]
        for text in sections
    }
    assert of.keys() == {"s1", "s2", "s3"}
    assert of["s1"] == ["exit 0", "one", "***", "aside"]
    assert of["s2"] == ["exit 0", *map(str, range(1, 101)), "… and 8,900 more lines"]
    assert of["s3"] == ["1", "exit 3", "a: 1", "b:", "- 2", "- 3"]


def test_nothing_and_what_is_long_are_told_from_what_is_found(book: Book) -> None:
    """Zero and false are found; of a text or list that is too long whole lines are left out, and counted."""
    book.write(
        f"shell: echo 0\n{OK}\nshow: json",
        f"shell: echo null\n{OK}\nshow: json",
        f"shell: 'seq -f \"line %g of a long log\" 9000'\n{OK}\nshow: text",
        f"shell: python -c 'print(\"x\" * 100_000)'\n{OK}\nshow: text",
        f"shell: echo '[{{}}]'\n{OK}\nshow: json",
        f"shell: 'echo \"[NaN, 1e999, 1234567.89]\"'\n{OK}\nshow: json",
    )
    out, _ = book.say("run", str(book.file))
    shown = [line.strip() for line in out.splitlines() if line.startswith("    ")]
    assert shown[:3] == ["0", "nothing", "line 1 of a long log"]
    assert "… and 8,975 more lines" in shown
    assert max(map(len, shown)) == 400
    assert "- {}" in shown, "rows without columns"
    assert shown[-3:] == ["- nan", "- inf", "- 1234567.89"]
    (journal,) = book.journals()
    for line in journal.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("opens", ["[", '{"a":'])
def test_json_that_cannot_be_read_fails_who_asks_for_it_and_no_other(book: Book, opens: str) -> None:
    """Nested too deeply or too long: it is not taken for nothing, and the clean-up is done."""
    deep = f"python -c \"print('{opens}' * 500 + '1' + '{'}' if ':' in opens else ']'}' * 500)\""
    if ":" in opens:
        deep = deep.replace('"a"', '\\"a\\"')
    none = "expect: [json == `null`]"
    for script, why in (
        (deep, "nested more than 100 deep"),
        ("python -c 'print([0] * 500_000)'", "longer than 1 MiB"),
    ):
        book.write(
            f"shell: |\n  {script}\n{none if opens == '[' else OK + chr(10) + 'show: json[0]'}",
            f"shell: |\n  {script}\n{OK}",
            f"shell: touch clean\nalways: true\n{OK}",
        )
        report = book.run(exit_code=1)
        assert states(report) == ["failed", "not run", "ok"]
        assert why in report["why"]


def test_who_is_asked_sees_what_is_shown_wherever_the_output_goes(on_terminal: Book) -> None:
    """Into a pipe, as JSON, and again on each resume, since the step that shows is not done again."""
    book = on_terminal.write(
        f'shell: echo \'[{{"job":"a7"}}]\'; echo >> looked\n{OK}\nshow: json',
        "ask: These jobs?",
        "ask: Really?",
    )
    terminal = OnTerminal("runbook", "run", "book.yaml", program=GENCTL, piped=True)
    terminal.until("These jobs? [y/N] ").type("n\n")
    assert terminal.end() == 1
    assert "    a7" in terminal.seen.partition("These jobs?")[0]
    for form in ("json", "table"):
        last = max(path.stem for path in book.journals())
        terminal = OnTerminal("runbook", "run", "--resume", last, "-o", form, program=GENCTL)
        terminal.until("These jobs? [y/N] ").type("n\n")
        assert terminal.end() == 1
        before = terminal.seen.partition("These jobs?")[0]
        assert "s1 showed, before:" in before
        assert "    a7" in before
    assert (book.folder / "looked").read_text() == "\n"


def test_no_run_is_resumed_by_an_empty_name(book: Book) -> None:
    book.write(f"shell: exit 1\n{OK}").run(exit_code=1)
    assert "no run ''" in book.say("run", "--resume", "", exit_code=4)[1]


def test_half_a_character_fails_its_step_and_no_report(book: Book) -> None:
    """A lone surrogate: JSON can spell it, UTF-8 cannot."""
    book.write('shell: |\n  echo \'{"a": "\\ud800"}\'\nexpect: [json.a == `"b"`]')
    assert "ud800" in book.run("--report", "r.md", exit_code=1)["why"]
    assert "ud800" in (book.folder / "r.md").read_text()


def test_a_report_that_cannot_be_written_hides_no_verdict(book: Book) -> None:
    book.write(f"shell: exit 2\n{OK}")
    (book.folder / "r.md").symlink_to("/dev/full")
    out, err = book.say("run", str(book.file), "--report", "r.md", exit_code=3)
    assert "book: failed at step s1: expected that exit == `0`; found 2" in out
    assert "r.md: No space left on device" in err


def test_a_report_is_written_though_nobody_reads_the_output(book: Book) -> None:
    book.write(
        f"shell: 'while kill -0 $(cat head); do :; done'\n{OK}",
        f"shell: touch clean\nalways: true\n{OK}",
    )
    command = f"{shlex.join(GENCTL)} runbook run book.yaml --report r.md | sh -c 'echo $$ >head; read a; read b; read c'"
    with Running.start("bash", "-c", command, env=book.env, folder=book.folder) as running:
        running.end(within_s=30)
    report = (book.folder / "r.md").read_text()
    assert "**output: Broken pipe**" in report
    assert "| s2 | ok |" in report


def test_the_plan_is_there_before_the_first_step(book: Book) -> None:
    book.write(f"shell: until test -e go; do sleep 0.02; done\n{OK}")
    with book.start("run", str(book.file)) as running:
        until_sync(lambda: "s1 ..." in running.log.read_text())
        assert "1. s1: Number 1." in running.out.read_text()
        (book.folder / "go").touch()
        assert running.end() == 0


def test_a_journal_that_is_lost_is_told_and_offers_no_resume(book: Book) -> None:
    """The state folder fills up while the run goes on; what was begun there can be named all the same."""
    book.write(f"shell: printf '%05000d' 0\n{OK}", f"shell: exit 2\n{OK}")
    with book.start("run", str(book.file), program=(*PROGRAM, "small", "3000")) as running:
        assert running.end() == 1
        _, err = running.texts()
    assert "this run has no journal" in err
    assert "--resume" not in err
    (path,) = book.journals()
    path.write_text("")
    assert "is no journal of a run" in book.say("run", "--resume", path.stem, exit_code=4)[1]


def test_a_wait_tells_what_it_has_found_though_its_last_look_was_cut_off(book: Book) -> None:
    book.write(
        "shell: echo seen; test ! -e old || sleep 9; touch old\nwait: {every: 1ms, within: 700ms}\n"
        "expect: [text == 'done']"
    )
    assert book.run(exit_code=1)["why"].startswith("step s1: expected that text == 'done'; found \"seen\"")


def test_without_a_state_folder_it_runs_all_the_same(book: Book) -> None:
    book.write(f"shell: 'true'\n{OK}")
    (book.folder / "STATE").write_text("a file")
    out, err = book.say("run", str(book.file))
    assert "this run has no journal" in err
    assert "book: ok" in out


SQL = [
    "delete from credit_accounts",
    "commit; delete from credit_accounts",
    "set transaction read write; delete from credit_accounts",
    "do $$ begin set transaction read write; delete from credit_accounts; end $$",
    "select set_config('transaction_read_only', 'off', true); delete from credit_accounts",
    "with gone as (delete from credit_accounts returning 1) select * from gone",
]


def test_sql_is_read_only_unless_declared_and_its_values_are_bound(place: Place) -> None:
    place.sql("insert into credit_accounts values ('ann', 5)")
    file = place.folder / "book.yaml"

    def run(sql: str, *args: str, exit_code: int) -> str:
        variables = "variables: {who: {type: text, default: x, help: x}}\n"
        expect = "expect: ['rows[0].balance == `5`']"
        step = f"  - step: sql\n    does: It.\n    sql: {sql}\n    {expect}\n"
        use = '  - step: use\n    does: It.\n    shell: test "${who}"\n    ' + OK + "\n"
        file.write_text(HEAD.format(name="book") + variables + "steps:\n" + step + use)
        return place.say("runbook", "run", str(file), *args, exit_code=exit_code).stdout

    for text in SQL:
        run(f"{{query: {json.dumps(text)}}}", exit_code=1)
        with pytest.raises(GenctlError):  # whatever lint lets through
            asyncio.run(db.ask(place.dsn, text, {}, writes=False))
        assert len(place.sql("select from credit_accounts")) == 1, text
    assert "more than 1,000 rows" in run("{query: 'select generate_series(1, 10000000)'}", exit_code=1)
    assert 'column "nothing" does not exist' in run("{query: select nothing}", exit_code=1)
    assert "failed at step sql: PostgreSQL: COPY cannot" in run(
        "{query: copy (select 1) to stdout}", exit_code=1
    )
    deep = "select (repeat('[', 500) || repeat(']', 500))::jsonb as d"
    assert "nested more than 100 deep" in run(f'{{query: "{deep}"}}', exit_code=1)
    who = "{query: 'select balance from credit_accounts where user_id = ${who}'}"
    assert "found nothing there" in run(who, "--var", "who=x' or 'a' = 'a", exit_code=1)
    assert "book: ok" in run(who, "--var", "who=ann", exit_code=0)
    change = "update credit_accounts set balance = balance where user_id = 'ann' returning balance"
    run(f'{{query: "{change}"}}', exit_code=1)
    run(f'{{query: "{change}", writes: true}}', exit_code=0)
    silent = "{query: update credit_accounts set balance = balance, writes: true}"
    assert "found nothing there" in run(silent, exit_code=1)


def test_a_saved_map_or_list_is_a_parameter_too(place: Place) -> None:
    """It came from JSON: PostgreSQL gets it as such, or as an array where all in it is of one kind."""
    values = {"m": {"a": "b"}, "l": [1, None, 2], "t": ["x"], "maps": [{"a": 1}], "mixed": [1, "a"]}
    kinds = {"m": "jsonb", "l": "int[]", "t": "text[]", "maps": "jsonb", "mixed": "jsonb"}
    text = "select " + ", ".join(f"${{{name}}}::{kind} as {name}" for name, kind in kinds.items())
    step = Step(step="sql", does="It.", sql=Sql(query=text), expect=["count == `1`"])
    run = actions.Actions(Settings(database_url=place.dsn), Masker(), lambda words, _: words, print)
    assert asyncio.run(run.perform(step, values, None, 9.0)) == {"rows": [values], "count": 1}


def test_a_database_that_falls_silent_keeps_no_run(place: Place) -> None:
    """The server does not hear that its statement is cancelled, and the clean-up is not its business."""
    server = conninfo_to_dict(place.dsn)
    file = place.folder / "book.yaml"
    file.write_text(
        HEAD.format(name="book")
        + "steps:\n  - step: sql\n    does: It.\n    timeout: 2s\n    sql: {query: select pg_sleep(600)}\n"
        "    expect: [count == `1`]\n"
        f"  - step: clean\n    does: It.\n    shell: 'true'\n    always: true\n    {OK}\n"
    )
    with Relay(str(server["host"]), int(str(server.get("port", "5432")))) as cable:
        url = urlsplit(place.dsn)
        who = url.netloc.rpartition("@")[0]
        through = urlunsplit(url._replace(netloc=f"{who}@127.0.0.1:{cable.port}", query=""))
        with place.start("runbook", "run", str(file), "-S", f"database_url={through}") as running:
            until_sync(lambda: b"pg_sleep" in cable.said)
            cable.cut()
            assert running.end(within_s=40) == 1
            out, _ = running.texts()
    assert "no end within 2s" in out
    assert "clean" in out


def test_a_protected_database_is_named(place: Place) -> None:
    place.env |= {"GENCTL_PROTECTED": "on", FORKED_STEPS: "1"}
    file = place.folder / "book.yaml"
    step = "steps:\n  - step: pause\n    does: It.\n    dangerous: true\n    genctl: [sweep]\n    "
    file.write_text(HEAD.format(name="book") + step + OK + "\n")
    name = place.dsn.split("?")[0].rpartition("/")[2]
    for yes in ("--yes=other", "--yes"):
        assert name in place.say("runbook", "run", str(file), yes, exit_code=2).stderr
    place.say("runbook", "run", str(file), f"--yes={name}")


def test_a_command_gives_what_the_command_line_gives(place: Place) -> None:
    """The same document, exit code and settings; where it would ask, the runbook does."""
    file, session = place.folder / "book.yaml", place.enqueue()
    place.env["ARK_BASE_URL"] = "https://ark.example.test/api/v3"
    words = {
        "show": f"[sessions, show, {session}]",
        "none": "[sessions, show, nothing]",
        "config": "[config, show]",
        "order": "[enqueue, --sensitive, --grant, 100]",
    }
    file.write_text(
        HEAD.format(name="book")
        + "steps:\n"
        + "".join(
            f"  - step: {name}\n    does: It.\n    genctl: {text}\n"
            f"    expect: [exit == `{4 if name == 'none' else 0}`]\n"
            for name, text in words.items()
        )
    )
    run = ("runbook", "run", str(file), "-S", "max_attempts=7", "-o", "json")
    asked = json.loads(place.say(*run, exit_code=1, **{FORKED_STEPS: "1"}).stdout)
    assert "answer with --yes" in asked["why"]
    done = json.loads(place.say(*run, "--yes").stdout)
    steps = json.loads(place.say("runbook", "history", done["run"], "-o", "json").stdout)["steps"]
    gave = {step["step"]: step["output"] for step in steps}
    assert gave["show"]["json"] == place.genctl("sessions", "show", session)
    assert gave["none"]["error"] == place.error("sessions", "show", "nothing", exit_code=4)
    (attempts,) = [row for row in gave["config"]["json"] if row["setting"] == "max_attempts"]
    assert attempts["value"] == 7
    assert gave["order"]["json"]["status"] == "queued"
    assert "target: database" in gave["order"]["stderr"]

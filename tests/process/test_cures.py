"""Every cure that genctl prints is typed into a shell, in the state in which it is printed, and the trouble is gone.

`tests/cures.py` collects them. What is neither typed here nor by the test that ELSEWHERE names fails, and so does
what is only words without a reason in WORDS.
"""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest
from botocore import xform_name
from botocore.validate import ParamValidator
from tests import cures
from tests.kit import locked, until_sync
from tests.process import forks
from tests.process.forks import FORKED_STEPS, IN_A_SHELL
from tests.process.place import Place

from genctl.cli.words import usage_mistake
from genctl.domain import decide
from genctl.domain.findings import FILES, of_files, of_sent

# a word in capitals -> what a person would write there; `{}` is what only a run knows
FILLED = {
    "ID": "0d6e0a4e-7b1f-4f6e-9c40-5f1a2b3c4d5e",
    "T": "because",
    "N": "100",
    "U": "ann",
    "FOLDER": "elsewhere",
    "P": "9090",
}
ANY = {
    "--amount": "5",
    "--count": "5",
    "--processes": "2",
    "--reservation": "0d6e0a4e-7b1f-4f6e-9c40-5f1a2b3c4d5e",
    "--tool": "seedream4",
}

UNSAID = r"^Missing argument|requires an argument|'…'"

# commands that show how things stand: they change nothing, and end without an error
SHOWN = {
    "genctl -h", "genctl config show", "genctl dlq list", "genctl dlq list{}", "genctl doctor",
    "genctl explain HTTP400", "genctl migrate status", "genctl refunds check", "genctl report --since 1h",
    "genctl runbook history", "genctl runbook list", "genctl sessions list", "genctl sessions list --since 1h", "genctl sessions list --user {}",
    "genctl sessions list --status queued", "genctl sessions trace {}", "genctl status", "genctl sweep --dry-run",
    "genctl help", "genctl verdicts try --since 1d", "genctl tail-failures --since 1h --no-follow", "genctl tools", "genctl tools -o json", "genctl tools {}",
    "genctl workers",
}  # fmt: skip
# commands that the tests below type, each where it is printed
TYPED = {
    "genctl migrate", "genctl sweep", "genctl resume --tool {}", "genctl worker",
    "genctl credits grant --user {} --amount N", "genctl credits grant --user {} --amount {}",
    "genctl credits grant --user {} --amount {} --reason {}", "genctl credits adjust --user {} --to-ledger --reason T",
    "genctl credits adjust --user {} --reservation {} --reason T", "genctl refunds check --fix",
    "genctl sessions cancel {}", "genctl sessions retry {}", "genctl token --user U", "genctl runbook lint {}",
    "psql \"$DATABASE_URL\" -c 'alter table generation_sessions set (fillfactor=90)'",
    "genctl runbook run end-backend --var pid={}", "psql \"$DATABASE_URL\" -c 'table pg_prepared_xacts'",
    "export AWS_DEFAULT_REGION={}",
    "genctl credits grant --user {} --amount {} && {}", "genctl dlq discard --session {}",
    "psql postgresql://OWNER@{}/{} -c {}",
    "aws sqs set-queue-attributes --queue-url {} --attributes '{}'",
    "chmod go-w {}", "ulimit -n $(ulimit -Hn)",
}  # fmt: skip
# commands that other tests type
ELSEWHERE = {
    "genctl runbook run missing-refunds": "process/test_runbook_set.py::test_missing_refunds",
    "genctl runbook run provider-outage": "process/test_runbook_set.py::test_provider_outage",
    "genctl runbook run provider-outage --tool {}": "process/test_runbook_set.py::test_provider_outage",
    "genctl runbook run listener-silent": "process/test_runbook_set.py::test_listener_silent",
    "genctl serve": "process/test_serve.py::test_a_server_starts_before_its_database",
    "genctl serve --port 0": "process/test_serve.py::test_what_serve_cannot_do_it_says",
    "genctl simulator": "conftest.py::simulator",
    "genctl simulator --port 0": "conftest.py::simulator",
    "genctl worker --metrics-port 0": "process/test_worker_ownership.py::test_a_worker_tells_on_its_metrics_port_that_it_lives",
    "genctl watch": "process/test_serve.py::test_watch_prints_what_the_page_gets_and_goes_on_after_the_server_was_killed",
    "export GENCTL_HOME=FOLDER": "process/test_stack.py::test_two_folders_run_side_by_side",
    "export {}_PROXY=http://HOST:PORT": "path/test_as_boto3.py::test_a_proxy_that_is_no_url_is_told_without_its_password",
    "genctl up": "process/test_stack.py::test_the_queue_and_its_dlq_are_as_doctor_wants_them",
}
# what the docs say to type when something is wrong
OF_DOCS = {
    "genctl dlq redrive --category server --dry-run", "genctl dlq redrive --category auth", "genctl resume", "genctl sweep",
    "genctl dlq redrive --category server --canary 3 --rate 20 --reason 'the provider is back'", "genctl pause",
    "genctl sessions retry ID...", "genctl sessions cancel ID...", "genctl sweep --dry-run --totals", "genctl sweep --dry-run",
    "genctl sweep -S queued_timeout=30m", "genctl migrate", "genctl migrate down --to 20251101_base_tables.sql",
    "genctl credits adjust --user U --reservation ID --reason T",
}  # fmt: skip
OF_DOCS_ELSEWHERE = {
    "genctl migrate down --to NAME": "process/test_upgrade.py::test_the_newer_version_says_what_the_older_schema_lacks_and_loses_nothing",
    "genctl sweep --every 15s": "process/test_crash_matrix.py::test_a_sweeper_killed_at_any_step_leaves_what_others_end_once",
    "genctl sweep --every 15s --tool NAME": "process/test_second_tool.py::test_the_second_tool_passes_the_checklist_and_stands_beside_the_first",
    "genctl token revoke": "path/test_signin.py::test_what_a_user_had_is_revoked_in_every_process_and_what_comes_later_is_good",
}
# what a cure begins with -> why it is words, and no command
WORDS = {
    r"set |unset |name the (primary|schema)": "a setting, whose value only the person knows",
    r"name |give |use |choose |add |drop |answer |send |leave |declare |select |count |order |change |say |it takes"
    r"|its variables|did you mean|--force|1 to|revoke |behind |take |rename ": "a part of what a person has typed or written",
    r"check |see |find out |read |try again|wait |stop |end the": "a person looks at, or waits for, what is not genctl's",
    r"alter |grant |drop rule|create the schema|let the product|undo |mend the row|the row names": "SQL for the owner of a product's tables",
    r"install |mend |renew |ask its|run genctl as|remove |free some|have the (proxy|certificate)|let (the proxy|NTP)|eval ": "another program or machine",
    r"nobody |somebody |was it |what ": "smoke says where to look",
    r"a |true or false|-m |\{\}|: did|; to end| \(\{\}": "a piece of a sentence",
}  # fmt: skip


def test_every_printed_cure_is_a_command_that_a_test_types_or_words_with_a_reason() -> None:
    """Each command fits the command line."""
    cured = cures.of_code() | cures.of_alerts()
    printed = {command for cure in cured for command in cures.commands(cure)}
    known = SHOWN | TYPED | ELSEWHERE.keys()
    assert sorted(printed - known) == [], "type it in a test"
    assert sorted(known - printed) == [], "nothing prints it"
    for command in printed - {"genctl -h"}:
        assert not command.startswith("genctl ") or usage_mistake(_likely(command)) is None, command

    words = {cure for cure in cured if cure and not cures.commands(cure)}
    assert sorted(cure for cure in words if not any(re.match(begin, cure) for begin in WORDS)) == []
    assert [begin for begin in WORDS if not any(re.match(begin, cure) for cure in words)] == []
    assert [cure for cure in words if re.search(r"(^|[ ;:])genctl [a-z]+ (-|[a-z]+$)", cure)] == [], (
        "in backticks"
    )


def test_every_command_of_the_docs_fits_the_command_line() -> None:
    """A sentence may name a command without what it is about."""
    wrong = {command: usage_mistake(_likely(command)) or "" for command in cures.of_docs()}
    assert [(one, why) for one, why in wrong.items() if why and not re.search(UNSAID, why)] == []


def test_every_command_of_the_docs_that_mends_is_typed_by_a_test() -> None:
    """But for what a sentence only names, without what it is about."""
    named = {
        one for one in cures.of_docs_that_mend() if not re.search(UNSAID, usage_mistake(_likely(one)) or "")
    }
    assert sorted(named) == sorted(
        OF_DOCS
        | OF_DOCS_ELSEWHERE.keys()
        | {"genctl credits adjust", "genctl credits grant", "genctl dlq redrive"}
    )


@pytest.mark.parametrize("where", sorted({*ELSEWHERE.values(), *OF_DOCS_ELSEWHERE.values()}))
def test_the_other_tests_are_there(where: str) -> None:
    file, name = where.split("::")
    assert f"def {name}(" in (Path(__file__).parents[1] / file).read_text()


def _likely(command: str) -> list[str]:
    """The words of a template, filled as a run might."""
    words = shlex.split(command.removesuffix("{}") if command.endswith("list{}") else command)
    for at, word in enumerate(words):
        words[at] = FILLED.get(word, word)
        if word in {"{}", "N"}:
            words[at] = ANY.get(words[at - 1], ANY["--reservation"])
    return words[1 : words.index("&&") if "&&" in words else None]


# --- the shell -----------------------------------------------------------------------------------


class Said(NamedTuple):
    """What a person sees after a line."""

    exit_code: int
    out: str
    err: str

    @property
    def fix(self) -> str:
        """The cure of an error."""
        told = re.findall(r'^{"error": .*}', self.err, flags=re.MULTILINE)
        fixes = [json.loads(one)["error"]["fix"] for one in told]
        (fix,) = fixes or re.findall(r"^  fix: (.*?)\r?$", self.err, flags=re.MULTILINE)
        return str(fix)

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """A terminal of the place, in which `genctl` is a command; a person says yes to what it asks."""

    def __init__(self, place: Place) -> None:
        self.place = place
        programs = place.folder / "programs"
        programs.mkdir()
        forks.program(programs / "genctl")
        self.path = f"{programs}:{os.environ['PATH']}"

    def __call__(self, line: str, **env: str) -> Said:
        """Type a line, with a yes for each question that it may ask."""
        ours, theirs = pty.openpty()
        os.write(ours, b"y\n" * 4)
        env = {**self.place.env, "PATH": self.path, "TERM": "dumb", IN_A_SHELL: "1", FORKED_STEPS: "1", **env}
        with subprocess.Popen(
            ["sh", "-c", line],
            env=env,
            cwd=self.place.folder,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            with ThreadPoolExecutor(1) as beside:
                err = beside.submit(_all_of, ours)
                out, _ = process.communicate(timeout=60)
        os.close(ours)
        return Said(process.returncode, out.decode(), err.result().decode())

    def cured(
        self, trouble: str, cure: str, template: str, fills: Mapping[str, str] = {}, **env: str
    ) -> Said:
        """What the line says once the printed command has run; the command is one that the collector knows."""
        (command,) = cures.commands(cure) or [cure]
        assert re.fullmatch(re.escape(template).replace(r"\{\}", ".+"), command), command
        for word, text in (FILLED | dict(fills)).items():
            command = re.sub(rf"\b{word}\b", text, command)
        return self(f"{command} >typed && {trouble}", **env)


def _all_of(terminal: int) -> bytes:
    """What is written to a terminal until nobody has it any more."""
    seen = b""
    with suppress(OSError):  # as Linux says so
        while more := os.read(terminal, 65_536):
            seen += more
    return seen


@pytest.fixture
def shell(place: Place, served_place: Place) -> Shell:
    place.env["GENCTL_API_URL"] = served_place.env["GENCTL_API_URL"]
    return Shell(place)


def status(shell: Shell, part: str) -> dict[str, str]:
    """The line of a part."""
    (line,) = [one for one in shell("genctl status -o json").json["lines"] if one["part"] == part]
    return dict(line)


def mended(shell: Shell, part: str, template: str) -> None:
    """The line needs somebody, and no longer once its next command was typed."""
    line = status(shell, part)
    assert line["level"] == "attention", line
    shell.cured("true", line["next"], template)
    assert status(shell, part)["level"] == "ok"


def test_what_shows_how_things_stand_ends_without_an_error(shell: Shell) -> None:
    """The longest line of each command."""
    shell.place.enqueue("success")
    session = shell.place.enqueue("success")
    of_each = {tuple(line.split()[1:3]): line for line in sorted(SHOWN, key=len)}
    for command in of_each.values():
        shown = "seedream4" if "tools" in command else session
        said = shell(command.removesuffix("{}") if "list{}" in command else command.replace("{}", shown))
        assert said.exit_code in {0, 1}, (command, said)
        assert "genctl:" not in said.err, (command, said)


OPEN = """
    update credit_reservations set status = 'released', released_at = now() where id = %(r)s;
    insert into credit_ledger (user_id, delta, kind, reservation_id, reason) values ('ann', 4, 'release', %(r)s, 'x');
    update credit_accounts set balance = balance + 4 where user_id = 'ann'"""
OWED = "update generation_sessions set enqueued_at = null, queued_at = now() - interval '1 hour'"
LATE = "update generation_sessions set queued_at = now() - interval '1 hour' where status = 'queued'"
REFUSED = (
    "insert into tool_gates (tool, state, reason, who) values ('seedream4', 'closed', '401', 'ann@host')"
)
UNTOLD = "update generation_sessions set error_details = null where id = %(s)s"
BY_HAND = "update credit_accounts set balance = balance + 7 where user_id = 'ann'"


STOPPED = """
    delete from generation_sessions where id = (select id from generation_sessions where user_id = 'eve' limit 1);
    update credit_accounts set balance = 0 where user_id = 'eve'"""
TYPED_ON = "genctl credits grant --user {} --amount {} && {}"
NOT_REFUNDED = """update generation_sessions set error_details = error_details || '{"refundedCredits": 0}' where id = %(s)s"""


def plant(place: Place, text: str, **ids: object) -> None:
    """SQL that breaks what the guards keep."""
    with psycopg.connect(place.dsn) as conn:
        conn.execute("set local session_replication_role = replica")
        for statement in text.split(";"):
            conn.execute(statement.encode(), ids)


def audited(shell: Shell) -> set[str]:
    """Follow the cures of `refunds check`, and those of what they say, until it is sound; what was typed."""
    typed = list[str]()
    while found := shell("genctl refunds check -o json").json["violations"]:
        (command,) = cures.commands(found[0]["fix"])
        while command:
            typed.append(command)
            assert len(typed) < 8, typed
            said = shell(re.sub(r"\bT$", "because", command))
            command = said.fix if "fix: " in said.err else ""
    return {" ".join(command.split()[1:3]) for command in typed}


def test_cures_of_rows(shell: Shell) -> None:
    place = shell.place
    place.sql("delete from genctl_migrations where name = (select max(name) from genctl_migrations)")
    mended(shell, "migrations", "genctl migrate")
    good, bad = place.enqueue("success"), place.enqueue("invalid-parameter")
    place.sql(OWED)
    assert status(shell, "owed")["level"] == "attention"
    shell("genctl sweep")  # as the alert says
    assert status(shell, "owed")["level"] == "ok"
    place.sql(REFUSED)
    assert "closed" in status(shell, "gate")["message"]
    shell.cured("true", status(shell, "gate")["next"], "genctl resume --tool {}")
    assert "open" in status(shell, "gate")["message"]
    place.sql(LATE)
    line = status(shell, "sessions")
    assert (line["level"], line["next"]) == ("attention", "genctl worker")
    with place.start(*line["next"].split()[1:]) as worker:
        place.until_row(good, status="completed")
        place.until_row(bad, status="failed")
        worker.end(signal.SIGTERM)
    assert status(shell, "sessions")["level"] == "ok"

    plant(place, BY_HAND)
    assert audited(shell) == {"credits adjust"}
    plant(place, NOT_REFUNDED, s=bad)
    assert audited(shell) == {"refunds check"}
    plant(place, UNTOLD, s=bad)
    assert audited(shell) == {"sessions retry"}
    plant(place, OPEN, r=place.row(bad)["reservation_id"])
    assert audited(shell) >= {"credits adjust", "sessions cancel"}


BROKEN = """
    insert into tool_gates (tool, state, reason, who, until)
    values ('seedream4', 'closed', 'AuthenticationError', 'breaker host:7', now() + interval '10 minutes')"""
OF_OLD_WORKERS = """
    insert into generation_sessions (id, user_id, model, prompt, status, created_at)
    values (%(s)s, 'ann', 'seedream-4-0-250828', 'x', 'processing', now() - interval '45 minutes')"""


def test_cures_of_the_docs(shell: Shell) -> None:
    """A provider that was down and a key that was wrong, as dlq.md and gate.md mend them; and the way back."""
    place = shell.place
    with place.worker(GENCTL_MAX_ATTEMPTS="1", GENCTL_BREAKER="off"):
        down, refused, odd = (
            place.enqueue(scenario) for scenario in ("server-error", "auth", "invalid-parameter")
        )
        for session in (down, refused, odd):
            place.until_row(session, status="failed")
        until_sync(lambda: len(place.copies()) == 3)
        place.sql("update generation_sessions set prompt = 'mended'")
        plant(place, BROKEN)
        waits = place.enqueue()
        assert shell("genctl resume").exit_code == 0
        place.until_row(waits, status="completed")
        assert shell("genctl dlq redrive --category server --dry-run -o json").json["redriven"] == 0
        again = "genctl dlq redrive --category server --canary 3 --rate 20 --reason 'the provider is back'"
        for session, command in ((down, again), (refused, "genctl dlq redrive --category auth")):
            assert shell(command).exit_code == 0
            place.until_row(session, status="completed")
        assert shell(f"genctl sessions retry {odd}").exit_code == 0
        place.until_row(odd, status="completed")
    assert shell("genctl dlq history -o json").json[2]["reason"] == "the provider is back"

    assert shell("genctl pause").exit_code == 0
    unwanted, left = place.enqueue(), str(uuid4())
    assert shell(f"genctl sessions cancel {unwanted}").exit_code == 0
    assert place.row(unwanted)["held_as"] == "released"
    plant(place, OF_OLD_WORKERS, s=left)
    (planned,) = shell("genctl sweep --dry-run --totals -o json").json
    assert (planned["action"], planned["sessions"]) == ("wait", 1)
    assert shell("genctl sweep -S queued_timeout=30m").exit_code == 0
    assert place.row(left)["status"] == "failed"
    assert shell("genctl migrate down --to 20251101_base_tables.sql").exit_code == 0
    assert shell("genctl migrate").exit_code == 0
    assert shell("genctl migrate status").exit_code == 0


def test_cures_of_bulk_work(shell: Shell) -> None:
    """Jobs that stopped in the middle, what `doctor --send` left behind, and a role that may not write the history."""
    place = shell.place
    said = shell("genctl enqueue --user eve --cost 400 --count 2")
    assert said.exit_code == 0
    (go_on,) = re.findall(r"goes on: (genctl .*?)\r?$", said.err, flags=re.MULTILINE)
    plant(place, STOPPED)
    short = shell(f"{go_on} -o json").fix
    assert shell.cured("genctl sessions list --user eve -o json", short, TYPED_ON).exit_code == 0
    assert place.sql("select from generation_sessions where user_id = 'eve'") == [{}, {}]

    place.send(decide.probe_body("seedream4"), dlq=True)
    left = of_sent("dlq", None, "the message", is_dlq=True).fix
    assert shell.cured("true", left or "", "genctl dlq discard --session {}").exit_code == 0
    assert place.copies() == {}

    place.make_real()
    role = f"operator_{uuid4().hex[:8]}"
    with psycopg.connect(place.dsn, autocommit=True) as conn:
        conn.execute(
            f"""create role {role} login password 'x' in role pg_read_all_data;
            grant all on all tables in schema public to {role}""".encode()
        )
        try:
            url = urlsplit(place.dsn)
            theirs = urlunsplit(url._replace(netloc=f"{role}:x@{url.netloc.rpartition('@')[2]}"))
            shell("genctl credits grant --user ann --amount 10")
            plant(place, BY_HAND)
            template, fills = (
                "psql postgresql://OWNER@{}/{} -c {}",
                {"OWNER": f"{url.username}:{url.password}"},
            )
            for command in (
                "genctl dlq redrive --all --yes",
                "genctl credits adjust --user ann --to-ledger --reason because --yes",
            ):
                conn.execute(f"revoke insert on bulk_work, credit_ledger from {role}".encode())
                said = shell(command, DATABASE_URL=theirs)
                granted = shell.cured(command, said.fix, template, fills, DATABASE_URL=theirs)
                assert (said.exit_code, granted.exit_code) == (3, 0), (said, granted)
        finally:
            conn.execute(f"drop owned by {role}; drop role {role}".encode())


def test_cures_of_credits_and_tokens(shell: Shell) -> None:
    said = shell(show := "genctl credits show bob -o json")
    assert shell.cured(show, said.fix, "genctl credits grant --user {} --amount N").json["balance"] == 1100
    shell(order := "genctl enqueue --user bob --cost 1100 --prompt 'a lighthouse'")
    said = shell(order)
    assert said.exit_code == 1
    assert shell.cured(order, said.fix, "genctl credits grant --user {} --amount {}").exit_code == 0
    with locked(shell.place.dsn, "credit_accounts where user_id = 'bob'"):
        said = shell("genctl credits grant --user bob --amount 7 --reason 'a gift'")
    template = "genctl credits grant --user {} --amount {} --reason {}"
    assert shell.cured(show, said.fix, template).json["balance"] == 7
    said = shell("genctl watch --token expired --count 1")
    assert said.exit_code == 5
    (command,) = cures.commands(said.fix)
    token = shell(f"{re.sub('U$', 'bob', command)} -o json").json["token"]
    assert shell(f"timeout 1 genctl watch --token {token} --count 1").exit_code == 124  # it waits


PREPARED = "psql \"$DATABASE_URL\" -c 'table pg_prepared_xacts'"


def _ends_a_lock(shell: Shell) -> None:
    with closing(psycopg.connect(shell.place.dsn)) as idle:
        idle.execute("lock table tool_gates")
        said = shell("genctl pause --timeout 1s")
        template = "genctl runbook run end-backend --var pid={}"
        assert shell.cured("genctl pause", said.fix, template).exit_code == 0


def test_cures_of_real_services(shell: Shell) -> None:
    place = shell.place
    _ends_a_lock(shell)  # on the embedded stack, which has no DATABASE_URL
    place.make_real()
    place.sql("alter table generation_sessions reset (fillfactor)")
    cures_of = {one["fix"] for one in shell("genctl doctor -o json").json["findings"]}
    (table,) = [fix for fix in cures_of if "fillfactor" in fix]
    (queue,) = [fix for fix in cures_of if "set-queue-attributes" in fix]
    assert shell(table).exit_code == 0
    _set_attributes(place, queue)
    left = {one["fix"] for one in shell("genctl doctor -o json").json["findings"]}
    assert not {table, queue} & left

    _ends_a_lock(shell)
    assert shell(PREPARED).exit_code == 0
    name = place.queue.rpartition("/")[2]
    elsewhere = f"genctl dlq list -S queue=arn:aws:sqs:eu-west-1:123456789012:{name}"
    said = shell(elsewhere)
    assert "QueueElsewhere" in shell(f"{elsewhere} -o json").err
    assert (
        "QueueElsewhere"
        not in shell.cured(f"{elsewhere} -o json", said.fix, "export AWS_DEFAULT_REGION={}").err
    )


def _set_attributes(place: Place, command: str) -> None:
    """What the aws CLI, which is not installed here, does with the command: its arguments are the call's members."""
    words = shlex.split(command)
    assert words[:3] == ["aws", "sqs", "set-queue-attributes"]
    value = dict(zip(words[3::2], words[4::2], strict=True))
    assert value.pop("--endpoint-url") == place.env["AWS_ENDPOINT_URL_SQS"]
    model = place.sqs.meta.service_model.operation_model("SetQueueAttributes")
    members = {f"--{xform_name(name, '-')}": name for name in model.input_shape.members}
    asked = {members[option]: text for option, text in value.items()}
    asked["Attributes"] = json.loads(asked["Attributes"])
    assert not ParamValidator().validate(asked, model.input_shape).has_errors()
    place.sqs.set_queue_attributes(**asked)


def test_cures_of_this_machine(shell: Shell) -> None:
    file = shell.place.folder / "genctl.yaml"
    file.write_text("rate: 10\n")
    file.chmod(0o666)
    said = shell("genctl config show")
    assert shell.cured("genctl config show", said.fix, "chmod go-w {}").exit_code == 0
    (command,) = cures.commands(of_files(1024).fix)
    assert int(shell(f"ulimit -Sn 1024; {command} && ulimit -n").out) >= FILES
    assert "GENCTL_HOME=FOLDER" in shell("genctl up", GENCTL_HOME="/proc/nowhere").fix

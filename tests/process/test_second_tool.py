"""Porting is proven: the example is installed into a fresh environment, and everything works for it."""

import json
import os
import socket
import subprocess
import sys
import sysconfig
import tomllib
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.kit import QueueServer, free_port, until_sync
from tests.process import forks
from tests.process import place as places
from tests.process.place import Place, Running, clean_env, write_stack
from tests.process.test_runbook_set import served, states

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "genctl-tool-example"
PROVIDER = Path(__file__).with_name("example_provider.py")
TOOLS = ("seedream4", "example")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment, with the example beside what runs the tests.

    test_from_nothing.py installs it by pip.
    """
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home / "venv", with_pip=False)
    made = home / "venv" / "bin" / "python"
    (site,) = (home / "venv" / "lib").glob("python*/site-packages")
    (site / "beside.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n{EXAMPLE}\n"
    )
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    tools = project["entry-points"]["genctl.tools"]
    points = [f"{name} = {where}" for name, where in tools.items()]
    (info / "entry_points.txt").write_text("\n".join(["[genctl.tools]", *points]))
    forks.offer(str(made))
    return made


@contextmanager
def provider(folder: Path) -> Iterator[str]:
    port = free_port()
    with Running.start(sys.executable, str(PROVIDER), str(port), env=dict(os.environ), folder=folder):

        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until_sync(answers)
        yield f"http://127.0.0.1:{port}/v2"


@pytest.fixture
def both(
    python: Path,
    dsn: str,
    simulator: Running,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Place]:
    """A place with a queue pair of each tool, and the second tool's provider."""
    monkeypatch.setattr(places, "GENCTL", (str(python), "-m", "genctl"))
    with (
        QueueServer.start(tmp_path / "sqs.log") as server,
        provider(tmp_path) as base,
    ):
        queues = {tool: server.pair(f"{tool}-jobs") for tool in TOOLS}
        write_stack(tmp_path, dsn, server, simulator)
        env = clean_env(tmp_path) | {"EXAMPLE_BASE_URL": base}
        place = Place(dsn, tmp_path, env, server.client, *queues["seedream4"], simulator)
        yield place
        place.leave()


def test_the_second_tool_passes_the_checklist_and_stands_beside_the_first(both: Place) -> None:
    listed = {row["tool"]: row for row in both.genctl("tools")}
    assert [*listed] == ["seedream4", "example"]
    second = listed["example"]
    assert (second["provider"], second["price"], second["queue"]) == ("example", 7, "example-jobs")
    assert (second["gate"], second["trouble"], second["real"]) == ("open", None, False)
    assert "style" in json.dumps(second["parameters"])

    with served(both), both.worker("--tool", "example") as ours, both.worker() as theirs:
        checklist = ("runbook", "run", "port-to-another-tool", "--tool", "example", "--yes", "-o", "json")
        with both.start(*checklist, **{forks.FORKED_STEPS: "1"}) as checked:
            assert checked.end(within_s=240) == 0, checked.texts()
        assert set(states(json.loads(checked.texts()[0])).values()) == {"ok"}
        assert both.genctl("smoke", "--tool", "example")["ok"]
        assert both.genctl("smoke")["ok"]
        refused_at_the_door(both)
        redriven(both)
        paused_alone(both, ours)
        assert not ours.events("message.left") and not theirs.events("message.left")
    assert both.violations() == []
    assert both.genctl("refunds", "check")["violations"] == []


def refused_at_the_door(both: Place) -> None:
    """What the second tool does not know or its model refuses costs nothing."""
    error = both.error("enqueue", "--tool", "example", "--param", "stile=photo", exit_code=2)
    assert (error["code"], error["fix"]) == ("UnknownParameter", "did you mean style?")
    order = ("enqueue", "--model", "example-mini", "--param", "side=2048")
    assert both.error(*order, exit_code=2)["code"] == "BadParameter"
    assert both.error("enqueue", "--tool", "example", "--param", "size=2K", exit_code=2)["code"]


def redriven(both: Place) -> None:
    """A refusal settles with the provider's words, and its copy brings it back under its own price."""
    wish = ("enqueue", "--tool", "example", "--sensitive", "--user", "eve", "--grant", "50", "--wait")
    failed = both.genctl(*wish)
    details = failed["error_details"]
    assert (details["code"], details["category"], details["provider"]) == (
        "content_blocked", "content_policy", "example",
    )  # fmt: skip
    assert details["userMessage"] == "This cannot be drawn."
    assert failed["refundedCredits"] == 7
    session = failed["sessionId"]
    assert [
        m["state"] for m in both.genctl("dlq", "list", "--tool", "example", "--session", session)["messages"]
    ] == ["current"]
    assert both.genctl("dlq", "list", "--session", session)["messages"] == []
    told = both.say("sessions", "trace", session).stdout
    copy = both.genctl("sessions", "trace", session)["dlq"]["messageId"]
    assert f"genctl dlq show {copy} --tool example" in told
    done = both.genctl(
        "dlq", "redrive", "--tool", "example", "--session", session, "--yes",
        "--edit-prompt", "a lighthouse", "--set", "style=sketch",
    )  # fmt: skip
    assert done["redriven"] == 1
    row = both.until_row(session, status="completed")
    assert (row["run"], row["params"]) == (2, {"style": "sketch"})


def paused_alone(both: Place, ours: Running) -> None:
    """An outage of one provider stops no job of the other."""
    both.genctl("pause", "--tool", "example", "--reason", "an outage")
    ours.until("gate.closed", reason="an outage")
    gates = {row["tool"]: row["gate"] for row in both.genctl("tools")}
    assert gates == {"seedream4": "open", "example": "closed"}
    waits = both.genctl("enqueue", "--tool", "example", "--user", "ann")["sessionId"]
    goes_on = both.genctl("enqueue", "--user", "ann", "--wait", "--expect", "completed")
    assert goes_on["status"] == "completed"
    assert both.row(waits)["status"] == "queued"
    both.genctl("resume", "--tool", "example")
    both.until_row(waits, status="completed")


def test_what_an_uninstalled_tool_leaves_is_seen_audited_and_waits(
    both: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = ("enqueue", "--tool", "example", "--sensitive", "--user", "eve", "--grant", "50")
    with both.worker("--tool", "example"):
        failed = both.genctl(*wish, "--wait")["sessionId"]
        until_sync(lambda: both.genctl("dlq", "list", "--tool", "example")["messages"])
    waits = both.genctl("enqueue", "--tool", "example", "--user", "eve")["sessionId"]

    monkeypatch.setattr(places, "GENCTL", (sys.executable, "-m", "genctl"))  # without the example
    assert [row["tool"] for row in both.genctl("tools")] == ["seedream4"]
    assert {row["sessionId"] for row in both.genctl("sessions", "list")} == {failed, waits}
    assert both.genctl("sessions", "show", failed)["error_details"]["code"] == "content_blocked"
    assert both.violations() == []
    assert both.genctl("sweep") == []
    told = both.genctl("status", exit_code=1)
    assert any("not installed here" in line["message"] for line in told["lines"]), told
    assert "no tool 'example' is installed" in both.say("worker", "--tool", "example", exit_code=2).stderr
    assert both.error("enqueue", "--tool", "example", exit_code=2)["code"] == "UnknownTool"
    redrive = ("dlq", "redrive", "--tool", "example", "--session", failed, "--yes", "--edit-prompt", "a boat")
    assert both.genctl(*redrive)["redriven"] == 1
    with served(both):  # which need not be told that there was such a tool
        watched = both.say(
            "watch", "--tool", "example", "--user", "eve", "--last-event-id", "0", "--count", "1", exit_code=0
        )
        assert watched.stdout
        assert "no tool 'example' is installed here" in watched.stderr
        listed = asked(both, "GET", "sessions")
        assert {item["sessionId"] for item in listed[1]["sessions"]} == {failed, waits}
        assert asked(both, "POST", "generations", {"prompt": "a boat"})[0] == 503
    assert both.row(waits)["status"] == both.row(failed)["status"] == "queued"


def asked(both: Place, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """What the API answers to eve about the example."""
    token = both.genctl("token", "--user", "eve")["token"]
    request = urllib.request.Request(
        f"{both.env['GENCTL_API_URL']}/api/example/{path}",
        None if body is None else json.dumps(body).encode(),
        {"Authorization": f"Bearer {token}"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, None


def test_the_answers_of_the_example_get_their_verdicts(python: Path) -> None:
    program = """
import json, sys
from datetime import UTC, datetime
from genctl.domain.classify import classify
from genctl.domain.details import build
from genctl.domain.model import Success
from genctl.ops.meaning import RecordedAnswer
from genctl_tool_example import TOOL
import msgspec
for line in msgspec.json.Decoder(RecordedAnswer).decode_lines(open(sys.argv[1], "rb").read()):
    verdict = classify(line.answer(), TOOL.provider, now=datetime.now(UTC))
    found = {"requestId": verdict.request_id}
    if not isinstance(verdict, Success):
        details = build(verdict, attempts=1, max_attempts=3, first_attempt_at=None, provider=TOOL.provider)
        found |= msgspec.to_builtins(details) | {"requestId": verdict.request_id}
    assert {key: found.get(key) for key in line.expect} == line.expect, (line.name, found)
    print(line.name)
"""
    done = subprocess.run(
        [python, "-c", program, EXAMPLE / "corpus.jsonl"], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["refused", "busy", "drawn"], done.stderr

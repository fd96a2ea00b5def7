"""`genctl demo`: what a newcomer sees first, and what it says when a hop is broken."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.kit import free_port, until_sync
from tests.process.place import GENCTL, Running, clean_env

from genctl.ops.smoke.hop import HOPS

PROGRAM = str(Path(__file__).with_name("demo_program.py"))
CHECKS = [
    *("every hop holds", "the worker logged it", "the bridge logged it", "the card shows it"),
    "the balance is whole again",
    *("a good job completes", "and is paid for"),
]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert until_sync(lambda: not processes_in(tmp_path)), "a process was left running"


def processes_in(folder: Path) -> dict[int, str]:
    """The command lines, by pid, of living processes whose command line or environment speaks of `folder`."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if command and os.fsencode(folder) in command + (process / "environ").read_bytes():
                found[int(process.name)] = command.decode()
    return found


def stack_env(home: Path) -> dict[str, str]:
    """A user's, with a port of its own: other tests start stacks at the same moment."""
    return clean_env(home) | {"GENCTL_API_URL": f"http://127.0.0.1:{free_port()}"}


def demo(home: Path, *args: str, program: tuple[str, ...] = GENCTL, exit_code: int = 0) -> tuple[Any, str]:
    """The one document on stdout, and stderr."""
    with Running.start(*program, *args, "-o", "json", env=stack_env(home), folder=home) as running:
        assert running.end(within_s=60) == exit_code, running.log.read_text()
    return json.loads(running.out.read_text()), running.log.read_text()


def test_demo_shows_every_check_and_keeps_the_stack_for_other_terminals(home: Path) -> None:
    """They find it by its folder alone; Ctrl-C ends all of it. test_from_nothing.py runs a demo to its end."""
    with Running.start(*GENCTL, "demo", "--keep", "-o", "json", env=stack_env(home), folder=home) as kept:
        until_sync(lambda: "until Ctrl-C" in kept.log.read_text(), within_s=60)
        shown, told = json.loads(kept.out.read_text()), kept.log.read_text()
        assert list(shown) == ["ok", "checks", "timeline", "signIn"]
        assert shown["ok"] is True
        assert [list(check) for check in shown["checks"]] == [["check", "ok", "evidence"]] * len(CHECKS)
        assert [check["check"] for check in shown["checks"]] == CHECKS
        assert all(check["ok"] and check["evidence"] for check in shown["checks"])
        assert [list(beat) for beat in shown["timeline"]] == [["hop", "at", "ms"]] * len(HOPS)
        assert [beat["hop"] for beat in shown["timeline"]] == list(HOPS)
        assert all(0 <= beat["ms"] < 30_000 and beat["at"].endswith("Z") for beat in shown["timeline"])
        assert "/signin?ticket=" in shown["signIn"]
        for word in (*HOPS, *CHECKS, "postgres is ready"):
            assert word in told
        said, _ = demo(home, "enqueue", "--sensitive", "--wait", "--expect", "failed")
        assert said["refundedCredits"] == 4
        found, _ = demo(home, "refunds", "check")
        assert (found["checked"]["sessions"], found["violations"]) == (3, [])
        (simulator,) = (pid for pid, line in processes_in(home).items() if "simulator" in line.split("\0"))
        os.kill(
            simulator, signal.SIGSTOP
        )  # the stack ends all the same, and waits for that as long as it takes
        assert kept.end(signal.SIGINT) == 128 + signal.SIGINT
        assert "stopping" in kept.log.read_text()
        assert not processes_in(home)


def test_a_broken_hop_is_named_with_the_logs_that_matter(home: Path) -> None:
    """Here a database that swallows NOTIFY; everything else holds."""
    shown, told = demo(home, "demo", program=(sys.executable, PROGRAM), exit_code=1)
    why = (
        "expected a NOTIFY on session_completed for the session, found none; "
        "look at the transaction that settles"
    )
    assert shown["ok"] is False
    assert shown["checks"][0] == {"check": CHECKS[0], "ok": False, "evidence": f"notify: {why}"}
    bridge = CHECKS.index("the bridge logged it")  # it hears nothing either
    assert [check["ok"] for check in shown["checks"][1:]] == [n != bridge for n in range(1, len(CHECKS))]
    passed = [beat["hop"] for beat in shown["timeline"] if beat["ms"] is not None]
    assert [*passed, "notify"] == [beat["hop"] for beat in shown["timeline"]] == list(HOPS[:6])
    assert f"  notify      BROKEN     {why}" in told
    assert "--- the last lines of worker" in told
    assert '"event":"session.failed.updated"' in told

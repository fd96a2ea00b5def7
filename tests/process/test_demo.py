"""`genctl demo`: what a newcomer sees first, and what it says when a hop is broken."""

import asyncio
import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
from tests.kit import free_port, until_sync
from tests.process.place import GENCTL, Place, Running, clean_env

from genctl.base.settings import Settings
from genctl.ops import demo as demos
from genctl.ops.smoke.hop import HOPS

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


def said(home: Path, *args: str) -> Any:
    """The one document on stdout."""
    with Running.start(*GENCTL, *args, "-o", "json", env=stack_env(home), folder=home) as running:
        assert running.end(within_s=60) == 0, running.log.read_text()
    return json.loads(running.out.read_text())


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
        ended = said(home, "enqueue", "--sensitive", "--wait", "--expect", "failed")
        assert ended["refundedCredits"] == 4
        found = said(home, "refunds", "check")
        assert (found["checked"]["sessions"], found["violations"]) == (3, [])
        (simulator,) = (pid for pid, line in processes_in(home).items() if "simulator" in line.split("\0"))
        os.kill(
            simulator, signal.SIGSTOP
        )  # the stack ends all the same, and waits for that as long as it takes
        assert kept.end(signal.SIGINT) == 128 + signal.SIGINT
        assert "stopping" in kept.log.read_text()
        until_sync(lambda: not processes_in(home))


# found before the real one, and silent
SWALLOWED = """
create function pg_notify(text, text) returns void language sql as 'select null';
do $$ begin execute format('alter database %I set search_path = public, pg_catalog', current_database()); end $$
"""


@dataclasses.dataclass
class Standing:
    """A place with API and worker, as far as a demo knows a stack."""

    settings: Settings
    parts: dict[str, Path]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """The test ends them."""

    def logs(self, part: str) -> Path:
        return self.parts[part]


def test_a_broken_hop_is_named_with_the_logs_that_matter(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a database that swallows NOTIFY; everything else holds, though its user has spent all credits."""
    place.sql(SWALLOWED)
    place.sql("insert into credit_accounts values ('demo', 3)")
    monkeypatch.setattr(demos, "TIMEOUT_S", 2.0)
    monkeypatch.setattr(demos, "LOG_TIMEOUT_S", 0.5)
    shown: dict[str, Any] = {}
    notes: list[str] = []
    with (
        place.start("serve", "--port", "0", GENCTL_LOG="json") as api,
        place.worker(GENCTL_LOG="json") as worker,
    ):
        settings = dataclasses.replace(place.settings, api_url=api.until("api.started")["url"])
        standing = Standing(settings, {"api": api.log, "worker": worker.log})
        monkeypatch.setattr(demos, "Stack", lambda *_, **__: standing)
        run = demos.run(settings, keep=False, note=notes.append, show=lambda data, **_: shown.update(data))
        assert asyncio.run(run) == 1
    why = (
        "expected a NOTIFY on session_completed for the session, found none; "
        "look at the transaction that settles"
    )
    assert shown["ok"] is False
    first, *others = shown["checks"]
    assert (first.check, first.ok, first.evidence) == (CHECKS[0], False, f"notify: {why}")
    bridge = CHECKS.index("the bridge logged it")  # it hears nothing either
    assert [check.ok for check in others] == [n != bridge for n in range(1, len(CHECKS))]
    passed = [beat["hop"] for beat in shown["timeline"] if beat["ms"] is not None]
    assert [*passed, "notify"] == [beat["hop"] for beat in shown["timeline"]] == list(HOPS[:6])
    told = "\n".join(notes)
    assert f"  notify      BROKEN     {why}" in told
    assert "--- the last lines of worker" in told
    assert '"event":"session.failed.updated"' in told

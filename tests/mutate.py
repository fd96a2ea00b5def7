"""Takes one guard out of the protocol at a time and sees which test notices: `make mutate`.

A guard that nobody would miss is a guard that the next change loses. Each is removed in a copy of the
tree; the tests of the protocol run until the first fails. Exit 1 when all of them pass. The table is
docs/mutations.md.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "mutations.md"
SOURCE = Path("src", "genctl")
TIMEOUT_S = 300
KEPT = ("src", "tests", "migrations", "runbooks", "pyproject.toml")

GUARDS, PIPELINE, REDRIVE, SWEEP, MOVEMENTS = (
    f"tests/path/test_{name}.py" for name in ("guards", "pipeline", "redrive", "sweep", "credits")
)
MACHINE, CONTENTION = "tests/path/test_interleavings.py", "tests/path/test_contention.py"
EVERYTHING = (GUARDS, PIPELINE, SWEEP, MOVEMENTS, CONTENTION, MACHINE, REDRIVE)


class Mutant(NamedTuple):
    """`guard` in words; in `file` (within its named `statement`) `old`, found once, becomes `new`.

    `first` is looked at before the other tests, where they would take long to get there.
    """

    guard: str
    file: str
    statement: str | None
    old: str
    new: str = ""
    first: str = GUARDS

    @property
    def path(self) -> Path:
        """Below the root."""
        return SOURCE / self.file

    def apply(self, text: str) -> str:
        """The file's text without the guard. Raises ValueError when the guard is not found once."""
        head, section, tail = "", text, ""
        if self.statement:
            found = re.search(
                rf"^-- name: {self.statement}\n(.*?)(?=^-- name: |\Z)", text, re.DOTALL | re.MULTILINE
            )
            if not found:
                raise ValueError(f"{self.file}: there is no statement {self.statement}")
            head, section, tail = text[: found.start()], found[0], text[found.end() :]
        if section.count(self.old) != 1:
            raise ValueError(
                f"{self.file}: {self.old!r} is there {section.count(self.old)} times; {self.guard}"
            )
        return head + section.replace(self.old, self.new) + tail


SETTLE, LIFECYCLE, AGAIN, CREDITS, NET = (
    f"edges/sql/{name}.sql" for name in ("settle", "lifecycle", "redrive", "credits", "sweep")
)
LOCK = '        ("lock_accounts", {"users": users}),\n'
OWNER = "where s.id = %(session)s and s.status = 'processing' and s.lease = %(lease)s"
BY_LEASE = "where s.id = %(session)s and s.lease = %(lease)s"
BY_STATUS = "where s.id = %(session)s and s.status = 'processing'"

MUTANTS = (
    Mutant("settle: the lease is the row's", SETTLE, "settle", " and s.lease = i.lease", first=MACHINE),
    Mutant("settle: the row is processing", SETTLE, "settle", "s.status = 'processing' and "),
    Mutant("settle: the reservation is held", SETTLE, "settle", "and r.status = 'held' "),
    Mutant("settle: the reservation is the user's", SETTLE, "settle", "and r.user_id = w.user_id and", "and"),
    Mutant("settle: the run owes its copy", SETTLE, "settle", "dlq_sent_at = null, "),
    Mutant("settle: versions are drawn", SETTLE, "settle", "event_seq = a.event_seq + d.changes", "event_seq = a.event_seq"),
    Mutant("settle: a version for each session", SETTLE, "settle", "a.before + w.nth", "(extract(epoch from now()) * 1000000)::bigint"),
    Mutant("locks: the accounts are locked", SETTLE, "lock_accounts", " for update", first=CONTENTION),
    Mutant("locks: in one order", SETTLE, "lock_accounts", " order by user_id", first=CONTENTION),
    Mutant("locks: a missing account is made first", SETTLE, "ensure_accounts", "order by u", "where false"),
    Mutant("locks: enqueue takes them", "pipeline.py", None, LOCK + '        ("reserve"', '        ("reserve"', CONTENTION),
    Mutant("locks: redrive takes them", "redrive.py", None, LOCK, first=CONTENTION),
    Mutant("locks: grant takes them", "credits.py", None, LOCK.replace(": users", ": everyone"), first=CONTENTION),
    Mutant("reserve: the balance suffices", LIFECYCLE, "reserve", " and not exists (select from bill where short)", first=PIPELINE),
    Mutant("enqueue's mark: the run is this one", LIFECYCLE, "mark_enqueued", " and s.run = i.run", first=PIPELINE),
    Mutant("claim: the run is the message's", LIFECYCLE, "claim", " and coalesce(i.run, s.run) = s.run", first=PIPELINE),
    Mutant("claim: another's lease is over", LIFECYCLE, "claim", "s.lease_until < now() or", "true or", PIPELINE),
    Mutant("claim: the wait is over", LIFECYCLE, "claim", "(s.due_at is null or s.due_at <= now())", "true"),
    Mutant("claim: the lease grows", LIFECYCLE, "claim", "lease = s.lease + 1", "lease = s.lease", PIPELINE),
    Mutant("claim: a dead lease is an unknown outcome", LIFECYCLE, "claim", " + r.from_dead_lease::int", first=PIPELINE),
    Mutant("extend: the lease is the row's", LIFECYCLE, "extend", " and s.lease = i.lease", first=PIPELINE),
    Mutant("extend: the row is processing", LIFECYCLE, "extend", "s.status = 'processing'", "true"),
    Mutant("retry: the lease is the row's", LIFECYCLE, "retry", OWNER, BY_STATUS, PIPELINE),
    Mutant("retry: the row is processing", LIFECYCLE, "retry", OWNER, BY_LEASE),
    Mutant("give back: the lease is the row's", LIFECYCLE, "give_back", OWNER, BY_STATUS),
    Mutant("give back: the row is processing", LIFECYCLE, "give_back", OWNER, BY_LEASE),
    Mutant("let go: the lease is the row's", LIFECYCLE, "let_go", OWNER, BY_STATUS),
    Mutant("the copy's mark: the run is this one", LIFECYCLE, "mark_copied", " and s.run = i.run"),
    Mutant("the copy's mark: the run has failed", LIFECYCLE, "mark_copied", " and s.status = 'failed'"),
    Mutant("redrive: the run is the copy's", AGAIN, "requeue", " and i.run = s.run"),
    Mutant("redrive: the run has failed", AGAIN, "requeue", "where s.status = 'failed'", "where true"),
    Mutant("redrive: the balance suffices", AGAIN, "requeue", "where a.balance >= p.needed or p.held", "where true", REDRIVE),
    Mutant("redrive: a copy whose job was not sent stays", "redrive.py", None, "for fate in told if fate.is_gone", "for fate in told", REDRIVE),
    Mutant("release: the reservation is held", CREDITS, "release_reservation", " and status = 'held'", first=MOVEMENTS),
    Mutant("late refund: the session has failed", NET, "note_refund", " and s.status = 'failed'"),
    Mutant("sweep: the lease is over when it goes back", NET, "requeue_dead", " and s.lease_until < now()"),
    Mutant("dispose: the copy before the delete", "pipeline.py", None,
           "                await self.copy(row, body=message.body, code=code)\n",
           "                await self._delete(message)\n                await self.copy(row, body=message.body, code=code)\n"),
    Mutant("send: only what was sent is marked", "pipeline.py", None, "if session.id not in owed]", "]", REDRIVE),
    Mutant("call: none on a lease that may be over", "pipeline.py", None, "        if self.stale:\n", "        if False:\n"),
    Mutant("call: none once the attempts are used up", "pipeline.py", None, "if tool is None or code:", "if tool is None:", PIPELINE),
)  # fmt: skip


def copied(to: Path) -> None:
    """What the tests need of the tree."""
    for name in KEPT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, to / name)


def tested(tree: Path, *tests: str) -> str | None:
    """The first test that fails in the tree; None when all pass. Raises SystemExit when none ran."""
    argv = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=1",
            "--hypothesis-profile=first failure", *tests]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            argv, cwd=tree, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"nothing within {TIMEOUT_S} s"
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) \S+::(\w+)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or not failed:
        sys.exit(f"pytest did not get to run:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return failed[1]


def main() -> None:
    """Every mutant whose guard holds one of the words given, or all; only all of them make the table."""
    wanted = sys.argv[1:]
    chosen = [m for m in MUTANTS if not wanted or any(word in m.guard for word in wanted)]
    rows, survived = [], 0
    with tempfile.TemporaryDirectory(prefix="genctl-mutate-") as folder:
        tree = Path(folder)
        copied(tree)
        if failed := tested(tree, *EVERYTHING):
            sys.exit(f"{failed} fails with every guard in place")
        for mutant in chosen:
            path, began = tree / mutant.path, time.monotonic()
            text = path.read_text()
            path.write_text(mutant.apply(text))
            killer = tested(tree, mutant.first, *EVERYTHING)
            path.write_text(text)
            survived += killer is None
            told = f"`{killer}`" if killer else "**nothing**"
            where = f"{mutant.path.name}{f': {mutant.statement}' if mutant.statement else ''}"
            rows.append(f"| {mutant.guard} | {where} | {told} | {time.monotonic() - began:.0f} |")
            print(rows[-1], flush=True)  # noqa: T201
    if not wanted:
        head = TABLE.read_text().partition("| guard |")[0] if TABLE.exists() else ""
        lines = ["| guard | where | the test that fails without it | s |", "|---|---|---|---|", *rows]
        TABLE.write_text(head + "\n".join(lines) + "\n")
    sys.exit(f"{survived} of {len(chosen)} guards can be lost unnoticed" if survived else 0)


if __name__ == "__main__":
    main()

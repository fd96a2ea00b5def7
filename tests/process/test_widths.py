"""Every command on terminals of many widths: no line is longer, no code is cut, no two rows look the same."""

import re
import sys
from collections.abc import Iterator
from itertools import pairwise, takewhile
from uuid import uuid4

import pytest
from tests.kit import until_sync
from tests.process.place import Place, Places
from tests.process.test_cli_manner import OnTerminal, every_command
from tests.process.widths_program import WIDTHS

from genctl.cli.formats import width

LONG = "OutputImageSensitiveContentDetected.PolicyViolation"
REFUSED = "OutputImageSensitiveContentDetected"
USERS = [f"customer-of-the-acme-studio-{n:08}" for n in range(3)]
BOOK = """\
name: look
purpose: Look at the rows. A second sentence.
when: Someone looks.
touches: Nothing.
steps:
  - step: rows
    does: Look at the users of the sessions, all of them, one by one, in a sentence that is quite long.
    sql:
      query: select user_id, id, created_at from generation_sessions order by id
    expect:
      - count > `0`
    show: rows
"""

# A command line for each command, and what must be whole in its output; None where others test it, or where
# it prints no table.
LINES: dict[str, tuple[str, *tuple[str, ...]] | None] = {
    "demo": None,
    "up": None,
    "serve": None,
    "worker": None,
    "simulator": None,
    "sweep": ("sweep --dry-run",),
    "pause": ("pause --for 1h",),
    "resume": ("resume",),
    "enqueue": ("enqueue --user ann",),
    "tail-failures": ("tail-failures --since 1h --no-follow", LONG, REFUSED),
    "watch": None,
    "sessions list": ("sessions list", LONG, REFUSED),
    "sessions show": ("sessions show long", LONG),
    "sessions trace": ("sessions trace long", LONG, "longest: "),
    "sessions retry": ("sessions retry long short twin --dry-run", LONG, REFUSED),
    "sessions cancel": ("sessions cancel waits --dry-run",),
    "dlq list": ("dlq list", LONG, REFUSED, " seen"),
    "dlq show": ("dlq show long", LONG),
    "dlq redrive": (f"dlq redrive --user {USERS[0]} --session long --dry-run", LONG, "redriven: 0"),
    "dlq export": None,
    "dlq discard": (f"dlq discard --code {LONG} --dry-run",),
    "dlq import": None,
    "dlq history": ("dlq history", "dlq-20261130T170618.jsonl.gz"),
    "report": ("report --since 1h", LONG, REFUSED),
    "status": ("status", LONG, REFUSED),
    "doctor": ("doctor",),
    "health": None,
    "explain": (f"explain {LONG}", LONG),
    "classify": None,
    "credits show": (f"credits show {USERS[0]}", "balance ", "held "),
    "credits grant": ("credits grant --user ann --amount 1",),
    "credits adjust": None,
    "verdicts try": (f"verdicts try --set {LONG}=retry", LONG),
    "privacy export": None,
    "privacy erase": (f"privacy erase --user {USERS[1]} --reason asked --dry-run",),
    "refunds check": ("refunds check", "balance_ledger", "terminal_holds", "violations"),
    "runbook list": ("runbook list",),
    "runbook show": ("runbook show provider-outage",),
    "runbook lint": ("runbook lint",),
    "runbook run": ("runbook run look.yaml", "look: ok"),
    "runbook history": ("runbook history",),
    "smoke": None,
    "tools": ("tools",),
    "workers": ("workers",),
    "migrate up": ("migrate up", "up to date"),
    "migrate down": ("migrate down --dry-run",),
    "migrate status": ("migrate status",),
    "config show": ("config show",),
    "config init": None,
    "token issue": None,
    "token revoke": None,
    "version": ("version",),
    "completion": None,
    "help": ("help exit-codes", "130, 143, 129"),
}
COPIED = r" *`?(genctl|aws|psql|export|select) "  # a command that people copy is never wrapped
SHOWN = [(line[0], line[1:]) for line in LINES.values() if line]
MORE = [
    ("dlq list --group-by code", (LONG, REFUSED)),
    ("help", ("exit-codes",)),
    ("runbook run provider-outage --dry-run", ("pause = 1h",)),
    ("sessions list --user nobody", ("no session",)),
    ("tail-failures --since 1h --no-follow --user nobody", ("no failure",)),
    ("dlq redrive --user nobody --dry-run", ("redriven: 0",)),
]


@pytest.fixture(scope="module")
def filled(places: Places) -> Iterator[Place]:
    """A place with rows of all kinds, some alike but for their ids."""
    with places() as place:
        with place.worker():
            failed = [place.enqueue("copyright", user=USERS[0], client_key="long")]
            failed += [place.enqueue("sensitive", user=USERS[0], client_key=key) for key in ("short", "twin")]
            failed += [place.enqueue("sensitive", user=user) for user in USERS]
            place.enqueue(user=USERS[1])
            until_sync(lambda: all("copied" in place.trace(session) for session in failed))
        place.enqueue(user=USERS[2], client_key="waits")
        place.enqueue(user=USERS[2])
        place.sql("update credit_accounts set balance = balance + 1 where user_id <> 'ann'")
        place.sql(
            "insert into credit_reservations (id, user_id, amount, status) values (%s, %s, 4, 'held')",
            *(uuid4(), USERS[0]),
        )
        place.enqueue(user=USERS[0], client_key="held")
        place.sql(
            "update generation_sessions set status = 'failed', dlq_sent_at = now(), completed_at = now()"
            " where client_key = 'held'"
        )
        place.sql(
            "insert into bulk_work (command, who, reason, ending, ended_at, why) values ('dlq discard', 'ann', %s,"
            " 'failed', now(), %s)",
            "the provider is back, and all that it has refused may go: nobody wants these images any more",
            "cannot write dlq-20261130T170618.jsonl.gz: No space left on device; the DLQ has what is not in it",
        )
        (place.folder / "look.yaml").write_text(BOOK)
        yield place


def test_every_command_is_listed_here() -> None:
    leaves = {
        path.removeprefix("genctl ") for path, command in every_command() if not hasattr(command, "commands")
    }
    assert leaves == LINES.keys()


def rows_of(text: str) -> list[str]:
    """The rows of a table, each with what stands below it."""
    _, ruled, body = text.partition("\n--")
    lines = list(takewhile(str.strip, body.splitlines()[1:] if ruled else []))
    return [row for row in re.split(r"\n(?! {4})", "\n".join(lines)) if row]


def shown(place: Place, line: str) -> dict[int, str]:
    """What a terminal shows of stdout alone, by its width."""
    program = (sys.executable, "-m", "tests.process.widths_program")
    env = place.env | {"TERM": "dumb"}
    terminal = OnTerminal(*line.split(), quiet=True, program=program, cwd=place.folder, env=env)
    assert terminal.end() == 0
    *parts, rest = terminal.seen.split("\f")
    assert not rest
    assert {*parts[1::2]} <= {"0", "1"}
    return dict(zip(WIDTHS, parts[::2], strict=True))


@pytest.mark.parametrize(("line", "whole"), SHOWN + MORE, ids=[line for line, _ in SHOWN + MORE])
def test_a_command_fits_the_terminal(filled: Place, line: str, whole: tuple[str, ...]) -> None:
    """Narrower ones than 80 columns are tried with what lays all this out: tests/unit/test_formats.py."""
    for columns, seen in shown(filled, line).items():
        assert seen
        prose = [text for text in seen.splitlines() if not re.match(COPIED, text)]
        assert [text for text in prose if width(text) > columns] == []
        assert [word for word in whole if word not in seen] == []
        assert all(one != other for one, other in pairwise(sorted(rows_of(seen))))


def test_a_short_id_of_a_table_names_its_row(filled: Place) -> None:
    seen = shown(filled, "sessions list --status failed --limit 1")[80]
    short = seen.splitlines()[2].split()[1]
    assert len(short) == 8
    assert filled.genctl("sessions", "show", short)["sessionId"].startswith(short)

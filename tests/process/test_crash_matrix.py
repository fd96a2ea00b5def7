"""Exactly one end of each run, whatever happens: a table of steps and of what befalls them there.

Real workers; the proxies of `fire` stop, cut or spoil each step on the wire, so that the worker knows
nothing of the test. `-s` prints what was tried and what was found.
"""

import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from tabulate import tabulate
from tests.kit import QueueServer, until_sync
from tests.process.fire import Fire
from tests.process.place import Place, Running
from tests.script import ANY, Act

from genctl.edges.aws import ATTEMPTS
from genctl.nets import BATCH

Tried = tuple[str, str, Act]  # the kind of job, the step, what befalls it there
KINDS = {"good": "success", "refused": "sensitive", "retried": "rate-limit-once"}
BEGUN = dict.fromkeys(("ordered", "owed", "silent", "used up"), "success")  # what others than workers work at
COMPLETED, FAILED = ("completed", "captured"), ("failed", "released")
ENDS = dict.fromkeys(KINDS | BEGUN, COMPLETED) | {"refused": FAILED, "used up": FAILED}
OPEN = """
select id from generation_sessions where (completed_at is null or (status = 'failed' and dlq_sent_at is null))
"""
FACTS = """
select s.id::text, s.run, s.status, s.attempts, s.unknowns, s.error_details ->> 'code' as code, r.status as held_as,
  (select array_agg(e.kind order by e.id) from session_events e where e.session_id = s.id) as trace,
  (select array_agg(l.kind order by l.id) from credit_ledger l where l.reservation_id = s.reservation_id) as ledger
from generation_sessions s left join credit_reservations r on r.id = s.reservation_id
"""
AGED = """
update generation_sessions set due_at = null, queued_at = queued_at - interval '2 minutes',
  completed_at = completed_at - interval '2 minutes', offered_at = offered_at - interval '3 minutes',
  lease_until = case status when 'processing' then now() - interval '1 second' end
"""


@pytest.fixture
def fire(place: Place, sqs_server: QueueServer) -> Iterator[Fire]:
    with Fire.before(place, sqs_server) as fire:
        yield fire


def enqueue(fire: Fire, kind: str, what: Sequence[tuple[str, str]]) -> dict[str, Tried]:
    """A job of that kind, each of a user of its own, for each of what shall befall one: session -> all three."""
    count = len(what)
    known = {row["id"] for row in fire.place.sql("select id from generation_sessions")}
    alone = {"count": count, "users": count} if count > 1 else {}
    fire.place.enqueue((KINDS | BEGUN)[kind], user=f"{kind}{len(known)}", **alone)
    rows = fire.place.sql("select id from generation_sessions order by id")
    made = [str(row["id"]) for row in rows if row["id"] not in known]
    return {session: (kind, *befalls) for session, befalls in zip(made, what, strict=True)}


def prove(fire: Fire, tried: dict[str, Tried]) -> None:
    """One end and one movement a run, a copy for each failure, nothing left in the queue, sound books."""
    place, table, wrong = fire.place, [], []
    copied = Counter(message["sessionId"] for message in place.genctl("dlq", "list")["messages"])
    for row in place.sql(FACTS):
        kind, step, act = tried[row["id"]]
        ends = [event for event in row["trace"] if event in ("completed", "failed")]
        moved = {"captured": "capture", "released": "release"}[ENDS[kind][1]]
        sound = (
            (row["status"], row["held_as"]) == ENDS[kind]
            and ends == [row["status"]]
            and "late_result" not in row["trace"]
            and row["ledger"] == ["reserve", moved]
            and (copied[row["id"]] >= 1) == (row["status"] == "failed")
            and (act not in SAYS or row["attempts"] == 1 + (kind == "retried"))  # a refusal costs no call
        )
        found = (row["status"], row["held_as"], row["attempts"], row["unknowns"], copied[row["id"]])
        table.append((kind, step, act.replace("hold", "killed"), *found, "" if sound else "WRONG"))
        if not sound:
            wrong.append((tried[row["id"]], row))
    heads = ("job", "step", "what befell it", "status", "credits", "attempts", "unknowns", "copies", "")
    print("\n" + tabulate(sorted(table), heads))  # noqa: T201 - what -s is for
    assert not wrong
    assert len(table) == len(tried)
    assert place.depth() == 0
    assert place.violations() == []
    assert place.genctl("sweep", "--dry-run") == []


# Killed


def after(*steps: str) -> list[tuple[str, Act]]:
    """Each step is done on the other side, and its answer is not read: so what a kill leaves is all up to there."""
    return [(step, "hold after") for step in steps]


KILLED: dict[
    str, list[tuple[str, Act]]
] = {  # until the provider answers, the kind of the job makes no difference
    "good": [("claim", "hold before"), *after("claim", "call", "settle", "delete")],
    "refused": after("settle", "copy", "mark_copied", "delete"),
    "retried": after("retry", "hide"),
}


def test_a_worker_killed_at_any_step_leaves_what_others_end_once(fire: Fire) -> None:
    """The message alone suffices, after its time-out; and a sweeper that comes before it does no harm."""
    place, swept, others = fire.place, dict[str, Tried](), dict[str, Tried]()
    for kind, what in KILLED.items():
        swept |= enqueue(fire, kind, what)
        others |= enqueue(fire, kind, what)
    killed(fire, swept | others)
    received = enqueue(fire, "good", [("receive", "hold after")])
    killed(fire, received)
    place.sql(f"{AGED} where id = any(%s::uuid[])", [*swept])
    with place.worker("--no-sweep") as worker:
        assert {"requeue", "copy"} <= {done["action"] for done in place.genctl("sweep")}
        until_sync(lambda: not place.genctl("sweep"))
        left = f"{OPEN} and status <> 'queued' and id = any(%s::uuid[])"
        until_sync(lambda: not place.sql(left, [*swept]))
        assert worker.end(signal.SIGTERM) == 0
    place.sql(AGED)
    fire.show_all()
    drain(fire)
    prove(fire, swept | others | received)


@contextmanager
def alone(fire: Fire) -> Iterator[Running]:
    """A worker whose jobs share no statement and no call, so that what befalls one befalls it alone."""
    program = (sys.executable, "-m", "tests.process.alone_program", "worker", "--no-sweep")
    with Running.start(*program, env=fire.place.env, folder=fire.place.folder) as worker:
        worker.until("worker.started")
        yield worker


def drain(fire: Fire) -> None:
    """What is left, done by a worker that has no sweeper, and ends when the queue is empty."""
    with fire.place.start("worker", "--drain", "--no-sweep") as worker:
        assert worker.end(within_s=90) == 0


def killed(fire: Fire, tried: dict[str, Tried]) -> None:
    """Kill a worker as soon as each job has come to its step."""
    for session, (_, step, act) in tried.items():
        fire.script.plan(session, step, act)
    with alone(fire) as worker:
        fire.until_over()
        assert worker.end(signal.SIGKILL) == -signal.SIGKILL
    fire.park_all()


def test_a_worker_killed_with_messages_set_aside_leaves_each_run_its_message(fire: Fire) -> None:
    """Without a sweeper; and nothing is called twice but what was under way."""
    place = fire.place
    place.enqueue("slow-success", user="noisy", count=12)
    place.enqueue("slow-success", user="other", count=6, users=6)
    at_work = ("--no-sweep", "--concurrency", "4")
    with place.worker(*at_work) as worker, place.worker(*at_work) as other:
        for one in (worker, other):
            one.until("worker.others.first")
        until_sync(lambda: fire.place.sql("select from session_events where kind = 'completed'"))
        for one in (worker, other):
            assert one.end(signal.SIGKILL) == -signal.SIGKILL
    under_way = place.sql("select id from generation_sessions where status = 'processing'")
    assert under_way
    place.sql("update generation_sessions set prompt = 'quick'")
    place.sql(AGED)
    fire.show_all()
    drain(fire)
    rows = place.sql("select id, status, attempts, unknowns from generation_sessions")
    assert {row["status"] for row in rows} == {"completed"}
    assert {row["id"] for row in rows if row["attempts"] > 1} <= {row["id"] for row in under_way}
    assert {row["attempts"] - row["unknowns"] for row in rows} == {1}
    assert place.depth() == 0
    assert place.violations() == []


ORDERED = [("reserve", "hold before"), *after("reserve", "send", "mark_enqueued")]


def test_an_order_killed_at_any_step_is_stored_and_carried_out_or_leaves_nothing(fire: Fire) -> None:
    place, tried = fire.place, dict[str, Tried]()
    for step, act in ORDERED:
        fire.script.plan(ANY, step, act)
        with place.start("enqueue", "--prompt", "a test") as order:
            fire.until_over()
            assert order.end(signal.SIGKILL) == -signal.SIGKILL
        found = {row["id"] for row in place.sql("select id::text from generation_sessions")} - set(tried)
        assert len(found) == (0 if act == "hold before" and step == "reserve" else 1)
        tried |= dict.fromkeys(found, ("ordered", step, act))
    place.sql(AGED)
    assert {swept["action"] for swept in place.genctl("sweep")} == {"send"}
    drain(fire)
    prove(fire, tried)


SILENT = "status = 'processing', attempts = 1, lease = 1, lease_until = now() - interval '1 s', unknowns = "
STATES = {  # of a run; and at which steps of a sweep a kill is tried
    "owed": ("enqueued_at = null, queued_at = now() - interval '2 minutes'", after("send", "mark_enqueued")),
    "silent": (SILENT + "0", [("requeue_dead", "hold before"), *after("requeue_dead")]),
    "used up": (SILENT + "1", after("claim", "settle", "copy", "mark_copied")),
}


def test_a_sweeper_killed_at_any_step_leaves_what_others_end_once(fire: Fire) -> None:
    """It sends, sends back and ends runs as workers do, one after the other: a kill for each step."""
    place, tried = fire.place, dict[str, Tried]()
    for kind, (_, what) in STATES.items():
        tried |= enqueue(fire, kind, what)
    for session, (kind, step, act) in tried.items():
        state, _ = STATES[kind]
        place.sql(f"update generation_sessions set {state} where id = %s", session)
        fire.script.plan(session, step, act)
        with place.start("sweep") as sweep:
            fire.until_over()
            assert sweep.end(signal.SIGKILL) == -signal.SIGKILL
        place.sql(AGED)
    until_sync(lambda: not place.genctl("sweep"))
    drain(fire)
    prove(fire, tried)


COPIES_OWED = """
insert into generation_sessions (id, user_id, client_key, model, prompt, status, created_at, queued_at, completed_at,
  error_details)
select gen_random_uuid(), 'ann', 'key', 'seedream-4-0-250828', 'a test', 'failed', now() - interval '1 h',
  now() - interval '1 h', now() - interval '1 h', '{"code": "HTTP500"}'
from generate_series(1, 250)"""


def test_two_sweepers_send_each_copy_once_and_again_only_what_a_killed_one_had_not_marked(fire: Fire) -> None:
    place = fire.place
    place.sql(COPIES_OWED)
    fire.script.plan(ANY, "mark_copied", "hold before")
    with place.start("sweep") as killed:
        fire.until_over()
        assert killed.end(signal.SIGKILL) == -signal.SIGKILL
    unmarked = "select id from generation_sessions where offered_at is not null and dlq_sent_at is null"
    lost = len(place.sql(unmarked))
    assert 0 < lost <= BATCH

    def both() -> int:
        with place.start("sweep") as one, place.start("sweep") as other:
            assert (one.end(within_s=60), other.end(within_s=60)) == (0, 0)
        return sum(len(sweeper.events("sweep.done", action="copy")) for sweeper in (one, other))

    assert both() == 250 - BATCH
    assert len(place.sql(unmarked)) == lost
    place.sql(AGED)
    assert both() == lost
    said = place.sqs.get_queue_attributes(QueueUrl=place.dlq, AttributeNames=["ApproximateNumberOfMessages"])
    assert 250 < int(said["Attributes"]["ApproximateNumberOfMessages"]) <= 250 + lost


# Cut off, refused, told twice

CUT: tuple[Act, ...] = ("drop before", "drop after")
SQS: tuple[Act, ...] = (*CUT, "503", "fail the entry", "refuse the entry")
DELIVERED: tuple[Act, ...] = ("drop after", "deliver twice")
# a full NOTIFY queue, a full disk, too many connections, a standby, a lock, a collision, a time-out, a trigger
SAYS: tuple[Act, ...] = tuple(
    f"say {state}" for state in ("54000", "53100", "53300", "25006", "55P03", "40001", "57014", "P0001")
)
KINDS_OF_SAYS: tuple[Act, ...] = ("say 54000", "say 25006", "say 55P03", "say 40001", "say P0001")
SPOILT: dict[str, dict[str, tuple[Act, ...]]] = {  # likewise, and a delete is a delete
    "good": {
        "poll": ("drop before", "503"), "receive": DELIVERED, "claim": (*CUT, "say P0001"), "call": CUT,
        "settle": (*CUT, *SAYS), "delete": (*SQS, "deliver late"),
    },
    "refused": {"settle": (*CUT, *KINDS_OF_SAYS), "copy": SQS, "mark_copied": (*CUT, "say P0001")},
    "retried": {"retry": (*CUT, *KINDS_OF_SAYS), "hide": SQS},
}  # fmt: skip
IN_VAIN = ("503", "fail the entry")  # SQS's own trouble, which the client tries again: as often as it does


def test_a_worker_lives_through_any_answer_and_each_run_ends_once(fire: Fire) -> None:
    tried = dict[str, Tried]()
    for kind, steps in SPOILT.items():
        tried |= enqueue(fire, kind, [(step, act) for step, acts in steps.items() for act in acts])
    for session, (_, step, act) in tried.items():
        times = ATTEMPTS if act in IN_VAIN else 3 if act in SAYS and step in ("settle", "retry") else 1
        fire.script.plan(ANY if step == "poll" else session, step, act, times)
    with alone(fire) as worker:
        fire.until_over()
        assert worker.end(signal.SIGTERM) == 0
        assert worker.events("job.bug") == []
    fire.place.sql(AGED)
    fire.show_all()
    drain(fire)
    prove(fire, tried)

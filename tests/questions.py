"""Every statement of genctl with parameters as it gets them, for a database that tests/many.py has filled.

A statement must be here, or among those that read no large table. Where it is asked in several ways, each is a
question of its own. `benchmarks/big.py ask` asks the same at ten million sessions.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import md5
from typing import Any, NamedTuple
from uuid import UUID

from psycopg.types.json import Jsonb

from genctl.domain.envelopes import UUID as UUID_SHAPE
from genctl.ops.privacy import KEPT
from genctl.ops.sessions import like_prefix, uuid_range

MODELS = {"models": ["seedream-%"], "others": ["flux-%"]}


class Question(NamedTuple):
    """A statement and its parameters; `most` rows of large tables that it may read, where that is much, and why."""

    name: str
    params: Mapping[str, Any] = {}
    most: int = 400
    why: str = ""


ELSEWHERE = {  # they read no table that grows with the sessions
    *("backend", "clock", "listening", "snapshot", "undo", "wait_shortly", "audit_room", "base_findings", "rows_unhidden"),
    *("clashes", "try_base", "reservation_blocks", "sessions_settings", "statement_timeout", "waits_of"),
    *("read_committed", "lock_timeout", "clear_notify_queue", "server", "notify", "missing_rights"),
    *("ensure_accounts", "lock_free_accounts", "lock_accounts", "grant", "gate", "turn_gate"),
    *("try_migration_lock", "create_migrations", "migration_lock_holder", "has_migrations", "applied_migrations"),
    *("record_migration", "forget_migration", "half_built_indexes", "smoke_has_ledger"),
    *("smoke_account", "smoke_lock", "smoke_book", "smoke_move"),
    *("spend_ticket", "revoke_token", "revoke_tokens_of", "revocations", "note_refusals", "refused_traits_of"),
    *("try_refused_traits", "refused_traits", "forget_refused_traits", "forget_all_refused_traits"),
    *("lock_pace", "deal_turns", "teach_pace", "forget_pace", "has_begun", "paces", "note_worker", "forget_worker", "workers"),
    *("begin_bulk_work", "note_bulk_work", "bulk_work", "traits_of_user", "erase_traits"),
}  # fmt: skip
WHOLE = {  # they read all there is, which is what they are for
    "owe_queued": "the queue in memory has lost every message",
    "sweep_totals": "a dry run counts all that a sweep would do",
}


def an_id(what: str, n: int) -> UUID:
    """The id of the n-th session, reservation or message, as many.sql makes it."""
    return UUID(md5(f"{what}{n}".encode(), usedforsecurity=False).hexdigest())


def found_by(text: str) -> dict[str, Any]:
    """The parameters of find_sessions, as find() makes them."""
    low, high = uuid_range(text)
    return {"low": low, "high": high, "pattern": like_prefix(text), "text": text}


def questions(count: int) -> dict[str, Question]:
    """What is asked of so many sessions, by a label."""
    now = datetime.now(UTC)
    hour, month = now - timedelta(hours=1), now - timedelta(days=30)
    failed, completed, queued, in_hand = count // 2 // 10 * 10 + 3, count // 2 // 10 * 10 + 5, count - 5, (
        count - count // 10
    )  # fmt: skip
    ended, late = count // 10, count // 20
    user = f"user-{failed * 7919 % max(10, count // 100)}"
    anyone: dict[str, Any] = dict.fromkeys(("user", "status", "code", "since", "until"))
    lists = anyone | {"limit": 20}
    session, reservation = an_id("session", failed), an_id("reservation", failed)
    span: dict[str, Any] = {"since": hour, "until": now}
    spans: dict[str, Any] = {"since": month, "until": now}
    asked = Jsonb([{"user_id": f"user-{n}", "after": 1} for n in range(50)])
    item = {"session_id": str(session), "run": 1, "lease": 1, "lapsed": False}
    hand = {"session_id": str(an_id("session", in_hand)), "run": 1, "lease": 1, "lapsed": False}
    settled = hand | {"status": "completed", "attempts": 1, "result": {}, "release": True, "trace": {}}
    waits = {"session_id": str(an_id("session", queued)), "run": 1, "lapsed": False}
    order = {
        "session_id": str(an_id("new session", 1)), "user_id": user, "client_key": "k", "model": "seedream-4-0-250828",
        "prompt": "p", "params": {}, "reservation_id": str(an_id("new reservation", 1)), "amount": 4,
    }  # fmt: skip
    sweeps: dict[str, Any] = MODELS | {"limit": 100, "among": 1000, "age_s": 60.0, "offered_s": 60.0}
    sweeps |= {"queued_timeout_s": 86400.0, "tried": [], "ended": []}
    part = {"first": "(0,0)", "end": "(8,0)", "age_s": 60.0}
    pile = MODELS | {"most": 1000, "queued_timeout_s": 86400.0}
    told = {"notify": False}
    about: dict[str, Any] = {"user": None, "since": hour, "whole": False}
    changed = 5 * (
        ended // 100 + count // 2000
    )  # what began or ended in the last hour, and what belongs to it
    few = "of a pile it reads the oldest"
    return {
        "list": Question("list_sessions", lists),
        "list --user": Question("list_sessions", lists | {"user": user}),
        "list --user, one with many": Question("list_sessions", lists | {"user": "user-0"}),
        "list --code RARE": Question("list_sessions", lists | {"code": "RareTrouble"}),
        "list --code of many": Question("list_sessions", lists | {"code": "Timeout"}),
        "list --code of none": Question("list_sessions", lists | {"code": "NoSuchCode"}),
        "list --user --code": Question("list_sessions", lists | {"code": "Timeout", "user": user}),
        "list --status failed": Question("list_sessions", lists | {"status": "failed"}),
        "list --status completed": Question("list_sessions", lists | {"status": "completed"}),
        "list --status processing": Question("list_sessions", lists | {"status": "processing"}),
        "list --status queued --until 15m": Question("list_sessions", lists | {"status": "queued", "until": hour}),
        "list --since 1h": Question("list_sessions", lists | {"since": hour}),
        "list --until a month ago": Question("list_sessions", lists | {"until": month}),
        "show: a session": Question("sessions", {"ids": [session]}),
        "show: 20 sessions": Question("sessions", {"ids": [an_id("session", n * 10) for n in range(20)]}),
        "find: a session's id": Question("find_sessions", found_by(str(session))),
        "find: one digit": Question("find_sessions", found_by("a")),
        "find: a reservation's id": Question("find_sessions", found_by(str(reservation))),
        "find: a request's id": Question("find_sessions", found_by(f"0217{failed:020}")),
        "find: a short beginning of one": Question("find_sessions", found_by("0217")),
        "find: a client's key": Question("find_sessions", found_by(f"card-{completed}")),
        "find: a beginning of all keys": Question("find_sessions", found_by("card-")),
        "find: a message's id": Question("find_sessions", found_by(str(an_id("message", failed)))),
        "find: nothing": Question("find_sessions", found_by("no such thing")),
        "tail-failures": Question("failures", {"since": hour, "after": None, "limit": 1000}),
        "tail-failures, the next page": Question("failures", {"since": month, "after": session, "limit": 100}),
        "trace": Question("events_of", {"session": session}),
        "reservation": Question("reservation", {"id": reservation}),
        "report of 1h: failures": Question("report_failures", span),
        "report of 1h: released": Question("report_released", span),
        "report of 1h: redrives": Question("report_redrives", span),
        "report of 1h: timeline": Question("report_timeline", span | {"piece_s": 300.0}),
        "report of 1h: unsure": Question("unsure_calls", span | {"user": None}),
        "report of 30d: redrives": Question("report_redrives", spans),
        "status: piles": Question("piles", pile, most=5500, why=few),
        "status: kept": Question("answers_kept"),
        "status: queue of NOTIFY": Question("notify_queue"),
        "status: by code": Question("failures_by_code", {"most": 1000}),
        "status: strangers": Question("strangers", {"most": 5000, "limit": 1000}, most=20_000, why="what is processed now"),
        "status: first seen": Question("first_seen", {"codes": ["RareTrouble", "Timeout", *(f"No{n}" for n in range(98))]}),
        "verdicts of 1h": Question("judged_failures", span),
        "status: unserved": Question("unserved", pile, most=1300, why=few),
        "pause: users that wait": Question("waiting_users"),
        "stream: changes": Question("changes", {"asked": asked, "limit": 5}, most=600, why="50 users, 5 rows each"),
        "stream: page": Question("page_of_sessions", {
            "user": user, "models": ["seedream-%"], "among": True, "before": None, "limit": 20}),
        "stream: older page": Question("page_of_sessions", {
            "user": user, "models": ["seedream-%"], "among": True, "before": session, "limit": 20}),
        "stream: key": Question("session_by_key", {"user": user, "key": "k"}),
        "enqueue --continue": Question("sessions_by_keys", {"users": [user] * 1000, "keys": [f"k-{n}" for n in range(1000)]}),
        "enqueue: balances": Question("balances_of", {"users": [user, "user-0", "nobody"]}),
        "smoke: session": Question("smoke_session", {"session": session}),
        "smoke: ordered": Question("smoke_ordered", {"user": user, "client_key": f"card-{failed}"}),
        "smoke: reservation": Question("smoke_reservation", {"reservation": reservation}),
        "smoke: funds": Question("smoke_funds", {"user": "user-1", "since": None}),
        "smoke: funds since": Question("smoke_funds", {"user": "user-1", "since": now - timedelta(minutes=5)}),
        "smoke: releases": Question("smoke_releases", {"reservation": reservation}),
        "credits: of": Question("credits_of", {"user": user}),
        "credits: ledger": Question("ledger_of", {"user": user, "limit": 20}),
        "credits: release": Question("release_reservation", {"reservation": reservation, "reason": "x"}),
        "credits: capture": Question("capture_reservation", {"reservation": reservation, "reason": "x"}),
        "credits: repay": Question("repay", {"reservation": reservation, "reason": "x"}),
        "credits: adjust": Question("adjust_ledger", {"reason": "x"}, most=10**9, why="all users are locked here"),
        "credits: adjust back": Question("adjust_balance", {"reason": "x"}, most=10**9, why="as above"),
        "credits: meant": Question("reservation_meant", {"id": reservation}),
        "credits: meant by a session": Question("reservation_meant", {"id": session}),
        "credits: restore": Question("restore_reservation", {"reservation": reservation, "user": user}),
        "credits: name": Question("name_reservation", {"reservation": reservation, "session": session}),
        "credits: adjust a reservation": Question("adjust_reservation", {"reservation": reservation, "reason": "adjusted: x"},
            most=10**9, why="as above"),
        "audit: adjusted": Question("audit_adjusted", {"user": None, "since": None}),
        "audit --since 1h: counts": Question("audit_counts", about, most=changed, why="what changed"),
        "audit --since 1h": Question("audit", about, most=10 * changed, why="what changed, and what belongs to it"),
        "audit --since 1h: balances": Question("audit_balances", about, most=40 * changed, why="the ledgers of their users"),
        "audit --user: balance": Question("audit_balances", about | {"user": user}),
        "audit --user: counts": Question("audit_counts", about | {"user": user, "since": hour}, most=changed),
        "life: reserve": Question("reserve", {"items": Jsonb([order])}),
        "life: sent": Question("mark_enqueued", {"items": Jsonb([waits])}),
        "life: claim": Question("claim", {
            "items": Jsonb([waits]), "models": ["seedream-%"], "most": 3, "dead": True, "lease_s": 30.0, "worker": "w"}),
        "life: others that wait": Question("waiting_others", {
            "named": [an_id("session", queued)], "full": ["user-0"], "models": ["seedream-%"], "after": "user-2",
            "users": 40, "deep": 50, "each": 2, "limit": 40}),
        "life: extend": Question("extend", {"items": Jsonb([hand]), "lease_s": 30.0}),
        "life: retry": Question("retry", {"items": Jsonb([hand | {"delay_s": 1.0, "unknown": 0, "trace": {}}])}),
        "life: give back": Question("give_back", {
            "session": hand["session_id"], "lease": 1, "attempts": 1, "delay_s": 0.0}),
        "life: let go": Question("let_go", {"session": hand["session_id"], "lease": 1}),
        "life: copied": Question("mark_copied", {"items": Jsonb([item | {"message_id": "m"}])}),
        "life: note": Question("note", {"session": session, "run": 1, "kind": "late_result", "data": Jsonb({})}),
        "life: settle": Question("settle", told | {"items": Jsonb([settled])}),
        "redrive: letters": Question("dead_letters", {"ids": [an_id("session", late * 10 + 3)]}),
        "redrive: requeue": Question("requeue", told | {"who": "w", "items": Jsonb([{
            "session_id": str(session), "run": 1, "reservation_id": str(an_id("new reservation", 2)),
            "prompt": None, "params": None}])}),
        "sweep: owed jobs": Question("owed_jobs", sweeps),
        "sweep: owed copies": Question("owed_copies", sweeps),
        "sweep: dead leases": Question("dead_leases", sweeps),
        "sweep: requeue": Question("requeue_dead", {"items": Jsonb([hand])}),
        "sweep: overdue": Question("overdue", sweeps | {"queued_timeout_s": 30 * 86400.0}),
        "sweep: held": Question("held_owed", sweeps),
        "sweep: orphans": Question("orphans", part, most=2000, why="the blocks that it is asked for"),
        "sweep: holders": Question("unmarked_holders", part, most=2000, why="the blocks that it is asked for"),
        "sweep: mark holders": Question("mark_holders", {"ids": [session]}),
        "sweep: clear holds": Question("clear_holds"),
        "sweep: take": Question("take", {"items": Jsonb([waits]), "offered_s": 60.0, "queued_timeout_s": 86400.0}),
        "sweep: put back": Question("put_back", {"ids": [session], "offered": [now]}),
        "sweep: old trace": Question("old_trace", {"limit": 1000, "age_s": 90 * 86400.0}, most=2000, why="a batch"),
        "sweep: prune": Question("prune_trace", {"limit": 1000, "age_s": 90 * 86400.0}, most=3000, why="a batch"),
        "sweep: refund": Question("note_refund", told | {"reservation": reservation}),
        "privacy: sessions": Question("stored_sessions", {"user": user}, most=2000, why="all that a user has"),
        "privacy: ledger": Question("movements_of", {"user": user}),
        "privacy: what there is": Question("stored_about", {"user": user}),
        "privacy: erase": Question("erase_sessions", {"ids": [session], **KEPT}),
        "privacy: command lines": Question("erase_bulk_work", {"user": user, "pattern": "%--user x %", "uuid": UUID_SHAPE, "silent_s": 30}),
    }  # fmt: skip

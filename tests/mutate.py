"""Takes one guard out of the protocol at a time and sees which test notices: `make mutate`.

A guard that nobody would miss is a guard that the next change loses. Each is removed in a copy of the
tree; the tests of the protocol run until the first fails. Exit 1 when all of them pass. The table is
docs/mutations.md.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from genctl.ops.stack.postgres import Postgres

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "mutations.md"
SOURCE = Path("src", "genctl")
TIMEOUT_S = 300
KEPT = ("src", "tests", "migrations", "runbooks", "docs", "deploy", "pyproject.toml")

EVERYTHING = (
    "guards",
    "answers",
    "waiting",
    "pipeline",
    "sweep",
    "credits",
    "contention",
    "interleavings",
    "troubles",
    "redrive",
    "traits",
)


class Mutant(NamedTuple):
    """`guard` in words; in `file` (within its named `statement`) `old`, found once, becomes `new`.

    `test` is the one that should notice; the others are only asked when it does not.
    """

    guard: str
    file: str
    statement: str | None
    old: str
    new: str
    test: str

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


SETTLE, LIFECYCLE, AGAIN, CREDITS, NET, LEDGER, RULES = (
    f"edges/sql/{name}.sql"
    for name in ("settle", "lifecycle", "redrive", "credits", "sweep", "ledger", "rules")
)
OWNER = "where s.id = %(session)s and s.status = 'processing' and s.lease = %(lease)s"
BY_LEASE = "where s.id = %(session)s and s.lease = %(lease)s"
BY_STATUS = "where s.id = %(session)s and s.status = 'processing'"

MUTANTS = (
    Mutant("settle: the lease is the row's", SETTLE, "settle",
           " and s.lease = i.lease", "",
           "interleavings"),
    Mutant("settle: the row is processing", SETTLE, "settle",
           "s.status = case when i.waits then 'queued' else 'processing' end and ", "",
           "guards::test_a_settle_moves_what_its_own_run_holds_and_that_once"),
    Mutant("settle: the reservation is held", SETTLE, "settle",
           "and r.status = 'held' ", "",
           "guards::test_a_settle_moves_what_its_own_run_holds_and_that_once"),
    Mutant("settle: the reservation is the user's", SETTLE, "settle",
           "and r.user_id = w.user_id and", "and",
           "guards::test_a_settle_moves_what_its_own_run_holds_and_that_once"),
    Mutant("settle: the run owes its copy", SETTLE, "settle",
           "dlq_sent_at = case when w.waits then now() end, ", "",
           "guards::test_a_settle_moves_what_its_own_run_holds_and_that_once"),
    Mutant("cancel: the end takes the lease", SETTLE, "settle",
           "lease = s.lease + w.waits::int, ", "",
           "cancel::test_a_worker_that_was_frozen_past_its_lease_finds_that_the_run_was_cancelled"),
    Mutant("cancel: nobody waits for a copy", SETTLE, "settle",
           "case when w.waits then now() end", "null",
           "cancel::test_a_run_that_waits_ends_refunded_once_and_told_and_without_a_copy"),
    Mutant("settle: versions are drawn", SETTLE, "settle",
           "event_seq = greatest(a.event_seq, (extract(epoch from clock_timestamp()) * 1000000)::bigint) + d.changes",
           "event_seq = a.event_seq",
           "pipeline::test_users_with_many_jobs_ending_at_once_do_not_deadlock"),
    Mutant("settle: no version is below the time", SETTLE, "settle",
           "greatest(a.event_seq, (extract(epoch from clock_timestamp()) * 1000000)::bigint)", "a.event_seq",
           "pipeline::test_users_with_many_jobs_ending_at_once_do_not_deadlock"),
    Mutant("settle: a version for each session", SETTLE, "settle",
           "a.before + w.nth", "(extract(epoch from now()) * 1000000)::bigint",
           "pipeline::test_users_with_many_jobs_ending_at_once_do_not_deadlock"),
    Mutant("locks: the accounts are locked", LEDGER, "lock_free_accounts",
           " for update skip locked", "",
           "contention"),
    Mutant("locks: who waits for an account holds no other", LEDGER, "lock_free_accounts",
           "case when g.are_all or not %(whole)s then g.users else '[]' end::text", "g.users::text",
           "locked::test_an_order_of_many_users_holds_no_account_while_it_waits_for_another"),
    Mutant("locks: one movement of a user waits", "ledger.py", None,
           "async with _in_time(line.turn, ordered[0], left_s):", "async with _in_time(asyncio.Lock(), ordered[0], left_s):",
           "locked::test_orders_of_a_locked_user_are_told_so_and_one_connection_waits"),
    Mutant("locks: few connections wait", "ledger.py", None,
           "async with _in_time(db.room, user, left_s):", "async with _in_time(asyncio.Lock(), user, left_s):",
           "locked::test_many_locked_users_leave_connections_for_the_others"),
    Mutant("reserve: only behind its locks", LIFECYCLE, "reserve",
           "  where i.user_id in (select jsonb_array_elements_text(current_setting('genctl.mine')::jsonb))\n", "",
           "locked::test_an_order_of_many_users_holds_no_account_while_it_waits_for_another"),
    Mutant("locks: a missing account is made first", LEDGER, "ensure_accounts",
           "  order by u.user_id\n", "    and false\n",
           "guards::test_a_user_whose_account_is_missing_gets_one_at_the_settle"),
    Mutant("adopted: an account that is there is not made again", LEDGER, "ensure_accounts",
           "where not exists (select from credit_accounts a where a.user_id = u.user_id)", "where true",
           "wide_base::test_orders_ends_redrives_and_streams_are_as_in_tables_of_our_own"),
    Mutant("adopted: no rows are hidden", LEDGER, "lock_timeout",
           ", set_config('row_security', 'off', true)", "",
           "adoption::test_a_role_from_whom_rows_are_hidden_is_refused_and_sees_no_part"),
    Mutant("reserve: the balance suffices", LIFECYCLE, "reserve",
           " and not exists (select from bill b where b.short)", "",
           "pipeline::test_short_credits_store_nothing"),
    Mutant("enqueue's mark: the run is this one", LIFECYCLE, "mark_enqueued",
           " and s.run = i.run", "",
           "pipeline::test_a_mark_of_an_older_run_hits_nothing"),
    Mutant("claim: the run is the message's", LIFECYCLE, "claim",
           " and coalesce(i.run, s.run) = s.run", "",
           "guards::test_a_claim_gets_a_due_run_that_it_means_once"),
    Mutant("claim: another's lease is over", LIFECYCLE, "claim",
           "s.lease_until < now() or", "true or",
           "pipeline::test_a_session_that_is_being_worked_on_is_left_alone"),
    Mutant("claim: the wait is over", LIFECYCLE, "claim",
           "(s.due_at is null or s.due_at <= now())", "true",
           "guards::test_a_claim_gets_a_due_run_that_it_means_once"),
    Mutant("claim: of two claims of one session at once one gets it", "run.py", None,
           "taken.pop(claim.session_id)", "taken[claim.session_id]",
           "guards::test_a_claim_gets_a_due_run_that_it_means_once"),
    Mutant("claim: the lease grows", LIFECYCLE, "claim",
           "lease = s.lease + 1", "lease = s.lease",
           "pipeline::test_whoever_lost_the_lease_changes_nothing"),
    Mutant("claim: a dead lease is an unknown outcome", LIFECYCLE, "claim",
           " + r.from_dead_lease::int", "",
           "pipeline::test_whoever_lost_the_lease_changes_nothing"),
    Mutant("extend: the lease is the row's", LIFECYCLE, "extend",
           "join item i on s.id = i.session_id and s.lease = i.lease\n", "join item i on s.id = i.session_id\n",
           "guards::test_an_old_lease_moves_nothing"),
    Mutant("extend: the row is processing", LIFECYCLE, "extend",
           " and s.status = 'processing'\nleft join", "\nleft join",
           "guards::test_an_old_lease_moves_nothing"),
    Mutant("retry: the lease is the row's", LIFECYCLE, "retry",
           " and s.lease = i.lease", "",
           "pipeline::test_whoever_lost_the_lease_changes_nothing"),
    Mutant("retry: the row is processing", LIFECYCLE, "retry",
           "s.status = 'processing'", "true",
           "guards::test_an_old_lease_moves_nothing"),
    Mutant("give back: the lease is the row's", LIFECYCLE, "give_back",
           OWNER, BY_STATUS,
           "guards::test_an_old_lease_moves_nothing"),
    Mutant("give back: the row is processing", LIFECYCLE, "give_back",
           OWNER, BY_LEASE,
           "guards::test_an_old_lease_moves_nothing"),
    Mutant("let go: the lease is the row's", LIFECYCLE, "let_go",
           OWNER, BY_STATUS,
           "guards::test_an_old_lease_moves_nothing"),
    Mutant("the copy's mark: the run is this one", LIFECYCLE, "mark_copied",
           " and s.run = i.run", "",
           "guards::test_a_mark_of_a_copy_hits_only_the_failure_of_its_run"),
    Mutant("the copy's mark: the run has failed", LIFECYCLE, "mark_copied",
           "s.status = 'failed' and ", "",
           "guards::test_a_mark_of_a_copy_hits_only_the_failure_of_its_run"),
    Mutant("redrive: the run is the copy's", AGAIN, "requeue",
           " and i.run = s.run", "",
           "guards::test_a_mark_of_a_copy_hits_only_the_failure_of_its_run"),
    Mutant("redrive: the run has failed", AGAIN, "requeue",
           "where s.status = 'failed' and", "where",
           "guards::test_a_redriver_queues_what_has_failed_and_can_be_paid"),
    Mutant("redrive: nobody has erased what it says", AGAIN, "requeue",
           " and s.erased_at is null", "",
           "privacy::test_an_erased_session_gets_no_further_run"),
    Mutant("erase: the session has ended", "edges/sql/privacy.sql", "erase_sessions",
           "where s.id = any(%(ids)s) and (s.status in ('queued', 'processing')) is not true", "where s.id = any(%(ids)s)",
           "privacy::test_a_session_that_begins_meanwhile_is_left_as_it_is_and_counted"),
    Mutant("redrive: the balance suffices", AGAIN, "requeue",
           "where a.balance >= p.needed or p.held", "where true",
           "guards::test_a_redriver_queues_what_has_failed_and_can_be_paid"),
    Mutant("redrive: the row says what a filter means", "domain/deadletters.py", None,
           'letter.failure.get("category") in', "letter.category in",
           "redrive::test_a_forged_attribute_selects_no_session"),
    Mutant("redrive: a copy whose job was not sent stays", "ops/redrive.py", None,
           "for fate in fates if fate.is_over", "for fate in fates",
           "redrive::test_a_job_that_sqs_did_not_take_keeps_its_copy_and_is_sent_by_the_next"),
    Mutant("redrive: one batch at the rows at a time", "ops/redrive.py", None,
           "        async with self._turn:\n", "        if True:\n",
           "redrive::test_batches_at_once_do_not_keep_each_other_from_their_users"),
    Mutant("redrive: a copy that came again goes by its newest receipt", "ops/sampling.py", None,
           "there |= {id_: (message.receipt, until) for id_, message in here.items()}",
           "there |= {id_: (message.receipt, until) for id_, message in here.items() if id_ not in there}",
           "redrive::test_a_copy_that_comes_again_while_its_batch_takes_long_is_deleted_all_the_same"),
    Mutant("release: the reservation is held", CREDITS, "release_reservation",
           " and r.status = 'held'", "",
           "credits::test_release_returns_the_amount_once_and_then_nothing"),
    Mutant("fix: the run has failed", CREDITS, "repay",
           " and s.status = 'failed'", "",
           "guards::test_a_fix_gives_nothing_for_an_image_nor_for_what_is_held_still"),
    Mutant("fix: nothing is held", CREDITS, "repay",
           "(r.status = 'captured' or exists (", "(true or exists (",
           "guards::test_a_fix_gives_nothing_for_an_image_nor_for_what_is_held_still"),
    Mutant("late capture: the session has completed", CREDITS, "capture_reservation",
           " and s.status = 'completed'", "",
           "credits::test_what_is_held_for_an_open_job_is_not_captured"),
    Mutant("late refund: the session has failed", NET, "note_refund",
           " and status = 'failed'", "",
           "guards::test_a_release_tells_a_session_that_has_not_failed_nothing"),
    Mutant("sweep: the lease is over when it goes back", NET, "requeue_dead",
           " and s.lease_until < now()", "",
           "guards::test_a_lease_that_was_renewed_after_the_sweeper_looked_goes_on"),
    Mutant("dispose: the copy before the delete", "pipeline.py", None,
           "                await self.copy(row, body=message.body, code=code)\n", "                await self._messages.delete(message)\n                await self.copy(row, body=message.body, code=code)\n",
           "guards::test_a_message_whose_copy_was_not_taken_is_not_deleted"),
    Mutant("send: only what was sent is marked", "enqueue.py", None,
           "if session.id not in owed]", "]",
           "redrive::test_a_job_that_sqs_did_not_take_keeps_its_copy_and_is_sent_by_the_next"),
    Mutant("call: none on a lease that may be over", "run.py", None,
           "        if self.stale:\n", "        if False:\n",
           "guards::test_no_request_leaves_on_a_lease_that_may_be_over"),
    Mutant("call: none once the attempts are used up", "pipeline.py", None,
           "        if code := decide.exhausted(session, pipeline.limits):\n", "        if code := '':\n",
           "pipeline::test_a_job_that_kills_its_workers_ends_as_crashed"),
    Mutant("owner: hides no message on a lease that may be over", "services/hands.py", None,
           " if not hold.stale}", "}",
           "ownership::test_a_worker_cut_off_from_its_database_holds_no_message_back_and_touches_none"),
    Mutant("owner: renewals wait for no queue", "services/hands.py", None,
           "                await self.extend(list(self._pipeline.runs))\n",
           "                await self.extend(list(self._pipeline.runs))\n                await self._pipeline.queue.hide([])\n",
           "ownership::test_a_queue_that_hangs_lets_no_lease_lapse"),
    Mutant("owner: a stop shows no message of a lost lease", "run.py", None,
           "        if row is None:\n            raise LeaseLostError(session.id)\n", "        row = row or {}\n",
           "ownership::test_a_stop_shows_no_message_of_a_lease_that_was_lost"),
    Mutant("owner: what the sweeper sent back was not sent back by us", "run.py", None,
           ' and row["due_at"] is not None', "",
           "ownership::test_a_failure_that_came_late_is_kept_in_the_trace"),
    Mutant("stop: a known answer is stored", "answers.py", None,
           "if await last_words(storing, LAST_TRY_S) is None and", "if storing.cancel() and",
           "ownership::test_a_retry_that_meets_a_stop_is_stored_as_what_is_known"),
    Mutant("stop: a job is cancelled once", "services/ending.py", None,
           "if not task.cancelling():", "if True:",
           "ownership::test_a_second_cancellation_does_not_cut_off_the_give_back"),
    Mutant("one message: what takes accounts is one, and ends with its commit", "edges/db.py", None,
           "                        return (await _in_one_message(conn, [*opening, *steps]))[len(opening) :]\n",
           "                        async with conn.transaction():\n"
           "                            return [await run(conn, name, **params) for name, params in (*opening, *steps)][2:]\n",
           "guards::test_what_takes_accounts_is_one_message_that_ends_with_its_commit"),
    Mutant("one message: whatever the database's default isolation", "edges/sql/ledger.sql", "read_committed",
           "set transaction isolation level read committed", "select",
           "guards::test_whatever_the_databases_default_a_holders_change_is_seen"),
    Mutant("one message: a conflict is tried again", "edges/db.py", None,
           "for left in reversed(range(CONFLICTS)):", "for left in (0,):",
           "guards::test_what_collides_with_others_is_tried_again"),
    Mutant("mine: a settle moves the locked users only", SETTLE, "settle",
           " and s.user_id in (select m.user_id from mine m)", "",
           "guards::test_a_movement_touches_nobody_whose_account_it_has_not_locked"),
    Mutant("mine: a redrive likewise", AGAIN, "requeue",
           " and s.user_id in (select m.user_id from mine m)", "",
           "guards::test_a_movement_touches_nobody_whose_account_it_has_not_locked"),
    Mutant("mine: a release likewise", CREDITS, "release_reservation",
           "    and r.user_id in (select jsonb_array_elements_text(current_setting('genctl.mine')::jsonb))\n", "",
           "guards::test_a_movement_touches_nobody_whose_account_it_has_not_locked"),
    Mutant("mine: a fix likewise", CREDITS, "repay",
           "    and r.user_id in (select jsonb_array_elements_text(current_setting('genctl.mine')::jsonb))\n", "",
           "guards::test_a_movement_touches_nobody_whose_account_it_has_not_locked"),
    Mutant("mine: a late refund likewise", NET, "note_refund",
           "    and s.user_id in (select jsonb_array_elements_text(current_setting('genctl.mine')::jsonb))\n", "",
           "guards::test_a_movement_touches_nobody_whose_account_it_has_not_locked"),
    Mutant("passed over: an account that somebody holds", LEDGER, "lock_free_accounts",
           " skip locked", "",
           "guards::test_accounts_that_somebody_holds_are_passed_over"),
    *(
        Mutant(f"passed over: a locked session, by {name}", file, name,
               " skip locked", "",
               "guards::test_a_session_that_somebody_has_locked_is_passed_over")
        for file, name in ((SETTLE, "settle"), (LIFECYCLE, "claim"), (LIFECYCLE, "extend"), (LIFECYCLE, "retry"),
                           (LIFECYCLE, "mark_enqueued"), (NET, "requeue_dead"), (AGAIN, "requeue"))
    ),
    Mutant("passed over: a locked session has not lost its lease", "run.py", None,
           "if fate is None]", "if fate is not True]",
           "guards::test_a_session_that_somebody_has_locked_is_passed_over"),
    Mutant("passed over: a mark does not wait for long", "run.py", None,
           "lock_s=BRIEFLY_S", "lock_s=600.0",
           "answers::test_a_mark_does_not_wait_for_a_row_that_is_locked_for_long"),
    Mutant("passed over: a late capture does not wait for long", "credits.py", None,
           "lock_s=BRIEFLY_S", "lock_s=600.0",
           "answers::test_a_late_capture_does_not_wait_for_a_row_that_is_locked_for_long"),
    Mutant("refused: a run ends without its release", "answers.py", None,
           "    yield _unreleased(settlement)\n    if", "    if",
           "answers::test_a_refused_release_costs_no_word_of_the_provider"),
    Mutant("refused: a run ends with fewer words", "answers.py", None,
           "        yield short\n        yield _unreleased(short)\n", "",
           "answers::test_what_is_too_long_for_the_database_is_stored_in_fewer_words"),
    Mutant("refused: NOTIFY is left out", "ledger.py", None,
           "rows = await tried(notify=False)", "rows = await tried(notify=True)",
           "answers::test_a_notify_that_is_refused_is_left_out"),
    Mutant("refused: the trace tells of an end without NOTIFY", SETTLE, "settle",
           "from ended e where not %(notify)s", "from ended e where not %(notify)s and false",
           "answers::test_a_notify_that_is_refused_is_left_out"),
    Mutant("answer: one whose row is locked is tried again", "answers.py", None,
           "if not left.is_ours:", "if True:",
           "answers::test_an_answer_waits_for_a_row_that_somebody_has_locked"),
    Mutant("answer: what is refused alone is kept", "answers.py", None,
           "                    await self._keep(held, error)\n", "                    pass\n",
           "answers::test_a_kept_answer_is_settled_without_another_call"),
    Mutant("answer: a stop keeps it", "answers.py", None,
           '                await self._keep(held, GenctlError("Stopped", held.why or "the worker was stopped"))\n',
           "                pass\n",
           "answers::test_a_stop_keeps_an_answer_that_waits_for_a_lock"),
    Mutant("answer: one that comes before another claim is kept", "answers.py", None,
           "if left.is_unclaimed and isinstance(held.item, Settlement):", "if False:",
           "answers::test_an_answer_that_comes_after_the_sweeper_but_before_another_claim_is_kept"),
    Mutant("kept: no call is made", "pipeline.py", None,
           "if answer := kept_answer(session):", "if (answer := kept_answer(session)) and not answer:",
           "answers::test_a_kept_answer_is_settled_without_another_call"),
    Mutant("kept: the sweeper ends the run by it", "pipeline.py", None,
           "settlement = kept_answer(session) or self._settlement(", "settlement = self._settlement(",
           "answers::test_the_sweeper_ends_a_run_by_its_kept_answer"),
    Mutant("kept: for its own run only", LIFECYCLE, "claim",
           " and e.run = t.run", "",
           "answers::test_an_answer_is_kept_for_its_own_run_only"),
    Mutant("kept: settled under the new lease", "answers.py", None,
           "return msgspec.structs.replace(settlement, lease=session.lease)", "return settlement",
           "answers::test_a_kept_answer_is_settled_without_another_call"),
    Mutant("claim: attempts never exceed the most", LIFECYCLE, "claim",
           "s.attempts + (not r.spent)::int", "s.attempts + 1",
           "answers::test_attempts_never_exceed_the_most_however_often_a_run_is_claimed"),
    Mutant("give back: a claim that counted no attempt gives none back", "run.py", None,
           "int(not session.spent)", "1",
           "answers::test_attempts_never_exceed_the_most_however_often_a_run_is_claimed"),
    Mutant("outage: holders get the first turn, before other workers", "run.py", None,
           '"dead": self.db.back_since_s() > RENEW_S', '"dead": True',
           "answers::test_after_an_outage_those_who_hold_runs_get_the_first_turn_at_them"),
    Mutant("outage: and before the sweeper", "nets.py", None,
           "if self._db.back_since_s() <= RENEW_S:", "if False:",
           "answers::test_after_an_outage_those_who_hold_runs_get_the_first_turn_at_them"),
    Mutant("owner: claims nothing that is in its hands", "pipeline.py", None,
           "            if session_id in self.runs:", "            if False:",
           "answers::test_a_worker_claims_nothing_that_it_has_in_its_hands"),
    Mutant("owner: its sweeper takes nothing that is in its hands", "nets.py", None,
           " if session.id not in held]", "]",
           "answers::test_a_worker_claims_nothing_that_it_has_in_its_hands"),
    Mutant("owner: what cannot be given up goes back", "pipeline.py", None,
           "        except GenctlError:\n            await self.runs.step_aside(Hold(session, 0.0))\n",
           "        except GenctlError:\n",
           "answers::test_a_run_that_cannot_be_given_up_goes_back"),
    Mutant("owner: nothing is received while too many answers wait", "services/worker.py", None,
           "        if waiting >= MOST_WAITING:\n            return 0\n", "",
           "answers::test_with_too_many_answers_waiting_nothing_is_received"),
    Mutant("put off: a job goes back", "pipeline.py", None,
           "return await pipeline.put_off(hold, later.wait_s)", "raise later",
           "answers::test_a_job_whose_turn_is_far_off_goes_back_until_then"),
    Mutant("put off: until its turn", LIFECYCLE, "give_back",
           "case when %(delay_s)s::float8 > 0 then", "case when %(delay_s)s::float8 < 0 then",
           "answers::test_a_job_whose_turn_is_far_off_goes_back_until_then"),
    Mutant("put off: until its row has it", "pipeline.py", None,
           "            with suppress(DatabaseGoneError, LockedError):\n                return Session.of(",
           "            if True:\n                return Session.of(",
           "answers::test_a_job_that_cannot_call_keeps_its_attempt_though_its_row_is_locked"),
    Mutant("owner: a renewal that hangs is not that of others", "run.py", None,
           "        if errors and not lost:\n", "        if errors:\n",
           "locked::test_a_row_whose_renewal_hangs_takes_no_lease_from_others"),
    Mutant("sweep: a crash stays a crash", "domain/decide.py", None,
           '"WorkerCrashed" if session.unknowns else', '"WorkerCrashed" if session.from_dead_lease else',
           "sweep::test_a_crash_stays_one_though_a_lock_has_kept_the_sweeper_from_the_end"),
    Mutant("put off: a turn that is far away is not waited for", "services/turns.py", None,
           "if is_late or self._paused_until - now > SOON_S:", "if is_late:",
           "answers::test_a_turn_that_is_further_away_than_soon_is_not_waited_for"),
    Mutant("answers: those that wait take no place", "services/worker.py", None,
           "self.concurrency + waiting - ", "self.concurrency - ",
           "waiting::test_while_too_many_answers_wait_nothing_more_is_received"),
    Mutant("dispose: a message of what is locked is not worn out", "domain/decide.py", None,
           "_rest_s(row) or min(FIRST_HIDE_S * (receive_count - 1), LOCKED_HIDE_S)", "_rest_s(row)",
           "waiting::test_a_message_of_a_run_that_cannot_be_had_is_not_worn_out"),
    Mutant("gate: it is as it was seen", "edges/sql/gate.sql", "turn_gate",
           "where tool_gates.changed_at = %(seen)s\n", "",
           "breaker::test_what_a_probe_brought_is_no_decision_about_a_gate_that_was_turned_since"),
    Mutant("gate: a decision is about the gate as it was", "services/gatekeeper.py", None,
           "        self._decision = None  # we have", "        # we have",
           "breaker::test_what_a_probe_brought_is_no_decision_about_a_gate_that_was_turned_since"),
    Mutant("gate: what a breaker has closed stays closed", "domain/model.py", None,
           " and not is_breaker(self.who)", "",
           "breaker::test_one_worker_wins_the_probe"),
    Mutant("gate: a call of before counts for nothing", "domain/breaker.py", None,
           "if epoch != self.epoch or", "if",
           "breaker::test_a_slow_success_of_a_call_before_the_closing_opens_nothing"),
    Mutant("gate: one user's failures alone close nothing", "domain/breaker.py", None,
           "        if others < self._enough and not is_alone:\n            return None\n", "",
           "traits::test_failures_that_name_nothing_close_the_gate_once_they_are_of_more_than_one_user"),
    Mutant("gate: a value that is new explains a failure", "domain/breaker.py", None,
           "heard.company.suspects(order, now) if sign is Sign.BROKEN else frozenset()", "frozenset()",
           "traits::test_failures_that_name_nothing_close_the_gate_once_they_are_of_more_than_one_user"),
    Mutant("gate: a refusal that names a value counts for it", "domain/breaker.py", None,
           "    if named and sign is not Sign.SOUND:\n        return Sign.ORDER\n", "",
           "traits::test_a_refusal_that_names_what_was_ordered_decides_no_probe"),
    Mutant("orders: one order tries", "edges/sql/traits.sql", "try_refused_traits",
           " and until <= now()\n", "\n",
           "traits::test_after_a_while_one_order_tries_and_its_outcome_decides"),
    Mutant("orders: one user's refusals stop that user's alone", "edges/sql/traits.sql", "refused_traits_of",
           "count(*) over (partition by field, value) > 1 as everybody", "true as everybody",
           "traits::test_a_refusal_that_names_what_was_ordered_counts_for_that_value_alone"),
    Mutant("orders: a value that is sound for others is not at fault", "services/gatekeeper.py", None,
           " if not known.is_sound_for_others(trait, user)]", "]",
           "traits::test_a_value_that_is_sound_for_others_is_not_at_fault"),
    Mutant("gate: a probe is one job", "services/gatekeeper.py", None,
           "if self.probe and not self.probe.done():", "if False:",
           "breaker::test_a_probe_is_one_job_and_its_success_opens_the_gate_for_all"),
    Mutant("gate: what was not sent goes back", "services/gatekeeper.py", None,
           "                self._send_back()\n", "                pass\n",
           "breaker::test_what_was_claimed_and_not_sent_goes_back_and_uses_no_attempt"),
    Mutant("gate: the probe does not go back", "services/worker.py", None,
           "if task is not self.gatekeeper.probe)", ")",
           "breaker::test_a_probe_that_waits_for_its_turn_is_not_sent_back"),
    Mutant("gate: a probe that was stopped is left", "services/worker.py", None,
           "            await self.gatekeeper.leave()\n", "",
           "breaker::test_a_probe_cut_off_by_a_stop_is_left_to_the_next_worker"),
    Mutant("gate: nobody calls behind it", "services/gatekeeper.py", None,
           "return self._breaker.phase is Phase.OPEN or (", "return True or (",
           "breaker::test_a_job_that_was_received_before_the_gate_closed_makes_no_call"),
    Mutant("pace: a deal moves the next date", "edges/sql/pace.sql", "deal_turns",
           "d.first_at + make_interval(secs => d.turns * d.interval_s)", "d.free_at",
           "shared_pace::test_turns_of_all_workers_are_an_interval_apart_however_they_ask"),
    Mutant("pace: workers are dealt one after the other", "pace.py", None,
           '[("lock_pace", {"tool": tool})] if locks else []', "[]",
           "shared_pace::test_turns_of_all_workers_are_an_interval_apart_however_they_ask"),
    Mutant("pace: others keep their calls at once", "edges/sql/pace.sql", "deal_turns",
           "d.max_in_flight - d.others", "d.max_in_flight",
           "shared_pace::test_calls_at_once_are_never_more_than_the_limit_together"),
    Mutant("pace: who does not count gets nothing", "edges/sql/pace.sql", "deal_turns",
           "d.rate is null or not d.is_live", "d.rate is null",
           "shared_pace::test_a_worker_that_does_not_count_gets_nothing"),
    Mutant("pace: a part counts once the others know it", "services/turns.py", None,
           "        if locks:\n            self._slots", "        if True:\n            self._slots",
           "shared_pace::test_a_worker_that_hears_of_a_limit_begins_no_call_before_the_others_know_its_part"),
    Mutant("polite: turns at the rate", "services/turns.py", None,
           "            self._stock.take()\n", "            pass\n",
           "polite::test_calls_begin_no_faster_than_the_rate"),
    Mutant("polite: Retry-After holds back the other workers", "services/turns.py", None,
           "            self._hold_s = max(self._hold_s or 0.0, result.retry_after_s)\n", "",
           "polite::test_behind_a_long_retry_after_no_worker_receives"),
    Mutant("tool: what is another's is not claimed", "edges/sql/lifecycle.sql", "claim",
           "(s.model like any(%(models)s) or i.lapsed)", "(%(models)s::text[] is not null)",
           "rolling::test_a_worker_that_is_older_than_a_model_leaves_its_job_for_newer_ones"),
    Mutant("tool: its message is left for others", "domain/decide.py", None,
           "if not ours and not _is_over(job, row):", "if False:",
           "rolling::test_a_message_of_another_tool_without_a_row_is_never_copied"),
    Mutant("tool: its owed messages are sent by its own", "edges/sql/sweep.sql", "owed_jobs",
           "and s.model like any(%(models)s)", "and %(models)s::text[] is not null",
           "rolling::test_a_sweeper_touches_nothing_of_another_tool_but_its_credits"),
    Mutant("sweepers share: none takes what another has taken", NET, "take",
           " and {unoffered}", "",
           "nets::test_sweepers_share_what_is_owed_and_send_nothing_twice"),
    Mutant("sweepers share: what was not sent is put back", "nets.py", None,
           '            await self._db.rows("put_back", ids=[*taken], offered=[*{*taken.values()}])\n', "",
           "nets::test_what_could_not_be_sent_is_any_sweepers_at_once"),
    Mutant("sweep: what failed with its credits held is marked", SETTLE, "settle",
           "nullif(r.status = 'held', false)", "null",
           "nets::test_a_settle_without_its_release_is_marked_and_found_by_the_mark"),
    Mutant("sweep: no run is failed whose message is owed", RULES, None,
           "\n  and not ({job_owed} and s.model like any(%(models)s)))", ")",
           "odd_rows::test_sweep_status_metrics_and_audit_agree_about_odd_rows"),
    Mutant("sweep: what no worker could have in its time waits anew", NET, "take",
           "when s.status = 'queued' and coalesce({is_late}, true)", "when false",
           "odd_rows::test_a_run_that_no_worker_could_have_in_its_time_waits_anew_when_it_is_sent"),
    Mutant("sweep: what another session needs is not released", RULES, None,
           " and not {needed})", ")",
           "sweep::test_what_another_session_needs_is_given_back_to_none"),
    Mutant("fair: a user with his share lets others go first", "services/hands.py", None,
           "one.user is None or held[one.user] < share", "True",
           "fair::test_a_user_with_his_share_lets_those_with_less_go_first"),
    Mutant("fair: a failed run of the table gets its copy", "pipeline.py", None,
           "    if row and row.copy_owed:\n", "    if False:\n",
           "fair::test_a_run_without_its_message_ends_as_any_other"),
    Mutant("fair: one that goes back gets another message", "services/worker.py", None,
           "if row and row.status is Status.QUEUED:", "if False:",
           "fair::test_a_run_without_its_message_ends_as_any_other"),
    Mutant("fair: a message that is set aside stays hidden", "services/hands.py", None,
           "            ours += [taken.message for taken in self.aside if taken.message]\n", "",
           "fair::test_a_message_set_aside_stays_hidden_until_its_turn"),
    Mutant("fair: a stop shows what is set aside", "services/hands.py", None,
           "        await self.show(aside)\n", "",
           "fair::test_a_worker_that_stops_shows_what_it_has_set_aside"),
    Mutant("fair: what is refused for its group is sent without it", "edges/sqs.py", None,
           "        if not (grouped and refused):\n            return results\n", "        return results\n",
           "sqs::test_an_endpoint_that_refuses_groups_gets_the_messages_without_them_at_once"),
)  # fmt: skip


def copied(to: Path) -> None:
    """What the tests need of the tree."""
    to.mkdir()
    for name in KEPT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, to / name)


def tested(tree: Path, server: str, *tests: str) -> str | None:
    """The first test that fails in the tree; None when all pass. Raises SystemExit when none ran."""
    paths = ["tests/path/test_{}.py{}{}".format(*test.partition("::")) for test in tests]
    argv = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=1",
            "--hypothesis-profile=first failure", *paths]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(tree / "src"), "GENCTL_TEST_POSTGRES": server,
                        "GENCTL_TEST_INTERLEAVINGS": "10"}  # fmt: skip
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


async def tried(chosen: Sequence[Mutant]) -> list[tuple[str, bool]]:
    """The row of each in the table, and whether a test noticed."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="genctl-mutate-") as folder:
        tree = Path(folder, "tree")
        copied(tree)
        async with Postgres(
            Path(folder, "pg"), settings={"fsync": "off", "max_connections": "200"}
        ) as server:
            if failed := tested(tree, server.dsn, *sorted({m.test for m in chosen})):
                sys.exit(f"{failed} fails with every guard in place")
            for mutant in chosen:
                path, began = tree / mutant.path, time.monotonic()
                text = path.read_text()
                path.write_text(mutant.apply(text))
                killer = tested(tree, server.dsn, mutant.test) or tested(tree, server.dsn, *EVERYTHING)
                path.write_text(text)
                told = f"`{killer}`" if killer else "**nothing**"
                where = f"{mutant.path.name}{f': {mutant.statement}' if mutant.statement else ''}"
                row = f"| {mutant.guard} | {where} | {told} | {time.monotonic() - began:.0f} |"
                print(row, flush=True)  # noqa: T201
                rows.append((row, killer is not None))
    return rows


def main() -> None:
    """Every mutant whose guard holds one of the words given, or all; only all of them make the table."""
    wanted = sys.argv[1:]
    chosen = [m for m in MUTANTS if not wanted or any(word in m.guard for word in wanted)]
    if not chosen:
        sys.exit(
            "no guard has one of these words; without words all are tried:\n"
            + "\n".join(m.guard for m in MUTANTS)
        )
    rows = asyncio.run(tried(chosen))
    if not wanted:
        head = TABLE.read_text().partition("| guard |")[0]
        lines = [
            "| guard | where | the test that fails without it | s |",
            "|---|---|---|---|",
            *(row for row, _ in rows),
        ]
        TABLE.write_text(head + "\n".join(lines) + "\n")
    lost = [row for row, noticed in rows if not noticed]
    sys.exit(f"{len(lost)} of {len(rows)} guards can be lost unnoticed" if lost else 0)


if __name__ == "__main__":
    main()

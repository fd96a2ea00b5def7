"""`sessions trace`: the way of one session, after its end and while it goes."""

import json
import signal
from typing import Any
from urllib.parse import urlsplit

from tests.kit import free_port, until_sync
from tests.process.place import Place
from tests.process.test_worker import away

HOP = ["hop", "run", "at", "ms", "gap", "gapMs", "slow", "says"]
WAY = ["enqueued", "sent", "claimed", "failed", "notified", "copied"]


def failed(place: Place, scenario: str = "sensitive") -> str:
    """A session that has failed, its copy in the DLQ."""
    with place.worker():
        session = place.enqueue(scenario, client_key="cart-7", wait=True)
        until_sync(lambda: "copied" in place.trace(session))
    return session


def names(told: dict[str, Any]) -> list[str]:
    return [hop["hop"] for hop in told["hops"]]


def test_the_way_of_a_failure_is_told_by_any_id_with_what_took_longest_and_its_copy(place: Place) -> None:
    """It needs the database alone, and says where it could not look."""
    session = failed(place)
    told = place.genctl("sessions", "trace", session)
    assert list(told) == ["sessionId", "userId", "status", "run", "hops", "slowest", "dlq"]
    assert (told["sessionId"], told["userId"], told["status"], told["run"]) == (session, "ann", "failed", 1)
    assert sorted(names(told)) == sorted(WAY)
    assert all(list(hop) == HOP for hop in told["hops"])
    assert told["slowest"]["gapMs"] == max(hop["gapMs"] or 0 for hop in told["hops"])
    copy = told["dlq"]["messageId"]
    assert f"message {copy}" in [hop["says"] for hop in told["hops"]]
    assert place.genctl("sessions", "trace", copy[:-4])["sessionId"] == session
    assert len(place.say("sessions", "trace", session, "-o", "jsonl").stdout.splitlines()) == len(WAY)
    assert set(place.copies()) == {place.body(session)}, "looking takes nothing away"

    place.make_real()
    away = f"http://127.0.0.1:{free_port()}"
    done = place.say("sessions", "trace", "cart-7", AWS_ENDPOINT_URL_SQS=away)
    assert "cannot look into the DLQ" in done.stderr
    table, _, summary = done.stdout.partition("\nsession ")
    assert summary.startswith(session)
    assert [line.split()[1] for line in table.splitlines()[2:]] == names(told)


def test_follow_shows_each_hop_as_it_comes_over_a_lost_connection_and_ends_with_the_session(
    place: Place,
) -> None:
    session = place.enqueue("sensitive")
    name = urlsplit(place.dsn).path.strip("/")
    with place.start("sessions", "trace", session, "--follow", "-o", "jsonl") as tracing:
        until_sync(lambda: "sent" in tracing.out.read_text())
        assert tracing.log.read_text() == "connected\n"
        away(place, name, allowed=False)
        until_sync(lambda: "lost, retrying in" in tracing.log.read_text())
        away(place, name, allowed=True)
        until_sync(lambda: tracing.log.read_text().count("connected") == 2)
        with place.worker():
            assert tracing.end() == 0
        hops = [json.loads(line) for line in tracing.out.read_text().splitlines()]
        assert sorted(hop["hop"] for hop in hops) == sorted(WAY)
        assert "caught up, 0 missed" in tracing.log.read_text()


def test_an_id_of_nothing_is_not_found(place: Place) -> None:
    assert place.error("sessions", "trace", "3f2a", exit_code=4)["code"] == "SessionNotFound"


def test_sessions_are_listed_by_age(place: Place) -> None:
    old, new = place.enqueue(), place.enqueue()
    place.sql("update generation_sessions set created_at = now() - interval '3 hours' where id = %s", old)
    for filters, found in {("--since", "1h"): [new], ("--until", "1h"): [old]}.items():
        assert [row["sessionId"] for row in place.genctl("sessions", "list", *filters)] == found


def test_follow_as_one_document_prints_what_it_has_when_somebody_ends_it(place: Place) -> None:
    session = place.enqueue("sensitive")
    with place.start("sessions", "trace", session, "--follow", "-o", "json") as tracing:
        until_sync(lambda: tracing.log.read_text() == "connected\n")
        began = (
            "select query_start from pg_stat_activity where datname = current_database()"
            " and query like '%session_events where%' and pid <> pg_backend_pid()"
        )
        first = until_sync(lambda: place.sql(began))
        until_sync(lambda: place.sql(began) not in ([], first))  # a second look: it has the first
        assert tracing.end(signal.SIGINT) == 130
        told = json.loads(tracing.out.read_text())
    assert (told["sessionId"], told["status"], names(told), told["dlq"]) == (
        session,
        "queued",
        ["enqueued", "sent"],
        None,
    )
    with place.start("sessions", "trace", session, "--follow", "-o", "json") as tracing, place.worker():
        assert tracing.end() == 0
        told = json.loads(tracing.out.read_text())
    assert (told["status"], sorted(names(told))) == ("failed", sorted(WAY))

"""From facts to findings: which level, and a fix wherever something is wrong."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from genctl.domain import findings
from genctl.domain.findings import ERROR, OK, WARNING, Finding
from genctl.domain.model import Answer, GenctlError, NoAnswer
from genctl.domain.refusals import Notifying
from genctl.domain.rights import RIGHTS

SERVER = {
    "version": "16.4",
    "version_number": 160004,
    "is_replica": False,
    "idle_count": 0,
    "idle_s": None,
    "idle_pid": None,
}


def after(receives: int) -> str:
    return json.dumps({"deadLetterTargetArn": "arn:aws:sqs:x:1:jobs-dlq", "maxReceiveCount": str(receives)})


QUEUE = {
    "RedrivePolicy": after(50),
    "VisibilityTimeout": "30",
    "MessageRetentionPeriod": "345600",
}
DLQ = {"QueueArn": "arn:aws:sqs:x:1:jobs-dlq", "MessageRetentionPeriod": "1209600"}


def levels(found: Iterable[Finding]) -> dict[str, str]:
    found = list(found)
    assert all(one.fix for one in found if one.level != OK), found
    return {one.check: one.level for one in found if one.level != OK}


@pytest.mark.parametrize(
    ("facts", "clocks_s", "expected"),
    [
        ({}, 1.9, {}),
        ({"version_number": 130012, "version": "13.12"}, 0, {"postgresql": ERROR}),
        ({"is_replica": True}, 0, {"replica": ERROR}),
        ({"idle_count": 2, "idle_s": 600.0, "idle_pid": 7}, 0, {"idle-in-transaction": WARNING}),
        ({}, -4.0, {"clocks": WARNING}),
    ],
)
def test_the_server_is_judged_by_what_it_says_of_itself(
    facts: dict[str, Any], clocks_s: float, expected: dict[str, str]
) -> None:
    assert levels(findings.of_server(SERVER | facts, "db/app", clocks_s)) == expected


@pytest.mark.parametrize(
    ("queue", "dlq", "expected"),
    [
        ({}, {}, {}),
        ({"RedrivePolicy": ""}, {}, {"redrive": WARNING}),
        *[({"RedrivePolicy": after(receives)}, {}, {"redrive": ERROR}) for receives in (5, 9)],
        *[({"RedrivePolicy": after(receives)}, {}, {"redrive": WARNING}) for receives in (10, 49)],
        ({}, {"QueueArn": "arn:aws:sqs:x:1:another"}, {"redrive": WARNING}),
        ({"VisibilityTimeout": "29"}, {}, {"visibility": WARNING}),
        ({"VisibilityTimeout": "43200"}, {}, {"visibility": WARNING}),
        ({"MessageRetentionPeriod": "3600"}, {}, {"retention": WARNING}),
        ({}, {"MessageRetentionPeriod": "345600"}, {"retention": WARNING}),
    ],
)
def test_the_queues_are_judged_by_their_attributes(
    queue: dict[str, str], dlq: dict[str, str], expected: dict[str, str]
) -> None:
    found = findings.of_queues("http://q/jobs", QUEUE | queue, "http://q/jobs-dlq", DLQ | dlq, 86_400)
    assert levels(found) == expected


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        *[(Answer(status, {}, b""), ERROR) for status in (401, 403)],
        *[(Answer(status, {}, b""), OK) for status in (400, 422, 429)],
        *[(Answer(status, {}, b""), WARNING) for status in (200, 302, 404, 500, 503)],
        (NoAnswer("ConnectTimeout", "", sent=False), ERROR),
    ],
)
def test_a_provider_that_answers_anything_but_401_and_403_has_taken_the_key(
    answer: Answer | NoAnswer, level: str
) -> None:
    found = findings.of_provider("https://ark", "ARK_BASE_URL", "ARK_API_KEY", answer)
    assert found.level == level


@pytest.mark.parametrize(
    ("status", "first_byte_s", "level"),
    [(200, 0.1, OK), (200, 1.5, WARNING), (200, None, ERROR), (None, None, ERROR), (401, 0.1, ERROR)],
)
def test_a_stream_is_judged_by_its_first_byte(
    status: int | None, first_byte_s: float | None, level: str
) -> None:
    assert findings.of_stream("http://api/events", status, first_byte_s, 4.0).level == level


def test_a_listener_that_holds_a_transaction_open_fills_the_queue_of_notify() -> None:
    assert levels(findings.of_refused([], Notifying(0.4, 7, 2))) == {
        "notify-queue": WARNING,
        "unnotified": WARNING,
    }
    assert levels(findings.of_refused([], Notifying(0.1))) == {}


def test_listen_migrations_rights_permissions_and_files() -> None:
    assert [findings.of_listen(heard=heard).level for heard in (True, None, False)] == [OK, WARNING, ERROR]
    assert findings.of_migrations({"a.sql": "missing"})[0].level == ERROR
    place = "db:5433", "my app"
    lacking = {"relation": "tool_gates", "privileges": "update", "role": "app"}
    (right,) = findings.of_rights([lacking | {"part": part} for part in RIGHTS], *place)
    assert (
        findings.of_rights([lacking | {"part": "worker"}], *place)[0].level == OK
    )  # enough for another part
    to_write = [lacking | {"part": part} for part in RIGHTS if part != "auditor"]
    assert findings.of_rights(to_write, *place)[0].level == ERROR  # who only reads mends nothing
    assert right.fix == "psql postgresql://OWNER@db:5433/my%20app -c 'grant update on tool_gates to \"app\"'"
    denied = GenctlError("QueueForbidden", "SQS queue jobs: SendMessage", "allow sqs:SendMessage on it")
    assert levels(findings.of_permissions([denied])) == {"permissions": ERROR}
    assert ["GENCTL_FAIR is off" in findings.of_groups(on=on).message for on in (True, False)] == [
        False,
        True,
    ]
    assert [findings.of_files(most).level for most in (1024, 4096)] == [WARNING, OK]

"""The SQS client against moto's server, and against a server that fails where moto cannot."""

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from email.utils import format_datetime
from typing import Any
from uuid import uuid4

import pytest
import structlog
from aiohttp import web
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials, RefreshableCredentials
from botocore.exceptions import ClientError
from tests.kit import QueueServer, create_queue, until

from genctl.base.settings import Settings
from genctl.domain.model import GenctlError
from genctl.edges import aws, credentials
from genctl.edges.aws import ATTEMPTS
from genctl.edges.sqs import Queue, Sqs
from genctl.edges.sqs_shapes import MAX_BYTES, EntryResult, Outgoing

KEY, SECRET = "AKIDEXAMPLE", "a-secret-of-the-tests"  # no real ones


def errors(fates: list[EntryResult]) -> list[str | None]:
    return [fate.error for fate in fates]


def settings(endpoint: str, **more: Any) -> Settings:
    return Settings(
        **{
            "embedded": True,
            "sqs_endpoint": endpoint,
            "aws_access_key_id": KEY,
            "aws_secret_access_key": SECRET,
            **more,
        }
    )


@pytest.fixture
async def sqs(sqs_server: QueueServer) -> AsyncIterator[Sqs]:
    endpoint = f"http://127.0.0.1:{sqs_server.port}"
    keys = {"aws_access_key_id": sqs_server.key, "aws_secret_access_key": sqs_server.secret}
    async with await Sqs.connect(settings(endpoint, **keys)) as client:
        yield client


@pytest.fixture
async def queue(sqs: Sqs) -> Queue:
    return await create_queue(sqs, f"jobs-{uuid4().hex[:8]}")


async def take(queue: Queue, limit: int = 10) -> list[Any]:
    return await queue.receive(limit, wait_s=0, visibility_s=30)


async def test_what_is_sent_is_received_with_its_attributes(queue: Queue) -> None:
    assert errors(await queue.send([Outgoing('{"a":"é"}', {"code": "E1", "none": "", "run": "2"})])) == [None]
    (message,) = await take(queue)
    assert message.body == '{"a":"é"}'
    assert message.attributes == {"code": "E1", "run": "2"}  # SQS refuses empty values
    assert message.system.receive_count == 1
    assert abs(message.sent_at.timestamp() - time.time()) < 60


async def test_batches_of_any_length_are_cut_and_every_item_has_its_fate(queue: Queue) -> None:
    assert errors(await queue.send([Outgoing(str(i)) for i in range(23)])) == [None] * 23
    got = [m for _ in range(3) for m in await take(queue)]
    assert sorted(int(m.body) for m in got) == list(range(23))
    assert await queue.delete([m.receipt for m in got]) == [None] * 23
    assert await queue.send([]) == []
    assert (await queue.attributes())["ApproximateNumberOfMessagesNotVisible"] == "0"


async def test_hiding_for_no_time_shows_a_message_at_once(queue: Queue) -> None:
    await queue.send([Outgoing("x")])
    (message,) = await take(queue)
    assert await take(queue) == []
    assert await queue.hide([(message.receipt, 0)]) == [None]
    (again,) = await take(queue)
    assert again.system.receive_count == 2


async def test_attributes_are_dropped_from_the_right_until_the_message_fits(queue: Queue) -> None:
    body = "x" * (MAX_BYTES - 30)
    assert errors(await queue.send([Outgoing(body, {"code": "E1", "category": "server", "run": "1"})])) == [
        None
    ]
    (message,) = await take(queue)
    assert message.attributes == {"code": "E1"}
    many = {f"a{i}": "1" for i in range(12)}
    await queue.send([Outgoing("y", many)])
    (message,) = await take(queue)
    assert list(message.attributes) == list(many)[:10]


async def test_big_messages_travel_in_batches_of_their_own(queue: Queue) -> None:
    fates = errors(await queue.send([Outgoing("x" * 400_000)] * 5 + [Outgoing("x" * (MAX_BYTES + 1))]))
    assert fates[:5] == [None] * 5
    assert "BatchRequestTooLong" in (fates[5] or "")


async def test_characters_that_sqs_refuses_never_stop_a_copy(queue: Queue) -> None:
    assert errors(await queue.send([Outgoing("x", {"code": "a\x00\ud800b"})])) == [None]
    assert (await take(queue))[0].attributes == {"code": "a��b"}


async def test_a_queue_url_is_used_as_it_is_whatever_host_it_names(sqs: Sqs, queue: Queue) -> None:
    path = queue.url.partition("://")[2].partition("/")[2]
    elsewhere = await sqs.queue(f"https://sqs.eu-west-9.amazonaws.com/{path}")
    assert elsewhere.arn == queue.arn != ""
    assert elsewhere.name == queue.name


async def test_the_dlq_is_the_configured_the_redrive_policys_or_the_queues_own(sqs: Sqs) -> None:
    name = f"q-{uuid4().hex[:8]}"
    await create_queue(sqs, f"{name}-dlq")
    other = await create_queue(sqs, f"{name}-other")
    plain = await create_queue(sqs, name)
    policy = json.dumps({"deadLetterTargetArn": other.arn, "maxReceiveCount": 50})
    with_policy = await create_queue(sqs, f"{name}-2", RedrivePolicy=policy)
    assert (await plain.dead_letter_queue(None)).name == f"{name}-dlq"
    assert (await with_policy.dead_letter_queue(None)).url == other.url
    assert (await with_policy.dead_letter_queue(f"{name}-dlq")).name == f"{name}-dlq"


async def test_a_fifo_queue_is_refused(sqs: Sqs) -> None:
    await refused(lambda: sqs.queue("jobs.fifo"), "QueueIsFifo")
    await refused(lambda: sqs.queue(f"{sqs.endpoint}/123456789012/jobs.fifo"), "QueueIsFifo")


async def test_a_queue_that_is_not_there_is_one_clear_line(sqs: Sqs) -> None:
    error = await refused(lambda: sqs.queue("nowhere"), "QueueNotFound")
    assert "nowhere" in error.message
    assert sqs.endpoint in error.message
    await refused(lambda: sqs.queue(f"{sqs.endpoint}/123456789012/nowhere"), "QueueNotFound")


async def test_nothing_listening_is_one_clear_line(unused_tcp_port: int) -> None:
    async with await Sqs.connect(settings(f"http://127.0.0.1:{unused_tcp_port}")) as sqs:
        await refused(lambda: sqs.queue("jobs"), "QueueUnreachable")


async def test_the_embedded_stack_that_never_ran_is_not_looked_for_at_aws() -> None:
    await refused(lambda: Sqs.connect(Settings(embedded=True)), "StackNotRunning")


async def refused(what: Callable[[], Awaitable[object]], code: str) -> GenctlError:
    with pytest.raises(GenctlError) as caught:
        await what()
    assert caught.value.code == code
    assert caught.value.exit_code == 3
    assert caught.value.fix
    return caught.value


# --- a server that fails as SQS can ----------------------------------------------------------

Step = Callable[[web.Request], Awaitable[web.StreamResponse]]


def says(status: int, body: object) -> Step:
    async def step(_: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status)

    return step


def fault(status: int, code: str, message: str = "because") -> Step:
    return says(status, {"__type": f"com.amazonaws.sqs#{code}", "message": message})


async def drop(request: web.Request) -> web.StreamResponse:
    assert request.transport
    request.transport.abort()
    return web.Response()


URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/jobs"
FACTS = says(200, {"Attributes": {"QueueArn": "arn:aws:sqs:eu-west-1:123456789012:jobs"}})
EMPTY = says(200, {})


class Script:
    """Answers with one step after the other; the requests that came are kept."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.requests: list[tuple[web.Request, dict[str, Any]]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request, json.loads(await request.read())))
        return await self.steps.pop(0)(request)

    @asynccontextmanager
    async def serving(self, **more: Any) -> AsyncIterator[Sqs]:
        app = web.Application()
        app.router.add_post("/", self.answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with await Sqs.connect(
                settings(f"http://127.0.0.1:{runner.addresses[0][1]}", **more)
            ) as sqs:
                yield sqs
        finally:
            await runner.cleanup()


@pytest.mark.parametrize(
    "trouble",
    [fault(500, "InternalFailure"), fault(400, "ThrottlingException"), fault(403, "RequestThrottled"), drop],
)
async def test_what_passes_is_tried_again(trouble: Step) -> None:
    script = Script(trouble, FACTS, trouble, trouble, EMPTY)
    async with script.serving() as sqs:
        queue = await sqs.queue(URL)
        assert await take(queue) == []
    assert script.steps == []


async def test_what_does_not_pass_ends_after_a_few_tries() -> None:
    script = Script(*[fault(503, "ServiceUnavailable")] * ATTEMPTS)
    async with script.serving() as sqs:
        await refused(lambda: sqs.queue(URL), "QueueUnavailable")
    assert script.steps == []


@pytest.mark.parametrize(
    ("step", "code"),
    [
        (fault(403, "AccessDenied"), "QueueForbidden"),
        (fault(403, "InvalidClientTokenId"), "CredentialsRefused"),
        (fault(403, "SignatureDoesNotMatch"), "CredentialsRefused"),
        (fault(403, "RequestExpired"), "CredentialsRefused"),
        (fault(400, "InvalidAddress"), "QueueRefused"),
        (says(404, "lost"), "QueueUnreachable"),
        (says(200, ["no SQS"]), "QueueUnreachable"),
    ],
)
async def test_each_refusal_has_its_own_name_and_fix(step: Step, code: str) -> None:
    async with Script(step).serving() as sqs:
        error = await refused(lambda: sqs.queue(URL), code)
        assert SECRET not in str(error)


async def test_only_the_entries_that_sqs_failed_are_sent_again() -> None:
    def failed(id_: str, *, sender: bool) -> dict[str, Any]:
        return {"Id": id_, "Code": "Oops", "Message": "why", "SenderFault": sender}

    script = Script(
        FACTS,
        says(
            200,
            {"Successful": [{"Id": "0"}], "Failed": [failed("1", sender=True), failed("2", sender=False)]},
        ),
        says(200, {"Successful": [{"Id": "2"}]}),
    )
    async with script.serving() as sqs:
        queue = await sqs.queue(URL)
        fates = await queue.delete(["r0", "r1", "r2", "r3"])
    assert fates == [None, "Oops: why", None, "SQS left it out of its answer"]
    assert [e["ReceiptHandle"] for e in script.requests[-1][1]["Entries"]] == ["r2"]


@pytest.mark.parametrize(
    ("id_", "fate"), [("9", "SQS left it out of its answer"), ("first", "the answer is not SQS's")]
)
async def test_an_answer_about_an_entry_that_nobody_sent_is_not_believed(id_: str, fate: str) -> None:
    other = {"Failed": [{"Id": id_, "Code": "Oops", "SenderFault": False}]}
    async with Script(FACTS, says(200, other)).serving() as sqs:
        queue = await sqs.queue(URL)
        try:
            (told,) = await queue.delete(["r0"])
        except GenctlError as error:
            told = error.message
    assert fate in (told or "")


async def test_one_bad_entry_takes_no_good_one_with_it() -> None:
    """SQS refuses a whole batch for some faults of one entry."""
    bad, good = fault(400, "InvalidMessageContents"), says(200, {"Successful": [{"Id": "0"}]})
    async with Script(FACTS, bad, good, bad, good).serving() as sqs:
        fates = errors(await (await sqs.queue(URL)).send([Outgoing("1"), Outgoing("2"), Outgoing("3")]))
    assert fates[0] is fates[2] is None
    assert "InvalidMessageContents" in (fates[1] or "")


SENT = says(200, {"Successful": [{"Id": "0"}, {"Id": "1"}]})


def groups(script: Script) -> list[list[str | None]]:
    """Of the entries of each batch that was sent."""
    sent = [body["Entries"] for _, body in script.requests if "Entries" in body]
    return [[entry.get("MessageGroupId") for entry in entries] for entries in sent]


async def test_messages_of_a_user_have_a_group_that_does_not_tell_who_it_is() -> None:
    """Every process with the secret names it alike; without one the key comes from the queue's ARN."""
    found = []
    for more in ({"secret": "s" * 32}, {"secret": "s" * 32}, {"secret": "t" * 32}, {}, {}):
        async with (script := Script(FACTS, SENT)).serving(**more) as sqs:
            await (await sqs.queue(URL)).send([Outgoing("1", user="ann"), Outgoing("2", user="bob")])
        ((ann, bob),) = groups(script)
        assert ann
        assert bob
        assert ann != bob
        assert re.fullmatch("[0-9a-f]{32}", ann)
        found.append(ann)
    assert [found.index(one) for one in found] == [0, 0, 2, 3, 3]


async def test_a_message_of_nobody_and_one_without_fair_queues_have_no_group() -> None:
    for more, out in (({}, Outgoing("1")), ({"fair": False}, Outgoing("1", user="ann"))):
        async with (script := Script(FACTS, SENT)).serving(**more) as sqs:
            await (await sqs.queue(URL)).send([out])
        assert groups(script) == [[None]]


NO_GROUPS = "MessageGroupId is not valid for this queue type"
ENTRIES = [
    {"Id": str(i), "Code": "InvalidParameterValue", "Message": NO_GROUPS, "SenderFault": True} for i in (0, 1)
]
REFUSALS = {
    "of the entries": [says(200, {"Failed": ENTRIES})],
    "of the call": [fault(400, "UnsupportedOperation", NO_GROUPS)] * 3,  # of both, then of each alone
}


@pytest.mark.parametrize("what", REFUSALS)
async def test_an_endpoint_that_refuses_groups_gets_the_messages_without_them_at_once(what: str) -> None:
    out = [Outgoing("1", user="ann"), Outgoing("2", user="bob")]
    async with (script := Script(FACTS, *REFUSALS[what], SENT, SENT)).serving() as sqs:
        queue = await sqs.queue(URL)
        with structlog.testing.capture_logs() as logs:
            assert errors(await queue.send(out)) == [None, None]
            assert errors(await queue.send(out)) == [None, None]
    assert groups(script)[-2:] == [[None, None], [None, None]]
    (told,) = logs
    assert told["event"] == "sqs.groups.refused"
    assert NO_GROUPS in told["error"]
    assert "GENCTL_FAIR=off" in told["fix"]


async def test_a_refusal_for_another_reason_leaves_the_groups_on() -> None:
    bad = {"Failed": [{"Id": "0", "Code": "InvalidMessageContents", "Message": "why", "SenderFault": True}]}
    async with (script := Script(FACTS, says(200, bad), says(200, bad), SENT)).serving() as sqs:
        queue = await sqs.queue(URL)
        assert "InvalidMessageContents" in (errors(await queue.send([Outgoing("1", user="ann")]))[0] or "")
        await queue.send([Outgoing("2", user="ann")])
    assert [bool(group) for (group,) in groups(script)] == [True, False, True]


async def test_a_receive_that_times_out_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the lost answer carried is hidden at SQS; another receive would hide more."""
    monkeypatch.setattr("genctl.edges.sqs.CALL_TIMEOUT_S", 0.2)

    async def never(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    script = Script(FACTS, never, EMPTY)
    async with script.serving() as sqs:
        queue = await sqs.queue(URL)
        await refused(lambda: take(queue), "QueueUnreachable")
    assert script.steps == [EMPTY]


async def test_the_signature_is_that_of_the_request_which_arrives() -> None:
    script = Script(FACTS)
    async with script.serving() as sqs:
        await sqs.queue(URL)
    request, _ = script.requests[0]
    body = await request.read()
    _, _, scope = request.headers["Authorization"].partition("Credential=")
    assert scope.startswith(f"{KEY}/{request.headers['X-Amz-Date'][:8]}/us-east-1/sqs/aws4_request")
    names = scope.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {"content-type", "host", "x-amz-date", "x-amz-target"} <= set(names)
    copy = AWSRequest(
        "POST", str(request.url), headers={n: request.headers[n] for n in names if n != "host"}, data=body
    )
    copy.context["timestamp"] = request.headers["X-Amz-Date"]
    auth = SigV4Auth(ReadOnlyCredentials(KEY, SECRET, None), "sqs", "us-east-1")
    expected = auth.signature(auth.string_to_sign(copy, auth.canonical_request(copy)), copy)
    assert scope.endswith(f"Signature={expected}")


# --- credentials -----------------------------------------------------------------------------


REAL = Settings(database_url="postgresql://db/x")


async def test_missing_region_credentials_and_profile_each_have_their_fix(
    no_aws: pytest.MonkeyPatch,
) -> None:
    error = await refused(lambda: Sqs.connect(REAL), "RegionMissing")
    assert "AWS_DEFAULT_REGION" in error.fix
    no_aws.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    error = await refused(lambda: Sqs.connect(REAL), "CredentialsMissing")
    assert "AWS_PROFILE" in error.fix
    no_aws.setenv("AWS_PROFILE", "nobody")
    await refused(lambda: Sqs.connect(REAL), "AwsMisconfigured")


async def test_region_endpoint_and_session_token_come_from_where_boto3_looks(
    no_aws: pytest.MonkeyPatch,
) -> None:
    no_aws.setenv("AWS_DEFAULT_REGION", "cn-north-1")
    no_aws.setenv("AWS_ACCESS_KEY_ID", KEY)
    no_aws.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    no_aws.setenv("AWS_SESSION_TOKEN", "token-1")
    async with await Sqs.connect(REAL) as sqs:
        assert sqs.endpoint == "https://sqs.cn-north-1.amazonaws.com.cn"
    script = Script(FACTS)
    async with script.serving(embedded=False, database_url="postgresql://db/x") as sqs:
        await sqs.queue(URL.replace("eu-west-1", "cn-north-1"))
    headers = script.requests[0][0].headers
    assert headers["X-Amz-Security-Token"] == "token-1"
    assert "/cn-north-1/sqs/" in headers["Authorization"]


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidClientTokenId", "SignatureDoesNotMatch"])
async def test_credentials_that_are_refused_are_looked_up_again_once(
    no_aws: pytest.MonkeyPatch, code: str
) -> None:
    """Somebody may have renewed a session, or changed a key, since we looked."""
    keys = iter(["OLD", "NEW"])
    no_aws.setattr(credentials, "find", lambda: Credentials(next(keys), SECRET))
    no_aws.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    script = Script(fault(403, code), FACTS, fault(403, code))
    async with script.serving(embedded=False, database_url="postgresql://db/x") as sqs:
        await sqs.queue(URL)
        with pytest.raises(GenctlError, match=code):
            await sqs.queue(URL)
    used = [r.headers["Authorization"].partition("Credential=")[2][:3] for r, _ in script.requests]
    assert used == ["OLD", "NEW", "NEW"]


async def test_credentials_that_expire_between_two_tries_are_looked_up_again(
    no_aws: pytest.MonkeyPatch,
) -> None:
    keys = iter(["OLD", "NEW"])
    no_aws.setattr(credentials, "find", lambda: Credentials(next(keys), SECRET))
    no_aws.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    script = Script(fault(503, "ServiceUnavailable"), fault(403, "ExpiredToken"), FACTS)
    async with script.serving(embedded=False, database_url="postgresql://db/x") as sqs:
        await sqs.queue(URL)
    assert script.steps == []


def fresh(key: str) -> dict[str, str]:
    return {"access_key": key, "secret_key": SECRET, "token": "t", "expiry_time": "2999-01-01T00:00:00Z"}


def due(no_aws: pytest.MonkeyPatch) -> None:
    """From now on the role's credentials are to be renewed, and at once."""
    for kind in ("advisory", "mandatory"):
        no_aws.setattr(RefreshableCredentials, f"_{kind}_refresh_timeout", 10**12)


async def test_a_role_is_renewed_in_a_thread_for_which_nobody_waits(no_aws: pytest.MonkeyPatch) -> None:
    """The old credentials work for minutes yet, and whoever hands out new ones may hang."""
    renewed_by: list[threading.Thread] = []
    release = threading.Event()

    def renew() -> dict[str, str]:
        renewed_by.append(threading.current_thread())
        no_aws.undo()  # new ones are not due
        release.wait(10)
        return fresh("NEW")

    role = RefreshableCredentials.create_from_metadata(fresh("OLD"), refresh_using=renew, method="test")
    no_aws.setattr(credentials, "find", lambda: role)
    no_aws.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    script = Script(FACTS, FACTS, FACTS)
    async with script.serving(embedded=False, database_url="postgresql://db/x") as sqs:
        due(no_aws)
        old = sqs._keys.frozen
        await sqs.queue(URL)
        await sqs.queue(URL)
        release.set()
        await until(lambda: asyncio.sleep(0, sqs._keys.frozen != old))
        await sqs.queue(URL)
    assert [thread is threading.main_thread() for thread in renewed_by] == [False]
    used = [r.headers["Authorization"].partition("Credential=")[2][:3] for r, _ in script.requests]
    assert used == ["OLD", "OLD", "NEW"]


DENIED = ClientError({"Error": {"Code": "AccessDenied", "Message": "not authorized"}}, "AssumeRole")


@pytest.mark.parametrize("why", [DENIED, ValueError("no JSON"), FileNotFoundError("/no/such/tool")])
async def test_credentials_that_cannot_be_had_end_no_worker(
    no_aws: pytest.MonkeyPatch, why: Exception
) -> None:
    """STS, or the output of a credential_process. One line says why, and the old ones go on."""

    def renew() -> dict[str, str]:
        raise why

    role = RefreshableCredentials.create_from_metadata(fresh("OLD"), refresh_using=renew, method="test")
    no_aws.setattr(credentials, "find", lambda: role)
    no_aws.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    async with Script(FACTS, FACTS).serving(embedded=False, database_url="postgresql://db/x") as sqs:
        due(no_aws)
        with structlog.testing.capture_logs() as lines:
            await sqs.queue(URL)
            await until(lambda: asyncio.sleep(0, bool(lines)))
        await sqs.queue(URL)
        assert [line["event"] for line in lines] == ["aws.credentials.not_renewed"]
    no_aws.setattr(aws.Keys, "ours", None)  # as in another process
    error = await refused(lambda: Sqs.connect(REAL), "AwsMisconfigured")
    assert str(why) in error.message


async def test_what_is_forbidden_is_found_out_by_calls_that_do_nothing(queue: Queue) -> None:
    """Each asks for nothing; SQS refuses the request when we may make it, and us when we may not."""
    await queue.send([Outgoing("x")])
    assert await queue.forbidden() == []
    (message,) = await take(queue)
    assert (message.body, message.system.receive_count) == ("x", 1)
    async with Script(FACTS, *[fault(403, "AccessDenied")] * 4).serving() as sqs:
        denied = await (await sqs.queue(URL)).forbidden()
    assert [error.fix for error in denied] == [
        f"allow sqs:{action} on it"
        for action in ("ReceiveMessage", "SendMessage", "DeleteMessage", "ChangeMessageVisibility")
    ]


REFUSALS_OF_KMS = [
    ("KmsAccessDenied", "no", "KeyForbidden", "allow kms:Decrypt and kms:GenerateDataKey"),
    (
        "AccessDeniedException",
        "not authorized to perform: kms:GenerateDataKey",
        "KeyForbidden",
        "kms:Decrypt",
    ),
    (
        "AccessDenied",
        "You are not allowed (Service: AWSKMS; Status Code: 400)",
        "KeyForbidden",
        "kms:Decrypt",
    ),
    ("KmsDisabled", "the key is disabled", "KeyUnusable", "KmsMasterKeyId"),
    ("KmsInvalidState", "the key is pending deletion", "KeyUnusable", "KmsMasterKeyId"),
]


@pytest.mark.parametrize(("code", "message", "ours", "fix"), REFUSALS_OF_KMS)
async def test_a_refusal_of_kms_has_its_own_fix_in_calls_and_in_entries(
    code: str, message: str, ours: str, fix: str
) -> None:
    entry = {"Id": "0", "Code": code, "Message": message, "SenderFault": True}
    whole, part = fault(400, code, message), says(200, {"Failed": [entry]})
    async with Script(FACTS, whole, part).serving() as sqs:
        queue = await sqs.queue(URL)
        error = await refused(lambda: queue.send([Outgoing("x")]), ours)
        (result,) = await queue.send([Outgoing("x")])
    assert fix in error.fix
    assert message in error.message
    assert result.error == f"{code}: {message}"
    assert fix in result.fix


@pytest.mark.parametrize("ahead_s", [3600, -3600, 0])
async def test_what_time_it_is_by_its_clock(ahead_s: int) -> None:
    """Also where ours goes wrong by an hour."""
    theirs = datetime.now(UTC) + timedelta(seconds=ahead_s)

    async def dated(_: web.Request) -> web.StreamResponse:
        return web.json_response({}, headers={"Date": format_datetime(theirs, usegmt=True)})

    async with Script(FACTS, dated).serving() as sqs:
        queue = await sqs.queue(URL)
        await queue.attributes()
        assert abs((queue.now() - theirs).total_seconds()) < 5


async def test_an_answer_that_took_long_sets_no_clock_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a survey that begins then would leave out what was sent in the last seconds."""
    past_s = [10]  # before the answer came, which was dated in the middle

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Clock":
            return cls.fromtimestamp(time.time() - past_s[0], tz)

    async def slow(_: web.Request) -> web.StreamResponse:
        past_s[0] = 0
        halfway = datetime.now(UTC) - timedelta(seconds=5)
        return web.json_response({}, headers={"Date": format_datetime(halfway, usegmt=True)})

    async with Script(FACTS, slow).serving() as sqs:
        queue = await sqs.queue(URL)
        monkeypatch.setattr("genctl.edges.sqs.datetime", Clock)
        await queue.attributes()
        assert abs((queue.now() - datetime.now(UTC)).total_seconds()) < 1


@pytest.mark.parametrize("ahead_s", [3600, -3600])
async def test_a_clock_that_is_an_hour_off_signs_as_of_sqs_time(ahead_s: int) -> None:
    """SQS refuses what is signed too long ago or too far ahead; its answer tells its time."""
    asked: list[bool] = []

    async def strict(request: web.Request) -> web.StreamResponse:
        now = datetime.now(UTC) + timedelta(seconds=ahead_s)
        signed = datetime.strptime(request.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        asked.append(abs((now - signed).total_seconds()) < 300)
        date = {"Date": format_datetime(now, usegmt=True)}
        if asked[-1]:
            return web.json_response({"Attributes": {}}, headers=date)
        body = {"__type": "com.amazonaws.sqs#SignatureDoesNotMatch", "message": "Signature expired"}
        return web.json_response(body, status=403, headers=date)

    async with Script(*[strict] * 3).serving() as sqs:
        queue = Queue(sqs, URL)
        await queue.attributes()
        await queue.attributes()
    assert asked == [False, True, True]


@pytest.mark.parametrize("date", ["", "soon", "Tue, 24 Nov 2026 18:00:00 -0000"])
async def test_a_date_that_says_nothing_is_passed_over(date: str) -> None:
    async def dated(_: web.Request) -> web.StreamResponse:
        return web.json_response({}, headers={"Date": date})

    async with Script(FACTS, dated).serving() as sqs:
        queue = await sqs.queue(URL)
        await queue.attributes()
        assert abs((queue.now() - datetime.now(UTC)).total_seconds()) < 1

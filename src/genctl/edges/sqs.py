"""Talk to SQS in its JSON protocol: receive, send, delete, hide, in batches.

botocore finds credentials, region and endpoint, and signs; aiohttp sends. That takes a fraction of the CPU of
boto3 in threads.
"""

import asyncio
import contextlib
import hmac
import io
import math
import random
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Self, TypeVar

import aiohttp
import msgspec
import structlog

from genctl.base.batch import all_of
from genctl.base.durations import doubled_s
from genctl.base.settings import Settings
from genctl.domain.model import GenctlError
from genctl.edges import deadline, http
from genctl.edges.aws import ATTEMPTS, CA_VARIABLE, Keys, SqsEndpoint, signed
from genctl.edges.sqs_faults import EXPIRED, FORBIDDEN, HOLLOW, NOT_OURS, REFUSED, UNSIGNED, Refusal
from genctl.edges.sqs_shapes import (
    BATCH,
    MAX_BYTES,
    Attribute,
    Attributes,
    Deliveries,
    EntryAnswers,
    EntryResult,
    Message,
    Outgoing,
    QueueUrl,
)

T = TypeVar("T")

log = structlog.stdlib.get_logger()

SLOW_S = 2.0  # after so long without an answer we say what we wait for
TELL_EVERY_S = 30.0
LANES = 16  # batches at once, as each takes an open file
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # between attempts
CALL_TIMEOUT_S = 10.0
TICK = timedelta(seconds=1)
MAX_ATTRIBUTES = 10
GROUP_DIGITS = 32  # of a group's name
REGION = re.compile(  # of AWS's ARNs and URLs; the URLs of others name no region
    r"(?:arn:[a-z-]+:sqs:|https://(?:(?:queue|sqs(?:-fips)?)\.)?)([a-z]{2,}(?:-[a-z]+)+-\d)"
    r"(?::|\.(?:queue\.)?amazonaws\.|\.api\.aws/)"
)


class Sqs:
    """Hold one HTTP session to one SQS endpoint; an async context manager."""

    def __init__(self, where: SqsEndpoint, keys: Keys, settings: Settings) -> None:
        self.endpoint = where.endpoint
        self.settings = settings
        self._where = where
        self._keys = keys
        self._http = http.session(where.endpoint, tls=where.tls)
        self._headers = {"Content-Type": "application/x-amz-json-1.0"}
        if where.user_agent:
            self._headers["User-Agent"] = where.user_agent
        self._ahead = timedelta()  # of our clock
        self._told_at = -math.inf  # monotonic; when we last said that we wait

    @classmethod
    async def connect(cls, settings: Settings) -> Self:
        """Find endpoint, region and credentials; make no request yet.

        Raises GenctlError (exit 3) when credentials or region are missing.
        """
        where = await SqsEndpoint.of(settings)
        if own := where.own:
            keys = Keys(lambda: own)
            keys.look_up()
        else:
            keys = await Keys.of_process()
        return cls(where, keys, settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def queue(self, which: str) -> "Queue":
        """Look a queue up by its name, URL or ARN.

        Raises GenctlError (exit 3): not there, in another region, FIFO, forbidden, unreachable.
        """
        if which.endswith(".fifo"):  # SQS allows that name to FIFO queues alone
            raise GenctlError(
                "QueueIsFifo",
                f"SQS queue {which} is a FIFO queue",
                "use a standard queue: the session's row already orders and deduplicates",
            )
        self._check_region(which)
        is_url = which.startswith(("http://", "https://"))
        url = which.rstrip("/") if is_url else await self._url_of(which)
        facts = await Queue(self, url).attributes()
        most = int(facts.get("MaximumMessageSize", MAX_BYTES))
        return Queue(self, url, arn=facts.get("QueueArn", ""), max_bytes=most)

    def _check_region(self, which: str) -> None:
        """Raise GenctlError for a queue of another region, where SQS would find none, or a namesake."""
        named, here = REGION.match(which), self._where.region
        if named and named[1] != here and not self.settings.embedded:
            line = f"SQS queue {which} is in {named[1]}, and the AWS region here is {here}"
            raise GenctlError("QueueElsewhere", line, f"export AWS_DEFAULT_REGION={named[1]}")

    async def _url_of(self, which: str) -> str:
        """Ask for the URL of a name, or of an ARN, whose queue may be another account's."""
        *_, account, name = which.rsplit(":", 2) if which.startswith("arn:") else ("", which)
        owner: dict[str, Any] = {"QueueOwnerAWSAccountId": account} if account else {}
        try:
            return (await self.call("GetQueueUrl", QueueUrl, name, QueueName=name, **owner)).queue_url
        except GenctlError as error:
            if not self.settings.embedded or error.code != "QueueNotFound":
                raise
            fix = "stop `genctl up` and start it again: it makes those that `genctl tools` lists"
            raise GenctlError(error.code, error.message, fix) from None

    def now(self) -> datetime:
        """Tell the time by SQS's clock, from its last answer; if ours is wrong, up to a second late."""
        return datetime.now(UTC) + self._ahead

    def _compare_clocks(self, date: str, asked_at: datetime) -> None:
        """Note how far ahead SQS is. A Date is rounded down to seconds, and may be as old as the call."""
        with contextlib.suppress(ValueError, TypeError):  # no date, or one without a zone
            told, now = parsedate_to_datetime(date), datetime.now(UTC)
            ahead = told - min(max(told, asked_at), now)
            self._ahead = ahead + TICK if abs(ahead) > 2 * TICK else timedelta()

    async def call(self, op: str, shape: type[T], about: str, *, patience_s: float = 0, **body: Any) -> T:
        """Make one call; try again after throttling, 5xx and lost connections. Raises GenctlError (exit 3).

        SQS may take `patience_s` longer than usual. It does not try a receive again that has timed out: SQS
        hides the messages of that one, and another would hide more.
        """
        data = msgspec.json.encode(body)
        most_s = max(CALL_TIMEOUT_S, self._where.connect_s) + patience_s
        timeout = aiohttp.ClientTimeout(total=most_s, sock_connect=self._where.connect_s)
        loop = asyncio.get_running_loop()
        better = False  # whether we have signed a later try better than the first
        for attempt in range(1, self._where.attempts + 1):
            signed_by = self._keys.frozen
            slow = loop.call_later(SLOW_S + patience_s, self._tell_slow, op, about)
            try:
                status, answer = await self._post(op, data, timeout)
            except (aiohttp.ClientError, ValueError) as lost:  # the latter for a login in the endpoint's URL
                error = self._unreachable(about, *http.unreachable(lost, self.endpoint, CA_VARIABLE))
            except TimeoutError:
                silent = f"{op}: no answer within {timeout.total:g} s"
                error = self._unreachable(about, *http.unreachable(silent, self.endpoint))
                if op == "ReceiveMessage":
                    raise error from None
            else:
                if status == 200:
                    return self._read(answer, shape, about)
                refusal = Refusal.of(status, answer)
                error = self._refused(refusal, op, about)
                if not better and (better := await self._signs_better(refusal, signed_by)):
                    continue
                if not refusal.transient:
                    raise error
            finally:
                slow.cancel()
            if attempt < self._where.attempts:
                await pause(attempt)
        raise error

    def _tell_slow(self, op: str, about: str) -> None:
        """Say what we wait for, so that nobody looks at a process that says nothing."""
        if time.monotonic() - self._told_at < TELL_EVERY_S:
            return
        self._told_at = time.monotonic()
        log.warning("sqs.slow", queue=about, endpoint=self.endpoint, call=op)
        if command := deadline.current.get():
            command.note(f"waiting for SQS queue {about} at {self.endpoint}")

    async def _signs_better(self, refusal: Refusal, signed_by: object) -> bool:
        """Tell whether we will sign the next try by SQS's time, or with other credentials."""
        if refusal.code in UNSIGNED and self._ahead:
            log.warning("sqs.clock.wrong", aheadS=round(self._ahead.total_seconds()))
            return True
        if refusal.code in (*EXPIRED, *NOT_OURS):
            await self._keys.look_again()
        return self._keys.frozen != signed_by

    async def _post(self, op: str, data: bytes, timeout: aiohttp.ClientTimeout) -> tuple[int, bytes]:
        target = {**self._headers, "X-Amz-Target": f"AmazonSQS.{op}"}
        asked_at = datetime.now(UTC)
        async with self._http.post(
            self.endpoint,
            data=io.BytesIO(data),
            headers=signed(self._where, self._keys, data, target, self.now()),
            timeout=timeout,
            allow_redirects=False,
        ) as answer:
            self._compare_clocks(answer.headers.get("Date", ""), asked_at)
            return answer.status, await answer.read()

    def _read(self, answer: bytes, shape: type[T], about: str) -> T:
        try:
            return msgspec.json.decode(answer or b"{}", type=shape, strict=False)
        except msgspec.DecodeError as why:
            said = "a page of HTML" if answer.lstrip().startswith(b"<") else str(why)
            raise self._unreachable(about, f"the answer is not SQS's ({said})") from None

    def _refused(self, refusal: Refusal, op: str, about: str) -> GenctlError:
        if not refusal.is_foreign:
            return refusal.error(op, about, self.endpoint)
        said = f"the answer is {refusal.status} and not SQS's"
        return self._unreachable(about, *http.unreachable(said, self.endpoint))

    def _unreachable(self, about: str, why: str, fix: str | None = None) -> GenctlError:
        line = f"SQS queue {about} cannot be reached at {self.endpoint}: {why}"
        return GenctlError(
            "QueueUnreachable", line, fix or "check the network, the AWS region and AWS_ENDPOINT_URL_SQS"
        )


class Queue:
    """Send to and receive from a standard queue; batch calls return a result for each item, in order."""

    def __init__(self, sqs: Sqs, url: str, *, arn: str = "", max_bytes: int = MAX_BYTES) -> None:
        """Name the queue; `max_bytes` bounds a message and a batch.

        With `fair` in the settings, messages get a group: a hash of their user with the settings' secret.
        """
        self.url = url
        self.name = url.rpartition("/")[2]
        self.arn = arn
        self.max_bytes = max_bytes
        self.takes_groups = sqs.settings.fair  # until the endpoint refuses one
        self._sqs = sqs
        secret = (sqs.settings.secret or arn).encode()
        self._group_key = hmac.digest(secret, b"genctl message groups", "sha256")

    def now(self) -> datetime:
        """Tell the time by SQS's clock."""
        return self._sqs.now()

    async def attributes(self) -> dict[str, str]:
        """Read all attributes, as SQS names them."""
        return (await self._call("GetQueueAttributes", Attributes, AttributeNames=["All"])).attributes

    async def depth(self) -> tuple[int, int, int]:
        """Count the messages that wait, those in flight and the delayed ones, as roughly as SQS does."""
        facts = await self.attributes()
        waiting, in_flight, delayed = (
            int(facts.get(f"ApproximateNumberOfMessages{kind}", 0)) for kind in ("", "NotVisible", "Delayed")
        )
        return waiting, in_flight, delayed

    async def receive(self, limit: int, *, wait_s: int, visibility_s: int) -> list[Message]:
        """Receive at most ten messages; wait up to 20 s. Never cancel it, as SQS would hide what it found."""
        answer = await self._call(
            "ReceiveMessage",
            Deliveries,
            patience_s=wait_s,
            MaxNumberOfMessages=min(limit, BATCH),
            WaitTimeSeconds=wait_s,
            VisibilityTimeout=visibility_s,
            MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp", "MessageGroupId"],
            MessageAttributeNames=["All"],
        )
        return answer.messages or []

    async def send(self, out: Sequence[Outgoing]) -> list[EntryResult]:
        """Send these; if a call has to be repeated, SQS may send some twice.

        Sends those that are refused again at once without their groups, as not every endpoint takes these.
        """
        grouped, results = self.takes_groups, await self._sent(out)
        refused = [i for i, one in enumerate(out) if one.user is not None and results[i].is_refused]
        if not (grouped and refused):
            return results
        again = await self._sent([msgspec.structs.replace(out[i], user=None) for i in refused])
        if self.takes_groups and any(result.error is None for result in again):
            self.takes_groups = False
            facts = {"queue": self.name, "error": results[refused[0]].error}
            log.warning("sqs.groups.refused", **facts, fix="set GENCTL_FAIR=off")
        for i, result in zip(refused, again, strict=True):
            results[i] = result
        return results

    async def _sent(self, out: Sequence[Outgoing]) -> list[EntryResult]:
        sized = [_entry(one, self.max_bytes, self._group_of(one.user)) for one in out]
        entries, sizes = zip(*sized, strict=True) if sized else ((), ())
        return await self._batches("SendMessageBatch", entries, sizes)

    def _group_of(self, user: str | None) -> str | None:
        """Name the user's group: who lacks the key cannot tell whose it is."""
        if user is None or not self.takes_groups:
            return None
        digest = hmac.digest(self._group_key, user.encode(errors="surrogatepass"), "sha256")
        return digest.hex()[:GROUP_DIGITS]

    async def delete(self, receipts: Sequence[str]) -> list[str | None]:
        """Delete deliveries; return None for each, or why SQS did not."""
        results = await self._batches("DeleteMessageBatch", [{"ReceiptHandle": r} for r in receipts])
        return [result.error for result in results]

    async def hide(self, items: Sequence[tuple[str, int]]) -> list[str | None]:
        """Hide deliveries for so many seconds from now, at most 12 h; 0 shows them at once."""
        entries = [{"ReceiptHandle": receipt, "VisibilityTimeout": s} for receipt, s in items]
        return [result.error for result in await self._batches("ChangeMessageVisibilityBatch", entries)]

    async def dead_letter_queue(self, configured: str | None) -> "Queue":
        """Find the configured DLQ, else the one of the redrive policy, else `<queue>-dlq`."""
        if configured:
            return await self._sqs.queue(configured)
        policy = (await self.attributes()).get("RedrivePolicy")
        name = f"{self.name}-dlq"
        if policy:
            name = msgspec.json.decode(policy)["deadLetterTargetArn"].rpartition(":")[2]
        return await self._sqs.queue(f"{self.url.rpartition('/')[0]}/{name}")  # same account, same region

    async def forbidden(self) -> list[GenctlError]:
        """Find the rights to receive, send, delete and hide that we lack here, by calls that do nothing."""

        async def asked(op: str) -> GenctlError | None:
            try:
                await self._call(op, msgspec.Raw, **HOLLOW[op])
            except GenctlError as error:
                return error if error.code == FORBIDDEN else None
            return None

        return [error for error in await asyncio.gather(*map(asked, HOLLOW)) if error]

    async def _call(self, op: str, shape: type[T], *, patience_s: float = 0, **body: Any) -> T:
        return await self._sqs.call(op, shape, self.name, patience_s=patience_s, QueueUrl=self.url, **body)

    async def _batches(
        self, op: str, entries: Sequence[dict[str, Any]], sizes: Sequence[int] | None = None
    ) -> list[EntryResult]:
        parts = [entries[part] for part in _parts(sizes or [0] * len(entries), self.max_bytes)]
        lanes = asyncio.Semaphore(LANES)

        async def carried_out(part: Sequence[dict[str, Any]]) -> list[EntryResult]:
            async with lanes:
                return await self._batch(op, part)

        return [result for part in await all_of(map(carried_out, parts)) for result in part]

    async def _batch(self, op: str, entries: Sequence[dict[str, Any]]) -> list[EntryResult]:
        """Carry out at most ten entries; try those again for which SQS itself failed."""
        results = dict.fromkeys(range(len(entries)), EntryResult("SQS left it out of its answer"))
        pending = list(results)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = await self._call(
                    op, EntryAnswers, Entries=[{"Id": str(i), **entries[i]} for i in pending]
                )
            except GenctlError as why:
                if why.code != REFUSED:
                    raise
                if len(pending) == 1:
                    results[pending[0]] = EntryResult(why.message, fix=why.fix, is_refused=True)
                    break
                # one bad entry must not fail nine good ones
                results.update({i: (await self._batch(op, [entries[i]]))[0] for i in pending})
                break
            results.update({d.id: EntryResult(None, d.message_id) for d in answer.successful or ()})
            failed = [f for f in answer.failed or () if f.id in results]
            for f in failed:
                refused = Refusal(200, f.code, f.message or "").entry(op)
                results[f.id] = refused._replace(is_refused=f.sender_fault)
            pending = [f.id for f in failed if not f.sender_fault]
            if not pending:
                break
            if attempt < ATTEMPTS:
                await pause(attempt)
        return [results[i] for i in range(len(entries))]


async def pause(attempt: int) -> None:
    """Wait before the next attempt."""
    await asyncio.sleep(random.random() * doubled_s(FIRST_PAUSE_S, attempt, LONGEST_PAUSE_S))  # noqa: S311


# --- pure ------------------------------------------------------------------------------------

_NOT_IN_SQS = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _entry(out: Outgoing, max_bytes: int, group: str | None) -> tuple[dict[str, Any], int]:
    """Make a batch entry without the attributes that do not fit, and its size as SQS counts it."""
    size = len(out.body.encode())
    attributes: dict[str, dict[str, str]] = {}
    for name, given in out.attributes.items():
        one = Attribute(string_value=given) if isinstance(given, str) else given
        text, binary = _NOT_IN_SQS.sub("\ufffd", one.string_value or ""), one.binary_value or ""
        if not text and not binary:
            continue  # SQS refuses empty values
        more = sum(len(part.encode()) for part in (name, one.data_type, text)) + len(binary) * 3 // 4
        if len(attributes) == MAX_ATTRIBUTES or size + more > max_bytes:
            break
        value = {"StringValue": text} if text else {"BinaryValue": binary}
        attributes[name] = {"DataType": one.data_type, **value}
        size += more
    grouped = {"MessageGroupId": group} if group else {}
    return {"MessageBody": out.body, "MessageAttributes": attributes, **grouped}, size


def _parts(sizes: Sequence[int], max_bytes: int) -> Iterator[slice]:
    """Cut entries into batches: at most ten, at most `max_bytes` together."""
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and (i - start == BATCH or total + size > max_bytes):
            yield slice(start, i)
            start, total = i, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))

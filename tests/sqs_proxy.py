"""Stands before an SQS server: plays faults from a script, and is as strict as AWS where moto is not.

Enforced are the limits of attributes, sizes, batches and time-outs, and what becomes of a receipt handle once
its message was received again. A request that AWS would refuse is refused, and kept in `violations`.
"""

import io
import json
import re
import time
from typing import Any, NamedTuple
from uuid import uuid4

import aiohttp
from aiohttp import web
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.kit import QueueServer
from tests.script import ANY, Planned, Script, hang_up, hold

MAX_BYTES = 1_048_576
LONGEST_HIDE_S = 43_200
_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_NAME = re.compile(r"(?!(?i:aws\.|amazon\.))(?!.*\.\.)[A-Za-z0-9_-]([A-Za-z0-9_.-]{0,254}[A-Za-z0-9_-])?")
_NOT_ALLOWED = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
TYPE = "application/x-amz-json-1.0"


class Flight(NamedTuple):
    """The newest delivery of a message, and until when it hides the message."""

    queue_url: str
    receipt: str
    body: str
    visible_at: float


class SqsProxy:
    """One before one server.

    Steps: `poll` (a receive, before it is known what it brings), `receive` (what it has brought), `send`,
    `copy` (a send to the DLQ), `delete`, `hide`.
    """

    def __init__(self, server: QueueServer, script: Script) -> None:
        self.violations: list[str] = []
        self.stale: list[str] = []  # deletes and hides whose receipt was not the newest
        self.flights: dict[str, Flight] = {}  # by message id
        self._message_of: dict[str, str] = {}  # by receipt
        self._server = server
        self._script = script

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One call, as SQS answers it or as the script wants it; of several wishes it may be but one."""
        taken: list[Planned] = []
        try:
            return await self._answered(request, taken)
        finally:
            self._script.give_back(taken)

    async def _answered(self, request: web.Request, taken: list[Planned]) -> web.StreamResponse:
        op = request.headers["X-Amz-Target"].rpartition(".")[2]
        said: dict[str, Any] = json.loads(await request.read())
        if why := violation(op, said):
            self.violations.append(f"{op}: {why}")
            return _error(400, "InvalidParameterValue", why)
        about = [self._about(entry) for entry in said.get("Entries", ())] or [ANY]
        step = _step(op, said.get("QueueUrl", ""))
        taken += [found for text in about if (found := self._script.take(step, text))]
        for found in taken:
            match found.act:
                case "503":
                    self._script.done(found)
                    return _error(503, "ServiceUnavailable", "the script wants it so")
                case "drop before" | "hold before":
                    self._script.done(found)
                    return await (hang_up if found.act == "drop before" else hold)(request)
        answer = await self._carry_out(op, said, taken)
        if answer.get("Messages"):
            await self._delivered(said, answer["Messages"], taken)
        for found in (after := [found for found in taken if found.act.endswith("after")]):
            self._script.done(found)
        if after:
            return await (hang_up if after[0].act == "drop after" else hold)(request)
        status = 400 if "__type" in answer else 200
        return web.Response(status=status, body=json.dumps(answer).encode(), content_type=TYPE)

    async def _delivered(
        self, said: dict[str, Any], messages: list[dict[str, Any]], taken: list[Planned]
    ) -> None:
        """Take what was planned for the receive of these messages; one to come twice is there twice."""
        while found := self._script.take("receive", " ".join(message["Body"] for message in messages)):
            taken.append(found)
            if found.act == "deliver twice":
                messages += await self._again(said, found.session)
                self._script.done(found)
        if any(found.act == "drop after" for found in taken):  # nobody got them: hidden, but for no time
            for message in messages:
                await self._show(self.flights[message["MessageId"]])

    def _about(self, entry: dict[str, Any]) -> str:
        """The body of the message that an entry is about: it names the session."""
        if "MessageBody" in entry:
            return str(entry["MessageBody"])
        flight = self.flights.get(self._message_of.get(entry["ReceiptHandle"], ""))
        return flight.body if flight else ""

    async def _carry_out(self, op: str, said: dict[str, Any], taken: list[Planned]) -> dict[str, Any]:
        """What SQS answers, after the entries that it does not get: the script's, and the stale ones."""
        done: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        passed = []
        for entry in said.get("Entries", ()):
            about = self._about(entry)
            act = next((found for found in taken if found.session in about), None)
            if act and act.act in ("fail the entry", "refuse the entry"):
                blame = act.act == "refuse the entry"
                code = "InvalidMessageContents" if blame else "InternalError"
                failed.append({"Id": entry["Id"], "SenderFault": blame, "Code": code, "Message": "scripted"})
                self._script.done(act)
            elif act and act.act == "deliver late":  # SQS may deliver what it has deleted
                done.append({"Id": entry["Id"]})
                self._script.done(act)
            elif "ReceiptHandle" in entry and (why := self._why_stale(op, entry["ReceiptHandle"])):
                self.stale.append(f"{op}: {about}")
                if op == "DeleteMessageBatch":  # AWS says yes, and does nothing
                    done.append({"Id": entry["Id"]})
                else:
                    failed.append({"Id": entry["Id"], "SenderFault": True, "Code": why, "Message": why})
            else:
                passed.append(entry)
        if "Entries" in said:
            if not passed:
                return {"Successful": done, "Failed": failed}
            said = said | {"Entries": passed}
        answer = await self.ask(op, said)
        self._note(op, said, answer)
        if done or failed:
            answer["Successful"] = [*(answer.get("Successful") or ()), *done]
            answer["Failed"] = [*(answer.get("Failed") or ()), *failed]
        return answer

    def _why_stale(self, op: str, receipt: str) -> str | None:
        flight = self.flights.get(self._message_of.get(receipt, ""))
        if flight is None or flight.receipt != receipt:
            return "InvalidParameterValue"
        return "MessageNotInflight" if op != "DeleteMessageBatch" and _now() > flight.visible_at else None

    def _note(self, op: str, said: dict[str, Any], answer: dict[str, Any]) -> None:
        done = {str(fate["Id"]) for fate in answer.get("Successful") or ()}
        for entry in said.get("Entries", ()):
            message_id = self._message_of.get(entry.get("ReceiptHandle", ""), "")
            if entry["Id"] in done and message_id:
                if op == "DeleteMessageBatch":
                    del self.flights[message_id]
                else:
                    until = _now() + entry["VisibilityTimeout"]
                    self.flights[message_id] = self.flights[message_id]._replace(visible_at=until)
        for message in answer.get("Messages") or ():
            until = _now() + said.get("VisibilityTimeout", 30)
            flight = Flight(said["QueueUrl"], message["ReceiptHandle"], message["Body"], until)
            self.flights[message["MessageId"]] = flight
            self._message_of[flight.receipt] = message["MessageId"]

    async def _again(self, said: dict[str, Any], session: str) -> list[dict[str, Any]]:
        """The session's message, delivered once more under a receipt of its own."""
        first = next(flight for flight in self.flights.values() if session in flight.body)
        await self._show(first)
        messages: list[dict[str, Any]] = []
        while not any(session in message["Body"] for message in messages):
            answer = await self.ask("ReceiveMessage", said | {"MaxNumberOfMessages": 1, "WaitTimeSeconds": 0})
            self._note("ReceiveMessage", said, answer)
            messages += answer["Messages"]
        return messages

    async def _show(self, flight: Flight) -> None:
        """Its message can be received at once."""
        shown = {"QueueUrl": flight.queue_url, "ReceiptHandle": flight.receipt, "VisibilityTimeout": 0}
        await self.ask("ChangeMessageVisibility", shown)

    async def ask(self, op: str, said: dict[str, Any]) -> dict[str, Any]:
        """One call of the server itself."""
        url, data = f"http://127.0.0.1:{self._server.port}/", json.dumps(said).encode()
        headers = {"Content-Type": TYPE, "X-Amz-Target": f"AmazonSQS.{op}"}
        signed = AWSRequest(method="POST", url=url, data=data, headers=headers)
        keys = Credentials(self._server.key, self._server.secret)
        SigV4Auth(keys, "sqs", "us-east-1").add_auth(signed)
        async with (
            aiohttp.ClientSession() as client,
            client.post(url, data=io.BytesIO(data), headers=dict(signed.headers)) as answer,
        ):
            text = await answer.read()
        found: dict[str, Any] = json.loads(text or b"{}")
        return found


def _now() -> float:
    return time.monotonic()


def _step(op: str, queue_url: str) -> str:
    if op == "SendMessageBatch":
        return "copy" if queue_url.endswith("-dlq") else "send"
    steps = {"ReceiveMessage": "poll", "DeleteMessageBatch": "delete"}
    return steps.get(op, "hide" if op == "ChangeMessageVisibilityBatch" else op)


def _error(status: int, code: str, message: str) -> web.Response:
    text = json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": message, "id": str(uuid4())})
    return web.Response(status=status, body=text.encode(), content_type=TYPE)


# --- AWS's limits ----------------------------------------------------------------------------


def violation(op: str, said: dict[str, Any]) -> str | None:
    """What AWS would refuse the request for."""
    if op.endswith("Batch"):
        ids = [str(entry.get("Id", "")) for entry in said.get("Entries", ())]
        if not 1 <= len(ids) <= 10:
            return f"a batch of {len(ids)} entries"
        if len(set(ids)) < len(ids) or not all(map(_ID.fullmatch, ids)):
            return f"ids that are not distinct, or none: {ids}"
        if (size := sum(map(_size, said["Entries"]))) > MAX_BYTES:
            return f"a batch of {size} bytes"
    for name, least, most in (
        ("MaxNumberOfMessages", 1, 10), ("WaitTimeSeconds", 0, 20), ("DelaySeconds", 0, 900),
        ("VisibilityTimeout", 0, LONGEST_HIDE_S),
    ):  # fmt: skip
        for item in (said, *said.get("Entries", ())):
            value = item.get(name, least)
            if not isinstance(value, int) or not least <= value <= most:
                return f"{name} is {value!r}"
    return next((why for entry in _outgoing(said) if (why := _message_violation(entry))), None)


def _outgoing(said: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in (said, *said.get("Entries", ())) if "MessageBody" in item]


def _message_violation(entry: dict[str, Any]) -> str | None:
    attributes = entry.get("MessageAttributes") or {}
    texts = [entry["MessageBody"], *(value.get("StringValue", "-") for value in attributes.values())]
    if len(attributes) > 10:
        return f"{len(attributes)} message attributes"
    if (size := _size(entry)) > MAX_BYTES:
        return f"a message of {size} bytes"
    if not all(texts) or any(map(_NOT_ALLOWED.search, texts)):
        return "a text that is empty or has characters that are not allowed"
    bad = [name for name, value in attributes.items() if not (_NAME.fullmatch(name) and value["DataType"])]
    return f"attributes with a bad name, or no type: {bad}" if bad else None


def _size(entry: dict[str, Any]) -> int:
    size = len(entry.get("MessageBody", "").encode(errors="surrogatepass"))
    for name, value in (entry.get("MessageAttributes") or {}).items():
        content = value.get("StringValue", value.get("BinaryValue", "")).encode(errors="surrogatepass")
        size += len(name.encode()) + len(value["DataType"].encode()) + len(content)
    return size

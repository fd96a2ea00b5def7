"""A small deployment of the contract that is not genctl: one process, base-shape tables, plain code.

It shares nothing with genctl, so that what judges it relies on the contract alone. `fault` is the one thing
that it does wrong; the table in test_foreign.py says what the judge must make of it.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import jwt
import psycopg
from aiohttp import web
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

PRICE = 4
BASE = "/api/seedream4"
SCHEMA = """
create table generation_sessions (
  id uuid primary key, user_id text, client_key text, model text, prompt text, params jsonb, status text,
  reservation_id uuid, result jsonb, created_at timestamptz, completed_at timestamptz, error_details jsonb);
create table credit_accounts (user_id text primary key, balance bigint check (balance >= 0));
create table credit_reservations (
  id uuid primary key, user_id text, amount bigint, status text, created_at timestamptz,
  released_at timestamptz, captured_at timestamptz);
"""
PAY = (
    "update credit_accounts set balance = balance - %s where user_id = %s and balance >= %s returning balance"
)
INSERT = """
insert into generation_sessions
values (%s, %s, %s, 'seedream-4-0-250828', %s, null, 'queued', %s, null, now())"""
MESSAGE = "The request failed because the output image may contain sensitive information."
REQUEST_ID = "021762081337123" + "ab" * 19
BODY = {"error": {"code": "OutputImageSensitiveContentDetected", "message": MESSAGE, "type": "BadRequest"}}

SPOILT: dict[str, dict[str, Any]] = {"a refund that is only told": {"refundedCredits": PRICE + 1}}


class Foreign:
    """`sqs` is a boto3 client."""

    def __init__(self, dsn: str, sqs: Any, queue: str, dlq: str, secret: str, fault: str | None) -> None:
        self.dsn, self.sqs, self.queue, self.dlq, self.secret = dsn, sqs, queue, dlq, secret
        self.fault = fault
        self.url = ""
        self.conn: psycopg.AsyncConnection[dict[str, Any]]
        self.column = "error_details"
        self.streams: list[tuple[str, asyncio.Queue[str]]] = []
        self.sent, self.turn = asyncio.Event(), asyncio.Lock()
        self.later: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Foreign"]:
        self.conn = await psycopg.AsyncConnection.connect(self.dsn, row_factory=dict_row)
        app = web.Application()
        app.add_routes([
            web.post(f"{BASE}/generations", self.order),
            web.get(f"{BASE}/sessions/{{id}}", self.session),
            web.get(f"{BASE}/credits", self.credits),
            web.get(f"{BASE}/events", self.events),
        ])  # fmt: skip
        runner = web.AppRunner(app, shutdown_timeout=0.01)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self.later = [asyncio.create_task(self.work())] if self.fault != "no worker" else []
        try:
            yield self
        finally:
            for task in self.later:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await runner.cleanup()
            await self.conn.close()

    async def sql(self, *statements: tuple[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
        """All in one transaction; the rows of the last, empty as soon as one has none."""
        async with self.turn, self.conn.transaction():
            rows: list[dict[str, Any]] = []
            for text, params in statements:
                cursor = await self.conn.execute(text.encode(), params)
                rows = await cursor.fetchall() if cursor.description else [{}]
                if not rows:
                    break
            return rows

    # -- the API ----------------------------------------------------------------------------------

    def user(self, request: web.Request) -> str:
        try:
            token = request.headers["Authorization"].removeprefix("Bearer ")
            return str(jwt.decode(token, self.secret, ["HS256"])["sub"])
        except (KeyError, jwt.InvalidTokenError):
            raise web.HTTPUnauthorized from None

    async def order(self, request: web.Request) -> web.Response:
        user, wanted = self.user(request), await request.json()
        session, reservation = uuid4(), uuid4()
        if self.fault == "not accepted":
            raise web.HTTPInternalServerError
        if self.fault == "the order hangs":
            await asyncio.sleep(3600)
        paid = self.fault == "accepted without a row" or await self.sql(
            (PAY, (PRICE, user, PRICE)),
            ("insert into credit_reservations values (%s, %s, %s, 'held', now())", (reservation, user, PRICE)),
            (INSERT, (session, user, wanted["clientKey"], wanted["prompt"], reservation)),
        )  # fmt: skip
        if not paid:
            return web.json_response({"error": "not enough credits"}, status=402)
        if self.fault not in {"not enqueued", "accepted without a row"}:
            await self.send(self.queue, self.job(session))
            self.sent.set()
        answer = {
            "sessionId": str(session),
            "reservationId": str(reservation),
            "clientKey": wanted["clientKey"],
            "status": "queued",
        }
        return web.json_response(answer, status=202)

    async def session(self, request: web.Request) -> web.Response:
        user, session = self.user(request), UUID(request.match_info["id"])
        found = await self.sql(("select * from generation_sessions where id = %s", (session,)))
        if not found or (found[0]["user_id"] != user and self.fault != "another user's GET"):
            raise web.HTTPNotFound
        return web.json_response({"sessionId": str(session), "status": found[0]["status"]})

    async def credits(self, request: web.Request) -> web.Response:
        rows = await self.sql(
            ("select balance from credit_accounts where user_id = %s", (self.user(request),))
        )
        return web.json_response({"balance": rows[0]["balance"] if rows else 0, "held": 0})

    async def events(self, request: web.Request) -> web.StreamResponse:
        user, events = self.user(request), asyncio.Queue[str]()
        if self.fault == "no stream":
            raise web.HTTPNotFound
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if self.fault != "a stream that hangs":
            await response.write(b"event: ready\nid: 1\ndata: {}\n\n")
            self.streams.append((user, events))
        while True:
            await response.write((await events.get()).encode())

    # -- the worker -------------------------------------------------------------------------------

    @staticmethod
    def job(session: UUID) -> str:
        return json.dumps({"version": 1, "tool": "seedream4", "sessionId": str(session), "run": 1})

    async def send(self, queue: str, body: str, **attributes: object) -> None:
        texts = {
            name: {"DataType": "String", "StringValue": str(value)} for name, value in attributes.items()
        }
        await asyncio.to_thread(
            self.sqs.send_message, QueueUrl=queue, MessageBody=body, MessageAttributes=texts
        )

    async def work(self) -> None:
        while await self.sent.wait():
            self.sent.clear()
            got = await asyncio.to_thread(self.sqs.receive_message, QueueUrl=self.queue)
            for message in got.get("Messages", ()):
                (row,) = await self.sql((
                    "update generation_sessions set status = 'processing' where id = %s returning *",
                    (UUID(json.loads(message["Body"])["sessionId"]),),
                ))  # fmt: skip
                if self.fault != "never settled":
                    await self.settle(row, message)

    async def settle(self, row: dict[str, Any], message: dict[str, Any]) -> None:
        session, fault = row["id"], self.fault
        if fault == "the provider makes the image" or "nudity" not in row["prompt"]:
            await self.sql(
                ("update generation_sessions set status = 'completed', completed_at = now() where id = %s", (session,)),
                ("update credit_reservations set status = 'captured', captured_at = now() where id = %s",
                 (row["reservation_id"],)),
            )  # fmt: skip
            return
        details, payload = self.details(), self.payload(row)
        if fault == "NOTIFY before the commit":
            await self.sql(("select pg_notify('session_completed', %s)", (payload,)))
            await asyncio.sleep(0.2)
        back = {
            "no refund": 0, "a double refund": 2 * PRICE, "a wrong amount": PRICE - 1, "still held": 0
        }.get(str(fault), PRICE)  # fmt: skip
        steps: list[tuple[str, tuple[Any, ...]]] = [
            ("update credit_reservations set status = 'released', released_at = now() where id = %s and %s",
             (row["reservation_id"], fault != "still held")),
            ("update credit_accounts set balance = balance + %s where user_id = %s", (back, row["user_id"])),
            (f"update generation_sessions set status = 'failed', completed_at = %s, {self.column} = %s where id = %s",
             (None if fault == "no completed_at" else datetime.now(UTC), Jsonb(details), session)),
        ]  # fmt: skip
        if fault not in {"no NOTIFY", "NOTIFY before the commit"}:
            steps.append(("select pg_notify('session_completed', %s)", (payload,)))
        await self.sql(*steps)
        if fault == "a double refund that comes late":
            self.later.append(asyncio.create_task(self.refund_again(row["user_id"])))
        self.tell(row, details)
        if fault != "no DLQ copy":
            await self.copy(message, session)
        await asyncio.to_thread(
            self.sqs.delete_message, QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"]
        )

    async def refund_again(self, user: str) -> None:
        await asyncio.sleep(0.1)
        await self.sql(
            ("update credit_accounts set balance = balance + %s where user_id = %s", (PRICE, user))
        )

    def details(self) -> dict[str, Any] | None:
        now = datetime.now(UTC).isoformat()
        details: dict[str, Any] = {
            "providerStatus": 400, "providerCode": BODY["error"]["code"],
            "providerMessage": f"{MESSAGE} Request id: {REQUEST_ID}", "userMessage": MESSAGE,
            "providerBody": json.dumps(BODY), "code": BODY["error"]["code"], "category": "content_policy",
            "fatal": True, "outcome": "refused", "attempts": 1, "maxAttempts": 3, "firstAttemptAt": now,
            "failedAt": now, "reservationAmount": PRICE, "refundedCredits": PRICE, "refundedAt": now,
            "refundError": None, "requestId": REQUEST_ID, "provider": "ark",
        }  # fmt: skip
        if self.fault == "our own key left in":
            details["providerBody"] = f"got {self.secret}"
        if self.fault == "keys missing":
            del details["outcome"], details["requestId"]
        details |= SPOILT.get(str(self.fault), {})
        return None if self.fault == "no details" else details

    def payload(self, row: dict[str, Any]) -> str:
        said = {
            "user_id": row["user_id"],
            "reservation_id": str(row["reservation_id"]),
            "session_id": str(row["id"]),
            "status": "failed",
        }
        match self.fault:
            case "a payload with other keys":
                return json.dumps({"sessionId": said["session_id"], "userId": said["user_id"]})
            case "a payload without the session":
                return json.dumps({"status": "failed"})
        return json.dumps(said)

    def tell(self, row: dict[str, Any], details: dict[str, Any] | None) -> None:
        data = {"sessionId": str(row["id"]), "clientKey": row["client_key"], "status": "failed"}
        data |= {"model": row["model"], "run": 1}
        if self.fault != "an event without details":
            data["error_details"] = details
        for user, events in self.streams:
            if user == row["user_id"] and self.fault == "no event":
                continue
            if user == row["user_id"] or self.fault == "another user's stream":
                head = "" if self.fault == "an event without an id" else "id: 2\n"
                events.put_nowait(f"event: failed\n{head}data: {json.dumps(data)}\n\n")

    async def copy(self, message: dict[str, Any], session: UUID) -> None:
        attributes: dict[str, Any] = {"code": BODY["error"]["code"], "category": "content_policy"}
        attributes |= {"sessionId": session, "run": 1, "attempts": 1, "providerStatus": 400}
        body = message["Body"]
        match self.fault:
            case "a bare DLQ copy":
                attributes = {}
            case "a changed DLQ body":
                body = json.dumps({"message": json.loads(body), "why": MESSAGE})
        await self.send(self.dlq, body, **attributes)

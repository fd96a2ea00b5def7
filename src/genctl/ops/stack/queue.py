"""Serve SQS in memory, by moto, to holders of the stack's key; everyone else gets 403.

`python -m genctl.ops.stack.queue --port N --queue NAME --dlq NAME`, the key in AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY. moto's own server needs 40 more packages, and its werkzeug closes each connection and
waits 10 ms after each answer; this one keeps connections alive.
"""

import argparse
import json
import os
import secrets
import socket
import socketserver
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler
from typing import Any

from moto.core import responses, utils
from moto.core.request import Request
from moto.sqs import models
from moto.sqs.responses import SQSResponse

from genctl.ops.stack.sigv4 import is_signed
from genctl.services.listening import listening

ACCOUNT, REGION = "123456789012", "us-east-1"
MAX_RECEIVES = 50  # SQS counts a receive also when a worker gives the message back or dies
DLQ_RETENTION_S = 14 * 24 * 3600
LONGEST_POLL_S = 1  # so that a worker that stops between two polls stops soon
MAX_BODY_BYTES = 8 * 1024 * 1024  # a batch of 1 MiB, all of it escaped


# moto asks datetime for the time once for each message at each call, spells the names of all attributes anew,
# looks for its own methods, and draws ids letter by letter: together most of what a call costs
vars(models).update(
    unix_time=time.time,
    unix_time_millis=lambda: time.time() * 1000,
    camelcase_to_underscores=cache(utils.camelcase_to_underscores),
    generate_receipt_handle=lambda: secrets.token_hex(92),
)
vars(responses).update(
    method_names_from_class=cache(utils.method_names_from_class),
    gen_amzn_requestid_long=lambda headers: headers.setdefault("x-amzn-requestid", secrets.token_hex(26)),
)


class Caller(threading.local):
    """Hold the connection that this thread serves."""

    connection: socket.socket

    def has_hung_up(self) -> bool:
        """Tell whether the caller has closed the connection."""
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


caller = Caller()


class Queues(models.SQSBackend):
    """Let many threads use moto's queues, one at a time for each queue.

    Without the lock moto loses a message that one thread sends while another deletes: it replaces the list. A
    long poll releases the lock while it waits.
    """

    @contextmanager
    def _alone(self, queue_name: str) -> Iterator[None]:
        lock = self.get_queue(queue_name)._messages_lock  # noqa: SLF001 - moto takes it too seldom
        with lock:
            yield
            lock.notify_all()  # pollers look again: a message may be visible now

    def receive_message(self, queue_name: str, count: int, wait_s: int, *args: Any) -> list[models.Message]:
        with self._alone(queue_name):
            found = super().receive_message(queue_name, count, min(wait_s, LONGEST_POLL_S), *args)
            if not (found and caller.has_hung_up()):
                return found
            for message in found:  # make them visible: the consumer died while it waited
                super().change_message_visibility(queue_name, message.receipt_handle or "", 0)
            return []

    def delete_message(self, queue_name: str, receipt_handle: str) -> None:
        with self._alone(queue_name):
            super().delete_message(queue_name, receipt_handle)

    def change_message_visibility(
        self, queue_name: str, receipt_handle: str, visibility_timeout: int
    ) -> None:
        with self._alone(queue_name):
            super().change_message_visibility(queue_name, receipt_handle, visibility_timeout)


class Handler(BaseHTTPRequestHandler):
    """Check the signature, then let moto answer."""

    protocol_version = "HTTP/1.1"  # keep connections alive
    disable_nagle_algorithm = True
    wbufsize = -1  # send head and body together
    server: "SqsServer"

    def setup(self) -> None:
        super().setup()
        caller.connection = self.connection

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            self._answer(413, "RequestTooLarge", "the length of the body is unknown or too large")
            return
        body = self.rfile.read(int(length))
        keys = {"key": self.server.key, "secret": self.server.secret}
        if not is_signed(self.command, self.path, self.headers, body, **keys):
            self._answer(403, "InvalidClientTokenId", "this queue wants requests signed with its own key")
            return
        try:
            url = f"http://{self.headers['Host']}{self.path}"
            request = Request.from_primitives(self.command, url, self.headers, body)
            self._send(*SQSResponse.dispatch(request, url, dict(request.headers)))
        except Exception:  # noqa: BLE001 - a bad request must not end the queue
            traceback.print_exc()
            self._answer(500, "InternalFailure", "moto failed; its log says why")

    def do_GET(self) -> None:
        self.do_POST()

    def _answer(self, status: int, code: str, message: str) -> None:
        text = json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": message})
        self._send(status, {"Content-Type": "application/x-amz-json-1.0"}, text)

    def _send(self, status: int, headers: dict[str, Any], text: str | bytes) -> None:
        content = text.encode() if isinstance(text, str) else text
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "date", "server"):
                self.send_header(name, str(value))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log no request: the log is for errors."""


class SqsServer(socketserver.ThreadingTCPServer):
    """Serve each connection in a thread of its own."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, key: str, secret: str) -> None:
        self.key = key
        self.secret = secret
        super().__init__(("127.0.0.1", port), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening("queue", "127.0.0.1", port)


def create_queues(pairs: Iterable[tuple[str, str]]) -> None:
    """Create each queue and its DLQ, with the redrive policy that doctor wants."""
    backend = models.sqs_backends[ACCOUNT][REGION] = Queues(REGION, ACCOUNT)
    for queue, dlq in pairs:
        dead = backend.create_queue(dlq, MessageRetentionPeriod=str(DLQ_RETENTION_S))
        policy = {"deadLetterTargetArn": dead.queue_arn, "maxReceiveCount": MAX_RECEIVES}
        backend.create_queue(queue, RedrivePolicy=json.dumps(policy))


def main() -> None:
    """Serve until a signal ends us."""
    parser = argparse.ArgumentParser(description="SQS in memory for one key.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--queue", required=True, action="append")
    parser.add_argument("--dlq", required=True, action="append", help="as many as there are queues")
    args = parser.parse_args()
    os.environ["MOTO_ACCOUNT_ID"] = ACCOUNT  # else moto asks its IAM at each request
    create_queues(zip(args.queue, args.dlq, strict=True))
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    with SqsServer(args.port, key, secret) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()

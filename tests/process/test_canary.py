"""Each secret has a value of its own, all that can fail is made to fail, and all that came out is searched."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest
from tests.kit import QueueServer, until_sync
from tests.process.place import Place
from tests.unit.test_hidden import KEY as SAID_KEY
from tests.unit.test_hidden import SAID

from genctl.base.settings import TABLE
from genctl.base.tokens import Tokens
from genctl.cli.command import FORMATS
from genctl.tools.found import found

CANARY = {
    "secret": "cAnary-of-tokens-0123456789/abc+def",
    "ark_api_key": "cAnary-of-ark-0+1/2=3",
    "database_url": "cAnary-of-dsn-77",
    "listen_url": "cAnary-of-listen-78",
    "proxy": "cAnary/of-proxy-79",
    "api_url": "cAnary-of-api-80",
    "ark_base_url": "cAnary-of-base-81",
    "sqs_endpoint": "cAnary-of-endpoint-82",
    "file": "cAnary-of-the-file-83",
    "token": "cAnary-of-session-token-84",
    "PGPASSWORD": "cAnary-of-libpq-85",
}
BOOK = """\
name: canary
purpose: A test.
when: Now.
touches: Nothing.
steps:
  - step: print
    does: Print what is secret.
    shell: 'echo "$ARK_API_KEY $HTTPS_PROXY"; echo "$GENCTL_SECRET" >&2'
    show: text
    expect: ["exit == `1`"]
  - step: ask
    does: Ask a database that is away.
    always: true
    sql: {query: select 1}
    expect: ["count == `1`"]
"""


class Rude(BaseHTTPRequestHandler):
    """A provider that repeats the key, and a proxy that refuses; each in its own words."""

    turn = 0

    def log_message(self, *_: object) -> None:
        """Not to the tests' stderr."""

    def do_POST(self) -> None:
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        told = [*SAID.values()][type(self).turn % len(SAID)].replace(
            SAID_KEY, key
        ) + f" Nor is {CANARY['file']}."
        type(self).turn += 1
        body = json.dumps({"error": {"code": "InvalidParameter", "message": told}}).encode()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._send(400, body)

    def do_CONNECT(self) -> None:
        self._send(407, f"no such user: {self.headers.get('Proxy-Authorization')} {CANARY['proxy']}".encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def rude() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Rude)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def leaks(text: str) -> list[str]:
    """The canaries in a text, in any of their spellings."""
    lower = text.lower()
    return [
        f"{name}: …{lower[at - 60 : at + 60]!r}"
        for name, secret in CANARY.items()
        for form in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1], secret.replace("/", r"\/"))
        if (at := lower.find(form.lower())) >= 0
    ]


@pytest.fixture
def canary(place: Place) -> Place:
    """The place's services as real ones, and a secret in each setting that can hold one."""
    place.make_real()
    config = place.folder / "CONFIG" / "genctl"
    config.mkdir(parents=True)
    (config / "genctl.yaml").write_text(f"ark_api_key: {CANARY['file']}\n")
    place.env |= {
        "GENCTL_SECRET": CANARY["secret"],
        "ARK_API_KEY": CANARY["ark_api_key"],
        "PGPASSWORD": CANARY["PGPASSWORD"],
        "AWS_MAX_ATTEMPTS": "1",
    }
    return place


def test_each_setting_that_is_secret_has_its_canary() -> None:
    assert {one.key for one in (*TABLE, *found().settings) if one.secret} <= CANARY.keys()


def test_no_secret_comes_out_of_a_pipeline_whose_provider_repeats_it(canary: Place) -> None:
    """Not in rows, trace, DLQ, log, API, stream or output."""
    with rude() as port:
        canary.env["ARK_BASE_URL"] = f"http://127.0.0.1:{port}/api/v3"
        with canary.start("serve", "--port", "0") as api:
            url = api.until("api.started")["url"]
            canary.env["GENCTL_API_URL"] = url
            wanted = ("--user", "ann", "--event", "failed", "--count", str(len(SAID)))
            with canary.start("watch", *wanted, "-o", "jsonl") as watch:
                until_sync(lambda: "connected" in watch.log.read_text())
                canary.genctl("enqueue", "--count", str(len(SAID)), "--user", "ann", "--grant", "1000")
                with canary.worker("--drain", GENCTL_LOG_LEVEL="debug") as worker:
                    worker.end(within_s=60)
                watch.end(within_s=30)
            texts = [
                *worker.texts(),
                *watch.texts(),
                *api.texts(),
                of_api(url, "/api/seedream4/sessions?limit=100"),
            ]
    rows = canary.sql("select count(*) as n from generation_sessions where status = 'failed'")
    assert rows[0]["n"] == len(SAID)
    tables = ("generation_sessions", "session_events", "tool_gates")
    texts += [json.dumps(canary.sql(f"select to_jsonb(t)::text as it from {table} t")) for table in tables]
    texts += [canary.say("sessions", "list", "-o", form).stdout for form in FORMATS]
    texts += [
        canary.say(*command).stdout
        for command in (["tail-failures", "--since", "1h", "--no-follow"], ["dlq", "list"])
    ]
    canary.genctl("dlq", "export", str(canary.folder / "x.jsonl"))
    texts.append((canary.folder / "x.jsonl").read_text())
    assert [leak for text in texts for leak in leaks(text)] == []
    assert "[removed]" in "".join(texts)


def of_api(url: str, path: str) -> str:
    """An answer, whatever its status."""
    token = Tokens(CANARY["secret"]).issue("ann")
    asked = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(asked) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()


def test_no_secret_comes_out_of_what_fails(canary: Place) -> None:
    """Database, queue, proxy, TLS, provider and API, each away or refusing; every form, and --debug."""
    with rude() as port:
        proxy = f"http://px-user:{quote(CANARY['proxy'], safe='')}@127.0.0.1:{port}"
        troubles = {
            "DATABASE_URL": f"postgresql://ann:{CANARY['database_url']}@127.0.0.1:9/shop",
            "GENCTL_LISTEN_URL": f"postgresql://ann@127.0.0.1:9/shop?pass%77ord={CANARY['listen_url']}",
            "GENCTL_API_URL": f"http://u:{CANARY['api_url']}@127.0.0.1:9",
            "AWS_ENDPOINT_URL_SQS": f"https://127.0.0.1:{port}",
            "AWS_SESSION_TOKEN": CANARY["token"],
            "ARK_BASE_URL": "https://ark.example/api/v3",
            "HTTPS_PROXY": proxy,
            "all_proxy": proxy,
        }
        bad_tls = {
            "AWS_ENDPOINT_URL_SQS": f"https://u:{CANARY['sqs_endpoint']}@127.0.0.1:{port}",
            "ARK_BASE_URL": f"https://u:{CANARY['ark_base_url']}@127.0.0.1:{port}/api/v3",
            "HTTPS_PROXY": "",
            "all_proxy": "",
        }
        texts = []
        (canary.folder / "book.yaml").write_text(BOOK)
        for args in (
            *(["config", "show", "-o", form] for form in ("table", "json")),
            ["doctor", "-o", "json"],
            ["status", "--debug"],
            ["sessions", "list", "-o", "json"],
            ["watch", "--user", "ann"],
            ["dlq", "list", "--debug"],
            ["smoke", "--yes", "--timeout", "1s", "--junit", str(canary.folder / "junit.xml")],
            ["runbook", "run", str(canary.folder / "book.yaml"), "--report", str(canary.folder / "r.md")],
            ["config", "show", "-S", f"api_url=ftp://u:{CANARY['api_url']}@h"],
        ):
            for more in ({}, bad_tls) if args[0] in {"config", "doctor"} else ({},):
                with canary.start(*args, **troubles | more) as running:
                    running.end(within_s=60)
                    texts += [*running.texts()]
        canary.say("enqueue", "--user", "ann", "--grant", "100")
        there = {
            "DATABASE_URL": canary.dsn,
            "GENCTL_LISTEN_URL": canary.dsn,
            "AWS_ENDPOINT_URL_SQS": canary.env["AWS_ENDPOINT_URL_SQS"],
        }
        with canary.start("worker", "--once", GENCTL_LOG_LEVEL="debug", **troubles | there) as worker:
            worker.until("session.retried")
            texts += [*worker.texts()]
        with canary.start("serve", "--port", "0", GENCTL_LOG_LEVEL="debug", **troubles) as api:
            url = api.until("api.started")["url"]
            texts += [of_api(url, path) for path in ("/readyz", "/metrics", "/api/seedream4/sessions")]
            texts += [*api.texts()]
    files = [path for path in canary.folder.rglob("*") if path.suffix in {".jsonl", ".xml", ".md"}]
    assert {path.suffix for path in files} == {".jsonl", ".xml", ".md"}
    texts += [path.read_text() for path in files]
    assert [leak for text in texts for leak in leaks(text)] == []
    assert QueueServer.secret not in "".join(texts)

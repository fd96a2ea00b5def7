"""Who listens on the port of a stack that is down gets no token, whatever is typed."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError

import pytest
from tests.process.place import Place

ENDS_WITH = 3


class Thief(BaseHTTPRequestHandler):
    """Answers everything as an API would, and writes down what it is sent."""

    got: list[str]
    real: str | None  # where it fetches proofs, as a man in the middle does

    def log_message(self, *_: object) -> None:
        """Not to the tests' stderr."""

    def do_GET(self) -> None:
        self.got.append(f"{self.requestline} {self.headers}")
        if self.path.startswith("/readyz") and self.real:
            try:
                with urllib.request.urlopen(self.real + self.path) as answer:
                    self._send("application/json", answer.read())
            except HTTPError as not_ready:
                self._send("application/json", not_ready.read())
        elif self.path.startswith("/readyz"):
            self._send("application/json", b'{"ready": true, "proof": "' + b"0" * 64 + b'"}')
        else:
            self._send("text/event-stream", b'event: ready\ndata: {"lastEventId": null}\nid: 1\n\n')

    do_POST = do_GET  # noqa: N815 (of http.server)

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def thief(place: Place, real: str | None = None) -> Iterator[list[str]]:
    """Somebody else on the port that the stack's address book names; what it was sent."""
    kind = type("ThisThief", (Thief,), {"got": [], "real": real})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    book = place.folder / "stack.json"
    before = book.read_text()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    book.write_text(json.dumps(json.loads(before) | {"api_url": url}))
    try:
        yield kind.got  # type: ignore[attr-defined]
    finally:
        book.write_text(before)
        server.shutdown()
        server.server_close()


COMMANDS = (
    ("watch", "--user", "ann"),
    ("smoke", "--timeout", "5s"),
    ("doctor",),
    ("status",),
    ("enqueue", "--grant", "9"),
    ("token", "--link", "--user", "ann"),
)


@pytest.mark.parametrize("passes_on", [False, True])
def test_who_listens_on_the_stacks_port_gets_no_token(place: Place, passes_on: bool) -> None:
    """Nor one who fetches the proof from the stack itself, which listens elsewhere."""
    with place.start("serve", "--port", "0") as api:
        real = api.until("api.started")["url"]
        with thief(place, real if passes_on else None) as got:
            said = []
            for command in COMMANDS:
                with place.start(*command) as running:
                    code = running.end(within_s=60)
                    said.append((command[0], code, "".join(running.texts())))
    assert not [one for one in got if "authorization" in one.lower() or "cookie" in one.lower()]
    told = {name: (code, text) for name, code, text in said}
    assert [told[name][0] for name, *_ in COMMANDS] == [3, 3, 1, 1, 0, 3]
    assert all(
        "is not your embedded stack" in told[name][1]
        for name in ("watch", "smoke", "doctor", "status", "token")
    )
    assert got


def test_no_port_of_a_stack_that_is_down_is_asked_but_the_one_that_can_prove_itself(place: Place) -> None:
    """Its database listens in a folder of ours, where no stranger can; its queue and simulator have ports only."""
    with thief(place) as got:
        book = place.folder / "stack.json"
        stack = json.loads(book.read_text())
        here = dict.fromkeys(("sqs_endpoint", "ark_base_url"), stack["api_url"])
        gone = {"database_url": f"postgresql://genctl@/genctl?host={place.folder}"}
        book.write_text(json.dumps(stack | here | gone))
        said = [place.say("status", exit_code=3).stderr, place.say("doctor", exit_code=1).stdout]
    assert all("the embedded stack is not running" in one for one in said)
    assert {one.partition("=")[0] for one in got} == {"GET /readyz?nonce"}


def test_the_stacks_own_address_proves_itself_also_where_it_is_named(place: Place) -> None:
    """Many set GENCTL_API_URL to what is the default anyway."""
    with thief(place) as got:
        place.env["GENCTL_API_URL"] = json.loads((place.folder / "stack.json").read_text())["api_url"]
        assert "is not your embedded stack" in place.say("watch", "--user", "ann", exit_code=3).stderr
    assert "authorization" not in "".join(got).lower()


def test_a_peer_that_a_person_has_named_proves_nothing(place: Place) -> None:
    """It may be an older genctl, or another's deployment of the contract."""
    with place.start("serve", "--port", "0") as api:
        place.env["GENCTL_API_URL"] = api.until("api.started")["url"]
        with thief(place) as got:
            assert "ready" in place.say("watch", "--user", "ann", "--event", "ready", "--count", "1").stdout
    assert got == []

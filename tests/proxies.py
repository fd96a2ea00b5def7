"""What stands between genctl and its services in production: PgBouncer and nginx, real ones where installed."""

import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from psycopg.conninfo import conninfo_to_dict

from tests.kit import free_port, relayed, until_sync


@asynccontextmanager
async def pgbouncer(dsn: str, folder: Path, mode: str) -> AsyncIterator[str]:
    """The DSN of a pooler in that mode before the database of `dsn`."""
    program, port, ini = _installed("pgbouncer"), free_port(), folder / "pgbouncer.ini"
    user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to be root, and nobody finds no socket
    async with relayed(dsn) as (far, _):
        at = conninfo_to_dict(far)
        place = " ".join(f"{key}={at[key]}" for key in ("host", "port", "dbname", "user", "password"))
        ini.write_text(
            f"[databases]\nit = {place}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
            f"unix_socket_dir =\nauth_type = any\npool_mode = {mode}\ndefault_pool_size = 4\n"
        )
        with _running((program, "-q", *user, str(ini)), port, folder / "pgbouncer.log"):
            yield f"postgresql://{at['user']}@127.0.0.1:{port}/it"


@contextmanager
def nginx(upstream: str, folder: Path, *directives: str) -> Iterator[str]:
    """The URL of a proxy before the API at `upstream`, with these directives for it."""
    port = free_port()
    location = f"location / {{ proxy_pass http://{urlsplit(upstream).netloc}; {' '.join(directives)} }}"
    with nginx_serves(f"server {{ listen 127.0.0.1:{port}; {location} }}", port, folder):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def nginx_serves(server: str, port: int, folder: Path) -> Iterator[None]:
    """An nginx with this `server` block, which listens on `port`."""
    program, conf = _installed("nginx"), folder / "nginx.conf"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{kind}_temp_path {folder};" for kind in kinds)
    conf.write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;\n"
        f"events {{ }}\nhttp {{\n  access_log off;\n{temporary}\n{server}\n}}\n"
    )
    with _running((program, "-p", str(folder), "-c", str(conf)), port, folder / "nginx.log"):
        yield


def certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """A certificate that nobody has signed, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "tls.crt", folder / "tls.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return paths


@contextmanager
def silent() -> Iterator[int]:
    """The port of a service that hangs: it takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield listener.getsockname()[1]


@contextmanager
def _running(command: Sequence[str], port: int, log: Path) -> Iterator[None]:
    with log.open("w") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        until_sync(lambda: _answers(process, port, log))
        yield
    finally:
        process.terminate()
        process.wait(10)


def _answers(process: "subprocess.Popen[bytes]", port: int, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _installed(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {name}")
    return found


class Relay:
    """A port that leads to another, keeps what went there, and can be cut as a cable is: both ends stay
    open and hear nothing more. What connects after the cut hears nothing either, until it is mended.
    """

    def __init__(self, host: str, port: int) -> None:
        self._to = (f"{host}/.s.PGSQL.{port}", None) if host.startswith("/") else (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._listener.getsockname()[1]
        self.said = bytearray()  # by those who came through here
        self._whole = threading.Event()
        self._whole.set()
        self._lines: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._whole.set()
        for line in (self._listener, *self._lines):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()

    def cut(self) -> None:
        """Nothing passes any more, what is on its way neither."""
        self._whole.clear()

    def mend(self) -> None:
        """What connects from now on passes; the lines that were cut are gone."""
        for line in list(self._lines):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        self._whole.set()

    def asked(self) -> list[str]:
        """The operations that SQS was asked for, in their order."""
        return [op.decode() for op in re.findall(rb"X-Amz-Target: AmazonSQS\.(\w+)", bytes(self.said))]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_INET if self._to[1] else socket.AF_UNIX)
                far.connect(self._to if self._to[1] else self._to[0])
                self._lines += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(source, sink, sink is far), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, is_request: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                self._whole.wait()
                if is_request:
                    self.said += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

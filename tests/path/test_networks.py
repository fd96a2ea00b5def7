"""Networks as companies have them, between us and SQS or a provider: each trouble is one line, with its cure."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from tests.path.test_as_boto3 import KEYS, company, secured
from tests.path.test_wire import client

from genctl.base.settings import Settings
from genctl.domain.model import Answer, GenctlError, NoAnswer
from genctl.edges.sqs import Sqs

REAL = Settings(database_url="postgresql://db/x")
PASSWORD = "open-sesame-77"


@asynccontextmanager
async def proxy(
    answer: bytes = b"", version: bytes = b"HTTP/1.1", password: str = ""
) -> AsyncIterator[tuple[str, list[str]]]:
    """A proxy that closes after each tunnel; or that has this answer for everybody. Its address, what it heard."""
    heard: list[str] = []
    tunnels: list[asyncio.Task[None]] = []

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
            sink.write_eof()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tunnels.append(asyncio.create_task(tunnel(reader, writer)))

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await between(reader, writer)
        finally:
            writer.close()

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        heard.append(head)
        if answer or (password and "proxy-authorization" not in head.lower()):
            writer.write(
                answer or version + b" 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
            )
        else:
            host, _, port = head.split()[1].rpartition(":")
            there, back = await asyncio.open_connection(host, int(port))
            writer.write(version + b" 200 Connection established\r\n\r\n")
            try:
                await asyncio.gather(pump(reader, back), pump(there, writer))
            finally:
                back.close()

    async with await asyncio.start_server(begin, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heard
        for one in tunnels:
            one.cancel()
        await asyncio.gather(*tunnels, return_exceptions=True)


@pytest.fixture
def env(no_aws: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set variables of the environment."""

    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            no_aws.setenv(name, value)

    monkeypatch.setattr("genctl.edges.aws.ATTEMPTS", 1)
    set_all(AWS_DEFAULT_REGION="eu-west-1", REQUESTS_CA_BUNDLE=str(company(tmp_path, "ours")), **KEYS)
    return set_all


async def asked() -> None:
    async with await Sqs.connect(REAL) as sqs:
        await sqs.call("ListQueues", dict, "x")


async def trouble() -> str:
    """What a person reads: one line, and its cure."""
    with pytest.raises(GenctlError) as caught:
        await asked()
    error = caught.value
    assert error.exit_code == 3
    assert "\n" not in error.message
    assert PASSWORD not in error.message + error.fix
    return f"{error.message} | {error.fix}"


@pytest.fixture
def not_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers of this test pass for ones of the network, so that proxies are asked for them."""
    monkeypatch.setattr("genctl.edges.http._is_loopback", lambda _: False)


@pytest.mark.usefixtures("not_loopback")
@pytest.mark.parametrize(("version", "login"), [(b"HTTP/1.1", ""), (b"HTTP/1.0", f"ann:{PASSWORD}@")])
async def test_a_proxy_that_closes_after_each_tunnel_leads_there(
    env: Callable[..., None], tmp_path: Path, version: bytes, login: str
) -> None:
    async with secured(tmp_path / "ours.pem") as url, proxy(b"", version, login) as (address, heard):
        env(AWS_ENDPOINT_URL_SQS=url, HTTPS_PROXY=f"{login}{address}")
        await asked()
        await asked()
    assert len(heard) == 2


def said_by_a_proxy(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()


TUNNELS = {
    said_by_a_proxy("407 Proxy Authentication Required"): "the answer is 407 Proxy Authentication Required",
    said_by_a_proxy("403 Forbidden"): "the answer is 403 Forbidden",
    b"HTTP/1.0 200 Connection established\r\n\r\n": "",
}
PLAIN = {
    said_by_a_proxy("407 Proxy Authentication Required"): "the answer is 407 and not SQS's",
    b"HTTP/1.0 502 Bad Gateway\r\n\r\n<html>": "the answer is 502 and not SQS's",
    b"SSH-2.0-OpenSSH_9.2\r\n": "speaks no HTTP",
}


@pytest.mark.usefixtures("not_loopback")
async def test_a_proxy_that_leads_nowhere_is_named(env: Callable[..., None]) -> None:
    for answer, what in TUNNELS.items():
        async with proxy(answer) as (address, _):
            env(HTTPS_PROXY=f"ann:{PASSWORD}@{address}")
            said = await trouble()
        assert f"{what}, through the proxy http://***@{address} | check HTTPS_PROXY" in said
        assert "NO_PROXY" in said
    env(AWS_ENDPOINT_URL_SQS="http://sqs.corp.example:4566")
    for answer, what in PLAIN.items():
        async with proxy(answer) as (address, _):
            env(HTTP_PROXY=f"ann:{PASSWORD}@{address}")
            said = await trouble()
        assert f"{what}, through the proxy http://***@{address} | check HTTP_PROXY" in said


@pytest.mark.usefixtures("not_loopback")
async def test_a_proxy_that_is_away_is_named(env: Callable[..., None]) -> None:
    for address, what in {"127.0.0.1:1": "Connection refused", "proxy.invalid:3128": "not known"}.items():
        env(HTTPS_PROXY=f"ann:{PASSWORD}@{address}")
        assert f"{what}, through the proxy http://***@{address} | check HTTPS_PROXY" in await trouble()


async def test_a_server_that_is_not_reached_is_told_in_words(
    env: Callable[..., None], tmp_path: Path
) -> None:
    async with secured(tmp_path / "ours.pem") as url:
        env(AWS_ENDPOINT_URL_SQS=url.replace("127.0.0.1", "localhost"))
        said = await trouble()
    assert "certificate is not trusted: Hostname mismatch" in said
    assert "use the name that its certificate has, instead of localhost" in said
    for url, what in {"https://sqs.invalid": "not known", "http://[::1]:1": "Connection refused"}.items():
        env(AWS_ENDPOINT_URL_SQS=url)
        assert f"{what} | check the network" in await trouble()


async def test_an_endpoint_that_answers_html_says_so(env: Callable[..., None]) -> None:
    page = b"<html><body>Welcome to our network</body></html>"
    for status in ("200 OK", "404 Not Found"):
        head = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\n\r\n"
        async with proxy(head.encode() + page) as (address, _):
            env(AWS_ENDPOINT_URL_SQS=f"http://{address}")
            assert "SQS" in (said := await trouble())
            assert "AWS_ENDPOINT_URL_SQS" in said


async def test_ipv6_alone_will_do(env: Callable[..., None]) -> None:
    async def none(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(none, "::1", 0) as server:
        env(AWS_ENDPOINT_URL_SQS=f"http://[::1]:{server.sockets[0].getsockname()[1]}")
        await asked()


# --- the same for a provider ------------------------------------------------------------------


async def answered(url: str) -> Answer | NoAnswer:
    async with client(url) as wire:
        return await wire.knock()


@pytest.mark.usefixtures("not_loopback")
async def test_a_provider_is_reached_by_the_same_proxy_and_trusted_by_the_same_ca(
    env: Callable[..., None], tmp_path: Path
) -> None:
    async with secured(tmp_path / "ours.pem") as url, proxy() as (address, heard):
        env(HTTPS_PROXY=address)
        assert isinstance(await answered(url), Answer)
        assert len(heard) == 1
        env(REQUESTS_CA_BUNDLE=str(company(tmp_path, "another")))
        said = await answered(url)
    assert isinstance(said, NoAnswer)
    assert (said.code, said.sent) == ("TlsError", False)
    assert "certificate is not trusted" in said.message


@pytest.mark.usefixtures("not_loopback")
async def test_a_proxys_refusal_is_not_the_providers_answer(env: Callable[..., None]) -> None:
    async with proxy(password="wanted") as (address, _):
        env(HTTPS_PROXY=f"http://{address}")
        said = await answered("https://ark.example")
    assert isinstance(said, NoAnswer)
    assert (said.code, said.sent) == ("ConnectionError", False)
    assert "407" in said.message

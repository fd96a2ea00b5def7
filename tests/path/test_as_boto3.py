"""What boto3 reads of environment and configuration, the SQS client reads the same: both are asked here."""

import asyncio
import gc
import json
import re
import ssl
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import product
from pathlib import Path
from typing import Any

import boto3
import pytest
from aiohttp import web
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import ProxyConfiguration
from botocore.utils import get_environ_proxies
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.kit import STALL_S

from genctl.base.settings import Settings
from genctl.domain.model import GenctlError
from genctl.edges import credentials, http, rds
from genctl.edges.aws import CONNECT_TIMEOUT_S, Keys, SqsEndpoint
from genctl.edges.lookups import is_busy
from genctl.edges.rds import Login
from genctl.edges.sqs import Sqs

REAL = Settings(database_url="postgresql://db/x")
URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/jobs"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests"}
CONFIG = """
[default]
region = eu-central-1
[profile gov]
region = us-gov-east-1
use_fips_endpoint = true
max_attempts = 9
retry_mode = adaptive
[profile local]
region = ap-south-1
services = here
[services here]
sqs =
  endpoint_url = http://localhost:4566/base/
"""


@pytest.fixture
def env(no_aws: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Set variables of the environment; HOME has an AWS configuration."""
    (tmp_path / "config").write_text(CONFIG)

    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            no_aws.setenv(name, value)

    set_all(AWS_CONFIG_FILE=str(tmp_path / "config"), **KEYS)
    return set_all


class Answered:
    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, *_: object, **__: object) -> Iterator[bytes]:
        yield self._body


def of_boto3() -> tuple[str, str]:
    """URL and user agent of boto3's first request."""
    sent: list[Any] = []

    def keep(request: Any, **_: object) -> AWSResponse:
        sent.append(request)
        return AWSResponse(request.url, 200, HTTPHeaders(), Answered(b"{}"))

    client = boto3.Session().client("sqs")
    client.meta.events.register("before-send.sqs", keep)
    client.list_queues()
    return sent[0].url.rstrip("/"), sent[0].headers["User-Agent"].decode()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"AWS_DEFAULT_REGION": "cn-north-1"},
        {"AWS_DEFAULT_REGION": "us-iso-east-1"},
        {"AWS_DEFAULT_REGION": "eusc-de-east-1"},
        {"AWS_DEFAULT_REGION": "us-east-1", "AWS_USE_FIPS_ENDPOINT": "true"},
        {"AWS_DEFAULT_REGION": "us-east-1", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
        {"AWS_PROFILE": "gov"},
        {"AWS_PROFILE": "local"},
        {"AWS_PROFILE": "local", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
        {"AWS_ENDPOINT_URL": "http://localhost:4566"},
        {"AWS_ENDPOINT_URL": "http://localhost:1", "AWS_ENDPOINT_URL_SQS": "https://sqs.corp.example:8443/x"},
        {"AWS_RETRY_MODE": "standard", "AWS_MAX_ATTEMPTS": "7"},
        {"AWS_SDK_UA_APP_ID": "the-art-department"},
    ],
    ids=lambda variables: " ".join(f"{name}={value}" for name, value in variables.items()) or "a profile",
)
async def test_the_first_request_is_boto3s(env: Callable[..., None], variables: dict[str, str]) -> None:
    env(**variables)
    url, agent = of_boto3()
    ours = await SqsEndpoint.of(REAL)
    assert ours.endpoint == url
    assert ours.user_agent
    assert told(ours.user_agent) == told(agent)
    assert {"ua", "os", "lang", "cfg"} <= {word.partition("/")[0] for word in told(agent)}


def told(agent: str) -> list[str]:
    """What a user agent says but for what tells ours from boto3's.

    Ours names botocore first, and no boto3; and its features, `m/`, lack where the credentials come from,
    since genctl signs by itself.
    """
    return [word for word in agent.split() if not re.match("Boto3/|md/Botocore#|Botocore/|m/", word)]


# --- retries, time-outs, sockets --------------------------------------------------------------


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_MAX_ATTEMPTS": "1"},
        {"AWS_RETRY_MODE": "legacy", "AWS_MAX_ATTEMPTS": "2"},
        {"AWS_PROFILE": "gov"},
    ],
)
async def test_a_call_is_tried_as_often_as_boto3s(
    env: Callable[..., None], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """Nobody waits."""
    env(**{"AWS_DEFAULT_REGION": "eu-west-1"} | variables)
    body = json.dumps({"__type": "ServiceUnavailable", "message": "not now"}).encode()
    theirs, ours = list[float](), list[float]()

    def refuse(request: Any, **_: object) -> AWSResponse:
        return AWSResponse(request.url, 503, HTTPHeaders(), Answered(body))

    async def post(*_: object) -> tuple[int, bytes]:
        return 503, body

    async def wait(seconds: float) -> None:
        ours.append(seconds)

    client = boto3.Session().client("sqs")
    client.meta.events.register("before-send.sqs", refuse)
    async with await Sqs.connect(REAL) as sqs:
        with monkeypatch.context() as patch:
            patch.setattr("time.sleep", theirs.append)
            patch.setattr("asyncio.sleep", wait)
            patch.setattr(sqs, "_post", post)
            with pytest.raises(ClientError, match="ServiceUnavailable"):
                client.list_queues()
            with pytest.raises(GenctlError, match="ServiceUnavailable"):
                await sqs.call("ListQueues", dict, "x")
    assert len(ours) == len(theirs)


async def test_time_to_connect_is_boto3s_or_less(env: Callable[..., None]) -> None:
    env(AWS_DEFAULT_REGION="eu-west-1", AWS_DEFAULTS_MODE="In-Region")
    config: Any = boto3.Session().client("sqs").meta.config
    assert (await SqsEndpoint.of(REAL)).connect_s == config.connect_timeout < CONNECT_TIMEOUT_S


PROXIES = ["http://proxy.corp:3128", "proxy.corp:3128", "//proxy.corp:3128"]
AROUND = [
    *("", "amazonaws.com", ".amazonaws.com", "sqs.eu-west-1.amazonaws.com:443", "*", "corp.example"),
    *("[2001:db8::1]", "2001:db8::1", "[2001:db8::1]:4566", "2001:db8::/32"),
    *("10.0.0.0/8", "10.1.2.3", "10.1.2.3:4566", "10.1", " 10.1.2.3 , x"),
]
BASES = [URL, "http://sqs.corp.example:4566", "http://[2001:db8::1]:4566", "http://10.1.2.3:4566"]


def test_the_proxy_is_boto3s(env: Callable[..., None]) -> None:
    for proxy, around, base in product(PROXIES, AROUND, BASES):
        env(HTTPS_PROXY=proxy, HTTP_PROXY=proxy, NO_PROXY=around)
        theirs = ProxyConfiguration(proxies=get_environ_proxies(base)).proxy_url_for(base)
        assert http.proxy_of(base) == theirs, (proxy, around, base)


def test_this_machine_is_asked_without_a_proxy(env: Callable[..., None]) -> None:
    env(HTTP_PROXY="http://proxy.corp:3128")
    for base in ("http://localhost:4566", "http://127.0.0.1:4566", "http://[::1]:4566"):
        assert http.proxy_of(base) is None


def test_a_proxy_that_is_no_url_is_told_without_its_password(env: Callable[..., None]) -> None:
    env(HTTPS_PROXY="http://ann:open-sesame@proxy:port")
    with pytest.raises(GenctlError, match="HTTPS_PROXY is no URL of a proxy") as caught:
        http.proxy_of(URL)
    assert "open-sesame" not in caught.value.message


# --- TLS -------------------------------------------------------------------------------------


def company(folder: Path, name: str) -> Path:
    """A CA of a company, as they are: without a key usage. It has signed a certificate for 127.0.0.1."""
    key, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"The {name} CA")])
    now = datetime.now(UTC)

    def certificate(subject: x509.Name, of: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder(issuer, subject, of.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )

    ca = certificate(issuer, key).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sqs")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    leaf = certificate(subject, own).add_extension(names, critical=False)
    (folder / f"{name}-ca.pem").write_bytes(pem(ca.sign(key, hashes.SHA256())))
    (folder / f"{name}.pem").write_bytes(
        pem(leaf.sign(key, hashes.SHA256()))
        + own.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return folder / f"{name}-ca.pem"


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@asynccontextmanager
async def secured(certificate: Path) -> AsyncIterator[str]:
    """An SQS that knows of no queues, behind TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def none(_: web.Request) -> web.Response:
        return web.Response(text="{}", content_type="application/x-amz-json-1.0")

    runner = web.ServerRunner(web.Server(none))  # type: ignore[arg-type]
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
        with warnings.catch_warnings():  # clients that trust nobody leave connections that nobody closes
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


async def ours() -> None:
    async with await Sqs.connect(REAL) as sqs:
        await sqs.call("ListQueues", dict, "x")


def theirs() -> None:
    client = boto3.Session().client("sqs", config=Config(retries={"total_max_attempts": 1}))
    client.list_queues()


async def fails(work: Callable[[], Awaitable[None]]) -> GenctlError | None:
    try:
        await work()
    except GenctlError as error:
        return error
    return None


TRUSTED = [
    *(("AWS_CA_BUNDLE", name) for name in ("ours", "another", "missing", "empty")),
    *(("REQUESTS_CA_BUNDLE", name) for name in ("ours", "missing")),
    ("AWS_CA_BUNDLE", ""),
]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # a server whose clients run away
async def test_a_ca_is_trusted_where_boto3_trusts_it(
    env: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("genctl.edges.aws.ATTEMPTS", 1)
    company(tmp_path, "ours")
    company(tmp_path, "another")
    (tmp_path / "empty-ca.pem").write_text("")
    async with secured(tmp_path / "ours.pem") as url:
        env(AWS_DEFAULT_REGION="eu-west-1", AWS_ENDPOINT_URL_SQS=url)
        for variable, trusted in TRUSTED:
            with monkeypatch.context() as patch:
                if trusted:
                    patch.setenv(variable, str(tmp_path / f"{trusted}-ca.pem"))
                error = await fails(ours)
                refused = False
                try:
                    await asyncio.to_thread(theirs)
                except (BotoCoreError, ValueError, OSError):
                    refused = True
            assert (error is not None) is refused is (trusted != "ours"), (variable, trusted)
            if error and trusted in {"missing", "empty"}:
                assert error.message.startswith(f"{variable} names ")
            elif error:
                assert "certificate is not trusted" in error.message
                assert "AWS_CA_BUNDLE" in error.fix


async def test_a_companys_ca_may_break_the_rules_that_python_began_to_check(env: Callable[..., None]) -> None:
    env(AWS_DEFAULT_REGION="eu-west-1")
    for context in ((await SqsEndpoint.of(REAL)).tls, http.usual_trust(None)):
        assert context
        assert not context.verify_flags & ssl.VERIFY_X509_STRICT
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED


async def test_sqs_and_login_tokens_share_one_look_up(
    env: Callable[..., None], no_aws: pytest.MonkeyPatch
) -> None:
    """A person types the code of an MFA device once."""
    looked: list[Credentials] = []

    def find() -> Credentials:
        looked.append(Credentials("AKIDEXAMPLE", "a-secret-of-the-tests"))
        return looked[-1]

    env(AWS_DEFAULT_REGION="eu-west-1")
    no_aws.setattr(credentials, "find", find)
    login = Login("shop.abc.eu-west-1.rds.amazonaws.com", 5432, "ann", {})
    (keys, _), *clients = await asyncio.gather(
        rds._signing(login), Sqs.connect(REAL), Sqs.connect(REAL), return_exceptions=False
    )
    for client in clients:
        async with client as sqs:
            assert sqs._keys.frozen == keys.frozen
    assert len(looked) == 1


# --- credentials and queues that do not fit ---------------------------------------------------


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
async def test_a_key_with_a_line_break_is_told_by_its_name(env: Callable[..., None], name: str) -> None:
    env(AWS_DEFAULT_REGION="eu-west-1", **{name: "hush-hush-hush\n"})
    with pytest.raises(GenctlError, match=name) as caught:
        await Sqs.connect(REAL)
    assert caught.value.code == "CredentialsMalformed"
    assert "hush" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("AWS_DEFAULT_REGION", "eu-west-1\n", "AWS_DEFAULT_REGION"),
        ("AWS_DEFAULT_REGION", "eu west", "region_name"),
        ("AWS_DEFAULT_REGION", "", "AWS_DEFAULT_REGION"),
        ("AWS_MAX_ATTEMPTS", "many", "AWS_MAX_ATTEMPTS, or max_attempts of the AWS profile"),
        ("AWS_MAX_ATTEMPTS", "0", "max_attempts"),
        ("AWS_METADATA_SERVICE_TIMEOUT", "1.5", "AWS_METADATA_SERVICE_TIMEOUT, or"),
        ("AWS_RETRY_MODE", "brave", "one of: ('legacy', 'standard', 'adaptive')"),
        ("AWS_DEFAULTS_MODE", "fast", "defaults mode"),
    ],
)
async def test_a_setting_that_boto3_cannot_use_is_told_by_its_name(
    env: Callable[..., None], name: str, value: str, told: str
) -> None:
    env(**{"AWS_DEFAULT_REGION": "eu-west-1", name: value})
    with pytest.raises((BotoCoreError, ValueError)):
        boto3.Session().client("sqs").list_queues()
    with pytest.raises(GenctlError, match="^AWS: ") as caught:
        await Sqs.connect(REAL)
    assert told in f"{caught.value.message} {caught.value.fix}"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:4566", "http://", "http://local_stack:4566", "http://x:99999", "ftp://sqs.corp.example"),
        "http://ann:open-sesame@sqs.corp.example:4566/base/",
    ],
)
async def test_an_endpoint_that_is_no_url_or_has_a_login_is_refused(
    env: Callable[..., None], url: str
) -> None:
    env(AWS_DEFAULT_REGION="eu-west-1", AWS_ENDPOINT_URL=url)
    with pytest.raises(
        GenctlError, match="no endpoint of SQS, an http or https URL without a login"
    ) as caught:
        await Sqs.connect(REAL)
    assert caught.value.exit_code == 2
    assert "AWS_ENDPOINT_URL_SQS" in caught.value.fix
    assert "open-sesame" not in caught.value.message


async def test_a_queue_of_another_region_names_the_region_to_set(env: Callable[..., None]) -> None:
    env(AWS_DEFAULT_REGION="us-east-1")
    async with await Sqs.connect(REAL) as sqs:
        for which in (
            *(URL, URL.replace("sqs.", "queue."), "arn:aws:sqs:eu-west-1:123456789012:jobs"),
            "https://eu-west-1.queue.amazonaws.com/123456789012/jobs",  # as old SDKs have it
            "https://sqs.eu-west-1.api.aws/123456789012/jobs",
        ):
            with pytest.raises(GenctlError) as caught:
                await sqs.queue(which)
            assert caught.value.fix == "export AWS_DEFAULT_REGION=eu-west-1", which


async def test_a_source_that_gives_nonsense_is_named(
    env: Callable[..., None], no_aws: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in KEYS:
        no_aws.delenv(name)
    (tmp_path / "config").write_text("[default]\nregion = eu-west-1\ncredential_process = echo hello\n")
    with pytest.raises(GenctlError, match="the source custom-process: JSONDecodeError"):
        await Sqs.connect(REAL)


SSO = """
[default]
region = eu-west-1
sso_account_id = 123456789012
sso_role_name = worker
"""
HOW = {
    "by a session": "sso_session = nobody\n[sso-session nobody]\n",
    "by the profile itself": "",
}


@pytest.mark.parametrize("how", HOW)
async def test_who_has_not_logged_in_to_sso_is_told_to(
    env: Callable[..., None], no_aws: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    for name in KEYS:
        no_aws.delenv(name)
    start = "sso_region = us-east-1\nsso_start_url = https://nobody.awsapps.com/start\n"
    (tmp_path / "config").write_text(SSO + HOW[how] + start)
    with pytest.raises(BotoCoreError, match="SSO Token"):
        boto3.Session().client("sqs").list_queues()
    with pytest.raises(GenctlError, match="SSO Token") as caught:
        await Sqs.connect(REAL)
    assert caught.value.fix == "renew the AWS credentials: aws sso login"


async def test_a_refused_call_does_not_wait_for_a_source_that_hangs() -> None:
    """A stop waits for the call."""
    release, first = threading.Event(), threading.Event()

    def find() -> Credentials:
        if first.is_set():
            release.wait(30)
        first.set()
        return Credentials("AKIDEXAMPLE", "a-secret-of-the-tests")

    keys = Keys(find)
    keys.look_up()
    try:
        async with asyncio.timeout(2 + STALL_S):
            await keys.look_again()
        assert is_busy()
    finally:
        release.set()


CAREFUL = """
[profile keys]
aws_access_key_id = AKIDPROFILE
aws_secret_access_key = y
[profile careful]
region = eu-west-1
role_arn = arn:aws:iam::1:role/x
source_profile = keys
mfa_serial = arn:aws:iam::1:mfa/ann
[profile from-careful]
region = eu-west-1
role_arn = arn:aws:iam::1:role/y
source_profile = careful
[profile keys-beside-a-device]
region = eu-west-1
aws_access_key_id = AKIDPROFILE
aws_secret_access_key = y
mfa_serial = arn:aws:iam::1:mfa/ann
"""


@pytest.fixture
def careful(env: Callable[..., None], no_aws: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Profiles with an MFA device, and nobody who could type its code."""
    for name in KEYS:
        no_aws.delenv(name)
    no_aws.setattr("genctl.base.children.has_terminal", lambda: False)
    (tmp_path / "config").write_text(CAREFUL)
    return env


@pytest.mark.parametrize("profile", ["careful", "from-careful"])
async def test_a_profile_that_asks_for_a_code_wants_a_terminal(
    careful: Callable[..., None], profile: str
) -> None:
    careful(AWS_PROFILE=profile)
    with pytest.raises(GenctlError, match=f"profile {profile} asks for an MFA code"):
        await Sqs.connect(REAL)


@pytest.mark.parametrize(
    "variables",
    [{"AWS_PROFILE": "careful", **KEYS}, {"AWS_PROFILE": "keys-beside-a-device"}],
    ids=["keys in the environment, as our fix says", "keys of the profile"],
)
async def test_keys_that_ask_for_no_code_are_taken_beside_an_mfa_device(
    careful: Callable[..., None], variables: dict[str, str]
) -> None:
    careful(**variables)
    async with await Sqs.connect(REAL) as sqs:
        theirs = boto3.Session().get_credentials()
        assert theirs
        assert sqs._keys.frozen == theirs.get_frozen_credentials()

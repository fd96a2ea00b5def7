"""Find AWS as boto3 does: endpoint, region, TLS, and credentials that sign requests to SQS.

botocore reads the environment and the files; all that may hang, or ask a person, is a look-up.
"""

import asyncio
import os
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import botocore.session
import structlog
from botocore import UNSIGNED
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.config import Config
from botocore.credentials import Credentials, RefreshableCredentials
from botocore.exceptions import BotoCoreError, NoRegionError
from botocore.httpsession import create_urllib3_context, get_cert_path

from genctl.base import hidden
from genctl.base.settings import Settings
from genctl.domain.model import GenctlError
from genctl.edges import http
from genctl.edges.lookups import LOOKUPS

RENEW_EVERY_S = 30.0  # between two tries to renew credentials
LOOK_S = 10.0  # how long anybody waits for a look-up of credentials
ASKED_S = 120.0  # as long, where a person types the code of an MFA device
CALL_S = 5.0  # of one call that a look-up makes, to STS, SSO or a container's agent
CA_VARIABLE = "AWS_CA_BUNDLE"

T = TypeVar("T")

log = structlog.stdlib.get_logger()


class SqsEndpoint(NamedTuple):
    """Hold where SQS is, and how to find our credentials."""

    endpoint: str
    region: str
    find: Callable[[], Credentials]
    tls: ssl.SSLContext | None = None
    user_agent: str | None = None
    attempts: int | None = None  # of a call, if somebody has set that for AWS
    look_s: float = LOOK_S  # how long a look-up may take

    @classmethod
    async def of(cls, settings: Settings) -> Self:
        """Find SQS. Raises GenctlError (exit 3): bad settings."""
        if settings.embedded:
            return cls._embedded(settings)
        return await _looked_up(lambda: cls._found(settings))

    @classmethod
    def _found(cls, settings: Settings) -> Self:
        session = botocore.session.Session()
        client = session.create_client(
            "sqs", endpoint_url=settings.sqs_endpoint, config=Config(signature_version=UNSIGNED)
        )
        request = _first_request(client)
        config: Any = client.meta.config
        return cls(
            request.url.rstrip("/"),
            client.meta.region_name,
            _find,
            _trust(session) if request.url.startswith("https:") else None,
            bytes(request.headers["User-Agent"]).decode(),
            (config.retries or {}).get("total_max_attempts"),
            ASKED_S if _asks(session) else LOOK_S,
        )

    @classmethod
    def _embedded(cls, settings: Settings) -> Self:
        endpoint, key, secret = (
            settings.sqs_endpoint,
            settings.aws_access_key_id,
            settings.aws_secret_access_key,
        )
        if not (endpoint and key and secret):
            raise GenctlError(
                "StackNotRunning",
                "the embedded stack is not running, and with it its queue",
                "start it with `genctl up`, or set DATABASE_URL",
            )
        return cls(endpoint, "us-east-1", lambda: Credentials(key, secret))


class _NoBody:
    def stream(self, *_: object, **__: object) -> Any:
        yield b"{}"


def _first_request(client: Any) -> Any:
    """Let botocore make a request, which goes nowhere: its URL and its user agent are to be ours."""
    made: list[Any] = []

    def keep(request: Any, **_: object) -> AWSResponse:
        made.append(request)
        return AWSResponse(request.url, 200, HTTPHeaders(), _NoBody())

    client.meta.events.register("before-send.sqs", keep)
    client.list_queues()
    return made[0]


def _trust(session: Any) -> ssl.SSLContext:
    """Make the TLS context that botocore would make, with the CAs that it would trust."""
    context: ssl.SSLContext = create_urllib3_context()
    context.check_hostname = True  # urllib3 would do that itself
    said = session.get_config_variable("ca_bundle")
    by = CA_VARIABLE if os.environ.get(CA_VARIABLE) else "ca_bundle of the AWS profile"
    if not said:
        said, by = os.environ.get(http.CA_VARIABLE), http.CA_VARIABLE
    http.trust_in(context, said or str(get_cert_path(True)), by)  # noqa: FBT003 - botocore's own
    return context


async def _looked_up(work: Callable[[], T], within_s: float = LOOK_S) -> T:
    """Do what may hang or ask a person. Raises GenctlError (exit 3), whatever botocore raises."""
    try:
        return await LOOKUPS.look(work, within_s=within_s)
    except TimeoutError:
        raise GenctlError(
            "CredentialsSlow",
            f"SQS: {_Source.tried} has given no AWS credentials within {within_s:g} s",
            "check what AWS_PROFILE and the AWS_ variables of this process refer to, and the network to it",
        ) from None
    except NoRegionError:
        raise GenctlError(
            "RegionMissing",
            "SQS: no AWS region is set",
            "set AWS_DEFAULT_REGION, or region in the AWS profile",
        ) from None
    except GenctlError:
        raise
    except Exception as why:
        raise _misconfigured(why) from why


class _Source:
    """The source of credentials that was tried last, for people."""

    tried = "the AWS configuration"


def _find() -> Credentials:
    """Look again for the credentials that boto3 would use, in environment, files and roles."""
    session = botocore.session.Session()
    session.set_default_client_config(Config(connect_timeout=CALL_S, read_timeout=CALL_S))
    if _asks(session) and not _may_ask():
        profile = session.profile or "default"
        raise GenctlError(
            "MfaWithoutTerminal",
            f"SQS: the AWS profile {profile} asks for an MFA code, and there is no terminal",
            'eval "$(aws configure export-credentials --format env)" in a terminal, and start again there',
        )
    for provider in session.get_component("credential_provider").providers:
        _Source.tried = f"the source {provider.METHOD}"
        found: Credentials | None = provider.load()
        if found is not None:
            return found
    raise GenctlError(
        "CredentialsMissing",
        "SQS: no AWS credentials were found",
        "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role",
    )


def _asks(session: Any) -> bool:
    """Tell whether botocore asks for the code of an MFA device."""
    with suppress(BotoCoreError):  # such as a profile that is not there, which the look-up tells
        return bool(session.get_scoped_config().get("mfa_serial"))
    return False


def _may_ask() -> bool:
    """Tell whether a person is there to type it."""
    with suppress(OSError), Path("/dev/tty").open("rb"):
        return os.isatty(0)
    return False


def _misconfigured(why: Exception) -> GenctlError:
    """Make the error for an exception of botocore, STS or a credential_process."""
    said = str(why) if isinstance(why, BotoCoreError) else f"{type(why).__name__}: {why}"
    fix = "check AWS_PROFILE, ~/.aws/config, ~/.aws/credentials, what they refer to, and this machine's clock"
    return GenctlError("AwsMisconfigured", f"SQS: AWS credentials or settings: {said}", fix)


def _check(frozen: Any) -> None:
    """Check that they fit a header. Raises GenctlError (exit 3), which does not repeat them."""
    parts = {
        "AWS_ACCESS_KEY_ID": frozen.access_key,
        "AWS_SECRET_ACCESS_KEY": frozen.secret_key,
        "AWS_SESSION_TOKEN": frozen.token,
    }
    for name, value in parts.items():
        if value and not (value.isascii() and value.isprintable() and " " not in value):
            raise GenctlError(
                "CredentialsMalformed",
                f"SQS: {name} of {_Source.tried} has a blank, a line break or another sign that no key has",
                f"set {name} again, without what stands before and after it",
            )


class _Auth(SigV4Auth):
    """Sign by a given time, as SQS refuses a signature more than 15 minutes off its own clock."""

    def __init__(self, credentials: Any, region: str) -> None:
        super().__init__(credentials, "sqs", region)
        self.now = datetime.now(UTC)

    def _modify_request_before_signing(self, request: Any) -> None:
        request.context["timestamp"] = self.now.strftime("%Y%m%dT%H%M%SZ")
        super()._modify_request_before_signing(request)  # type: ignore[misc]  # the stubs leave it out


class Signer:
    """Sign requests with frozen credentials, which a look-up renews."""

    def __init__(self, where: SqsEndpoint) -> None:
        self._where = where
        self._renewal: asyncio.Task[None] | None = None
        self._next_try = 0.0

    @classmethod
    async def of(cls, where: SqsEndpoint) -> Self:
        """Look credentials up. Raises GenctlError (exit 3): none, expired, not in time."""
        signer = cls(where)
        await _looked_up(signer._look_up, where.look_s)
        return signer

    @property
    def credentials(self) -> object:
        """Return the credentials that sign now, to compare them."""
        return self._auth.credentials

    def _look_up(self) -> None:
        self._source = self._where.find()
        self._freeze()

    def _freeze(self) -> None:
        frozen = self._source.get_frozen_credentials()
        _check(frozen)
        hidden.know("aws", (frozen.secret_key, frozen.token))
        self._auth = _Auth(frozen, self._where.region)

    async def headers(self, body: bytes, headers: dict[str, str], now: datetime) -> dict[str, str]:
        """Add the signature of a POST of `body` to its `headers`; `now` is SQS's, in UTC.

        If the credentials are due, a look-up renews them meanwhile: the old ones may work for minutes, and
        SQS says when they do not.
        """
        source, auth = self._source, self._auth
        if isinstance(source, RefreshableCredentials) and source.refresh_needed():
            self._renew(self._freeze)
        request = AWSRequest(method="POST", url=self._where.endpoint, headers=headers, data=body)
        auth.now = now
        auth.add_auth(request)
        return dict(request.headers.items())

    async def look_again(self) -> None:
        """Look for new credentials, once SQS has refused ours."""
        await asyncio.wait([self._renew(self._look_up)], timeout=LOOK_S)

    def _renew(self, how: Callable[[], None]) -> asyncio.Task[None]:
        """Return the last renewal; begin another one if it has ended and the pause is over."""
        if self._renewal is None or (self._renewal.done() and time.monotonic() >= self._next_try):
            self._renewal = asyncio.create_task(self._renewed(how))
        return self._renewal

    async def _renewed(self, how: Callable[[], None]) -> None:
        try:
            await _looked_up(how)
        except GenctlError as error:  # the next try may do better
            log.warning("aws.credentials.not_renewed", error=error.message, fix=error.fix)
        self._next_try = time.monotonic() + RENEW_EVERY_S

"""Find AWS as boto3 does: endpoint, region, TLS, and credentials that sign requests to SQS."""

import asyncio
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

import botocore.session
import structlog
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, RefreshableCredentials
from botocore.exceptions import BotoCoreError, NoRegionError
from botocore.httpsession import get_cert_path

from genctl.base import hidden
from genctl.base.settings import Settings
from genctl.domain.model import GenctlError

RENEW_EVERY_S = 30.0  # between two tries to renew credentials
LOOK_S = 10.0  # how long a refused call waits for new credentials

log = structlog.stdlib.get_logger()


class SqsEndpoint(NamedTuple):
    """Hold where SQS is, and how to find our credentials."""

    endpoint: str
    region: str
    find: Callable[[], Credentials]
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Find SQS; this reads files, so call it in a thread. Raises GenctlError (exit 3): bad settings."""
        if settings.embedded:
            return cls._embedded(settings)
        try:
            session = botocore.session.Session()
            client = session.create_client("sqs", endpoint_url=settings.sqs_endpoint)
            endpoint = client.meta.endpoint_url
            tls = None
            if endpoint.startswith("https:"):
                ca = get_cert_path(session.get_config_variable("ca_bundle") or True)
                tls = ssl.create_default_context(cafile=ca)
        except NoRegionError:
            fix = "set AWS_DEFAULT_REGION, or region in the AWS profile"
            raise GenctlError("RegionMissing", "SQS: no AWS region is set", fix) from None
        except Exception as why:
            raise _misconfigured(why) from why
        return cls(endpoint, client.meta.region_name, _find, tls)

    @classmethod
    def _embedded(cls, settings: Settings) -> Self:
        endpoint, key, secret = (
            settings.sqs_endpoint,
            settings.aws_access_key_id,
            settings.aws_secret_access_key,
        )
        if not (endpoint and key and secret):
            told = "the embedded stack is not running, and with it its queue"
            raise GenctlError("StackNotRunning", told, "start it with `genctl up`, or set DATABASE_URL")
        return cls(endpoint, "us-east-1", lambda: Credentials(key, secret))


def _find() -> Credentials:
    """Look again for the credentials that boto3 would use, in environment, files and roles."""
    found = botocore.session.Session().get_credentials()
    if found is None:
        fix = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role"
        raise GenctlError("CredentialsMissing", "SQS: no AWS credentials were found", fix)
    return found


def _misconfigured(why: Exception) -> GenctlError:
    """Make the error for an exception of boto3, STS or a credential_process."""
    said = str(why) if isinstance(why, BotoCoreError) else f"{type(why).__name__}: {why}"
    fix = "check AWS_PROFILE, ~/.aws/config, ~/.aws/credentials, what they refer to, and this machine's clock"
    return GenctlError("AwsMisconfigured", f"SQS: AWS credentials or settings: {said}", fix)


class _Auth(SigV4Auth):
    """Sign by a given time, as SQS refuses a signature more than 15 minutes off its own clock."""

    def __init__(self, credentials: Any, region: str) -> None:
        super().__init__(credentials, "sqs", region)
        self.now = datetime.now(UTC)

    def _modify_request_before_signing(self, request: Any) -> None:
        request.context["timestamp"] = self.now.strftime("%Y%m%dT%H%M%SZ")
        super()._modify_request_before_signing(request)  # type: ignore[misc]  # the stubs leave it out


class Signer:
    """Sign requests with frozen credentials, which a thread renews, and never the event loop."""

    def __init__(self, where: SqsEndpoint) -> None:
        """Look credentials up, so call it in a thread. Raises GenctlError (exit 3): none, expired."""
        self._where = where
        self._renewal: asyncio.Task[None] | None = None
        self._next_try = 0.0
        try:
            self._look_up()
        except GenctlError:
            raise
        except Exception as why:
            raise _misconfigured(why) from why

    @property
    def credentials(self) -> object:
        """Return the credentials that sign now, to compare them."""
        return self._auth.credentials

    def _look_up(self) -> None:
        self._source = self._where.find()
        self._freeze()

    def _freeze(self) -> None:
        frozen = self._source.get_frozen_credentials()
        hidden.know("aws", (frozen.secret_key, frozen.token))
        self._auth = _Auth(frozen, self._where.region)

    async def headers(self, body: bytes, headers: dict[str, str], now: datetime) -> dict[str, str]:
        """Add the signature of a POST of `body` to its `headers`; `now` is SQS's, in UTC.

        If the credentials are due, a thread renews them meanwhile: the old ones may work for minutes, and SQS
        says when they do not.
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
            await asyncio.to_thread(how)
        except Exception as why:  # noqa: BLE001 - whatever it is, the next try may do better
            error = why if isinstance(why, GenctlError) else _misconfigured(why)
            log.warning("aws.credentials.not_renewed", error=error.message, fix=error.fix)
        self._next_try = time.monotonic() + RENEW_EVERY_S

"""Find SQS as boto3 does: endpoint, region, TLS, user agent; keep credentials, and sign requests."""

import asyncio
import os
import ssl
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, ClassVar, NamedTuple, Self
from urllib.parse import urlsplit

import botocore.session
import structlog
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials, ReadOnlyCredentials, RefreshableCredentials
from botocore.exceptions import BotoCoreError
from botocore.httpsession import create_urllib3_context, get_cert_path

from genctl.base import hidden
from genctl.base.settings import Settings
from genctl.domain.masking import without_login
from genctl.domain.model import GenctlError
from genctl.edges import credentials, http

CA_VARIABLE = "AWS_CA_BUNDLE"
CONNECT_TIMEOUT_S = 5.0  # at most
ATTEMPTS = 3  # of one call, unless somebody has set that
RENEW_EVERY_S = 30.0  # between two tries to renew credentials
AGAIN_S = 2.0  # how long a refused call waits for new ones: a stop waits for that call

log = structlog.stdlib.get_logger()


class SqsEndpoint(NamedTuple):
    """Hold where SQS is, and how to ask it."""

    endpoint: str
    region: str
    own: Credentials | None = None  # those of the embedded stack; None: as boto3 finds them
    tls: ssl.SSLContext | None = None
    user_agent: str | None = None
    attempts: int = ATTEMPTS
    connect_s: float = CONNECT_TIMEOUT_S

    @classmethod
    async def of(cls, settings: Settings) -> Self:
        """Find SQS. Raises GenctlError (exit 3): bad settings."""
        if settings.embedded:
            return cls._embedded(settings)
        return await credentials.looked_up(lambda: cls._found(settings))

    @classmethod
    def _found(cls, settings: Settings) -> Self:
        session = botocore.session.Session()
        credentials.check_settings(session)
        client, request = _first_request(session, settings.sqs_endpoint)
        config: Any = client.meta.config
        usual = 5 if config.retries["mode"] == "legacy" else ATTEMPTS
        return cls(
            request.url.rstrip("/"),
            client.meta.region_name,
            tls=_trust(session) if request.url.startswith("https:") else None,
            user_agent=bytes(request.headers["User-Agent"]).decode(),
            attempts=config.retries.get("total_max_attempts", usual),
            connect_s=min(config.connect_timeout, CONNECT_TIMEOUT_S),
        )

    @classmethod
    def _embedded(cls, settings: Settings) -> Self:
        key, secret = settings.aws_access_key_id, settings.aws_secret_access_key
        if not (settings.sqs_endpoint and key and secret):
            raise settings.not_running()
        settings.check_stack()
        return cls(settings.sqs_endpoint, "us-east-1", Credentials(key, secret))


class _NoBody:
    def stream(self, *_: object, **__: object) -> Any:
        yield b"{}"


def _first_request(session: Any, endpoint: str | None) -> tuple[Any, Any]:
    """Let botocore make a client and a request, which goes nowhere: we take its URL and its user agent.

    Raises GenctlError (exit 2): the endpoint is no URL, or has a login, as SQS takes signatures alone.
    """
    made: list[Any] = []

    def keep(request: Any, **_: object) -> AWSResponse:
        made.append(request)
        return AWSResponse(request.url, 200, HTTPHeaders(), _NoBody())

    try:
        client = session.create_client(
            "sqs",
            endpoint_url=endpoint,
            aws_access_key_id="none",  # or it would look for some
            aws_secret_access_key="none",  # noqa: S106
        )
        client.meta.events.register("before-send.sqs", keep)
        client.list_queues()
        parts = urlsplit(made[0].url)
        if parts.scheme not in {"http", "https"} or parts.username is not None:
            raise ValueError(parts.geturl())  # noqa: TRY301 - like those of botocore
    except BotoCoreError:  # some are ValueErrors, too
        raise
    except ValueError as why:
        said = " ".join(without_login(str(why)).split())
        raise GenctlError(
            "BadSetting",
            f"AWS: no endpoint of SQS, an http or https URL without a login: {said}",
            "set AWS_ENDPOINT_URL_SQS to a URL such as https://HOST:PORT, or AWS_DEFAULT_REGION to a Region",
            exit_code=2,
        ) from None
    return client, made[0]


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


class Keys:
    """Keep frozen credentials, which a look-up renews."""

    ours: ClassVar["Keys | None"] = None  # of this process
    frozen: ReadOnlyCredentials
    _source: Credentials | None = None

    @classmethod
    async def of_process(cls) -> "Keys":
        """Return the keys that boto3 would find; SQS and login tokens share them, and one look-up.

        Raises GenctlError (exit 3): none, expired, not in time.
        """
        cls.ours = cls.ours or cls(credentials.find)
        await cls.ours.ready()
        return cls.ours

    def __init__(self, find: Callable[[], Credentials]) -> None:
        self._find = find
        self._look: asyncio.Task[None] | None = None
        self._next_at = 0.0  # monotonic; when the next look-up may begin

    async def ready(self) -> None:
        """Wait for the first look-up. Raises GenctlError (exit 3)."""
        if self._source is None:
            await asyncio.shield(self._begin(self.look_up))
            self._next_at = 0.0  # the pause is one between renewals

    def look_up(self) -> None:
        """Look credentials up, which may hang."""
        self._freeze(self._find())

    def _freeze(self, source: Credentials) -> None:
        frozen = source.get_frozen_credentials()
        credentials.check(frozen)
        hidden.know("aws", (frozen.secret_key, frozen.token))
        self._source, self.frozen = source, frozen

    def renew_if_due(self) -> None:
        """Begin a renewal if one is due; until it ends the old credentials count, which may work for long."""
        source = self._source
        if isinstance(source, RefreshableCredentials) and source.refresh_needed():
            self._begin(lambda: self._freeze(source))

    async def look_again(self) -> None:
        """Look for new credentials, once AWS has refused ours; a slow look-up goes on, for later calls."""
        await asyncio.wait([self._begin(self.look_up)], timeout=AGAIN_S)

    def _begin(self, how: Callable[[], None]) -> asyncio.Task[None]:
        """Return the last look-up; begin another one if it has ended and the pause is over."""
        if self._look is None or (self._look.done() and time.monotonic() >= self._next_at):
            self._look = asyncio.create_task(credentials.looked_up(how))
            self._look.add_done_callback(self._ended)
        return self._look

    def _ended(self, look: asyncio.Task[None]) -> None:
        if self._source is None or look.cancelled():  # the caller knows
            return
        self._next_at = time.monotonic() + RENEW_EVERY_S
        if isinstance(error := look.exception(), GenctlError):  # the next try may do better
            log.warning("aws.credentials.not_renewed", error=error.message, fix=error.fix)


class _Auth(SigV4Auth):
    """Sign by a given time, as SQS refuses a signature more than 15 minutes off its own clock."""

    def __init__(self, frozen: ReadOnlyCredentials, region: str, now: datetime) -> None:
        super().__init__(frozen, "sqs", region)
        self._now = now

    def _modify_request_before_signing(self, request: Any) -> None:
        request.context["timestamp"] = self._now.strftime("%Y%m%dT%H%M%SZ")
        super()._modify_request_before_signing(request)  # type: ignore[misc]  # the stubs leave it out


def signed(
    where: SqsEndpoint, keys: Keys, body: bytes, headers: dict[str, str], now: datetime
) -> dict[str, str]:
    """Add the signature of a POST of `body` to its `headers`; `now` is SQS's, in UTC."""
    keys.renew_if_due()
    request = AWSRequest(method="POST", url=where.endpoint, headers=headers, data=body)
    _Auth(keys.frozen, where.region, now).add_auth(request)
    return dict(request.headers.items())

"""Find SQS as boto3 does: endpoint, region, TLS, retries, user agent; keep credentials, and sign requests."""

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
from genctl.edges.credentials import LOOK_S
from genctl.edges.retries import Retries

CA_VARIABLE = "AWS_CA_BUNDLE"
CONNECT_TIMEOUT_S = 5.0  # unless AWS_DEFAULTS_MODE says otherwise
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
    retries: Retries = Retries()
    connect_s: float = CONNECT_TIMEOUT_S
    keepalive: bool = False  # TCP's
    look_s: float = LOOK_S  # how long a look-up of credentials may take

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
        _check_endpoint(request.url)
        config: Any = client.meta.config
        retries = config.retries or {}
        has_defaults = session.get_config_variable("defaults_mode").lower() != "legacy"
        has_mode = has_defaults or credentials.is_set(session, "retry_mode")
        return cls(
            request.url.rstrip("/"),
            client.meta.region_name,
            tls=_trust(session) if request.url.startswith("https:") else None,
            user_agent=bytes(request.headers["User-Agent"]).decode(),
            retries=Retries.of(retries.get("mode") if has_mode else None, retries.get("total_max_attempts")),
            connect_s=config.connect_timeout if has_defaults else CONNECT_TIMEOUT_S,
            keepalive=bool(config.tcp_keepalive or session.get_config_variable("tcp_keepalive")),
            look_s=credentials.patience_s(session),
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
        settings.check_stack()
        return cls(endpoint, "us-east-1", Credentials(key, secret))


def _no_endpoint(why: str) -> GenctlError:
    """Make the error for an endpoint that is no URL, by the name of who sets it."""
    named = [name for name in ("AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL") if os.environ.get(name)]
    by = next(iter(named), "endpoint_url of the AWS profile")
    fix = f"set {by} to a URL such as https://HOST:PORT"
    return GenctlError("BadSetting", f"AWS: {by} is no URL of SQS: {without_login(why)}", fix, exit_code=2)


def _check_endpoint(url: str) -> None:
    """Refuse another protocol, and a login, as SQS takes signatures and no passwords. Raises GenctlError."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"}:
        raise _no_endpoint(f"{parts.scheme} instead of http or https")
    if parts.username is None:
        return
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    raise GenctlError(
        "BadSetting",
        f"AWS: the URL of SQS has a login, and SQS takes none: {without_login(url)}",
        f"export AWS_ENDPOINT_URL_SQS={bare}",
        exit_code=2,
    )


class _NoBody:
    def stream(self, *_: object, **__: object) -> Any:
        yield b"{}"


def _first_request(session: Any, endpoint: str | None) -> tuple[Any, Any]:
    """Let botocore make a client and a request, which goes nowhere: we take its URL and its user agent.

    Raises GenctlError (exit 2): the endpoint is no URL.
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
    except BotoCoreError:  # some are ValueErrors, too
        raise
    except ValueError as why:
        raise _no_endpoint(str(why)) from None
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

    ours: ClassVar["Keys | None"] = None  # of this process, once they are found

    @classmethod
    async def of_process(cls, patience_s: float = LOOK_S) -> "Keys":
        """Return the keys that boto3 would find; SQS and login tokens share them, and one look-up.

        Raises GenctlError (exit 3): none, expired, not in time.
        """
        if cls.ours is None:
            await credentials.looked_up(cls._find_once, patience_s)
        assert cls.ours  # noqa: S101 - else that has raised
        return cls.ours

    @classmethod
    def _find_once(cls) -> None:
        cls.ours = cls.ours or cls(credentials.find)  # somebody else may have found them meanwhile

    def __init__(self, find: Callable[[], Credentials]) -> None:
        """Look credentials up, which may hang: call it by credentials.looked_up()."""
        self._find = find
        self._renewal: asyncio.Task[None] | None = None
        self._next_try = 0.0
        self._look_up()

    def _look_up(self) -> None:
        self._source = self._find()
        self._freeze()

    def _freeze(self) -> None:
        frozen = self._source.get_frozen_credentials()
        credentials.check(frozen)
        hidden.know("aws", (frozen.secret_key, frozen.token))
        self.frozen = frozen

    def renew_if_due(self) -> None:
        """Begin a renewal if one is due; until it ends the old credentials count, which may work for long."""
        source = self._source
        if isinstance(source, RefreshableCredentials) and source.refresh_needed():
            self._renew(self._freeze)

    async def look_again(self) -> None:
        """Look for new credentials, once AWS has refused ours; a slow look-up goes on, for later calls."""
        await asyncio.wait([self._renew(self._look_up)], timeout=AGAIN_S)

    def _renew(self, how: Callable[[], None]) -> asyncio.Task[None]:
        """Return the last renewal; begin another one if it has ended and the pause is over."""
        if self._renewal is None or (self._renewal.done() and time.monotonic() >= self._next_try):
            self._renewal = asyncio.create_task(self._renewed(how))
        return self._renewal

    async def _renewed(self, how: Callable[[], None]) -> None:
        try:
            await credentials.looked_up(how)
        except GenctlError as error:  # the next try may do better
            log.warning("aws.credentials.not_renewed", error=error.message, fix=error.fix)
        self._next_try = time.monotonic() + RENEW_EVERY_S


class _Auth(SigV4Auth):
    """Sign by a given time, as SQS refuses a signature more than 15 minutes off its own clock."""

    def __init__(self, frozen: ReadOnlyCredentials, region: str, now: datetime) -> None:
        super().__init__(frozen, "sqs", region)
        self._now = now

    def _modify_request_before_signing(self, request: Any) -> None:
        request.context["timestamp"] = self._now.strftime("%Y%m%dT%H%M%SZ")
        super()._modify_request_before_signing(request)  # type: ignore[misc]  # the stubs leave it out


class Signer:
    """Sign requests to SQS."""

    def __init__(self, where: SqsEndpoint, keys: Keys) -> None:
        self._where = where
        self._keys = keys

    @classmethod
    async def of(cls, where: SqsEndpoint) -> Self:
        """Look credentials up. Raises GenctlError (exit 3): none, expired, not in time."""
        if (own := where.own) is None:
            return cls(where, await Keys.of_process(where.look_s))
        return cls(where, await credentials.looked_up(lambda: Keys(lambda: own)))

    @property
    def credentials(self) -> object:
        """Return the credentials that sign now, to compare them."""
        return self._keys.frozen

    def headers(self, body: bytes, headers: dict[str, str], now: datetime) -> dict[str, str]:
        """Add the signature of a POST of `body` to its `headers`; `now` is SQS's, in UTC."""
        self._keys.renew_if_due()
        request = AWSRequest(method="POST", url=self._where.endpoint, headers=headers, data=body)
        _Auth(self._keys.frozen, self._where.region, now).add_auth(request)
        return dict(request.headers.items())

    async def look_again(self) -> None:
        """Look for new credentials, once SQS has refused ours."""
        await self._keys.look_again()

"""Find the credentials that boto3 would use, and keep them: frozen, so that no signature waits for a renewal.

botocore reads the environment and the files; all that may hang, or ask a person, is a look-up.
"""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import botocore.session
import structlog
from botocore.config import Config
from botocore.credentials import Credentials, RefreshableCredentials
from botocore.exceptions import BotoCoreError, NoRegionError

from genctl.base import hidden
from genctl.domain.model import GenctlError
from genctl.edges.lookups import LOOKUPS

RENEW_EVERY_S = 30.0  # between two tries to renew credentials
LOOK_S = 10.0  # how long anybody waits for a look-up of credentials
ASKED_S = 120.0  # as long, where a person types the code of an MFA device
LONG_S = 2.0  # a look-up that takes longer explains why others wait
CALL_S = 5.0  # of one call that a look-up makes, to STS, SSO or a container's agent

T = TypeVar("T")

log = structlog.stdlib.get_logger()


async def looked_up(work: Callable[[], T], within_s: float = LOOK_S) -> T:
    """Do what may hang or ask a person. Raises GenctlError (exit 3), whatever botocore raises."""
    try:
        return await LOOKUPS.look(work, within_s=within_s)
    except TimeoutError:
        raise _slow(f"has given no credentials within {within_s:g} s") from None
    except NoRegionError:
        raise no_region() from None
    except GenctlError:
        raise
    except Exception as why:
        raise _misconfigured(why) from why


class _Source:
    """The source of credentials that was tried last, for people."""

    tried = "the AWS configuration"


def find() -> Credentials:
    """Look again for the credentials that boto3 would use, in environment, files and roles."""
    session = botocore.session.Session()
    session.set_default_client_config(Config(connect_timeout=CALL_S, read_timeout=CALL_S))
    if _asks(session) and not _may_ask():
        profile = session.profile or "default"
        raise GenctlError(
            "MfaWithoutTerminal",
            f"AWS: the profile {profile} asks for an MFA code, and there is no terminal",
            'eval "$(aws configure export-credentials --format env)" in a terminal, and start again there',
        )
    for provider in session.get_component("credential_provider").providers:
        _Source.tried = f"the source {provider.METHOD}"
        found: Credentials | None = provider.load()
        if found is not None:
            return found
    raise GenctlError(
        "CredentialsMissing",
        "AWS: no credentials were found",
        "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role",
    )


def hanging() -> GenctlError | None:
    """Return the error for a look-up that has been under way for long, None if none has."""
    return _slow("hangs, and gives no credentials") if LOOKUPS.busy_s() > LONG_S else None


def _slow(what: str) -> GenctlError:
    fix = "check what AWS_PROFILE and the AWS_ variables of this process refer to, and the network to it"
    return GenctlError("CredentialsSlow", f"AWS: {_Source.tried} {what}", fix)


def no_region() -> GenctlError:
    """Make the error for settings of AWS without a region."""
    fix = "set AWS_DEFAULT_REGION, or region in the AWS profile"
    return GenctlError("RegionMissing", "AWS: no region is set", fix)


def patience_s(session: Any) -> float:
    """Return how long a look-up of credentials may take."""
    return ASKED_S if _asks(session) else LOOK_S


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
    return GenctlError("AwsMisconfigured", f"AWS: credentials or settings: {said}", fix)


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
                f"AWS: {name} of {_Source.tried} has a blank, a line break or another sign that no key has",
                f"set {name} again, without what stands before and after it",
            )


class Keys:
    """Keep frozen credentials, which a look-up renews."""

    def __init__(self, find: Callable[[], Credentials]) -> None:
        """Look credentials up, which may hang: call it by looked_up()."""
        self._find = find
        self._renewal: asyncio.Task[None] | None = None
        self._next_try = 0.0
        self._look_up()

    def _look_up(self) -> None:
        self._source = self._find()
        self._freeze()

    def _freeze(self) -> None:
        frozen = self._source.get_frozen_credentials()
        _check(frozen)
        hidden.know("aws", (frozen.secret_key, frozen.token))
        self.frozen = frozen

    def renew_if_due(self) -> None:
        """Begin a renewal if one is due; until it ends the old credentials count, which may work for long."""
        source = self._source
        if isinstance(source, RefreshableCredentials) and source.refresh_needed():
            self._renew(self._freeze)

    async def look_again(self) -> None:
        """Look for new credentials, once AWS has refused ours."""
        await asyncio.wait([self._renew(self._look_up)], timeout=LOOK_S)

    def _renew(self, how: Callable[[], None]) -> asyncio.Task[None]:
        """Return the last renewal; begin another one if it has ended and the pause is over."""
        if self._renewal is None or (self._renewal.done() and time.monotonic() >= self._next_try):
            self._renewal = asyncio.create_task(self._renewed(how))
        return self._renewal

    async def _renewed(self, how: Callable[[], None]) -> None:
        try:
            await looked_up(how)
        except GenctlError as error:  # the next try may do better
            log.warning("aws.credentials.not_renewed", error=error.message, fix=error.fix)
        self._next_try = time.monotonic() + RENEW_EVERY_S

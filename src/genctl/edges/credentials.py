"""Find the credentials that boto3 would use, in time, and say in one line why there are none.

botocore reads the environment and the files; all that may hang, or ask a person, is a look-up.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from getpass import getpass
from typing import Any, TypeVar

import botocore.session
import structlog
from botocore.config import Config
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES
from botocore.credentials import AssumeRoleProvider, Credentials, ProcessProvider, ProfileProviderBuilder
from botocore.exceptions import BotoCoreError, NoRegionError, SSOError, TokenRetrievalError

from genctl.base import children
from genctl.domain.model import GenctlError
from genctl.edges import deadline, lookups

LOOK_S = 10.0  # how long anybody waits for a look-up of credentials
LONG_S = 2.0  # a look-up that takes longer explains why others wait
CALL_S = 5.0  # of one call that a look-up makes, to STS, SSO or a container's agent
PAGE = "https://docs.aws.amazon.com/boto3/latest/guide/configuration.html#using-a-configuration-file"

T = TypeVar("T")

log = structlog.stdlib.get_logger()


async def looked_up(work: Callable[[], T]) -> T:
    """Do what may hang or ask a person. Raises GenctlError (exit 3), whatever botocore raises."""
    slow = asyncio.get_running_loop().call_later(LONG_S, _tell_slow)
    try:
        return await lookups.look(work, within_s=LOOK_S)
    except TimeoutError:
        raise _slow(f"has given no credentials within {LOOK_S:g} s") from None
    except NoRegionError:
        raise no_region() from None
    except GenctlError:
        raise
    except Exception as why:
        raise _misconfigured(why) from why
    finally:
        slow.cancel()


def _tell_slow() -> None:
    """Say what we wait for, as a process that says nothing looks dead; but not into a prompt."""
    if lookups.asks():
        return
    log.warning("aws.credentials.slow", source=_Source.tried)
    if command := deadline.current.get():
        command.note(f"waiting for AWS credentials: {_Source.tried} has given none yet")


class _Source:
    """The source of credentials that was tried last, for people."""

    tried = "the AWS configuration"


def find() -> Credentials:
    """Look again for the credentials that boto3 would use, in environment, files and roles.

    Each credential_process then ends with the wait for it, and a prompt gets the time that a person needs.
    """
    session = botocore.session.Session()
    session.set_default_client_config(Config(connect_timeout=CALL_S, read_timeout=CALL_S))
    profile = session.profile or "default"
    for provider in session.get_component("credential_provider").providers:
        _Source.tried = f"the source {provider.METHOD}"
        if isinstance(provider, ProcessProvider):  # botocore offers no other way
            vars(provider).update(_popen=children.start)
        elif isinstance(provider, AssumeRoleProvider):
            profiles = _Profiles(session, cache={})
            vars(provider).update(_profile_provider_builder=profiles, _prompter=partial(_ask, profile))
        found: Credentials | None = provider.load()
        if found is not None:
            return found
    raise GenctlError(
        "CredentialsMissing",
        "AWS: no credentials were found",
        "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role",
    )


class _Profiles(ProfileProviderBuilder):
    """Make the sources of a profile that a role starts from."""

    def _create_process_provider(self, profile_name: str) -> Any:
        provider = super()._create_process_provider(profile_name)  # type: ignore[misc]
        vars(provider).update(_popen=children.start)
        return provider


def hanging() -> GenctlError | None:
    """Return the error of whoever waits in vain, for a look-up that is under way; None if none is."""
    return _slow("hangs, and gives no credentials") if lookups.is_busy() else None


def _slow(what: str) -> GenctlError:
    fix = "check what AWS_PROFILE and the AWS_ variables of this process refer to, and the network to it"
    return GenctlError("CredentialsSlow", f"AWS: {_Source.tried} {what}", fix)


def no_region() -> GenctlError:
    """Make the error for settings of AWS without a region."""
    fix = "set AWS_DEFAULT_REGION, or region in the AWS profile"
    return GenctlError("RegionMissing", "AWS: no region is set", fix)


def _ask(profile: str, prompt: str) -> str:
    """Ask a person for the code of an MFA device. Raises GenctlError (exit 3): nobody is there."""
    if not children.has_terminal():
        raise GenctlError(
            "MfaWithoutTerminal",
            f"AWS: the profile {profile} asks for an MFA code, and there is no terminal",
            'eval "$(aws configure export-credentials --format env)" in a terminal, and start again there',
        )
    lookups.let_ask()
    return getpass(prompt)


def _misconfigured(why: Exception) -> GenctlError:
    """Make the error for an exception of botocore, STS or a credential_process."""
    said = str(why) if isinstance(why, BotoCoreError) else f"{_Source.tried}: {type(why).__name__}: {why}"
    fix = f"check the AWS_ variables, ~/.aws/config, ~/.aws/credentials, and this machine's clock: {PAGE}"
    if isinstance(why, (SSOError, TokenRetrievalError)):  # nobody has logged in, or that has expired
        fix = "renew the AWS credentials: aws sso login"
    return GenctlError("AwsMisconfigured", f"AWS: credentials or settings: {said}", fix)


def check_settings(session: Any) -> None:
    """Check the numbers. Raises GenctlError (exit 3), which names the setting, as botocore does not."""
    for name, (key, variable, *_) in BOTOCORE_DEFAUT_SESSION_VARIABLES.items():
        try:
            session.get_config_variable(name)
        except ValueError as why:
            said = f"AWS: {variable}, or {key} of the AWS profile: {why}"
            raise GenctlError("AwsMisconfigured", said, f"set it as boto3 documents {key}: {PAGE}") from None


def check(frozen: Any) -> None:
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

"""Find the credentials that boto3 would use, in time, and say in one line why there are none.

botocore reads the environment and the files; all that may hang, or ask a person, is a look-up.
"""

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from getpass import getpass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import botocore.session
import structlog
from botocore.config import Config
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES
from botocore.credentials import AssumeRoleProvider, Credentials, ProcessProvider, ProfileProviderBuilder
from botocore.exceptions import BotoCoreError, NoRegionError, SSOError, TokenRetrievalError

from genctl.base import children
from genctl.domain.model import GenctlError
from genctl.edges import deadline
from genctl.edges.lookups import LOOKUPS

LOOK_S = 10.0  # how long anybody waits for a look-up of credentials
ASKED_S = 120.0  # as long, where a person types the code of an MFA device
LONG_S = 2.0  # a look-up that takes longer explains why others wait
CALL_S = 5.0  # of one call that a look-up makes, to STS, SSO or a container's agent
PAGE = "https://docs.aws.amazon.com/boto3/latest/guide/configuration.html#using-a-configuration-file"

T = TypeVar("T")

log = structlog.stdlib.get_logger()


async def looked_up(work: Callable[[], T], within_s: float = LOOK_S) -> T:
    """Do what may hang or ask a person. Raises GenctlError (exit 3), whatever botocore raises."""
    tell_after_s = LONG_S if within_s <= LOOK_S else within_s  # nothing is told into a prompt
    slow = asyncio.get_running_loop().call_later(tell_after_s, _tell_slow)
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
    finally:
        slow.cancel()


def _tell_slow() -> None:
    """Say what we wait for, so that nobody looks at a process that says nothing."""
    log.warning("aws.credentials.slow", source=_Source.tried)
    if command := deadline.current():
        command.note(f"waiting for AWS credentials: {_Source.tried} has given none yet")


class _Source:
    """The source of credentials that was tried last, for people."""

    first = "the AWS configuration"
    tried = first


def find() -> Credentials:
    """Look again for the credentials that boto3 would use, in environment, files and roles."""
    _Source.tried = _Source.first
    session = botocore.session.Session()
    session.set_default_client_config(Config(connect_timeout=CALL_S, read_timeout=CALL_S))
    for provider in _providers(session):
        _Source.tried = f"the source {provider.METHOD}"
        found: Credentials | None = provider.load()
        if found is not None:
            return found
    raise GenctlError(
        "CredentialsMissing",
        "AWS: no credentials were found",
        "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role",
    )


class _Profiles(ProfileProviderBuilder):
    """Make the sources of a profile, also of one that a role starts from."""

    def __init__(self, session: Any) -> None:
        super().__init__(session, cache={})
        self._config = lambda: session.full_config

    def _create_process_provider(self, profile_name: str) -> ProcessProvider:
        return ProcessProvider(profile_name, self._config, popen=children.start)


def _providers(session: Any) -> Iterator[Any]:
    """List botocore's sources of credentials; each credential_process then ends with the wait for it."""
    profiles = _Profiles(session)
    for provider in session.get_component("credential_provider").providers:
        match provider:
            case AssumeRoleProvider():  # botocore offers no other way
                provider._profile_provider_builder = profiles  # type: ignore[attr-defined]  # noqa: SLF001
                provider._prompter = partial(_ask, session.profile or "default")  # type: ignore[attr-defined]  # noqa: SLF001
                yield provider
            case ProcessProvider():
                yield profiles._create_process_provider(session.profile or "default")  # noqa: SLF001
            case _:
                yield provider


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
    return ASKED_S if _asks(session) and _may_ask() else LOOK_S


def _asks(session: Any) -> bool:
    """Tell whether the profile, or one that it starts from, names an MFA device."""
    seen = set[str]()
    with suppress(BotoCoreError):  # such as a file that is no configuration, which the look-up tells
        profiles, name = session.full_config["profiles"], session.profile or "default"
        while name in profiles and name not in seen:
            if "mfa_serial" in profiles[name]:
                return True
            seen.add(name)
            name = profiles[name].get("source_profile")
    return False


def _ask(profile: str, prompt: str) -> str:
    """Ask a person for the code of an MFA device. Raises GenctlError (exit 3): nobody is there."""
    if not _may_ask():
        raise GenctlError(
            "MfaWithoutTerminal",
            f"AWS: the profile {profile} asks for an MFA code, and there is no terminal",
            'eval "$(aws configure export-credentials --format env)" in a terminal, and start again there',
        )
    return getpass(prompt)


def _may_ask() -> bool:
    """Tell whether a person is there to type it."""
    with suppress(OSError), Path("/dev/tty").open("rb"):
        return children.has_terminal()
    return False


def _misconfigured(why: Exception) -> GenctlError:
    """Make the error for an exception of botocore, STS or a credential_process."""
    said = str(why) if isinstance(why, BotoCoreError) else f"{_Source.tried}: {type(why).__name__}: {why}"
    fix = "check AWS_PROFILE, ~/.aws/config, ~/.aws/credentials, what they refer to, and this machine's clock"
    if isinstance(why, (SSOError, TokenRetrievalError)):  # nobody has logged in, or that has expired
        fix = "renew the AWS credentials: aws sso login"
    return GenctlError("AwsMisconfigured", f"AWS: credentials or settings: {said}", fix)


def is_set(session: Any, name: str) -> bool:
    """Tell whether somebody has set it, by its variable or in the profile."""
    key, variable, *_ = BOTOCORE_DEFAUT_SESSION_VARIABLES[name]
    return bool(os.environ.get(variable) or session.get_scoped_config().get(key))


class Documented(NamedTuple):
    """Say what boto3's documentation wants of a setting; `fits` tells whether a value does."""

    words: str
    fits: Callable[[Any], object]


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and value >= least


def _one_of(*values: str) -> Documented:
    return Documented(f"one of {', '.join(values)}", values.__contains__)


_SETTINGS = {
    "region": Documented("a Region, such as us-west-2", re.compile("[A-Za-z0-9-]+").fullmatch),
    "max_attempts": Documented("an integer, the number of attempts of a request from 1 on", _whole(1)),
    "metadata_service_timeout": Documented("a whole number of seconds", _whole(0)),
    "metadata_service_num_attempts": Documented("a whole number of attempts", _whole(0)),
    "retry_mode": _one_of("legacy", "standard", "adaptive"),
    "defaults_mode": Documented(
        "one of legacy, auto, standard, in-region, cross-region, mobile",
        lambda value: value.lower() in {"legacy", "auto", "standard", "in-region", "cross-region", "mobile"},
    ),
}


def check_settings(session: Any) -> None:
    """Check what botocore would stumble over later. Raises GenctlError (exit 3), which names the setting."""
    for name, wanted in _SETTINGS.items():
        try:
            value = session.get_config_variable(name)
        except ValueError:
            raise _unfit(name, wanted) from None
        if value is not None and not wanted.fits(value):
            raise _unfit(name, wanted)


def _unfit(name: str, wanted: Documented) -> GenctlError:
    key, variable, *_ = BOTOCORE_DEFAUT_SESSION_VARIABLES[name]
    by = variable if variable in os.environ else f"{key} of the AWS profile"  # an empty one counts, too
    fix = f"set {by} as boto3 documents {key}: {PAGE}"
    return GenctlError("AwsMisconfigured", f"AWS: {by} must be {wanted.words}", fix)


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

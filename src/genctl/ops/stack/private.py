"""Files and folders that only their owner can use."""

import os
import stat
from pathlib import Path

from genctl.domain.model import GenctlError


def private_folder(path: Path) -> Path:
    """`path`, made with mode 0700 when missing. Raises GenctlError when others own it or may write."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise GenctlError(
            "NotPrivate",
            f"{path} is not a folder of yours alone: another user owns it or may write to it",
            "set GENCTL_HOME to a folder of your own",
        )
    return path


def write_private(path: Path, text: str) -> None:
    """Write `text` to `path` with mode 0600, whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    new.touch(0o600, exist_ok=False)
    new.write_text(text)
    new.replace(path)

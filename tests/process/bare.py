"""A machine on which nothing of genctl is installed: a checkout, an empty HOME, and a PATH of the system's.

An index of its own offers what is installed beside the tests, in the versions of constraints.txt: pip reads 38,000 links
of a real one to find our packages, which is most of what it does. `.ci/run` installs from the real one.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
MADE = (".git", ".venv*", ".newest", ".*_cache", ".hypothesis", "__pycache__", "node_modules")
PYTHON = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
TOOLS = ("sh", "make", "env", "sed", "grep", "tail", "head", "mkdir", "rm", "touch", "id", "cp", "chmod")
LEFT_OUT = ("INSTALLER", "REQUESTED", "direct_url.json")  # what pip writes beside a package
NO_INDEX = {
    "PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_EXTRA_INDEX_URL": "", "PIP_RETRIES": "1",
    "PIP_NO_INDEX": "0", "PIP_FIND_LINKS": "",
}  # fmt: skip


@dataclass
class Bare:
    """A terminal in a checkout there."""

    checkout: Path
    env: dict[str, str]
    prefix: tuple[str, ...] = ()

    @classmethod
    @contextmanager
    def new(cls, *parts: str) -> Iterator[Self]:
        """With these parts of the checkout, or all; in a folder that other users may enter."""
        with TemporaryDirectory() as name:
            home, checkout = Path(name) / "home", Path(name) / "check out"
            home.parent.chmod(0o755)
            home.mkdir()
            if parts:
                for part in parts:
                    (checkout / part).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / part, checkout / part)
                index = {}
            else:
                shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*MADE))
                index = index_of_wheels(Path(name))
            yield cls(checkout, {"HOME": str(home), "PATH": "/usr/bin:/bin", **index})

    def programs(self, *, python: str = "") -> Path:
        """A PATH of a few tools of the system alone, with `python3` where it is given as a script."""
        folder = Path(self.env["HOME"]) / "bin"
        folder.mkdir()
        for tool in TOOLS:
            (folder / tool).symlink_to(str(shutil.which(tool)))
        if python:
            (folder / "python3").write_text(python)
            (folder / "python3").chmod(0o755)
        self.env["PATH"] = str(folder)
        return folder

    def type(self, line: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """A line as it is typed into a shell."""
        return self.run(["sh", "-c", line], **env)

    def run(self, command: Sequence[str], **env: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*self.prefix, *command],
            cwd=self.checkout,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


def index_of_wheels(folder: Path) -> dict[str, str]:
    """Pack what genctl needs into wheels, as it is installed here; the settings of a pip that knows no other index."""
    wheels = folder / "wheels"
    wheels.mkdir()
    installed = {canonicalize_name(dist.name): dist for dist in distributions()}
    wanted, packed = (
        [Requirement(one) for one in ("genctl[local]", "hatchling", "editables", "pip")],
        set[str](),
    )
    while wanted:
        one = wanted.pop()
        dist = installed[canonicalize_name(one.name)]
        more = [Requirement(line) for line in dist.requires or ()]
        extras = one.extras or {""}
        more = [
            need
            for need in more
            if not need.marker or any(need.marker.evaluate({"extra": e}) for e in extras)
        ]
        wanted += [need for need in more if str(need) not in packed]
        packed |= {str(need) for need in more}
        if one.name != "genctl":
            pack(dist, wheels)
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}


def pack(dist: Distribution, folder: Path) -> None:
    _, *tags = (dist.read_text("WHEEL") or "").split("Tag: ")
    wheel = folder / f"{dist.name.replace('-', '_')}-{dist.version}-{tags[-1].strip()}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in dist.files or ():
            if path.parts[0] != ".." and path.suffix != ".pyc" and path.name not in LEFT_OUT:
                archive.write(str(dist.locate_file(path)), str(path))

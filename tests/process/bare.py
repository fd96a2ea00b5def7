"""A machine on which nothing of genctl is installed: a checkout, an empty HOME, and a PATH of the system's."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

ROOT = Path(__file__).parents[2]
MADE = (".git", ".venv*", ".newest", ".*_cache", ".hypothesis", "__pycache__", "node_modules")
PYTHON = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
TOOLS = ("sh", "make", "env", "sed", "grep", "tail", "head", "mkdir", "rm", "touch", "id", "cp", "chmod")
INDEX = ("PIP_", "SSL_CERT_", "REQUESTS_CA_BUNDLE", "http_proxy", "https_proxy", "no_proxy")
NO_INDEX = {"PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_EXTRA_INDEX_URL": "", "PIP_RETRIES": "1"}


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
            else:
                shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*MADE))
            yield cls(checkout, {"HOME": str(home), "PATH": "/usr/bin:/bin", **the_way_to_the_index()})

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


def the_way_to_the_index() -> dict[str, str]:
    """What this machine has set for pip, and its cache; not what is installed."""
    ways = {name: value for name, value in os.environ.items() if name.startswith(INDEX)}
    config = Path("~/.config/pip/pip.conf").expanduser()
    if config.exists():
        ways.setdefault("PIP_CONFIG_FILE", str(config))
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "pip"
    return {"PIP_CACHE_DIR": str(cache), **ways}

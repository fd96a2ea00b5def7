"""What is installed works outside the checkout, and finds the files that come with it."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from tests.ship import conftest as ship

from genctl import __version__
from genctl.cli.manual import PAGES, SECTIONS

ROOT = Path(__file__).parents[2]
dist = ship.dist
TOLD = (*PAGES, SECTIONS)  # the pages of `genctl help`
FIND = """
import json
from genctl.base import assets
print(json.dumps({name: str(assets.folder(name)) for name in ("migrations", "runbooks", "docs")}))
"""


@pytest.fixture
def wheel(dist: Path) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


class Installed:
    """A fresh environment with genctl in it; the other packages come from the one that runs the tests."""

    def __init__(self, home: Path, *what: str) -> None:
        self.home = home
        self.bin = home / "venv" / "bin"
        venv.create(home / "venv", with_pip=False)
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python")]
        self._run(*pip, "install", "--quiet", "--no-deps", "--no-compile", "--no-build-isolation", *what)

    def run(self, program: str, *args: str) -> str:
        return self._run(str(self.bin / program), *args)

    def folders(self) -> dict[str, Path]:
        return {name: Path(path) for name, path in json.loads(self.run("python", "-c", FIND)).items()}

    def _run(self, *line: str) -> str:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": sysconfig.get_path("purelib"),
        }
        done = subprocess.run(line, cwd=self.home, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_wheel_works_outside_the_checkout_and_brings_its_files(wheel: Path, tmp_path: Path) -> None:
    installed = Installed(tmp_path, str(wheel))
    assert "DATABASE_URL" in installed.run("genctl", "config", "show", "-o", "json")
    for name, folder in installed.folders().items():
        assert folder.is_relative_to(tmp_path)
        assert names(folder) == ({f"{page}.md" for page in TOLD} if name == "docs" else names(ROOT / name))
    assert installed.run("genctl", "help", "dlq").startswith("# Working on the DLQ\n")


def test_the_editable_install_finds_the_checkouts_files(tmp_path: Path) -> None:
    installed = Installed(tmp_path, "--editable", str(ROOT))
    assert installed.run("genctl", "--version") == f"genctl {__version__}\n"
    assert installed.folders() == {name: ROOT / name for name in ("migrations", "runbooks", "docs")}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = archive.namelist()
    assert {name.split("/")[0] for name in held} == {"genctl", f"genctl-{__version__}.dist-info"}
    assert "genctl/py.typed" in held
    assert not [name for name in held if "__pycache__" in name]

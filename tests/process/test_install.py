"""What is missing for `make` is told in one line, and the line says how to mend it."""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.process.bare import PYTHON, ROOT, Bare

PARTS = ("Makefile", "pyproject.toml", "constraints.txt", ".ci/install", ".ci/writable")
NAMING_PYTHON = ("README.md", "CONTRIBUTING.md", "Makefile")
# Answers as a Python of this version would.
OLD = f"""#!/bin/sh
test "$1" = -c && exec {PYTHON} -c 'import sys; sys.version_info = (3, 10, 13); exec(sys.argv.pop())' "$2"
"""
AWAY = "the package index does not answer"


@pytest.fixture
def bare() -> Iterator[Bare]:
    with Bare.new(*PARTS) as bare:
        yield bare


def told(bare: Bare, line: str, **env: str) -> str:
    """The one line of a `make` that fails; make adds that it has failed."""
    done = bare.type(line, **env)
    assert done.returncode != 0
    ours, makes = done.stderr.splitlines()
    assert makes.startswith("make: ***")
    assert ours.startswith("genctl: ")
    return ours.removeprefix("genctl: ")


@pytest.mark.parametrize("goal", ["demo", "test", "check"])
def test_no_python_at_all(bare: Bare, goal: str) -> None:
    bare.programs()
    said = told(bare, f"make {goal}")
    assert said.startswith("there is no python3 here; install Python 3.11 or newer, then run: ")
    assert said.endswith(f"make {goal} PYTHON=/where/it/is/bin/python3")


def test_a_python_that_is_too_old_and_one_beside_it_that_will_do(bare: Bare) -> None:
    """The other one's name is given; what is printed then gets as far as the next thing that is missing."""
    programs = bare.programs(python=OLD)
    old = "python3 is Python 3.10.13, and genctl needs Python 3.11 or newer; "
    assert told(bare, "make test").startswith(
        f"{old}install Python 3.11 or newer, then run: make test PYTHON="
    )
    (programs / "python3.12").symlink_to(PYTHON)
    said = told(bare, "make test")
    assert said == f"{old}run: make test PYTHON=python3.12"
    assert "without venv" in told(bare, said.rpartition("run: ")[2], PYTHONPATH=no_venv(bare))


def test_a_python_that_does_not_run(bare: Bare) -> None:
    """As the name that a version manager keeps for a Python which is not installed."""
    bare.programs(python="#!/bin/sh\nexit 127\n")
    assert told(bare, "make demo").startswith("python3 does not run; install Python 3.11 or newer")


def test_a_python_without_venv(bare: Bare) -> None:
    """Debian has it in a package of its own."""
    version = PYTHON.name.removeprefix("python")
    said = told(bare, f"make demo PYTHON={PYTHON}", PYTHONPATH=no_venv(bare))
    apt = "apt-get" if os.geteuid() == 0 else "sudo apt-get"
    assert said.startswith(f"Python {version}.")
    assert said.endswith(
        f"comes without venv here; run: {apt} install {PYTHON.name}-venv && make demo PYTHON={PYTHON}"
    )


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("WARNING: Retrying (Retry(total=0))\nERROR: ResolutionImpossible: for help", AWAY),
        ("error: incomplete-download\n\nhint: Use --resume-retries", AWAY),
        ("ERROR: OSError: HTTPConnectionPool(): (ResponseError('too many 503 error responses'))", AWAY),
        (
            "  have no matching distributions available\nERROR: ResolutionImpossible: for help",
            f"{AWAY}, or has no",
        ),
        (
            "Collecting\nERROR: [Errno 28] No space left on device\n",
            "ERROR: [Errno 28] No space left on device",
        ),
        ("last words", "last words"),
    ],
)
def test_the_reason_why_pip_failed(bare: Bare, said: str, reason: str) -> None:
    """As pip 26 words them, of an index that ends half-way, answers 503 or has nothing."""
    bare.type(f"{PYTHON} -m venv --without-pip .venv && touch .venv/.whole")
    (packages,) = bare.checkout.glob(".venv/lib/python*/site-packages")
    (packages / "pip.py").write_text(f"import sys\nsys.exit({said!r})\n")
    assert told(bare, "make demo").startswith(reason)


@pytest.mark.parametrize(("goal", "where"), [("demo", "/.venv"), ("test", "")])
def test_a_checkout_that_may_only_be_read(bare: Bare, goal: str, where: str) -> None:
    """What is printed copies it, and gets as far as the next thing that is missing, in the copy.

    Also where somebody else has installed all, for tests keep caches; the demo needs none. What they have
    installed imports their checkout, so the copy installs its own.
    """
    if goal == "test":
        (bare.checkout / ".venv").mkdir()
        for made in (".demo", ".ready"):
            (bare.checkout / ".venv" / made).touch()
        (bare.checkout / ".venv").chmod(0o555)
    bare.checkout.chmod(0o555)
    if os.geteuid() == 0:  # whom no mode keeps out
        bare.prefix = (str(shutil.which("setpriv")), "--reuid=65534", "--regid=65534", "--clear-groups")
        Path(bare.env["HOME"]).chmod(0o777)
    bare.programs(python="#!/bin/sh\nexit 127\n")
    said = told(bare, f"make {goal}")
    copy = "take a copy that is yours, run: cp -r "
    assert said.startswith(f"cannot write to {bare.checkout}{where}; {copy}")
    copied = bare.type(said.rpartition("run: ")[2])
    assert "genctl: python3 does not run" in copied.stderr
    assert f"make {goal} PYTHON=" in copied.stderr


def no_venv(bare: Bare) -> str:
    """A folder before which Python finds no `ensurepip`."""
    folder = Path(bare.env["HOME"]) / "no-venv"
    folder.mkdir()
    (folder / "ensurepip.py").write_text("raise ImportError\n")
    return str(folder)


def test_what_is_installed_here_is_what_the_constraints_say() -> None:
    """Each package, also what others need and what builds; else: make, or make upgrade."""
    here = [one for one in pinned() if one.marker is None or one.marker.evaluate()]
    exact = {canonicalize_name(one.name): one.specifier for one in here}
    installed = {canonicalize_name(one.name): one for one in distributions()}
    ours = {name: one for name, one in installed.items() if name in exact or name == "genctl"}
    assert [name for name, one in ours.items() if name in exact and one.version not in exact[name]] == []
    needed = {
        canonicalize_name(Requirement(line).name) for one in ours.values() for line in one.requires or ()
    }
    assert needed & installed.keys() - exact.keys() <= {"setuptools"}  # Python 3.11 puts it into each venv


def test_the_constraints_are_exact_versions_and_name_no_place() -> None:
    assert [
        one.name for one in pinned() if [part.operator for part in one.specifier] != ["=="] or one.url
    ] == []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[a-z0-9.]+( ; [a-zA-Z0-9_ '=!<>.()]+)?", line), line


@pytest.mark.parametrize("file", ["Makefile", "Dockerfile", "action.yml"])
def test_no_install_of_ours_depends_on_what_came_out_today(file: str) -> None:
    """Those of `.ci/install` get CONSTRAINTS from the Makefile."""
    lines = (ROOT / file).read_text().replace("\\\n", " ").splitlines()
    installs = [line for line in lines if re.search(r"\bpip\b.* install ", line)]
    assert installs
    assert [line for line in installs if "--constraint" not in line] == []


def pinned() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def test_check_refuses_what_nothing_imports_and_what_nothing_declares(tmp_path: Path) -> None:
    """By the lines of `make check` itself, on a project with one of each."""
    (tmp_path / "pyproject.toml").write_text(
        (ROOT / "pyproject.toml").read_text().replace('"aiohttp>', '"xmltodict", "aiohttp>', 1)
    )
    for folder in ("src", "tests", "docs", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / "src/genctl/one.py").write_text("import multidict\n")
    (tmp_path / "tests/test_one.py").write_text("import yarl\n")
    (tmp_path / "examples/genctl-tool-example/one.py").write_text("import attr\n")
    said = ""
    for line in make("-n", "check").splitlines():
        if "deptry" in line:
            done = subprocess.run(
                ["sh", "-c", f"{ROOT}/{line}"], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 1, done.stdout
            said += done.stderr
    found = re.findall(r"(DEP\d+)\S* '(\w+)'", said)
    assert set(found) == {
        ("DEP002", "xmltodict"),
        ("DEP003", "multidict"),
        ("DEP003", "yarl"),
        ("DEP003", "attr"),
    }


def test_all_that_name_the_oldest_python_agree() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    least = pyproject["project"]["requires-python"].removeprefix(">=")
    assert f"Python {least} or newer" in make("help")
    assert pyproject["tool"]["ruff"]["target-version"] == f"py{least.replace('.', '')}"
    named = {path: re.findall(r"Python (3\.\d+)\+", (ROOT / path).read_text()) for path in NAMING_PYTHON}
    assert named == {path: [least] for path in NAMING_PYTHON}
    assert f"--python-version {least} " in make("-n", "upgrade")
    kept = ROOT / ".python-version"
    assert not kept.exists() or kept.read_text().startswith(f"{least}")


def make(*words: str) -> str:
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout

"""A release is the same bytes on each machine, says what is in it, and never changes what has been applied."""

import hashlib
import re
import subprocess
from pathlib import Path

from tests.ship.conftest import built
from tests.ship.judges import ROOT, judged

from genctl import __version__

MIGRATIONS = ROOT / "migrations"
SUMS = re.findall(r"^(\w{64})  (\S+)$", (MIGRATIONS / "SHA256SUMS").read_text(), re.MULTILINE)
SEALED = {name: digest for digest, name in SUMS}


def test_a_released_migration_never_changes() -> None:
    """A database that has it applied would drift: write a new migration instead."""
    found = {name: hashlib.sha256((MIGRATIONS / name).read_bytes()).hexdigest() for name in SEALED}
    assert found == SEALED


def test_a_new_migration_comes_behind_all_released_ones() -> None:
    """Another order would leave databases that differ by when they were migrated."""
    new = {path.name for path in MIGRATIONS.glob("*.sql")} - SEALED.keys()
    assert all(name > max(SEALED) for name in new), f"behind {max(SEALED)}: {sorted(new)}"


def test_seal_adds_what_is_new_and_refuses_what_has_changed(tmp_path: Path) -> None:
    def seal() -> "subprocess.CompletedProcess[str]":
        line = ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "seal"]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)

    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "migrations").mkdir()
    first, second, sums = (tmp_path / "migrations" / name for name in ("1_a.sql", "2_b.sql", "SHA256SUMS"))
    first.write_text("select 1")
    sums.write_text(f"{hashlib.sha256(first.read_bytes()).hexdigest()}  1_a.sql\n")
    second.write_text("select 2")
    before = sums.read_text()
    assert seal().stdout.endswith("  2_b.sql\n")
    assert sums.read_text().startswith(before)
    assert seal().stdout == ""
    first.write_text("select 3")
    refused = seal()
    assert refused.returncode != 0
    assert "1_a.sql: FAILED" in refused.stdout


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert released[0].startswith(f"{__version__}, ")


def test_two_builds_are_the_same_bytes(dist: Path, tmp_path: Path) -> None:
    """From the checkout or from the sdist, whoever may read the files."""

    def hashes(folder: Path) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    again = built(tmp_path, "-m", "hatchling", "build", "--directory", umask=0o077)
    assert hashes(again) == hashes(dist)
    assert sorted(hashes(dist)) == [f"genctl-{__version__}-py3-none-any.whl", f"genctl-{__version__}.tar.gz"]


def test_twine_takes_wheel_and_sdist(dist: Path) -> None:
    judged("twine", "check", "--strict", *map(str, dist.iterdir()))

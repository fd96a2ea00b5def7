"""The audit of what we depend on fails where it should, and says so where it can't."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Audit = Callable[[str, str], tuple[int, str]]
ROOT = Path(__file__).parents[2]
AUDIT = runpy.run_path(str(ROOT / ".ci" / "audit"))
# A pip-audit that knows the holes and the packages of its arguments.
FAKE = """
import json, pathlib, sys
holes, packages = (json.loads(text) for text in sys.argv[1:3])
lines = pathlib.Path(sys.argv[-1]).read_text().splitlines()
pins = [line.split(" ")[0].split("==") for line in lines if "==" in line and not line.lstrip().startswith("#")]
print(json.dumps({"dependencies": [
    {"name": name, "version": version, "vulns": [{"id": "X-1"}] * (holes.get(name) == version)}
    if packages == "all" or name in packages else {"name": name, "skip_reason": "not found"}
    for name, version in pins
]}))
"""


@pytest.fixture
def told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Audit:
    monkeypatch.chdir(ROOT)
    program = tmp_path / "fake.py"
    program.write_text(FAKE)

    def audit(holes: str, packages: str) -> tuple[int, str]:
        code: int = AUDIT["main"]([sys.executable, str(program), holes, packages])
        return code, capsys.readouterr().out

    return audit


def test_a_hole_fails_and_is_named(told: Audit) -> None:
    oldest = dict(line.split("==") for line in AUDIT["lowest"]((ROOT / "pyproject.toml").read_text()))
    holes = f'{{"pyjwt": "2.3.0", "aiohttp": "{oldest["aiohttp"]}"}}'
    code, said = told(holes, '"all"')
    assert code == 1
    assert f"known holes: aiohttp {oldest['aiohttp']}: X-1" in said


def test_advisories_that_do_not_know_a_certain_hole_are_none(told: Audit) -> None:
    """An index without them answers as if nothing had any."""
    for known in ('"all"', "[]"):
        code, said = told("{}", known)
        assert code == 0
        assert said.startswith("audit: nothing was checked")


def test_a_package_that_the_advisories_do_not_know_fails(told: Audit) -> None:
    code, said = told('{"pyjwt": "2.3.0"}', '["pyjwt"]')
    assert code == 1
    assert "not known to the advisories: " in said


def test_no_hole_is_no_failure(told: Audit) -> None:
    code, said = told('{"pyjwt": "2.3.0"}', '"all"')
    assert code == 0
    assert said.count("no known hole in") == 2


def test_what_cannot_be_read_is_no_good_news() -> None:
    assert AUDIT["verdict"]("")[0] == 1

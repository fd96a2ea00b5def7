"""The page's modules on node: their own tests, and their types as `tsc --strict` sees them."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TSC = HERE / "node_modules/typescript/bin/tsc"

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def node(*argv: str) -> None:
    done = subprocess.run(["node", *argv], cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_node
def test_the_state_of_the_page_keeps_its_rules() -> None:
    node("--test", *map(str, sorted(HERE.glob("*.test.js"))))


@needs_node
@pytest.mark.skipif(not TSC.exists(), reason="tsc is not installed: npm install --prefix tests/js")
def test_the_modules_of_the_page_are_typed() -> None:
    node(str(TSC), "-p", ".")

"""The page's store keeps the rules of the stream: node plays each story to it."""

import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from tests.stream.cases import FRAMINGS, load, played

HERE = Path(__file__).parent


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_page_keeps_each_rule(tmp_path: Path) -> None:
    rules = [
        {"rule": case.rule, "knows": case.knows, "vouched": case.vouched, "connections": list(played(case))}
        for case in load()
        if "page" in case.of
    ]
    file = tmp_path / "rules.json"
    file.write_bytes(msgspec.json.encode({"rules": rules, "framings": FRAMINGS}))
    argv = ["node", "--test", "page.js"]
    done = subprocess.run(
        argv, cwd=HERE, env=os.environ | {"RULES": str(file)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""SECURITY.md claims nothing that no test shows."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()


def test_each_row_of_the_threat_model_names_tests_that_there_are() -> None:
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    rows = [
        line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| who, with")
    ]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.split("|")[4])
        assert named, row
        assert {*named} <= there, row

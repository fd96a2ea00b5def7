"""Writes what is made from the runbooks' YAML and its model: docs/runbooks/*.md and runbooks/schema.json.

make docs
"""

import json
from pathlib import Path

from genctl.cli.words import complaint
from genctl.ops.runbook.load import load, names
from genctl.ops.runbook.model import schema
from genctl.ops.runbook.page import page

ROOT = Path(__file__).parents[1]


def pages() -> dict[Path, str]:
    """Each file that is made, and its text."""
    made = {ROOT / "runbooks" / "schema.json": json.dumps(schema(), indent=1) + "\n"}
    for name in names():
        foot = f"\nMade from [{name}.yaml](../../runbooks/{name}.yaml) by `make docs`.\n"
        made[ROOT / "docs" / "runbooks" / f"{name}.md"] = page(load(name, complaint).runbook) + foot
    return made


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

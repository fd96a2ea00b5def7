"""The page's modules on node: their own tests, and their types as `tsc --strict` sees them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DASHBOARD = HERE.parents[1] / "deploy" / "grafana-dashboard.json"
GRAFANA = HERE / "node_modules/@grafana/schema"
TSC = HERE / "node_modules/typescript/bin/tsc"

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def node(*argv: str) -> None:
    done = subprocess.run(["node", *argv], cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_node
def test_the_state_of_the_page_keeps_its_rules() -> None:
    """In one process: `node --test` starts one a file."""
    files = sorted(HERE.glob("*.test.js"))
    each = "for (const file of process.argv.slice(1)) await import(file);"
    node("--input-type=module", "-e", each, *(file.as_uri() for file in files))


@needs_node
@pytest.mark.skipif(not TSC.exists(), reason="tsc is not installed: npm install --prefix tests/js")
@pytest.mark.skipif(not GRAFANA.exists(), reason="its types are not installed: npm install --prefix tests/js")
def test_the_modules_of_the_page_are_typed_and_the_dashboard_is_one_by_grafanas_own_types(
    tmp_path: Path,
) -> None:
    """Strictly, so that an unknown key is a mistake too."""
    (tmp_path / "node_modules").symlink_to(HERE / "node_modules")
    head = "import type { Dashboard } from '@grafana/schema';\nexport const made: Dashboard = "
    (tmp_path / "dashboard.ts").write_text(head + DASHBOARD.read_text())
    ours = json.loads((HERE / "tsconfig.json").read_text())
    include = [*(str(HERE / pattern) for pattern in ours["include"]), str(tmp_path / "dashboard.ts")]
    (tmp_path / "tsconfig.json").write_text(json.dumps(ours | {"include": include}))
    node(str(TSC), "-p", str(tmp_path))

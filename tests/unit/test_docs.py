"""The docs name what there is: a command, a setting or a file that is not written down fails here."""

import json
import re
import runpy
from inspect import cleandoc
from pathlib import Path
from typing import Any

import msgspec
import pytest

from genctl.base.settings import TABLE as SETTINGS
from genctl.base.settings import Entry
from genctl.cli import TABLE as COMMANDS
from genctl.credits import FIXES
from genctl.domain.model import Category, ErrorDetails
from genctl.ops.meaning import FIXED, OUTAGE
from genctl.ops.runbook.load import names
from genctl.ops.runbook.model import schema

ROOT = Path(__file__).parents[2]
MAKER = ROOT / "docs" / "make_runbooks.py"
NAMING = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("src/**/*.py"),
    *ROOT.glob("deploy/**/*.*"),
]
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


@pytest.mark.parametrize(
    "name", [name for section in COMMANDS.values() for name in section if name != "version"]
)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert re.search(rf"`{name}\b", README)


def test_the_readme_groups_commands_as_the_help_does() -> None:
    rows = re.findall(r"^\| ([A-Z][a-z ]+) \| (`.*`) \|$", README, re.MULTILINE)
    assert {group: re.findall(r"`([\w-]+)`", names) for group, names in rows} == {
        group: [*names] for group, names in COMMANDS.items()
    }


def test_the_page_of_commands_is_fresh() -> None:
    """Else: make docs."""
    made = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))["page"]()
    assert (ROOT / "docs" / "cli.md").read_text() == made


@pytest.mark.parametrize("entry", SETTINGS, ids=lambda entry: entry.key)
def test_every_setting_is_in_the_reference(entry: Entry) -> None:
    assert f"| `{entry.env}` | `{entry.key}` | {entry.meaning} |" in REFERENCE


def test_every_key_of_error_details_and_every_category_is_in_the_reference() -> None:
    words = [*ErrorDetails.__struct_encode_fields__, *Category]
    assert [word for word in words if f"`{word}`" not in REFERENCE] == []


def test_every_violation_says_what_to_do() -> None:
    kinds = set(re.findall(r"'([a-z]+_[a-z_]+)'", (ROOT / "src/genctl/edges/sql/audit.sql").read_text()))
    assert kinds - {"error_details", "work_mem"} == set(FIXES)


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_nothing_says_to_install_genctl_by_its_name() -> None:
    """It is in no registry: a checkout or a wheel is."""
    by_name = re.compile(
        r"(?:pip|pipx|uv)3? (?:tool )?(?:install|inject|run) (?:-\S+ )*['\"`]?genctl(?![/-])"
    )
    assert by_name.search("pip install 'genctl[local]'")
    assert [page.name for page in NAMING if by_name.search(page.read_text(errors="replace"))] == []


def test_every_runbook_that_is_named_is_there() -> None:
    """By status, doctor, explain, alerts and the docs."""
    told = {
        name
        for page in NAMING
        for name in re.findall(r"runbook (?:run|show|lint) ([a-z]+-[a-z-]+)", page.read_text())
    }
    assert sorted((told | {OUTAGE, FIXED}) - set(names())) == []
    assert {"listener-silent", "missing-refunds", "provider-outage"} <= told


def meaning(path: Path, text: str) -> object:
    return json.loads(text) if path.suffix == ".json" else text


@pytest.mark.parametrize("indent", ["", "    "], ids=["msgspec 0.23", "before"])
def test_the_schema_does_not_depend_on_how_msgspec_words_it(
    indent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, make = schema(), msgspec.json.schema

    def worded(of: type) -> dict[str, Any]:
        made = make(of)
        for one in made["$defs"].values():
            first, *rest = cleandoc(one["description"]).splitlines()
            one["description"] = "\n".join([first, *((indent + line) if line else "" for line in rest)])
        return made

    monkeypatch.setattr(msgspec.json, "schema", worded)
    assert schema() == expected
    assert all("\n " not in one["description"] for one in expected["$defs"].values())


def test_what_is_made_from_the_runbooks_is_fresh() -> None:
    """Else: make docs. JSON is compared by what it says, not by the order in which a library says it."""
    made: dict[Path, str] = runpy.run_path(str(MAKER))["pages"]()
    stale = [
        path.name for path, text in made.items() if meaning(path, path.read_text()) != meaning(path, text)
    ]
    assert stale == []
    assert {path.name for path in made if path.suffix == ".md"} == {
        path.name for path in (ROOT / "docs" / "runbooks").iterdir()
    }


def test_the_house_lists_every_module_and_room_at_the_root() -> None:
    house = (ROOT / "CONTRIBUTING.md").read_text().partition("## The house")[2].partition("## Words")[0]
    listed = re.findall(r"^  (\w+(?:\.py|/)) ", house, re.MULTILINE)
    root = ROOT / "src" / "genctl"
    modules = {path.name for path in root.glob("[!_]*.py")}
    rooms = {f"{path.name}/" for path in root.iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert sorted(listed) == sorted(modules | rooms)


def test_the_decisions_are_numbered_one_after_the_other() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    titles = [path.read_text().partition(". ")[0] for path in records]
    assert [(path.name[:4], title) for path, title in zip(records, titles, strict=True)] == [
        (f"{number:04}", f"# {number}") for number in range(1, len(records) + 1)
    ]


def test_the_readme_shows_as_many_migrations_as_there_are() -> None:
    files = [path for path in (ROOT / "migrations").glob("*.sql") if ".rollback." not in path.name]
    assert re.findall(r"^(\d+) migrations applied$", README, re.MULTILINE) == [str(len(files))]

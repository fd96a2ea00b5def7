"""The docs name what there is: a command, a setting or a file that is not written down fails here."""

import re
from pathlib import Path

import pytest

from genctl.base.settings import TABLE as SETTINGS
from genctl.base.settings import Entry
from genctl.cli import TABLE as COMMANDS
from genctl.credits import FIXES
from genctl.domain.model import Category, ErrorDetails

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


@pytest.mark.parametrize(
    "name", [name for section in COMMANDS.values() for name in section if name != "version"]
)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert re.search(rf"`{name}\b", README)


@pytest.mark.parametrize("entry", SETTINGS, ids=lambda entry: entry.key)
def test_every_setting_is_in_the_reference(entry: Entry) -> None:
    assert f"| `{entry.env}` | `{entry.key}` | {entry.meaning} |" in REFERENCE


def test_every_key_of_error_details_and_every_category_is_in_the_reference() -> None:
    words = [*ErrorDetails.__struct_encode_fields__, *Category]
    assert [word for word in words if f"`{word}`" not in REFERENCE] == []


def test_every_violation_says_what_to_do() -> None:
    kinds = set(re.findall(r"'([a-z]+_[a-z_]+)'", (ROOT / "src/genctl/edges/sql/audit.sql").read_text()))
    assert kinds - {"error_details"} == set(FIXES)


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []

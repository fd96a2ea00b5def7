"""`genctl help`: the pages of the docs that an operator needs in a terminal."""

import re
from typing import TYPE_CHECKING

import click

from genctl.cli import terminal
from genctl.cli.command import Command
from genctl.cli.output import Output, write

if TYPE_CHECKING:
    from pathlib import Path

PAGES = (
    *("credits", "dlq", "embedded-stack", "failures", "gate", "operating", "pace", "runbooks", "scaling"),
    "scenarios",
)
SECTIONS = "reference"  # of this page each section is a topic


def topics() -> dict[str, str]:
    """Map each topic to its Markdown: whole pages, and the sections of the reference."""
    from genctl.base.assets import folder

    docs = folder("docs")
    pages = {page: (docs / f"{page}.md").read_text(encoding="utf-8") for page in PAGES}
    return _sections(docs / f"{SECTIONS}.md") | pages


def _sections(page: "Path") -> dict[str, str]:
    parts = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {_slug(part.partition("\n")[0]): f"# {part}" for part in parts}


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", title.lower()).strip("-")


def _begun(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    return [name for name in sorted(topics()) if name.startswith(begun)]


@click.command(
    "help", cls=Command, data=False, within=None, examples=("genctl help", "genctl help exit-codes")
)
@click.argument("topic", metavar="[TOPIC]", required=False, shell_complete=_begun)
def help_(out: Output, topic: str | None) -> None:  # noqa: ARG001 (each command has one)
    """Show a page of the docs, such as exit-codes or dlq; alone it lists them.

    TOPIC may also be a command, whose own help it shows.
    """
    from genctl.cli import genctl
    from genctl.cli.formats import prose
    from genctl.cli.pages import page
    from genctl.domain.model import GenctlError, meant

    found, root = topics(), click.get_current_context().find_root()
    if topic is None:
        lines = [
            f"{name}: {text.removeprefix('# ').partition(chr(10))[0]}" for name, text in sorted(found.items())
        ]
        write(prose("\n".join(lines), terminal.room()))
    elif topic in found:
        write(page(found[topic], terminal.room()))
    elif command := genctl.get_command(root, topic):
        write(f"{command.context_class(command, root, info_name=topic).get_help()}\n")
    else:
        told = f"there is no page {topic!r}{meant(topic, [*found, *genctl.list_commands(root)])}"
        raise GenctlError("NoTopic", told, "genctl help", exit_code=4)

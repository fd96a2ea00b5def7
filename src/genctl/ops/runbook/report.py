"""A run as a report: Markdown for people, JSON for programs, JUnit XML for CI."""

from collections.abc import Callable
from pathlib import Path
from typing import IO
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import msgspec

from genctl.base.printable import printable, xml_text
from genctl.domain.model import GenctlError
from genctl.ops.runbook.run import Report


def opened(path: Path) -> tuple[IO[bytes], Callable[[Report], None]]:
    """The file and what writes it, by the end of its name: .md, .json or .xml.

    Raises GenctlError (exit 2) for another end, and OSError, both before anything is done.
    """
    form = FORMS.get(path.suffix.lower())
    if form is None:
        told = f"no form of a report is known by {path.name!r}"
        raise GenctlError("BadReport", told, "name it .md, .json or .xml", exit_code=2)
    file = path.open("wb", buffering=0)

    def write(report: Report) -> None:
        data = form(report)
        try:
            while data:
                data = data[file.write(data) :]
        except OSError as error:
            error.filename = str(path)
            raise

    return file, write


def markdown(report: Report) -> bytes:
    """A line of verdict and a table of the steps."""
    lines = [
        f"# {report.runbook}: {report.state}",
        "",
        f"Run {report.run}, {report.seconds:.1f} s, exit code {report.exit_code}.",
        *(["", f"**{_cell(report.why)}**"] if report.why else []),
        "",
        "| step | state | seconds | |",
        "|---|---|---|---|",
    ]
    for one in report.steps:
        took = "" if one.ms is None else f"{one.ms / 1000:.1f}"
        lines.append(f"| {one.step} | {one.state} | {took} | {_cell(one.why or one.does)} |")
    return ("\n".join(lines) + "\n").encode()


def junit(report: Report) -> bytes:
    """A test case a step; a clean-up that fails is told in its output."""
    root = Element("testsuites")
    suite = SubElement(
        root, "testsuite", name=f"genctl runbook {report.runbook}", time=f"{report.seconds:.3f}"
    )
    for one in report.steps:
        case = SubElement(suite, "testcase", classname=f"genctl.runbook.{report.runbook}", name=one.step)
        case.set("time", f"{(one.ms or 0) / 1000:.3f}")
        tag = {"failed": "failure", "interrupted": "error", "skipped": "skipped", "not run": "skipped"}
        if one.state == "ok" or (one.always and one.state == "failed"):
            SubElement(case, "system-out").text = xml_text(one.why or one.does)
        else:
            SubElement(case, tag[one.state], message=xml_text(one.why or one.state))
    suite.set("tests", str(len(report.steps)))
    for kind, name in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(kind, str(len(suite.findall(f"*/{name}"))))
    indent(root)
    made: bytes = tostring(root, "utf-8", xml_declaration=True)
    return made


def as_json(report: Report) -> bytes:
    """What `-o json` prints."""
    return msgspec.json.format(msgspec.json.encode(report)) + b"\n"


FORMS: dict[str, Callable[[Report], bytes]] = {".md": markdown, ".json": as_json, ".xml": junit}


def _cell(text: str) -> str:
    return printable(text).replace("|", r"\|")

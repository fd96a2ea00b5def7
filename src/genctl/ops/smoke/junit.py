"""The hops as a JUnit report, as CI systems read it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

from genctl.base.hidden import hide
from genctl.base.printable import printable
from genctl.domain.model import GenctlError
from genctl.ops.smoke.hop import NOT_TRIED, Hop, verdict


@contextmanager
def reported(path: Path | None, hops: Sequence[Hop]) -> Iterator[None]:
    """Writes what `hops` holds when the block ends, however it ends; without a path nothing.

    The file is opened first: OSError is raised before anything is done.
    """
    if path is None:
        yield
        return
    with path.open("wb") as file:
        trouble: str | None = "interrupted"
        try:
            yield
            trouble = None
        except GenctlError as error:
            trouble = f"{error.message}; {error.fix}"
            raise
        finally:
            ElementTree(suite(hops, trouble)).write(file, "utf-8", xml_declaration=True)


def suite(hops: Sequence[Hop], trouble: str | None = None) -> Element:
    """A test case a hop: passed, failed, or skipped behind the first that failed.

    `trouble` is what kept the rest from being tried: an error of the first hop that is not known.
    """
    root = Element("testsuites")
    top = SubElement(root, "testsuite", name="genctl smoke")
    before_s = 0.0
    for hop in verdict(hops):
        at_s = hop.ms / 1000 if hop.ms is not None else before_s
        case = SubElement(top, "testcase", classname="genctl.smoke", name=hop.hop)
        case.set("time", f"{max(0.0, at_s - before_s):.3f}")
        before_s = max(before_s, at_s)
        if hop.ok:
            SubElement(case, "system-out").text = _text(hop.evidence)
        elif hop.why != NOT_TRIED:
            SubElement(case, "failure", message=_text(hop.why)).text = _text(hop.why)
        elif trouble is not None:
            SubElement(case, "error", message=_text(trouble))
            trouble = None
        else:
            SubElement(case, "skipped", message=hop.why)
    for target in (root, top):
        target.set("tests", str(len(top)))
        for kind, counted in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            target.set(kind, str(len(top.findall(f"*/{counted}"))))
        target.set("time", f"{before_s:.3f}")
    indent(root)
    return root


def _text(text: str) -> str:
    """Without what a terminal would obey, and what XML 1.0 has no way to write."""
    return printable(hide(text)).translate({0xFFFE: r"\ufffe", 0xFFFF: r"\uffff"})

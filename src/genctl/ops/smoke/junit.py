"""Write the hops as a JUnit report for CI systems."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

from genctl.base.files import named
from genctl.base.hidden import hide
from genctl.base.printable import printable
from genctl.domain.model import GenctlError
from genctl.ops.smoke.hop import NOT_TRIED, HopResult, verdict


@contextmanager
def reported(path: Path | None, hops: Sequence[HopResult]) -> Iterator[None]:
    """Write `hops` to the file, which we open first, when the block ends, also by an error."""
    if path is None:
        yield
        return
    with path.open("wb", buffering=0) as file:  # else its close might raise, without the name
        trouble = "interrupted"
        try:
            yield
            trouble = ""
        except GenctlError as error:
            trouble = f"{error.message}; {error.fix}"
            raise
        finally:
            with named(path):
                ElementTree(suite(hops, trouble)).write(file, "utf-8", xml_declaration=True)


def suite(hops: Sequence[HopResult], trouble: str = "") -> Element:
    """Make a test case of each hop; `trouble` (why the smoke ended early) is the first untried one's."""
    root = Element("testsuites")
    top = SubElement(root, "testsuite", name="genctl smoke")
    before_s = 0.0
    for hop in verdict(hops):
        at_s = max(before_s, (hop.ms or 0.0) / 1000)
        took_s, before_s = at_s - before_s, at_s
        case = SubElement(top, "testcase", classname="genctl.smoke", name=hop.hop, time=f"{took_s:.3f}")
        if hop.ok:
            SubElement(case, "system-out").text = _text(hop.evidence)
        elif hop.why != NOT_TRIED:
            SubElement(case, "failure", message=_text(hop.why)).text = _text(hop.why)
        else:
            SubElement(case, "error" if trouble else "skipped", message=_text(trouble or hop.why))
            trouble = ""
    counts = {f"{kind}s": len(top.findall(f"*/{kind}")) for kind in ("failure", "error")}
    counts |= {"tests": len(top), "skipped": len(top.findall("*/skipped"))}
    for target in (root, top):
        target.attrib |= {name: str(count) for name, count in counts.items()} | {"time": f"{before_s:.3f}"}
    indent(root)
    return root


def _text(text: str) -> str:
    """Hide secrets; escape what a terminal would obey, and what XML 1.0 has no way to write."""
    return printable(hide(text)).translate({0xFFFE: r"\ufffe", 0xFFFF: r"\uffff"})

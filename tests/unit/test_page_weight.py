"""The page is light: what it loads is known at once, and little."""

import gzip
import re

from genctl.base.assets import PACKAGE

PAGE = PACKAGE / "page"
INDEX = (PAGE / "index.html").read_text("utf-8")
MOST_BYTES = 50_000


def imports(name: str, seen: set[str]) -> set[str]:
    """All modules that one needs, itself included."""
    if name not in seen:
        seen.add(name)
        text = re.sub(r"/\*.*?\*/", "", (PAGE / name).read_text("utf-8"), flags=re.DOTALL)
        for other in re.findall(r"from '\./([\w.]+)'", text):
            imports(other, seen)
    return seen


def test_all_modules_are_named_by_the_page_so_that_one_round_brings_them() -> None:
    named = set(re.findall(r'(?:modulepreload" href|module" src)="page/([\w.]+)"', INDEX))
    assert named == imports("app.js", set())


def test_the_page_is_below_50_kb_compressed() -> None:
    files = [PAGE / name for name in {*imports("app.js", set()), "style.css", "icon.svg", "index.html"}]
    assert sum(len(gzip.compress(file.read_bytes(), 6)) for file in files) < MOST_BYTES

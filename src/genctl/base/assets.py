"""Find the files that come with genctl, in the wheel and in a checkout."""

from pathlib import Path
from typing import Literal

from genctl.domain.model import GenctlError

PACKAGE = Path(__file__).parents[1]
CHECKOUT = PACKAGE.parents[1]


def folder(name: Literal["migrations", "runbooks", "docs"]) -> Path:
    """Find the folder of that name. Raises GenctlError (exit 3) when the installation has lost it."""
    for place in (PACKAGE / "_assets" / name, CHECKOUT / name):
        if place.is_dir():
            return place
    raise GenctlError("Installation", f"the folder {name} is missing in {PACKAGE}", "install genctl again")

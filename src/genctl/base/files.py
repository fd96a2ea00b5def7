"""Write files that a person has named."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Name the file in an OSError of the block: a full disk does not."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise

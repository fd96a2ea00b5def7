"""What the tests of the stream share."""

import pytest

from genctl.services import bridge


@pytest.fixture(autouse=True)
def no_backstop(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process the backstop hides no loss, however long a busy machine takes."""
    monkeypatch.setattr(bridge, "BACKSTOP_S", (300.0, 300.0))

"""The guards that `make mutate` takes out are where it looks for them."""

import pytest
from tests.mutate import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.guard)
def test_each_guard_is_there_once(mutant: Mutant) -> None:
    text = (ROOT / mutant.path).read_text()
    assert mutant.apply(text) != text

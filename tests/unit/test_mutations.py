"""The guards that `make mutate` takes out are where it looks for them."""

import pytest
from tests.mutate import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.guard)
def test_each_guard_is_there_once(mutant: Mutant) -> None:
    text = (ROOT / mutant.path).read_text()
    assert mutant.apply(text) != text


@pytest.mark.parametrize(
    "mutant", [mutant for mutant in MUTANTS if mutant.path.suffix == ".py"], ids=lambda mutant: mutant.guard
)
def test_without_a_guard_the_code_is_python_still(mutant: Mutant) -> None:
    """Else its row would tell of a syntax error, and of no test."""
    compile(mutant.apply((ROOT / mutant.path).read_text()), mutant.path, "exec")

"""Benchmarks run seldom, so tests look whether they still fit what they measure."""

import importlib
import re
from pathlib import Path

import pytest

from genctl.edges.db import sql


def test_a_statement_that_a_benchmark_sends_gets_all_its_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    settles, movements = (importlib.import_module(name) for name in ("settles", "movements"))
    sent = [(name, settles.VALUES) for name in ("ensure_accounts", "lock_accounts", "settle")]
    for name, given in [*sent, *movements.steps(["ann"], "[]")]:
        assert given.keys() >= set(re.findall(r"%\((\w+)\)s", sql(name))), name

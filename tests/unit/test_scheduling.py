"""A worker of the test run that dies is one failed test, and the run goes on."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest
from tests.scheduling import Scheduling

TESTS = [f"tests/unit/test_it.py::test_{number}" for number in range(8)]


@dataclass(eq=False)
class Worker:
    """What the scheduler sees of one."""

    given: list[str] = field(default_factory=list)
    shutting_down: bool = False
    gateway = SimpleNamespace(id="gw")

    def send_runtest_some(self, indices: list[int]) -> None:
        self.given += [TESTS[index] for index in indices]

    def shutdown(self) -> None:
        self.shutting_down = True


def begun(*workers: Worker) -> Scheduling:
    option = SimpleNamespace(loadscopereorder=True, debug=False)
    config = SimpleNamespace(getvalue=lambda name: [f"{len(workers)}*popen"], option=option)
    scheduler = Scheduling(cast("pytest.Config", config))
    for worker in workers:
        scheduler.add_node(worker)
        scheduler.add_node_collection(worker, TESTS)
    scheduler.schedule()
    return scheduler


def test_two_deaths_in_a_row_are_two_failed_tests_and_no_test_runs_twice() -> None:
    """The second comes while the one that takes the first one's place still collects."""
    first, second, third = workers = (Worker(), Worker(), Worker())
    scheduler = begun(*workers)
    died = [str(scheduler.remove_node(first))]
    scheduler.add_node(instead := Worker())
    died.append(str(scheduler.remove_node(second)))
    assert died == [first.given[0], second.given[0]]
    assert not instead.given
    scheduler.add_node_collection(instead, TESTS)
    scheduler.schedule()
    ran = [*died]
    for worker in (instead, third):
        for test in worker.given:  # it grows meanwhile
            ran.append(test)
            scheduler.mark_test_complete(worker, TESTS.index(test))
    assert sorted(ran) == TESTS
    assert scheduler.tests_finished
    assert [scheduler.remove_node(worker) for worker in (instead, third)] == [None, None]

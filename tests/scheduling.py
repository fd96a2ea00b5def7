"""Which worker of a test run gets which tests, and when: the long ones first, and a death is one failure."""

from collections.abc import Mapping
from typing import Any

from xdist.scheduler.loadscope import LoadScopeScheduling

LONG = (  # they wait for the most part, and would otherwise be what is left at the end; the longest first
    "plans",
    "outages",
    "crash_matrix",
    "from_nothing",
    "container",
    "refusals",
    "demo",
    "redrive",
    "second_tool",
    "runbook_set",
    "findings",
    "interleavings",
    "troubles",
    "scenarios",
    "waiting",
    "contention",
    "ours",
    "foreign",
    "frozen",
    "worker_ownership",
    "runbook_runs",
)
SHARING = (
    "tests/sdk/",
    "tests/ship/test_aws.py",
    "tests/ship/test_container.py",
    "tests/ship/test_release.py",
    "tests/path/test_plans.py",
    "tests/path/test_wide_base.py",
    *(f"tests/unit/test_{name}.py" for name in ("locks", "names")),
    *(
        f"tests/process/test_{name}.py"
        for name in (
            "commands",
            "completion",
            "from_nothing",
            "outages",
            "stack",
            "upgrade",
            "wheel",
            "widths",
        )
    ),
    *(f"tests/stream/test_{name}.py" for name in ("database_faults", "rules_of_server", "rules_of_watch")),
)


def place_of(module: str) -> int:
    """The place of a test module in the order of the run."""
    name = module.removeprefix("test_")
    return LONG.index(name) if name in LONG else len(LONG)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist's types are not looked at
    """Give workers one test after the other, or a module whose tests share what is dear to make.

    By chunks, as is usual, one worker gets all the long tests of a module in a row, and the others idle.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith("tests/browser/"):
            return "tests/browser/"  # one browser, whose start and first page cost as much as ten tests
        return nodeid.partition("::")[0] if nodeid.startswith(SHARING) else nodeid

    def remove_node(self, node: Any) -> str | None:
        """Forget a worker; the test that it was at, where it died: that one fails, and nobody runs it again."""
        units: Mapping[str, dict[str, bool]] = self.assigned_work.pop(node)
        left = [(scope, test) for scope, unit in units.items() for test, ended in unit.items() if not ended]
        if not left:
            return None
        (scope, died), *others = left
        units[scope][died] = True
        self.workqueue.update({scope: units[scope] for scope, _ in others})
        for other in self.assigned_work:
            self._reschedule(other)
        return died

    def _reschedule(self, node: Any) -> None:
        """Give a worker more; one that took a dead one's place gets its first when it has told what it found."""
        if node in self.registered_collections:
            super()._reschedule(node)

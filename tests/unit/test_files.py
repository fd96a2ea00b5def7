"""A worker may open the files that its jobs take, or says that it may not; it takes as many as suit it."""

import os
import resource
from pathlib import Path

import pytest

from genctl.domain.model import GenctlError
from genctl.services import capacity
from genctl.services.capacity import cores, open_enough, usual_jobs


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Soft and hard limit of the process, as they were and as they are set."""
    known = [(256, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: known[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: known.append(both))
    return known


@pytest.fixture(params=["/", "/system.slice/genctl-worker.service", "/system.slice"])
def group(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of what limits us: of a container, of our unit, or of a slice in which our unit is."""
    folder = tmp_path / f".{request.param}"
    folder.mkdir(parents=True, exist_ok=True)
    own = "/" if request.param == "/" else "/system.slice/genctl-worker.service"
    (tmp_path / "own").write_text(f"0::{own}\n")
    monkeypatch.setattr(capacity, "GROUPS", tmp_path)
    monkeypatch.setattr(capacity, "OWN_GROUP", tmp_path / "own")
    return folder


@pytest.mark.parametrize(("share", "count"), [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1)])
def test_auto_is_the_processors_of_the_share_of_a_container_or_a_unit(
    group: Path, share: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (group / "cpu.max").write_text(f"{share}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores() == count


@pytest.mark.parametrize(("jobs", "soft"), [(64, 256), (2000, 2500)])
def test_the_soft_limit_is_raised_where_it_is_too_low(
    limits: list[tuple[int, int]], jobs: int, soft: int
) -> None:
    open_enough(jobs)
    assert limits[-1] == (soft, 4096)


def test_more_jobs_than_the_hard_limit_allows_are_refused(limits: list[tuple[int, int]]) -> None:
    with pytest.raises(GenctlError, match="10000 jobs at once .* a process may open 4096 here") as caught:
        open_enough(10_000)
    assert caught.value.exit_code == 2
    assert "--concurrency" in caught.value.fix
    assert len(limits) == 1


def test_processes_share_the_memory_of_their_container_or_unit(
    limits: list[tuple[int, int]], group: Path
) -> None:
    (group / "memory.max").write_text(str(512 * 2**20))
    assert [usual_jobs(count) for count in (1, 3, 4, 8)] == [512, 341, capacity.LEAST, capacity.LEAST]


@pytest.mark.parametrize(
    ("hard", "memory", "jobs"),
    [
        (20_000, "max", capacity.USUAL),
        (resource.RLIM_INFINITY, str(2**34), capacity.USUAL),
        (340, "max", 200),
        (20_000, str(160 * 2**20), 256),
        (20_000, str(64 * 2**20), capacity.LEAST),
        (50, "max", capacity.LEAST),
    ],
)
def test_as_many_jobs_as_memory_and_files_allow(
    monkeypatch: pytest.MonkeyPatch, group: Path, hard: int, memory: str, jobs: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (hard, hard))
    (group / "memory.max").write_text(f"{memory}\n")
    assert usual_jobs() == jobs


def test_what_suits_a_process_may_be_opened(limits: list[tuple[int, int]]) -> None:
    limits.append((256, 400))
    open_enough(usual_jobs())
    assert limits[-1][0] <= 400

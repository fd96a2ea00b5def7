"""What lies in the working folder is believed when only we, or root, could have put it there."""

import os
import subprocess
from pathlib import Path

import pytest

from genctl.base import trust
from genctl.base.settings import load
from genctl.domain.model import GenctlError

EVIL = "api_url: http://evil.example\n"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Nobody's settings; the folder that a command is typed in is `here` below it."""
    here = tmp_path / "here"
    here.mkdir(mode=0o755)
    (here / "genctl.yaml").write_text(EVIL)
    (here / "genctl.yaml").chmod(0o644)
    return {"HOME": str(tmp_path), "GENCTL_HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}


def loaded(env: dict[str, str], here: Path) -> str:
    return load({}, env, here).api_url


def refused(env: dict[str, str], here: Path) -> GenctlError:
    with pytest.raises(GenctlError) as caught:
        loaded(env, here)
    assert (caught.value.code, caught.value.exit_code) == ("NotOurs", 2)
    assert "evil.example" not in caught.value.message
    return caught.value


def test_a_file_of_ours_is_read(env: dict[str, str], tmp_path: Path) -> None:
    assert loaded(env, tmp_path / "here") == "http://evil.example"


def test_a_file_of_another_user_is_refused_until_it_is_named(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fix runs as it is printed; whoever names the file has read it."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 4711)
    monkeypatch.setattr(trust, "_ROOT", -1)
    error = refused(env, tmp_path / "here")
    assert "another user" in error.message
    name = subprocess.check_output(["bash", "-c", f'{error.fix}; printf %s "$GENCTL_CONFIG"'], text=True)
    assert loaded(env | {"GENCTL_CONFIG": name}, tmp_path / "here") == "http://evil.example"


@pytest.mark.parametrize("what", ["here/genctl.yaml", "here"])
@pytest.mark.parametrize("mode", [0o666, 0o757, 0o777])
def test_what_others_may_write_is_refused_and_the_fix_mends_it(
    env: dict[str, str], tmp_path: Path, what: str, mode: int
) -> None:
    (tmp_path / what).chmod(mode)
    error = refused(env, tmp_path / "here")
    subprocess.run(["bash", "-c", error.fix], check=True)
    assert loaded(env, tmp_path / "here") == "http://evil.example"


def test_a_folder_where_each_keeps_its_own_is_no_trap(env: dict[str, str], tmp_path: Path) -> None:
    """As /tmp is."""
    (tmp_path / "here").chmod(0o1777)
    assert loaded(env, tmp_path / "here") == "http://evil.example"


def test_a_link_counts_as_what_it_leads_to(env: dict[str, str], tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "here" / "genctl.yaml").rename(there / "x.yaml")
    (tmp_path / "here" / "genctl.yaml").symlink_to(there / "x.yaml")
    assert loaded(env, tmp_path / "here") == "http://evil.example"
    there.chmod(0o777)
    assert str(there) in refused(env, tmp_path / "here").message


def test_a_link_of_another_user_is_refused(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In /tmp it would choose which of our own files counts."""
    link = tmp_path / "here" / "genctl.yaml"
    link.rename(tmp_path / "ours.yaml")
    link.symlink_to(tmp_path / "ours.yaml")
    (tmp_path / "here").chmod(0o1777)
    theirs = os.stat_result((*link.lstat()[:4], os.getuid() + 4711, *link.lstat()[5:10]))
    monkeypatch.setattr(Path, "lstat", lambda _: theirs)
    assert "genctl.yaml belongs to another user" in refused(env, tmp_path / "here").message


def test_a_group_is_others_unless_it_is_the_users_own(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "genctl.yaml").chmod(0o664)
    monkeypatch.setattr(trust, "_is_private", lambda _: True)
    assert loaded(env, tmp_path / "here")
    monkeypatch.setattr(trust, "_is_private", lambda _: False)
    assert "others" in refused(env, tmp_path / "here").message


def test_the_address_book_of_a_stack_has_to_be_ours(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "here" / "genctl.yaml").unlink()
    home = tmp_path / "home"
    home.mkdir()
    (home / "stack.json").write_text('{"api_url": "http://evil.example"}')
    assert loaded(env, tmp_path / "here") == "http://evil.example"
    (home / "stack.json").chmod(0o666)
    refused(env, tmp_path / "here")

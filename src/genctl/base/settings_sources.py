"""Find settings in flags, environment, genctl.yaml and the user's file; the first that has one wins.

Values stay text here, so that `off`, `1:30` and `3` mean the same in a file as in the environment.
"""

import os
import shlex
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from platformdirs import user_config_path

from genctl.base import trust
from genctl.domain.model import GenctlError, closest

FILE = "genctl.yaml"
_OTHER_NAMES = {"GENCTL_CONFIG"}


class Given(NamedTuple):
    """Hold a value as text, where it came from, and how a complaint names its position."""

    text: str
    origin: str
    position: str


def sources(
    known: Mapping[str, str],
    flags: Mapping[str, str],
    env: Mapping[str, str],
    cwd: Path,
    *,
    more: bool = False,
) -> list[dict[str, Given]]:
    """Return what each source gives for each key; the first that has a key wins.

    `known` maps keys to environment variables; empty means unset. With `more`, files may hold keys of a tool
    that cannot be loaded just now: they are ignored. Raises GenctlError (exit 2) for an unknown or doubled
    key and for a file that cannot be read.
    """
    return [_flags(known, flags), _environment(known, env), *_files(known, env, cwd, more=more)]


def user_file() -> Path:
    """Name the user's own genctl.yaml, whether it exists or not."""
    return user_config_path("genctl") / FILE


def _flags(known: Mapping[str, str], flags: Mapping[str, str]) -> dict[str, Given]:
    for key in flags:
        _check(key, known, "--setting")
    return {key: Given(text, "flag --setting", f"--setting {key}") for key, text in flags.items() if text}


def _environment(known: Mapping[str, str], env: Mapping[str, str]) -> dict[str, Given]:
    names = {*known.values(), *_OTHER_NAMES}
    tails = {name.removeprefix("GENCTL_"): name for name in names}
    for name in sorted(env.keys() - names):
        if not name.startswith("GENCTL_") or name.startswith("GENCTL_TEST_"):
            continue
        # other programs may use the prefix too: refuse only a name close to one of ours
        if close := get_close_matches(name.removeprefix("GENCTL_"), tails, 1, 0.8):
            raise _unknown(f"environment variable {name}", tails[close[0]])
    return {
        key: Given(env[name], f"environment {name}", f"environment variable {name}")
        for key, name in known.items()
        if env.get(name)
    }


def _files(
    known: Mapping[str, str], env: Mapping[str, str], cwd: Path, *, more: bool
) -> Iterator[dict[str, Given]]:
    """Read the project's file, then the user's; only the one that GENCTL_CONFIG names must exist.

    What merely lies in the working folder may be somebody's trap: it has to be ours. What is named is meant.
    """
    named = env.get("GENCTL_CONFIG")
    project = cwd / (named or FILE)
    if named and not os.access(project, os.F_OK):
        raise _wrong("GENCTL_CONFIG", f"there is no file {project}")
    for path in (project, user_file()):
        if os.access(path, os.F_OK):
            if not named and path == project:
                trust.check(path, shlex.join(["export", f"GENCTL_CONFIG={path.absolute()}"]))
            yield _read(path.absolute(), known, more=more)


def _read(path: Path, known: Mapping[str, str], *, more: bool) -> dict[str, Given]:
    import yaml  # noqa: PLC0415 (20 ms, and mostly there is no file)

    try:
        root = yaml.compose(path.read_bytes(), Loader=yaml.SafeLoader)
    except OSError as error:
        raise _wrong(str(path), f"cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(filter(None, (error.context, error.problem)))
        raise _wrong(f"{path}:{mark.line + 1 if mark else 1}", said or "is not YAML") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise _wrong(str(path), f"is not YAML ({' '.join(str(error).split())})") from None
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise _wrong(f"{path}:1", "expected lines of `key: value`")
    given: dict[str, Given] = {}
    for key, node in root.value if root else ():
        position = f"{path}:{key.start_mark.line + 1}"
        if key.id != "scalar":
            raise _wrong(position, "expected lines of `key: value`")
        if more and key.value not in known and not _close(key.value, known):
            continue
        _check(key.value, known, position)
        if key.value in given:
            raise _wrong(position, f"{key.value} is set twice")
        given[key.value] = Given(_text(node, position), f"file {path}", f"{position}: {key.value}")
    return {key: value for key, value in given.items() if value.text}


def _text(node: Any, position: str) -> str:
    """Return a scalar as the file has it, whatever YAML makes of it; a list with commas between its items."""
    items = node.value if node.id == "sequence" else [node]
    if node.id == "mapping" or any(item.id != "scalar" for item in items):
        raise _wrong(position, "expected a plain value, or a list of plain values")
    return ",".join("" if item.tag == "tag:yaml.org,2002:null" else item.value for item in items)


def _check(key: str, known: Mapping[str, str], position: str) -> None:
    if key not in known:
        raise _unknown(f"{position}: {key[:80]!r}", _close(key, known))


def _close(key: str, known: Mapping[str, str]) -> str | None:
    """Guess which known key a wrong one means."""
    names = {name.lower(): key for key, name in known.items()} | {key: key for key in known}
    close = closest(key, names)
    return names[close] if close else None


def _unknown(what: str, close: str | None) -> GenctlError:
    fix = f"did you mean {close}?" if close else "`genctl config show` lists the settings"
    return GenctlError("UnknownSetting", f"{what} is no setting", fix, exit_code=2)


def _wrong(position: str, what: str) -> GenctlError:
    return GenctlError("BadSetting", f"{position}: {what}", exit_code=2)

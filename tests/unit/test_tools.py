"""How tools are found, and that a package that is wrong stops only what needs it, with one clear line."""

import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genctl.base import hidden, settings, values
from genctl.base.settings import Settings, row
from genctl.domain.details import REMOVED, stored
from genctl.domain.model import GenctlError
from genctl.services.api import Wanted
from genctl.tools import BESIDE, Params, Tool
from genctl.tools.found import Tools, found, load, overlap, sound
from genctl.tools.seedream4 import TOOL as SEEDREAM

OTHER = msgspec.structs.replace(
    SEEDREAM, name="other", models=("other-*",), models_setting="", default_model="other-1"
)


class Dist:
    """As much of a package as is asked for."""

    def __init__(self, name: str) -> None:
        self.name = name


class Point:
    """An entry point that gives what a test says, or raises it."""

    def __init__(self, name: str, gives: Any, package: str = "a-package") -> None:
        self.name, self.value, self.dist = name, f"{package}:TOOL", Dist(package)
        self._gives = gives

    def load(self) -> Any:
        if isinstance(self._gives, BaseException):
            raise self._gives
        return self._gives


OURS = Point("seedream4", SEEDREAM, "genctl")


def of(*points: Point) -> Tools:
    any_: list[Any] = [OURS, *points]
    points_: list[EntryPoint] = any_
    return sound(points_)


def other(**changed: Any) -> Point:
    return Point("other", msgspec.structs.replace(OTHER, **changed))


class Unknowable:
    """A type of which msgspec knows no JSON Schema."""


class Odd(Params, frozen=True):
    thing: Unknowable | None = None


class Plain(msgspec.Struct):
    """Parameters that know nothing of what is unknown."""


class Twice(Params, frozen=True, rename="camel"):
    client_key: str = ""


def test_ours_is_found_as_any_other_is() -> None:
    assert found().by_name["seedream4"] is SEEDREAM
    assert of(other()) == Tools({"seedream4": SEEDREAM, "other": OTHER}, {})


CASES = {
    "an import that fails": (Point("other", ModuleNotFoundError("No module named 'torch'")), "cannot be used: ModuleNotFoundError: No module named 'torch'"),
    "an exit": (Point("other", SystemExit(3)), "cannot be used: SystemExit: 3"),
    "a text of many lines": (Point("other", ValueError("a\n b\n\tc")), "ValueError: a b c"),
    "no tool": (Point("other", object()), "is no genctl.tools.Tool"),
    "another name": (Point("other", msgspec.structs.replace(OTHER, name="else")), "the tool itself else"),
    "a price of 0": (other(price=0), "its price is 0"),
    "a negative price": (other(price=-4), "its price is -4"),
    "half a credit": (other(price=0.5), "its price is 0.5"),
    "no models": (other(models=()), "matches none of its patterns"),
    "a default of another's": (other(default_model="else-1"), "matches none of its patterns"),
    "a pattern of everything": (other(models=("*",)), "its pattern * overlaps seedream-4-* of the tool seedream4"),
    "a pattern that overlaps": (other(models=("other-*", "*-4-5-251128")), "its pattern *-4-5-251128 overlaps seedream-4-* of the tool seedream4"),
    "parameters without a schema": (other(params=Odd), "have no JSON Schema"),
    "no setting for its address": (other(base="nowhere"), "declares no setting nowhere"),
    "a setting of genctl": (other(settings=(*OTHER.settings, row("QUEUE", values.as_text, "", ""))), "its setting queue is one of genctl already"),
    "a setting that reads what one of ours reads": (other(settings=(*OTHER.settings, row("GENCTL_QUEUE", values.as_text, None, ""))), "its setting genctl_queue is one of genctl already"),
    "a default that its own row refuses": (other(settings=(*OTHER.settings, row("OTHER_N", values.as_count(1), "many", ""))), "the default of its setting other_n is 'many'"),
    "a name that no queue can have": (Point("Other", msgspec.structs.replace(OTHER, name="Other")), "it is called 'Other', and the name of a tool"),
    "a text for a tuple": (other(models="other-*"), "its models are 'other-*', and must be a tuple"),
    "a sign that SQL knows nothing of": (other(models=("other-[0-9]",)), "its pattern 'other-[0-9]' is no name"),
    "models of no text": (other(models=(1,)), "cannot be used: TypeError"),
    "what nobody can bring": (other(brings="base64"), "it brings 'base64'"),
    "parameters of another kind": (other(params=Plain), "no kind of genctl.tools.Params"),
    "a parameter that every order has": (other(params=Twice), "its parameter clientKey is what every order has"),
    "a pattern that is none": (other(provider=msgspec.structs.replace(OTHER.provider, key_shape="(")), "its provider's pattern '(' cannot be read"),
    "a provider that is none": (other(provider=None), "cannot be used: AttributeError"),
    "a setting of another tool": (other(settings=(row("ARK_API_KEY", values.as_text, "mine", ""), *OTHER.settings[1:])), "its setting ark_api_key is one of seedream4 already"),
}  # fmt: skip


def test_a_package_that_is_wrong_is_told_by_name_and_stops_only_itself() -> None:
    for point, why in CASES.values():
        tools = of(point)
        assert [*tools.by_name] == ["seedream4"]
        (told,) = tools.troubles.values()
        assert why in told
        assert "\n" not in told
        assert "a-package" in told
        table = Tools.of(Settings(), tools)
        assert table.named("seedream4").name == "seedream4"
        with pytest.raises(GenctlError) as caught:
            table.named(point.name)
        assert (caught.value.code, caught.value.exit_code) == ("ToolUnusable", 3)


def test_of_two_packages_with_one_name_neither_is_used() -> None:
    """Which of them spends the credits would be chance."""
    tools = of(other(), Point("other", OTHER, "b-package"))
    assert [*tools.by_name] == ["seedream4"]
    assert tools.troubles == {"other": "two packages bring it: a-package and b-package; uninstall one"}


def test_models_that_a_setting_adds_may_not_be_anothers() -> None:
    installed = of(other())
    tools = Tools.of(Settings(of_tools={"ark_models": ("other-1",)}), installed)
    assert [tool.name for tool in tools] == ["other"]
    told = tools.troubles["seedream4"]
    assert "overlaps other-* of the tool other" in told and "ARK_MODELS" in told


def test_a_name_that_nobody_has_is_usage_with_a_suggestion() -> None:
    with pytest.raises(GenctlError) as caught:
        Tools.of(Settings()).named("seedraem4")
    assert (caught.value.exit_code, caught.value.fix) == (2, "did you mean seedream4?")


def test_a_tool_that_brings_bytes_is_refused_until_they_can_be_kept() -> None:
    tool = msgspec.structs.replace(SEEDREAM, brings="bytes").bound(Settings())
    with pytest.raises(GenctlError) as caught:
        tool.check_ready()
    assert (caught.value.code, caught.value.exit_code) == ("NoStorage", 3)


def test_a_tool_without_an_address_is_refused_with_the_setting_that_says_it() -> None:
    """Of a provider that runs somewhere else for everybody there is no default."""
    place = (row("OTHER_URL", values.as_url, None, ""),)
    tool = msgspec.structs.replace(OTHER, settings=place, base="other_url", key="").bound(Settings())
    with pytest.raises(GenctlError) as caught:
        tool.check_ready()
    assert (caught.value.code, caught.value.exit_code) == ("ProviderAddressMissing", 3)
    assert caught.value.fix == "set OTHER_URL"


def test_a_tool_that_fails_at_an_order_refuses_it_in_a_line() -> None:
    def fails(*_: object) -> str:
        raise AttributeError("no such thing")

    with pytest.raises(GenctlError) as caught:
        msgspec.structs.replace(OTHER, refusal=fails).checked({}, "other-1")
    assert (caught.value.code, caught.value.exit_code) == ("ToolUnusable", 3)
    assert "AttributeError: no such thing" in caught.value.message


def test_a_setting_narrows_what_may_be_ordered_and_not_what_is_served() -> None:
    tool = SEEDREAM.bound(Settings(models=("seedream-4-0-*",)))
    tool.check_orderable(SEEDREAM.default_model)
    for model in ("seedream-4-5-251128", "dall-e"):
        with pytest.raises(GenctlError, match=model) as caught:
            tool.check_orderable(model)
        assert (caught.value.code, caught.value.exit_code) == ("UnknownModel", 2)
        assert caught.value.fix == "use one like seedream-4-0-*"
    assert tool.serves("seedream-4-5-251128")
    SEEDREAM.bound(Settings()).check_orderable("seedream-4-5-251128")


def test_models_may_be_named_as_their_providers_name_them() -> None:
    named = "fal-ai/flux/*,@cf/black-forest-labs/flux-1-schnell,owner/name:5c7d"
    assert values.as_patterns(named) == tuple(named.split(","))
    for odd in ("flux-?", "flux-[12]", "*"):
        with pytest.raises(ValueError, match="names of models"):
            values.as_patterns(odd)


def test_what_every_order_has_is_what_the_api_reads() -> None:
    assert set(BESIDE) == set(Wanted.__struct_encode_fields__)


def test_a_tool_that_is_gone_is_told_of_what_nobody_serves() -> None:
    tools = Tools.of(Settings())
    gone = tools.about("gone")
    models = ["gone-1", SEEDREAM.default_model, None]
    assert [tools.tells(gone, model) for model in models] == [True, False, True]
    assert [tools.tells(SEEDREAM, model) for model in models] == [False, True, False]
    with pytest.raises(GenctlError):
        gone.check_ready()


patterns = st.text("ab*", max_size=6)


def words(pattern: str, depth: int = 3) -> Iterator[str]:
    """Names that match a pattern, `*` up to so many letters."""
    if "*" not in pattern:
        yield pattern
        return
    head, _, tail = pattern.partition("*")
    fills = [""]
    for _ in range(depth):
        fills += [fill + letter for fill in fills for letter in "ab"]
    for fill in dict.fromkeys(fills):
        for rest in words(tail, 1):
            yield head + fill + rest


@given(patterns, patterns)
def test_two_patterns_overlap_where_a_name_matches_both(one: str, two: str) -> None:
    """What a search finds is found; the search is no proof of the other direction, but equality is symmetric."""

    def serves(pattern: str) -> Tool:
        return msgspec.structs.replace(OTHER, models=(pattern,))

    both = [
        name for name in (*words(one), *words(two)) if serves(one).serves(name) and serves(two).serves(name)
    ]
    assert overlap(one, two) is overlap(two, one)
    if both:
        assert overlap(one, two)
    if "*" not in one:
        assert overlap(one, two) is serves(two).serves(one)


def test_a_tool_shares_a_row_of_settings_with_its_sibling() -> None:
    """Two tools of one provider have one key."""
    assert [entry.key for entry in of(other()).settings] == [entry.key for entry in SEEDREAM.settings]


def test_the_secrets_of_tools_are_hidden_as_ours_are(tmp_path: Path) -> None:
    env = {
        "GENCTL_SECRET": "x" * 32,
        "ARK_API_KEY": "hunter2-hunter2",
        "DATABASE_URL": "postgresql://a:b-of-a@c/d",
    }
    load(env=env, cwd=tmp_path)
    assert {"x" * 32, "hunter2-hunter2", "b-of-a"} <= {*hidden.known()}


def test_a_key_of_any_shape_is_removed_from_what_the_provider_says_of_it() -> None:
    key = "Zm9v+key.of/mine"
    for shape in ("", SEEDREAM.provider.key_shape):
        provider = msgspec.structs.replace(SEEDREAM.provider, key_shape=shape)
        tool = msgspec.structs.replace(SEEDREAM, provider=provider)
        keys = tool.bound(Settings(of_tools={"ark_api_key": key})).provider.key_shape
        assert stored(f"no such caller: {key}!", 1_024, keys) == f"no such caller: {REMOVED}!"


def test_keys_of_a_tool_that_cannot_be_loaded_stop_nothing(tmp_path: Path) -> None:
    """Its file stays valid; a slip of the pen is refused all the same."""
    env = {"XDG_CONFIG_HOME": str(tmp_path), "GENCTL_HOME": str(tmp_path)}
    file = tmp_path / "genctl.yaml"
    file.write_text("zygomorphic_token: x\nmax_attempts: 5\n")
    assert settings.load({}, env, tmp_path, more=True).max_attempts == 5
    with pytest.raises(GenctlError, match="is no setting"):
        settings.load({}, env, tmp_path)
    file.write_text("max_attempt: 5\n")
    with pytest.raises(GenctlError, match="is no setting"):
        settings.load({}, env, tmp_path, more=True)


# The file of the tool, and the simulator that stands in for its provider.
NAMING = {
    "tools/seedream4.py",
    "services/simulator.py",
    "services/asked.py",
    "cli/simulator.py",
    "services/scenarios.py",
}


def test_nothing_but_its_file_and_its_simulator_names_the_built_in_tool() -> None:
    """But for the default of one setting."""
    source = Path(found.__wrapped__.__code__.co_filename).parents[1]
    named = re.compile(r"(?<![a-z])ark(?![a-z])|seedream", re.IGNORECASE)
    lines = [
        (str(path.relative_to(source)), line.strip())
        for path in source.rglob("*")
        if path.suffix in {".py", ".sql", ".js", ".html"} and str(path.relative_to(source)) not in NAMING
        for line in path.read_text("utf-8").splitlines()
        if named.search(line)
    ]
    ((path, line),) = lines
    assert (path, '"seedream4"' in line) == ("base/settings.py", True)

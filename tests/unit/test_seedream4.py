"""What may be ordered of Seedream: what a model refuses is refused before it is paid."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.path.test_wire import session

from genctl.base.settings import Settings
from genctl.domain.model import GenctlError
from genctl.tools.found import Tools
from genctl.tools.seedream4 import MODELS, TOOL

V40, V45 = "seedream-4-0-250828", "doubao-seedream-4-5-251128"
LITE, PRO = "seedream-5-0-260128", "dola-seedream-5-0-pro-260628"
URL = "https://images.example/a.png"


def test_the_models_that_people_have_are_orderable() -> None:
    for model in [V40, V45, LITE, PRO, "doubao-seedream-5-0-lite-260128", "dola-seedream-4-5-1"]:
        assert Tools.of(Settings()).ordered(model).name == "seedream4"


def test_endpoints_are_orderable_once_they_are_named() -> None:
    endpoint = "ep-20260125201054-pfrb4"
    with pytest.raises(GenctlError, match="no tool serves"):
        Tools.of(Settings()).ordered(endpoint)
    tools = Tools.of(Settings(of_tools={"ark_models": ("ep-*",)}))
    assert tools.ordered(endpoint).name == "seedream4"
    assert tools.ordered(endpoint).checked({"size": "1K", "seed": 7}, endpoint) == {"size": "1K", "seed": 7}


SIZES = [
        (V40, ["1K", "2K", "4K", "1280x720", "4096x4096"], ["3K", "1.5K", "512x512", "4097x4097", "adaptive", "9999x99"]),
        (V45, ["2K", "4K", "2560x1440"], ["1K", "3K", "1024x1024", "2559x1440"]),
        (LITE, ["2K", "3K", "4K", "3072x3072"], ["1K", "1024x1024"]),
        (PRO, ["1K", "1.5K", "2K", "1500x1000"], ["3K", "4K", "4096x4096"]),
    ]  # fmt: skip


def test_each_model_takes_its_own_sizes() -> None:
    for model, taken, refused in SIZES:
        for size in taken:
            assert TOOL.checked({"size": size}, model) == {"size": size}
        for size in refused:
            with pytest.raises(GenctlError) as caught:
                TOOL.checked({"size": size}, model)
            assert (caught.value.code, caught.value.exit_code) == ("BadParameter", 2)


PARAMETERS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"image": URL}, [V40, V45, LITE, PRO], []),
    ({"image": [URL] * 10}, [V40, PRO], []),
    ({"image": [URL] * 14}, [V40, V45, LITE], [PRO]),
    ({"image": [URL] * 15}, [], [V40, V45, LITE, PRO]),
    ({"image": "data:image/png;base64,aGk="}, [V40], []),
    ({"image": "data:image/PNG;base64,aGk="}, [], [V40]),
    ({"image": "file:///etc/passwd"}, [], [V40, PRO]),
    ({"image": []}, [], [V40]),
    ({"watermark": True}, [V40, V45, LITE, PRO], []),
    ({"watermark": "on"}, [], [V40]),
    ({"seed": 7}, [], [V40, V45, LITE, PRO]),
    ({"guidance_scale": 2.5}, [], [V40, PRO]),
    ({"output_format": "png"}, [LITE, PRO], [V40, V45]),
    ({"output_format": "jpeg"}, [V40, V45, LITE, PRO], []),
    ({"output_format": "gif"}, [], [LITE]),
    ({"optimize_prompt_options": {"mode": "standard"}}, [V40, V45, LITE, PRO], []),
    ({"optimize_prompt_options": {"mode": "fast"}}, [V40, PRO], [V45, LITE]),
    ({"optimize_prompt_options": {"mood": "fast"}}, [], [V40]),
]


def test_each_model_takes_its_own_parameters() -> None:
    for given, takes, refuses in PARAMETERS:
        for model in takes:
            assert TOOL.checked(given, model) == given
        for model in refuses:
            with pytest.raises(GenctlError):
                TOOL.checked(given, model)


MEANT = [
    ("sise", "size"),
    ("Size", "size"),
    ("Model", "model"),
    ("waterMark", "watermark"),
    ("n", "it takes size"),
]


def test_what_no_field_is_called_is_refused_with_what_may_be_meant() -> None:
    for name, meant in MEANT:
        with pytest.raises(GenctlError) as caught:
            TOOL.checked({name: "1"}, V40, ("prompt", "clientKey", "model"))
        assert (caught.value.code, caught.value.exit_code) == ("UnknownParameter", 2)
        assert meant in caught.value.fix


def test_null_is_as_if_it_were_not_there() -> None:
    """SDKs send their unset arguments so."""
    assert TOOL.checked({"size": None, "image": None, "seed": None}, V40) == {}


def test_the_default_size_is_one_of_every_model() -> None:
    body = json.loads(TOOL.request(session(), TOOL.bound(Settings()).said).body)
    for part in MODELS:
        assert TOOL.refusal(f"{part}1", msgspec.convert({"size": body["size"]}, TOOL.params)) is None


def test_what_was_ordered_is_sent_as_it_was_ordered() -> None:
    ordered = {"size": "2K", "image": [URL], "watermark": True, "output_format": "png"}
    row = msgspec.structs.replace(session(params=ordered | {"of a newer version": 1}), model=LITE)
    body = json.loads(TOOL.request(row, TOOL.bound(Settings()).said).body)
    assert body.items() >= ordered.items()
    assert "of a newer version" not in body


def test_a_model_that_makes_jpeg_alone_is_not_asked_for_it() -> None:
    """It would refuse the field."""
    row = session(params={"output_format": "jpeg"})
    assert "output_format" not in json.loads(TOOL.request(row, TOOL.bound(Settings()).said).body)


def test_the_page_of_seedream_shows_the_table_of_the_file() -> None:
    page = (Path(__file__).parents[2] / "docs" / "seedream.md").read_text("utf-8")
    for part, model in MODELS.items():
        least, most = model.pixels
        formats, modes = (
            ("png, jpeg" if model.formats else "jpeg"),
            "standard, fast" if model.fast else "standard",
        )
        cells = (
            f"`{part}…`",
            ", ".join(model.sizes),
            f"{least:,} to {most:,}",
            str(model.images),
            formats,
            modes,
        )
        assert f"| {' | '.join(cells)} |" in page

"""Calls a provider through one of its SDKs; run by the SDKs' own Python, which knows neither genctl nor pytest.

`play.py MODULE URL < calls.json > outcomes.json`: one outcome a call, in their order.
"""

import importlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from typing import Any

OPENAI = ("model", "prompt", "size", "response_format", "output_format", "stream")  # the rest is the vendor's


@cache
def client(module: str, url: str, *, retries: int, timeout_s: float) -> Any:
    """One for all calls that are as patient."""
    sdk = importlib.import_module(module)
    make = sdk.OpenAI if module == "openai" else sdk.Ark
    return make(base_url=url, api_key="k", max_retries=retries, timeout=timeout_s)


def arguments(module: str, asked: dict[str, Any]) -> dict[str, Any]:
    """A request's fields as that SDK's `generate` takes them."""
    if module == "openai":
        ours = {name: value for name, value in asked.items() if name not in OPENAI}
        return {name: asked[name] for name in OPENAI if name in asked} | {"extra_body": ours}
    types = importlib.import_module(f"{module}.types.images")
    options = {
        "sequential_image_generation_options": types.SequentialImageGenerationOptions,
        "optimize_prompt_options": types.OptimizePromptOptions,
    }
    return {name: options[name](**value) if name in options else value for name, value in asked.items()}


def play(module: str, url: str, call: dict[str, Any]) -> dict[str, Any]:
    """What the SDK hands to its user: the answer, or what it raises."""
    if "lines" in call:  # of a page, which print something
        with redirect_stdout(StringIO()) as printed:
            exec(call["lines"], {})  # as somebody would type them
        return {"printed": printed.getvalue()}
    try:
        sdk = client(module, url, **call["client"])
        answer = sdk.images.generate(**arguments(module, call["asked"]))
        return {"answer": answer.to_dict() if hasattr(answer, "to_dict") else repr(answer)}
    except Exception as raised:  # noqa: BLE001 - whatever it is, it is what the user would see
        told = {name: getattr(raised, name, None) for name in ("status_code", "code", "request_id")}
        return {"raised": type(raised).__name__, "message": str(raised), **told}


def main() -> None:
    module, url = sys.argv[1:]
    stdout = sys.stdout
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda call: play(module, url, call), json.load(sys.stdin)))
    json.dump(outcomes, stdout)


if __name__ == "__main__":
    main()

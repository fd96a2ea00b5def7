"""The imagined provider of examples/genctl-tool-example, as a process: `python example_provider.py PORT`."""

import asyncio
import secrets
import sys

from aiohttp import web


async def draw(request: web.Request) -> web.Response:
    """One picture, or a problem; `[scenario:slow-success]` takes its time."""
    ref = f"ex_{secrets.token_hex(10)}"
    said = await request.json()
    if request.headers.get("X-Api-Token") in {None, "invalid"}:
        return problem(401, "bad_token", "Who are you?", ref)
    text = said.get("text")
    if not text:
        return problem(422, "missing_field", "There is no text.", ref)
    if "nudity" in text:
        return problem(451, "content_blocked", f"This cannot be drawn. (ref {ref})", ref)
    if "slow-success" in text:
        await asyncio.sleep(3)
    picture = {"href": f"{request.url.origin()}/{ref}.png"}
    return web.json_response({"pictures": [picture], "ref": ref}, status=201, headers={"X-Example-Ref": ref})


def problem(status: int, kind: str, text: str, ref: str) -> web.Response:
    body = {"problem": {"kind": kind, "text": text}}
    return web.json_response(body, status=status, headers={"X-Example-Ref": ref})


if __name__ == "__main__":
    app = web.Application()
    app.router.add_post("/v2/draw", draw)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)

"""`genctl health` believes the process, and says where nobody is."""

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.kit import free_port
from tests.process.place import Place

from genctl.domain.model import GenctlError
from genctl.ops import health


def test_the_first_port_on_which_anybody_listens_counts(served_place: Place) -> None:
    port = served_place.env["GENCTL_API_URL"].rpartition(":")[2]
    nobody = ("health", "--port", str(free_port()))
    assert served_place.genctl(*nobody, "--port", port) == {"port": int(port), "ok": True}
    assert served_place.error(*nobody, exit_code=3)["code"] == "NobodyListens"


def test_where_there_is_no_home_the_root_folder_is_it(served_place: Place) -> None:
    """A container's user has no name: without HOME nothing that looks for the user's files worked."""
    assert served_place.genctl("config", "show", HOME="", XDG_CONFIG_HOME="")


async def test_a_worker_that_is_red_is_told_with_its_reason() -> None:
    async def red(_: web.Request) -> web.Response:
        return web.json_response({"ok": False, "why": "no receive was answered for 61 s"}, status=503)

    app = web.Application()
    app.router.add_get("/healthz", red)
    async with TestServer(app) as server:
        told = await health.ask([server.port or 0])
        assert (told["ok"], told["why"]) == (False, "no receive was answered for 61 s")


async def test_what_is_not_genctl_is_not_well() -> None:
    async with TestServer(web.Application()) as server:
        with pytest.raises(GenctlError, match="healthz") as caught:
            await health.ask([server.port or 0])
        assert (caught.value.code, caught.value.exit_code) == ("NotHealthy", 1)

"""API processes and what stands before them fail: each failure reaches each client that comes back."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.kit import free_port, until
from tests.process.place import Place
from tests.process.served import serve
from tests.proxies import nginx
from tests.stream.shop import Shop, heard, tells

DEAF = "proxy_ignore_headers X-Accel-Buffering;"
COMPRESSING = "proxy_http_version 1.1; gzip on; gzip_proxied any; gzip_types text/event-stream;"


@pytest.fixture
async def shop(place: Place) -> AsyncIterator[Shop]:
    async with Shop.open(place.dsn) as shop:
        yield shop


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_whoever_loses_its_server_goes_on_at_another_behind_its_last_id(
    how: signal.Signals, place: Place, shop: Shop
) -> None:
    """Two processes tell the same; one of them ends, and comes back at its port."""
    port = free_port()
    with serve(place, port) as one, serve(place) as two:
        for api in (one, two):
            await api.ready()
        async with one.client.stream() as first, two.client.stream() as second:
            for ear in (first, second):
                await ear.ready()
            await shop.fail("ann", 5)
            await shop.all_told(ann=[first, second])
            one.running.process.send_signal(how)
            await asyncio.to_thread(one.running.end)
            await ear.until(lambda _: first.task and first.task.done())
            assert bool(first.named("bye")) == (how is signal.SIGTERM)
            missed = await shop.fail("ann", 3)
            last = {"Last-Event-ID": first.ids[-1]}
            async with two.client.stream(**last) as again:
                await again.ready()
                assert heard(again) == missed
            with serve(place, port) as anew:
                async with anew.client.stream(**last) as again:
                    await again.ready()
                    assert heard(again) == missed
            await shop.all_told(ann=[second])


@pytest.mark.parametrize("directives", ["", COMPRESSING], ids=["buffering", "compressing"])
async def test_a_proxy_that_buffers_lets_a_stream_through_at_once(
    directives: str, place: Place, shop: Shop, tmp_path: Path
) -> None:
    """nginx buffers by default; it heeds the header of a stream."""
    with serve(place) as api, nginx(api.client.url, tmp_path, directives) as url:
        await api.ready()
        api.client.url = url
        async with api.client.stream() as ear:
            await ear.ready()
            await shop.fail("ann", 3)
            await shop.all_told(ann=[ear])


async def test_a_proxy_that_holds_a_stream_back_never_says_that_it_is_ready_and_loses_nothing(
    place: Place, shop: Shop, tmp_path: Path
) -> None:
    """What it holds comes when the stream ends: nobody is told `ready` before."""
    with serve(place) as api, nginx(api.client.url, tmp_path, DEAF) as url:
        await api.ready()
        direct, api.client.url = api.client.url, url

        async def is_open() -> bool:
            return "genctl_sse_streams 1.0" in (await api.client.ask("GET", "/metrics"))[1]

        async with api.client.stream() as ear:
            await until(is_open)
            api.client.url = direct
            async with (
                api.client.stream() as other
            ):  # as looks come one by one, the first stream is ready, too
                await other.ready()
            failed = await shop.fail("ann", 3)
            await asyncio.to_thread(api.running.until, "sse.emit", sessionId=failed[-1])
            assert ear.events == []
            assert await asyncio.to_thread(api.running.end, signal.SIGTERM) == 0
            await tells(ear, failed)
            assert [event.name for event in ear.events] == ["ready", "failed", "failed", "failed", "bye"]

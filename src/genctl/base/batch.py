"""Make one call of those that come together, each with an item and a result of its own."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

PACE_S = 0.01  # between the begins of two calls: a batch more often costs more than it brings
PATIENCE_S = 0.06  # likewise while a call is under way: a slow one must not delay the others longer
MOST_LANES = 6  # no more connections than these wait for a call that hangs


class Together(Generic[K, V]):
    """Make calls with one item each one call of `work` with at most `most` items.

    A lone item goes at once, with those of the same turn of the loop. While a call is under way, or began
    less than `PACE_S` ago, the next items wait and go together: the more there is to do, the larger the
    calls. They wait for the call to end, but not for long, or until they are `most`: then there may be
    `MOST_LANES` calls. `work` returns a result for each item, in order; only the caller of an item gets an
    exception among them.
    """

    def __init__(
        self, work: Callable[[list[K]], Awaitable[Sequence[V | Exception]]], *, most: int = 100
    ) -> None:
        self._work = work
        self._most = most
        self._waiting: list[tuple[K, asyncio.Future[V]]] = []
        self._timer: asyncio.Handle | None = None
        self._began_at = -math.inf  # the last call, by the loop's clock
        self._under_way: set[asyncio.Task[None]] = set()

    def __call__(self, item: K) -> asyncio.Future[V]:
        """Return a future of the item's result. Cancelling that does not take the item out."""
        future: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._waiting) >= self._most:
            self._go()
        elif self._timer is None:
            self._wait()
        return future

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        apart_s = PATIENCE_S if self._under_way else PACE_S
        wait_s = self._began_at + apart_s - loop.time()
        self._timer = loop.call_later(wait_s, self._go) if wait_s > 0 else loop.call_soon(self._go)

    def _go(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._waiting and len(self._under_way) < MOST_LANES:
            some, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            self._began_at = asyncio.get_running_loop().time()
            task = asyncio.create_task(self._carry_out(some))
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.remove(task)
        if self._waiting:
            if self._timer:
                self._timer.cancel()
            self._wait()

    async def _carry_out(self, some: list[tuple[K, asyncio.Future[V]]]) -> None:
        results: Sequence[V | Exception]
        try:
            results = await self._work([item for item, _ in some])
        except Exception as error:  # noqa: BLE001 - the callers get it
            results = [error] * len(some)
        for (_, future), result in zip(some, results, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


def attempted(call: Callable[[K], V], item: K) -> V | Exception:
    """Return what the call returns or raises, as the result of one item among others."""
    try:
        return call(item)
    except Exception as error:  # noqa: BLE001 - the item's caller gets it
        return error


async def all_of(works: Iterable[Awaitable[V]]) -> list[V]:
    """Wait for all of them, also when one raises an exception; raise it then."""
    ends = await asyncio.gather(*works, return_exceptions=True)
    results: list[V] = []
    for end in ends:
        if isinstance(end, BaseException):
            raise end
        results.append(end)
    return results

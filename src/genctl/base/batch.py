"""Make one call of those that come within a few milliseconds, each with an item and a result of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

LANES = 2
PATIENCE_S = 0.05  # a slow call must not delay the others longer
MOST_LANES = 6  # no more connections than these wait for a call that hangs


class Together(Generic[K, V]):
    """Make calls with one item each one call of `work` with at most `most` items.

    The first item waits `within_s` for others. While `LANES` calls are under way it waits for one of them to
    end, but not for long; while `MOST_LANES` are, it waits. `work` returns a result for each item, in order;
    only the caller of an item gets an exception among them.
    """

    def __init__(
        self,
        work: Callable[[list[K]], Awaitable[Sequence[V | Exception]]],
        *,
        within_s: float = 0.004,
        most: int = 100,
    ) -> None:
        self._work = work
        self._within_s = within_s
        self._most = most
        self._waiting: list[tuple[K, asyncio.Future[V]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = False  # the wait for others is over, and the items wait for a lane
        self._lanes = LANES  # that these items may use
        self._under_way: set[asyncio.Task[None]] = set()

    def __call__(self, item: K) -> asyncio.Future[V]:
        """Return a future of the item's result. Cancelling that does not take the item out."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[V] = loop.create_future()
        self._waiting.append((item, future))
        if len(self._waiting) >= self._most:
            self._go(MOST_LANES)
        elif self._timer is None and not self._due:
            self._timer = loop.call_later(self._within_s, partial(self._go, LANES))
        return future

    def _go(self, lanes: int) -> None:
        """Begin with the waiting items in so many lanes; else when a lane ends, or soon in more lanes."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._lanes = lanes
        while self._waiting and len(self._under_way) < lanes:
            some, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            task = asyncio.create_task(self._carry_out(some))
            self._under_way.add(task)
            task.add_done_callback(self._ended)
        self._due = bool(self._waiting)
        if self._due and lanes < MOST_LANES:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, partial(self._go, MOST_LANES))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.remove(task)
        if self._due:
            self._go(self._lanes)

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

"""Make one call of those that come together, each with an item and a result of its own."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

LANES = 1
PACE_S = 0.01  # between the begins of two calls: a batch more often costs more than it brings
PATIENCE_S = 0.05  # a slow call must not delay the others longer
MOST_LANES = 6  # no more connections than these wait for a call that hangs


class Together(Generic[K, V]):
    """Make calls with one item each one call of `work` with at most `most` items.

    A lone item goes at once, with those of the same turn of the loop. While a call is under way, or began
    less than `PACE_S` ago, the next items wait and go together: the more there is to do, the larger the
    calls. They wait for one of `LANES` calls to end, but not for long: then `MOST_LANES` may be under way.
    With `within_s` the first item waits so long for company. `work` returns a result for each item, in order;
    only the caller of an item gets an exception among them.
    """

    def __init__(
        self,
        work: Callable[[list[K]], Awaitable[Sequence[V | Exception]]],
        *,
        within_s: float = 0.0,
        most: int = 100,
    ) -> None:
        self._work = work
        self._within_s = within_s
        self._most = most
        self._waiting: list[tuple[K, asyncio.Future[V]]] = []
        self._timer: asyncio.Handle | None = None
        self._due = False  # the wait for others is over, and the items wait for a lane
        self._lanes = LANES  # that these items may use
        self._next_at = -math.inf  # when the next call may begin, by the loop's clock
        self._under_way: set[asyncio.Task[None]] = set()

    def __call__(self, item: K) -> asyncio.Future[V]:
        """Return a future of the item's result. Cancelling that does not take the item out."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[V] = loop.create_future()
        self._waiting.append((item, future))
        if len(self._waiting) >= self._most:
            self._go(MOST_LANES)
        elif self._timer is None and not self._due:
            wait_s = max(self._within_s, self._next_at - loop.time())
            go = partial(self._go, LANES)
            self._timer = loop.call_later(wait_s, go) if wait_s > 0 else loop.call_soon(go)
        return future

    def _go(self, lanes: int) -> None:
        """Begin with the waiting items in so many lanes; else when a lane ends, or soon in more lanes."""
        loop = asyncio.get_running_loop()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._lanes = lanes
        while self._waiting and len(self._under_way) < lanes:
            some, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            self._next_at = loop.time() + PACE_S
            task = asyncio.create_task(self._carry_out(some))
            self._under_way.add(task)
            task.add_done_callback(self._ended)
        self._due = bool(self._waiting)
        if self._due and lanes < MOST_LANES:
            self._timer = loop.call_later(PATIENCE_S, partial(self._go, MOST_LANES))

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

"""Calls that come within a few milliseconds become one."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K")


class Batch(Generic[K]):
    """Hands keys to `work`, many at once and each once, while no other work is under way.

    What comes during the work is the next batch; so a slow database makes batches larger, not more.
    """

    def __init__(self, work: Callable[[list[K]], Awaitable[None]], *, within_s: float, most: int) -> None:
        self._work = work
        self._within_s = within_s
        self._most = most
        self._keys: dict[K, None] = {}
        self._some = asyncio.Event()

    def add(self, keys: Iterable[K]) -> None:
        """Have work done for these keys, soon."""
        self._keys.update(dict.fromkeys(keys))
        if self._keys:
            self._some.set()

    async def run(self) -> None:
        """Work for ever; what `work` raises ends it."""
        while True:
            await self._some.wait()
            await asyncio.sleep(self._within_s)
            keys = list(self._keys)[: self._most]
            for key in keys:
                del self._keys[key]
            if not self._keys:
                self._some.clear()
            await self._work(keys)

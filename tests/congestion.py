"""A server that collapses under congestion, in virtual time, and callers that want all they can get of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random

import anyio

SERVICE_S = 1.0  # what a request takes that has a place to itself: a round trip
TICK_S = 0.05


class Server:
    """Serves ``capacity`` requests at once at full speed; more of them share it, and get in each other's way.

    With n requests each runs at the speed ``capacity / n / (1 + 2 * (n / capacity - 1) ** 2)``: at twice the capacity
    it does a third of its work.
    """

    def __init__(self, capacity: int, spread: float = 0.0, seed: int = 0) -> None:
        self.capacity = capacity
        self.served = 0
        self.peak = 0
        self._spread = spread
        self._random = Random(seed)
        self._open: dict[anyio.Event, float] = {}

    async def request(self) -> None:
        """Ask for something; who goes away early was served for nothing."""
        done = anyio.Event()
        self._open[done] = SERVICE_S * self._random.lognormvariate(-(self._spread**2) / 2, self._spread)
        self.peak = max(self.peak, len(self._open))
        try:
            await done.wait()
            self.served += 1
        finally:
            self._open.pop(done, None)

    def _speed(self) -> float:
        over = len(self._open) / self.capacity
        return 1.0 if over <= 1 else 1 / over / (1 + 2 * (over - 1) ** 2)

    async def _tick(self) -> None:
        while True:
            await anyio.sleep(TICK_S)
            step = TICK_S * self._speed()
            for done, left in list(self._open.items()):
                self._open[done] = left - step
                if left - step <= 1e-9:
                    done.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tick)
            yield self
            tasks.cancel_scope.cancel()


async def goodput(server: Server, capacities: list[int], round_trips: int, settle: int) -> list[float]:
    """For each capacity in turn, what was served of what could have been, after ``settle`` round trips."""
    found = []
    for capacity in capacities:
        server.capacity = capacity
        await anyio.sleep(settle * SERVICE_S)
        before = server.served
        await anyio.sleep(round_trips * SERVICE_S)
        found.append((server.served - before) * SERVICE_S / (capacity * round_trips))
    return found


async def callers(count: int, call: Callable[[], Awaitable[object]]) -> None:
    """So many tasks that call without end."""

    async def again() -> None:
        while True:
            await call()

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(again)

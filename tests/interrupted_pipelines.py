"""A random declaration, run until something stops it or a part of it: what was pulled, and what came of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.lowlevel import checkpoint
from hypothesis import strategies as st

from kgas_async import MemorySink, Outcome, Pipeline, PipelineError, ServiceManager
from kgas_async.testing import assert_clean, virtual_backend

HANGS_S = 100_000.0  # of virtual time
STOPS = ("manager", "one call", "drain", "leave", "scope", "native")
KEEPING = ("manager", "one call", "drain")  # after these outcomes can still be taken


@dataclass(frozen=True)
class Stop:
    """What stops it, after how many steps; ``number`` says which call, or after how many outcomes."""

    how: str
    steps: int
    number: int
    asynchronous: bool  # the source


stops = st.builds(Stop, st.sampled_from(STOPS), st.integers(0, 60), st.integers(0, 12), st.booleans())


class Interrupted:
    """One run.

    Attributes:
        pulled: The indices of items that were pulled.
        came: The outcomes that were taken.
        was_cut: Whether the iteration ended by an error that said so.
    """

    def __init__(self, pipeline: Pipeline, found: list[Any], stop: Stop, **options: Any) -> None:
        self.pipeline, self.found, self.stop, self.options = pipeline, found, stop, options
        self.pulled: list[int] = []
        self.came: list[Outcome[Any]] = []
        self.was_cut = False
        self.sink = MemorySink()
        self.manager = ServiceManager(log=None, threads=2, evidence=self.sink)

    def run(self, backend: str, seed: int) -> None:
        """Run it, and assert that nothing is left and that each call has one end."""
        library, options = virtual_backend(backend, seed)
        anyio.run(self._main, backend=library, backend_options=options)
        assert_clean(self.manager)
        ends = Counter(
            one["call_id"] for one in self.sink.records if one["event"].startswith("call.") and "status" in one
        )
        started = {one["call_id"] for one in self.sink.records if one["event"] == "call.started"}
        assert set(ends.values()) <= {1}
        assert started <= ends.keys()

    def _source(self) -> Any:
        return self._items_later() if self.stop.asynchronous else self._items()

    def _items(self) -> Iterator[Any]:
        for index, item in enumerate(self.found):
            self.pulled.append(index)
            yield item

    async def _items_later(self) -> AsyncIterator[Any]:
        await checkpoint()
        for item in self._items():
            yield item
            await checkpoint()

    async def _main(self) -> None:
        with anyio.fail_after(HANGS_S):
            async with self.manager:
                if self.stop.how == "native":
                    await self._cancelled_natively()
                    return
                async with anyio.create_task_group() as group:
                    if self.stop.how != "leave":
                        group.start_soon(self._stop, group.cancel_scope)
                    await self._consume()

    async def _cancelled_natively(self) -> None:
        task = asyncio.get_running_loop().create_task(self._consume())
        for _ in range(self.stop.steps):
            await checkpoint()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _stop(self, scope: anyio.CancelScope) -> None:
        for _ in range(self.stop.steps):
            await checkpoint()
        if self.stop.how == "manager":
            await self.manager.cancel(reason="at random")
        elif self.stop.how == "drain":
            await self.manager.drain()
        elif self.stop.how == "scope":
            scope.cancel()
        elif calls := list(self.manager.calls):
            await self.manager.cancel(calls[self.stop.number % len(calls)], "that one")

    async def _consume(self) -> None:
        async with self.manager.stream(self.pipeline, self._source(), **self.options) as outcomes:
            try:
                async for outcome in outcomes:
                    self.came.append(outcome)
                    if self.stop.how == "leave" and len(self.came) > self.stop.number:
                        break
            except PipelineError:  # cancelled before the end of the source
                self.was_cut = True


def is_touched(outcome: Outcome[Any]) -> bool:
    """Whether a cancellation has reached any of an item's calls."""
    rows = [one if isinstance(one, list) else [one] for one in outcome.phases.values()]
    return outcome.status == "cancelled" or any(one.status == "cancelled" for row in rows for one in row)

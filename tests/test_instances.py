"""Legacy objects that cannot be shared: one instance stays one, whatever calls it and whatever it calls."""

from __future__ import annotations

import threading
import time
from typing import Any

import anyio
import pytest

from kgas_async import CallRejected, KGASTool, Policy, ServiceManager, ToolAdapter, tool

pytestmark = pytest.mark.real_time


class Busy:
    """Counts how many are in it at once."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._lock = threading.Lock()

    def execute(self, *, seconds: float) -> None:
        with self._lock:
            self.now += 1
            self.peak = max(self.peak, self.now)
        time.sleep(seconds)
        with self._lock:
            self.now -= 1


async def test_a_dedicated_instance_that_waits_in_a_nested_call_is_not_built_again_for_others() -> None:
    built: list[int] = []

    @tool
    async def pause() -> None:
        await anyio.sleep(0.1)

    class Bound:
        def __init__(self) -> None:
            built.append(threading.get_ident())

        def execute(self, *, nest: bool) -> int:
            if nest:
                pause.execute()
            return threading.get_ident()

    adapted = ToolAdapter(factory=Bound, instances="dedicated")
    async with ServiceManager(log=None) as manager:
        nesting = manager.submit(adapted, nest=True)
        await anyio.sleep(0.03)
        waiting = manager.submit(adapted, nest=False)
        threads = [await nesting.result(), await waiting.result(), await manager.execute(adapted, nest=False)]
    assert threads == built * 3


@pytest.mark.parametrize("policy", [{}, {"timeout": 30.0}], ids=["plain", "bounded"])
async def test_a_dedicated_instance_that_calls_its_own_tool_is_told_and_does_not_hang(policy: dict[str, Any]) -> None:
    class Recursive:
        def execute(self, *, depth: int) -> int:
            between.execute(depth=depth - 1) if depth else None
            return depth

    adapted: KGASTool = ToolAdapter(factory=Recursive, instances="dedicated", policy=Policy(**policy))

    @tool
    def between(depth: int) -> int:
        return adapted.execute(depth=depth)  # type: ignore[no-any-return]

    async with ServiceManager(log=None) as manager:
        with anyio.fail_after(10):
            outcome = await manager.outcome(adapted, depth=1)
        assert await manager.execute(adapted, depth=0) == 0
        assert manager.statistics().tools[adapted.name].rejected == 1
    rejected = outcome.error.__cause__.__cause__
    assert isinstance(rejected, CallRejected)
    assert "has one instance in one thread" in str(rejected)


async def test_a_serial_instance_serves_one_call_at_a_time_under_all_its_names() -> None:
    busy = Busy()
    adapted = ToolAdapter(busy, instances="serial", name="one")
    async with ServiceManager(log=None) as manager:
        calls = [
            manager.submit(one, seconds=0.05)
            for one in (adapted, adapted.using(name="two"), ToolAdapter(adapted, name="three"))
        ]
        for call in calls:
            await call.result()
    assert busy.peak == 1


async def test_a_serial_instance_with_an_abandoned_thread_in_it_is_waited_for_by_the_next_session() -> None:
    busy = Busy()
    adapted = ToolAdapter(busy, instances="serial", on_cancel="abandon", policy=Policy(timeout=0.05))
    async with ServiceManager(log=None) as manager:
        assert (await manager.outcome(adapted, seconds=0.3)).status == "timed_out"
    async with ServiceManager(log=None) as manager:
        await manager.execute(adapted, seconds=0.0)
    assert busy.peak == 1

"""`cleanup_resources`: after each call that failed or was cancelled, shielded, and no longer than its grace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallFailed,
    CallTimeout,
    InvalidInputs,
    KGASTool,
    MemorySink,
    Policy,
    Retry,
    ServiceManager,
    ToolAdapter,
    check_cancelled,
    current,
)
from kgas_async.testing import assert_clean, explore


class Cleaning(KGASTool):
    """Does as it is told, and writes down the inputs of the calls that it cleans up after."""

    def __init__(self) -> None:
        self.cleaned: list[Any] = []

    async def execute_async(self, *, how: str) -> str:
        await checkpoint()
        if how == "fails":
            raise KeyError("broken")
        if how == "sleeps":
            await anyio.sleep_forever()
        return how

    async def cleanup_resources(self, call: Any) -> None:
        await checkpoint()  # raises where it is not shielded
        await anyio.sleep(0.001)
        self.cleaned.append((call.inputs["how"], call.id))


async def test_it_runs_after_a_failure_and_not_after_a_success() -> None:
    tidy = Cleaning()
    async with ServiceManager(log=None) as manager:
        assert await manager.execute(tidy, how="succeeds") == "succeeds"
        assert tidy.cleaned == []
        with pytest.raises(CallFailed) as caught:
            await manager.execute(tidy, how="fails")
        assert tidy.cleaned == [("fails", caught.value.call_id)]


async def test_it_does_not_run_where_nothing_had_begun() -> None:
    tidy = Cleaning()
    gate = tidy.using(concurrency=1)
    async with ServiceManager(log=None) as manager:
        with pytest.raises(InvalidInputs):
            await manager.execute(tidy, what="fails")  # type: ignore[call-arg]
        first = manager.submit(gate, how="sleeps")
        await anyio.wait_all_tasks_blocked()
        second = manager.submit(gate, how="sleeps")
        await anyio.wait_all_tasks_blocked()
        second.cancel()
        await second.wait()
        assert tidy.cleaned == []
        first.cancel()


async def test_it_runs_once_after_the_last_of_several_attempts() -> None:
    tidy = Cleaning()
    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallFailed) as caught:
            await manager.execute(tidy.using(retry=Retry(3, wait=0)), how="fails")
    assert caught.value.attempts == 3
    assert len(tidy.cleaned) == 1


async def test_it_runs_after_a_timeout() -> None:
    tidy = Cleaning()
    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallTimeout):
            await manager.execute(tidy.using(timeout=0.001), how="sleeps")
        with pytest.raises(CallTimeout):
            await manager.execute(tidy.using(deadline=0.001), how="sleeps")
    assert [how for how, _ in tidy.cleaned] == ["sleeps", "sleeps"]


async def by_its_call(manager: ServiceManager, call: Any, around: anyio.CancelScope) -> None:
    call.cancel()


async def by_the_manager(manager: ServiceManager, call: Any, around: anyio.CancelScope) -> None:
    await manager.cancel()


async def by_a_scope(manager: ServiceManager, call: Any, around: anyio.CancelScope) -> None:
    around.cancel()


@pytest.mark.parametrize("cancel", [by_its_call, by_the_manager, by_a_scope])
async def test_it_is_shielded_from_what_cancelled_the_call_and_over_when_the_call_is(
    cancel: Callable[[ServiceManager, Any, anyio.CancelScope], Any],
) -> None:
    tidy, sink = Cleaning(), MemorySink()
    manager = ServiceManager(log=None, evidence=sink)
    with anyio.CancelScope() as around:
        async with manager:
            call = manager.submit(tidy, how="sleeps")
            await anyio.wait_all_tasks_blocked()
            await cancel(manager, call, around)
            await call.wait()
            assert [how for how, _ in tidy.cleaned] == ["sleeps"]
    assert [how for how, _ in tidy.cleaned] == ["sleeps"]
    assert call.status == "cancelled"
    assert [one["status"] for one in sink.records if "tool" in one and "status" in one] == ["cancelled"]
    assert_clean(manager)


class Endless(Cleaning):
    async def cleanup_resources(self, call: Any) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self.cleaned.append(anyio.current_time())


@explore(seeds=3)
async def test_its_time_limit_is_the_grace_of_the_call() -> None:
    endless = Endless()
    async with ServiceManager(log=None, grace=5) as manager:
        with pytest.raises(CallFailed) as caught:
            await manager.execute(endless, how="fails")
        assert endless.cleaned == [pytest.approx(5)]
        assert "cleanup_resources of tool 'Endless' did not end within its grace" in caught.value.__notes__[0]

        began = anyio.current_time()
        call = manager.submit(endless.using(grace=2), how="sleeps")
        await anyio.sleep(1)
        call.cancel()
        await call.wait()
        assert endless.cleaned[1] - began == pytest.approx(3)
        assert call.status == "cancelled"


async def test_an_error_in_it_is_noted_and_does_not_replace_the_calls_own() -> None:
    class Clumsy(Cleaning):
        async def cleanup_resources(self, call: Any) -> None:
            raise OSError("no space")

    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallFailed, match="KeyError: 'broken'") as caught:
            await manager.execute(Clumsy(), how="fails")
        assert caught.value.__notes__ == ["cleanup_resources of tool 'Clumsy' failed too: OSError('no space')"]
        call = manager.submit(Clumsy(), how="sleeps")
        await anyio.wait_all_tasks_blocked()
        call.cancel()
        await call.wait()
        assert call.status == "cancelled"


async def test_it_may_call_other_tools_of_its_manager() -> None:
    class Telling(Cleaning):
        async def cleanup_resources(self, call: Any) -> None:
            self.cleaned.append(await current().execute(Cleaning(), how="told"))

    telling = Telling()
    telling.name = "Telling"
    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallFailed):
            await manager.execute(telling, how="fails")
    assert telling.cleaned == ["told"]


async def test_after_a_sync_tool_it_runs_when_its_thread_has_ended() -> None:
    story: list[str] = []
    started = threading.Event()

    def works() -> None:
        started.set()
        try:
            while True:
                check_cancelled()
                time.sleep(0.001)
        finally:
            story.append("ended")

    class Cleaned(ToolAdapter[..., Any]):
        async def cleanup_resources(self, call: Any) -> None:
            await checkpoint()
            story.append("cleaned")

    async with ServiceManager(log=None) as manager:
        call = manager.submit(Cleaned(works, policy=Policy(grace=1000)))
        await anyio.to_thread.run_sync(started.wait)
        call.cancel()
        with anyio.fail_after(10):
            await call.wait()
    assert story == ["ended", "cleaned"]

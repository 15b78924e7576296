"""`manager.options(name=, replace=)`: calls with names of their own, one open call for each name."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallCancelled,
    CallRejected,
    CallTimeout,
    ConcurrencyLimit,
    JsonlSink,
    ManagerClosed,
    MemorySink,
    Policy,
    ServiceManager,
    call_context,
    current,
    tool,
)
from kgas_async.testing import assert_clean, explore

from .loops import virtual


@pytest.fixture(params=virtual())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


@tool
async def double(x: int) -> int:
    await checkpoint()
    return 2 * x


@tool
async def forever() -> None:
    await anyio.sleep_forever()


async def test_a_named_call_has_its_name_and_its_tool_keeps_its_own(tmp_path: Any) -> None:
    sink = MemorySink()
    path = tmp_path / "evidence.jsonl"
    async with ServiceManager(evidence=[sink, JsonlSink(path)], log=None) as manager:
        call = manager.options(name="nightly").submit(double, x=2)
        assert (call.name, call.tool_name, call.tool) == ("nightly", "double", double)
        assert await call.result() == 4
        assert await manager.options(name="nightly").execute(double, x=3) == 6
        assert (await manager.options(name="nightly").outcome(double, x=4)).value == 8
        assert await manager.options().execute(double, x=3) == 6
        assert manager.submit(double, x=1).name == "double"
    names = [record.get("call_name") for record in sink.records if record["event"] == "call.succeeded"]
    assert names == ["nightly", "nightly", "nightly", None, None]
    assert path.read_text().count('"call_name":"nightly","event":"call.succeeded"') == 3


async def test_a_tools_log_lines_carry_the_name() -> None:
    @tool
    async def logs() -> Any:
        return call_context(None, "info", {"event": "hello"})

    async with ServiceManager() as manager:
        assert (await manager.options(name="nightly").execute(logs))["call_name"] == "nightly"
        assert "call_name" not in await manager.execute(logs)


async def test_a_second_open_call_of_a_name_is_refused() -> None:
    async with ServiceManager() as manager:
        named = manager.options(name="one")
        first = named.submit(forever)
        with pytest.raises(CallRejected, match=r"'one' is open already: <Call .* of 'one': waiting>; give this one"):
            named.submit(double, x=1)
        with pytest.raises(CallRejected):
            await named.execute(double, x=1)
        outcome = await named.outcome(double, x=1)
        assert outcome.status == "rejected"
        assert isinstance(outcome.error, CallRejected)
        other = manager.options(name="two").submit(double, x=1)
        assert await other.result() == 2
        first.cancel()
        await first.wait()
        assert await named.execute(double, x=1) == 2


async def test_names_are_checked() -> None:
    async with ServiceManager() as manager:
        for wrong in ("", 3):
            with pytest.raises(TypeError, match="non-empty string"):
                manager.options(name=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="say which"):
            manager.options(replace=True)
        with pytest.raises(TypeError, match=r"options\(priority\) must be a Priority or a whole number, not 'HIGH'"):
            manager.options(priority="HIGH")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"options\(priority\) must be from 0 .* to 9 .*, not 10"):
            manager.options(priority=10)
        with pytest.raises(TypeError, match=r"replace=\.\.\.\) is True or False"):
            manager.options(name="one", replace="yes")  # type: ignore[arg-type]
    with pytest.raises(ManagerClosed):
        await manager.options(name="one").execute(double, x=1)


@explore(seeds=10)
async def test_replacing_cancels_the_first_and_waits_for_it_before_the_new_one_begins() -> None:
    inside: list[int] = []
    most: list[int] = []

    @tool
    async def alone(x: int) -> int:
        inside.append(x)
        most.append(len(inside))
        try:
            await anyio.sleep(10)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            inside.remove(x)
        return x

    async with ServiceManager() as manager:
        latest = manager.options(name="latest", replace=True)
        first = latest.submit(alone, x=1)
        await anyio.sleep(2)
        second = latest.submit(alone, x=2)
        await anyio.sleep(0.5)
        assert second.status == "waiting"
        third = latest.submit(alone, x=3)  # while the second still waits for the first
        with pytest.raises(CallCancelled, match=f"replaced by call {second.id}"):
            await first.result()
        with pytest.raises(CallCancelled, match=f"replaced by call {third.id}"):
            await second.result()
        assert await latest.execute(double, x=4) == 8
        assert third.status == "cancelled"
        assert (await latest.outcome(alone, x=5)).value == 5
        assert second.attempt == 0
    assert max(most) == 1


@explore(seeds=3)
async def test_waiting_for_the_replaced_one_is_bounded_by_the_deadline_and_can_be_cancelled() -> None:
    @tool
    async def lingers() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)

    async with ServiceManager() as manager:
        latest = manager.options(name="latest", replace=True)
        latest.submit(lingers)
        await anyio.sleep(1)
        with pytest.raises(CallTimeout, match="deadline of 2 s"):
            await latest.execute(double.using(deadline=2), x=1)
        assert anyio.current_time() == pytest.approx(3)
        with anyio.move_on_after(1):
            await latest.execute(double, x=1)
        assert anyio.current_time() == pytest.approx(4)
        assert await latest.execute(double, x=2) == 4
        assert anyio.current_time() == pytest.approx(6)
        assert not manager.calls


async def test_a_call_that_is_not_admitted_replaces_nothing() -> None:
    async with ServiceManager() as manager:
        first = manager.options(name="one").submit(forever)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(TypeError, match="is no tool"):
            manager.options(name="one", replace=True).submit(print)  # type: ignore[arg-type]
        assert first.status == "running"
        first.cancel()


async def test_a_call_cannot_replace_the_one_that_it_runs_in() -> None:
    @tool
    async def replaces_itself() -> Any:
        inner = await current().options(name="other").execute(double, x=1)
        with pytest.raises(CallRejected, match="named 'me' itself: it cannot be replaced from within"):
            current().options(name="me", replace=True).submit(double, x=1)
        return inner

    async with ServiceManager() as manager:
        assert await manager.options(name="me").execute(replaces_itself) == 2


async def test_a_call_is_cancelled_by_its_name_too() -> None:
    async with ServiceManager() as manager:
        call = manager.options(name="nightly").submit(forever)
        other = manager.submit(forever)
        await anyio.wait_all_tasks_blocked()
        assert await manager.cancel("forever") is False  # that is a tool's name
        assert await manager.cancel("nightly", "enough") is True
        assert (call.status, call.reason, other.status) == ("cancelled", "enough", "running")
        assert await manager.cancel("nightly") is False
        other.cancel()


async def test_a_replaced_thread_gives_its_token_back_before_the_new_one_needs_it() -> None:
    limit = ConcurrencyLimit(1)
    started = threading.Event()

    @tool(policy=Policy(concurrency=limit))
    def works(stop: Any) -> str:
        started.set()
        stop.wait(5)
        return "done"

    stop = threading.Event()
    async with ServiceManager() as manager:
        named = manager.options(name="one", replace=True)
        first = named.submit(works, stop=stop)
        await anyio.to_thread.run_sync(started.wait)
        second = named.submit(works, stop=stop)
        await anyio.wait_all_tasks_blocked()
        assert (first.has_ended, second.status) == (False, "waiting")
        stop.set()
        assert await second.result() == "done"
        assert first.status == "cancelled"
    assert_clean(manager, limit)

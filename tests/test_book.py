"""Submitted calls are found for a while after their end, by id or name; what is kept is bounded."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import CallFailed, ManagerClosed, ServiceManager, current, tool
from kgas_async._book import ENDED_KEPT


@tool
async def double(x: int) -> int:
    await checkpoint()
    return 2 * x


@tool
async def breaks() -> None:
    await checkpoint()
    raise KeyError("broken")


@tool
async def forever() -> None:
    await anyio.sleep_forever()


async def test_a_submitted_call_is_found_by_its_id_before_and_after_its_end() -> None:
    async with ServiceManager() as manager:
        id = manager.submit(double, x=2).id  # noqa: A001
        bad = manager.submit(breaks).id
        call = manager.find(id)
        assert call is not None
        assert await call.result() == 4
        assert manager.find(id) is call
        assert id not in manager.calls
        assert await manager.cancel(id) is False
        failed = manager.find(bad)
        assert failed is not None
        with pytest.raises(CallFailed):
            await failed.result()
        for wrong in ("nonsense", "-", f"{manager.session_id}-999", "double", id + "0"):
            assert manager.find(wrong) is None
    with pytest.raises(ManagerClosed):
        manager.find(id)


async def test_open_calls_are_found_however_they_were_made() -> None:
    async with ServiceManager() as manager, anyio.create_task_group() as group:
        group.start_soon(manager.outcome, forever)
        await anyio.wait_all_tasks_blocked()
        (id,) = manager.calls  # noqa: A001
        call = manager.find(id)
        assert call is manager.calls[id]
        assert await manager.cancel(id)
        assert manager.find(id) is None  # nobody was told its id


async def test_the_latest_of_a_name_is_found() -> None:
    async with ServiceManager() as manager:
        named = manager.options(name="one", replace=True)
        first = named.submit(double, x=1)
        await first.wait()
        second = named.submit(double, x=2)
        assert manager.find("one") is second
        third = named.submit(double, x=3)
        assert manager.find("one") is third
        await third.wait()
        assert manager.find("one") is third
        assert [manager.find(call.id) for call in (first, second)] == [first, second]
        assert await named.execute(double, x=4) == 8
        assert manager.find("one") is third  # that one was waited for


async def test_what_is_kept_is_bounded() -> None:
    refs: list[weakref.ref[Any]] = []
    async with ServiceManager() as manager:
        first = manager.submit(double, x=0).id
        for n in range(4 * ENDED_KEPT):
            call = manager.submit(double, x=n)
            refs.append(weakref.ref(call))
            await call.wait()
            last = call.id
        del call
        with anyio.fail_after(30):
            while sum(ref() is not None for ref in refs) > ENDED_KEPT:  # the evidence's writer still has some
                await anyio.sleep(0.01)
                gc.collect()
        assert manager.find(first) is None
        assert manager.find(last) is not None
        assert not manager._book._open
        for _ in range(ENDED_KEPT):
            await manager.execute(double, x=1)  # those are not kept
        assert manager.find(last) is not None
    gc.collect()
    assert not any(ref() for ref in refs)


async def test_names_cost_nothing_once_their_calls_have_ended() -> None:
    async with ServiceManager() as manager:
        for n in range(100):
            await manager.options(name=f"call {n}").execute(double, x=n)
            await manager.options(name=f"call {n}").outcome(breaks)
        assert not manager._book._open
        assert not manager._book._ended


async def test_a_call_submitted_by_a_tool_is_found_too() -> None:
    @tool
    async def outer() -> str:
        return current().submit(double, x=5).id

    async with ServiceManager() as manager:
        call = manager.find(await manager.execute(outer))
        assert call is not None
        assert await call.result() == 10


async def test_what_nobody_can_have_got_as_an_id_is_no_call_or_a_mistake() -> None:
    async with ServiceManager() as manager:
        call = manager.submit(forever)
        for made_up in (f"{manager.session_id}-{'9' * 5000}", "x-\u0663", ""):  # a model may say anything
            assert manager.find(made_up) is None
            assert await manager.cancel(made_up) is False
        for wrong in (call, None, 1):
            with pytest.raises(TypeError, match="its id or its name, a string"):
                manager.find(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"a call itself has cancel\(\)"):
            await manager.cancel(call)  # type: ignore[arg-type]
        assert call.status != "cancelled"
        call.cancel()


async def test_a_call_is_found_from_any_thread() -> None:
    @tool
    def finds(name: str) -> list[str]:
        found = [current().find(name) for _ in range(2000)]
        return [call.name for call in found if call is not None]

    async with ServiceManager() as manager:
        await manager.options(name="kept").submit(double, x=1).wait()
        looking = manager.submit(finds, name="kept")
        while not looking.has_ended:
            await manager.submit(double, x=1).wait()  # what it looks through changes meanwhile
        assert set(await looking.result()) <= {"kept"}

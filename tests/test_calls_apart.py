"""Calls that keep to themselves: tools that cancel on their own, contexts and tasks, refusals."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import CallFailed, InvalidInputs, Policy, ServiceManager, tool

from .test_calls import double

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])
colour: ContextVar[str] = ContextVar("colour", default="none")


# --- a tool that cancels by itself


@asyncio_only
async def test_a_tool_that_raises_cancellederror_itself_has_failed() -> None:
    @tool
    async def pretends() -> None:
        raise asyncio.CancelledError

    async with ServiceManager() as manager:
        with pytest.raises(CallFailed, match="CancelledError"):
            await manager.execute(pretends)
        call = manager.submit(pretends)
        await call.wait()
        assert call.status == "failed"
        assert await manager.execute(double, x=1) == 2


@asyncio_only
async def test_a_tool_that_waits_for_a_task_that_was_cancelled_has_failed() -> None:
    @tool
    async def waits() -> None:
        task = asyncio.get_running_loop().create_task(asyncio.sleep(100))
        task.cancel()
        await task

    async with ServiceManager() as manager:
        with pytest.raises(CallFailed, match="CancelledError"):
            await manager.execute(waits)


@asyncio_only
async def test_a_tool_that_cancels_its_own_task_fails_alone_in_a_task_of_the_managers() -> None:
    @tool
    async def suicidal() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    async with ServiceManager() as manager:
        call = manager.submit(suicidal)
        await call.wait()
        assert call.status == "failed"
        assert await manager.execute(double, x=1) == 2


# --- context and identity


async def test_a_call_sees_the_callers_context_and_changes_only_its_own() -> None:
    @tool
    async def paints(new: str) -> str:
        old = colour.get()
        colour.set(new)
        await checkpoint()
        assert colour.get() == new
        return old

    @tool
    def paints_in_a_thread(new: str) -> str:
        old = colour.get()
        colour.set(new)
        return old

    colour.set("red")
    async with ServiceManager() as manager:
        for paint in (paints, paints_in_a_thread, paints.using(isolated=True, name="other")):
            assert await manager.execute(paint, new="green") == "red"
            assert await manager.submit(paint, new="blue").result() == "red"
            assert colour.get() == "red"


async def test_an_isolated_call_has_a_task_of_its_own() -> None:
    tasks: list[int] = []
    meeting = anyio.Event()

    @tool
    async def which(number: int) -> int:
        tasks.append(anyio.get_current_task().id)
        if len(tasks) == 20:
            meeting.set()
        await (meeting.wait() if number else checkpoint())  # all at once, so that no id is used again
        return tasks[-1]

    async with ServiceManager() as manager:
        here = anyio.get_current_task().id
        assert await manager.execute(which, number=0) == here
        assert await manager.execute(which.using(isolated=True), number=0) != here
        tasks.clear()
        items = ({"number": 1} for _ in range(20))
        async with manager.map(which.using(isolated=True), items, in_flight=20) as outcomes:
            assert len([outcome async for outcome in outcomes]) == 20
    assert len(set(tasks)) == 20
    assert here not in tasks


async def test_cancelling_the_caller_of_an_isolated_call_ends_it_first() -> None:
    cleaned = []

    @tool(policy=Policy(isolated=True))
    async def isolated() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(3):
                    await checkpoint()
            cleaned.append(True)

    async with ServiceManager() as manager:
        with anyio.move_on_after(0.005) as scope:
            await manager.execute(isolated)
        assert scope.cancelled_caught
        assert cleaned == [True]
        assert not manager.calls


# --- refusals


async def test_wrong_inputs_are_refused_with_tool_field_and_nearest_name() -> None:
    async with ServiceManager() as manager:
        with pytest.raises(InvalidInputs, match=r"'double'.*y: no such input; it takes x") as caught:
            await manager.execute(double, y=1)  # type: ignore[call-arg]
        assert {error["field"] for error in caught.value.errors} == {"x", "y"}
        with pytest.raises(InvalidInputs, match=r"x: .*not 'many'"):
            await manager.execute(double, x="many")  # type: ignore[arg-type]
        with pytest.raises(InvalidInputs, match="2 positional inputs, it takes 1"):
            await manager.execute(double, 1, 2)  # type: ignore[call-arg]
        with pytest.raises(InvalidInputs, match="x is given twice"):
            await manager.execute(double, 1, x=2)  # type: ignore[misc]
        assert (await manager.outcome(double, x="many")).status == "failed"  # type: ignore[arg-type]


async def test_a_function_that_is_no_tool_is_refused_with_the_mend() -> None:
    async def plain() -> None:
        pass

    async with ServiceManager() as manager:
        with pytest.raises(TypeError, match=r"is no tool; wrap it: tool\(\.\.\.\)"):
            await manager.execute(plain)  # type: ignore[arg-type]


async def test_two_different_tools_of_one_name_are_refused() -> None:
    @tool(name="double")
    async def other(x: int) -> int:
        return x

    async with ServiceManager() as manager:
        await manager.execute(double, x=1)
        with pytest.raises(ValueError, match=r"two different tools are named 'double'.*using\(name="):
            await manager.execute(other, x=1)

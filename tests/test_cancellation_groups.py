"""Tools, sources and elements whose task groups hold more than their cancellation: the same on both event loops."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from kgas_async import (
    CallCancelled,
    CallFailed,
    CallTimeout,
    KGASTool,
    Phase,
    Pipeline,
    PipelineError,
    Policy,
    Retry,
    ServiceManager,
    tool,
)


async def broken_clean_up() -> None:
    try:
        await anyio.sleep_forever()
    finally:
        raise ValueError("clean-up")


async def forever() -> None:
    """Its group holds a cancellation and an error when it is cancelled."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(broken_clean_up)
        await anyio.sleep_forever()


@tool
async def groups(x: int) -> None:
    await forever()


@tool
async def same(x: int) -> int:
    return x


@tool
async def elements(x: int) -> AsyncIterator[int]:
    yield x
    await forever()


@tool
async def reads(same: AsyncIterable[int]) -> None:
    await forever()


async def source(count: int = 2) -> AsyncIterator[dict[str, int]]:
    for x in range(count):
        yield {"x": x}
    await forever()


POLICIES = [Policy(), Policy(timeout=100), Policy(deadline=100), Policy(retry=Retry(3, on=Exception))]


def is_the_cause(error: BaseException | None) -> bool:
    return isinstance(error, ExceptionGroup) and isinstance(error.exceptions[0], ValueError)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
async def test_a_call_that_is_cancelled_has_what_its_tool_made_of_it_as_the_cause(policy: Policy) -> None:
    async with ServiceManager(log=None) as manager:
        call = manager.submit(groups.using(**policy.given), x=1)
        await anyio.sleep(0.02)
        call.cancel("enough")
        outcome = await call.outcome()
    assert outcome.status == "cancelled"
    assert isinstance(outcome.error, CallCancelled)
    assert is_the_cause(outcome.error.__cause__)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
async def test_a_scope_around_a_call_takes_its_cancellation_and_nothing_comes_out_of_it(policy: Policy) -> None:
    async with ServiceManager(log=None) as manager:
        with anyio.move_on_after(0.02) as scope:
            await manager.execute(groups.using(**policy.given), x=1)
        assert scope.cancelled_caught
        assert await manager.execute(same, x=3) == 3


async def test_a_timeout_has_it_as_the_cause() -> None:
    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallTimeout) as caught:
            await manager.execute(groups.using(timeout=0.02), x=1)
    assert is_the_cause(caught.value.__cause__)


STREAMS: dict[str, Callable[[ServiceManager], Any]] = {
    "a map": lambda manager: manager.map(groups, [{"x": 1}, {"x": 2}]),
    "a phase": lambda manager: manager.stream(Pipeline("p", Phase("groups", groups)), [{"x": 1}, {"x": 2}]),
    "elements": lambda manager: manager.stream(
        Pipeline("p", Phase("elements", elements, expand="e"), Phase("same", same, bind={"x": "e"})), [{"x": 1}]
    ),
    "a live reader": lambda manager: manager.stream(
        Pipeline("p", Phase("same", same), Phase("reads", reads, collect=True)), [{"x": 1}]
    ),
    "a source": lambda manager: manager.map(same, source()),
}


@pytest.mark.parametrize("what", STREAMS)
async def test_leaving_early_raises_nothing(what: str) -> None:
    async with ServiceManager(log=None) as manager:
        async with STREAMS[what](manager):
            await anyio.sleep(0.02)
        assert await manager.execute(same, x=3) == 3


@pytest.mark.parametrize("what", STREAMS)
async def test_nor_does_the_end_of_the_session_raise_anything_but_its_reason(what: str) -> None:
    with pytest.raises(KeyError, match="body"):
        async with ServiceManager(log=None) as manager, STREAMS[what](manager):
            await anyio.sleep(0.02)
            raise KeyError("body")


@pytest.mark.parametrize("what", ["a map", "a phase"])
async def test_a_call_that_is_cancelled_alone_ends_alone(what: str) -> None:
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:

        async def cancel() -> None:
            for _ in range(2):
                await anyio.sleep(0.02)
                next(iter(manager.calls.values())).cancel("this one")

        tasks.start_soon(cancel)
        async with STREAMS[what](manager) as outcomes:
            assert [outcome.status async for outcome in outcomes] == ["cancelled", "cancelled"]


async def test_a_source_that_raises_as_it_is_told_to_stop_has_raised() -> None:
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:

        async def drain() -> None:
            await anyio.sleep(0.02)
            await manager.drain()

        tasks.start_soon(drain)
        with pytest.raises(PipelineError, match="the source of items raised after 2 items") as caught:
            await manager.run(Pipeline("p", Phase("same", same)), source())
    assert is_the_cause(caught.value.__cause__)
    assert caught.value.report.succeeded == 2


async def test_a_clean_up_that_is_cut_off_does_not_replace_the_error_of_its_call() -> None:
    class Cleaning(KGASTool):
        name, description = "cleaning", "fails, and never ends to clean up"
        policy = Policy(grace=0.02)

        async def execute_async(self, *, x: int) -> None:
            raise KeyError(x)

        async def cleanup_resources(self, call: object) -> None:
            await forever()

    async with ServiceManager(log=None) as manager:
        outcome = await manager.outcome(Cleaning(), x=1)
    assert isinstance(outcome.error, CallFailed)
    assert isinstance(outcome.error.__cause__, KeyError)
    assert "cleanup_resources of tool 'cleaning' failed too" in outcome.error.__notes__[0]


# --- exits and other things that are no `Exception`


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_an_exit_in_a_tools_task_group_ends_the_session_and_comes_out_bare(kind: type[BaseException]) -> None:
    @tool
    async def leaves(x: int) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 10)
            raise kind(3)

    with pytest.raises(kind):
        async with ServiceManager(log=None) as manager:
            await manager.run(Pipeline("p", Phase("leaves", leaves)), [{"x": 1}])


class StrangeError(BaseException):
    pass


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
async def test_what_a_tool_raises_that_is_no_exception_is_its_failure(policy: Policy, *, suspends: bool) -> None:
    @tool
    async def strange(x: int) -> None:
        if suspends:
            await anyio.lowlevel.checkpoint()
        raise StrangeError(x)

    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallFailed) as caught:
            await manager.execute(strange.using(**policy.given), x=1)
        report = await manager.run(Pipeline("p", Phase("strange", strange)), [{"x": 1}, {"x": 2}])
    assert isinstance(caught.value.__cause__, StrangeError)
    assert report.failed == 2

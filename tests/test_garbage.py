"""What a call leaves behind is freed at once, and not only when the garbage collector comes."""

from __future__ import annotations

import gc
import types
import weakref
from collections import Counter
from collections.abc import Generator, Iterator
from contextvars import copy_context
from typing import Any

import anyio
import pytest

from kgas_async import Phase, Pipeline, ServiceManager, tool
from kgas_async._call import Call
from kgas_async._drive import drive


@tool
async def slept(x: int) -> int:
    await anyio.sleep(0.001)
    return x


@tool
def run_in_a_thread(x: int) -> int:
    return x


@pytest.fixture
def garbage() -> Iterator[list[object]]:
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def test_a_call_that_has_slept_leaves_no_frames_to_the_collector(garbage: list[object]) -> None:
    pipeline = Pipeline("p", Phase("slept", slept), item=["x"])
    async with ServiceManager(log=None) as manager:
        await manager.run(pipeline, [{"x": x} for x in range(50)])
        async with manager.map(slept, range(50), arg="x") as outcomes:
            assert [outcome.unwrap() async for outcome in outcomes] == list(range(50))
        gc.collect()
        kinds = Counter(type(one).__name__ for one in garbage)
    assert kinds["traceback"] == 0, kinds
    assert kinds["Cancelled"] == 0, kinds


@pytest.mark.unwatched  # what watches keeps them
@pytest.mark.parametrize("policy", [{}, {"timeout": 60.0}, {"concurrency": 2}], ids=str)
async def test_a_call_in_a_thread_leaves_nothing_to_the_collector(garbage: list[object], policy: Any) -> None:
    bounded = run_in_a_thread.using(**policy)
    async with ServiceManager(log=None) as manager:
        async with manager.map(bounded, range(50), arg="x") as outcomes:
            assert [outcome.unwrap() async for outcome in outcomes] == list(range(50))
        gc.collect()
        kinds = Counter(type(one).__name__ for one in garbage)
    assert kinds["Work"] == kinds["Call"] == 0, kinds


@pytest.mark.unwatched
async def test_a_report_and_all_that_it_keeps_goes_with_its_last_name(garbage: list[object]) -> None:
    @tool
    async def made(slept: int) -> Any:
        return Sent()

    pipeline = Pipeline("p", Phase("slept", slept), Phase("made", made), item=["x"])
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, [{"x": x} for x in range(50)], keep="all")
        seen = [weakref.ref(outcome.value) for outcome in report.outcomes]
        assert len(seen) == 50
        del report
        assert all(value() is None for value in seen)


async def test_a_plain_call_has_no_dict_of_its_own(garbage: list[object]) -> None:
    """It costs memory, time, and visits of the collector; see `_call._give_layout`."""
    bounded = slept.using(concurrency=2)
    async with ServiceManager(log=None) as manager:
        calls = [manager.submit(bounded, x=x) for x in range(50)]
        assert [await call.result() for call in calls] == list(range(50))
        bound = calls[0].bound
        dicts = [one for one in gc.get_objects() if type(one) is dict and one.get("bound") is bound]
    # On a busy machine calls may be open for so long that they are announced, which is not for plain ones.
    assert all(one.get("announced") for one in dicts), dicts


@pytest.mark.unwatched
async def test_what_a_report_keeps_of_an_item_is_its_outcomes(garbage: list[object]) -> None:
    pipeline = Pipeline("p", Phase("slept", slept), item=["x"])
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, [{"x": x} for x in range(50)], keep="all")
        calls = [one for one in gc.get_objects() if isinstance(one, Call) and one.manager is manager]
    assert [outcome.phases["slept"].value for outcome in report.outcomes] == list(range(50))
    assert not calls


class Sent:
    """What a loop sends."""


@types.coroutine
def trap() -> Generator[None, object, None]:
    yield


def test_what_a_loop_sends_is_not_kept_while_the_tool_waits_again() -> None:
    async def waits_twice() -> None:
        await trap()
        await trap()

    driven: Any = drive(waits_twice(), copy_context())
    driven.send(None)
    sent = Sent()
    seen = weakref.ref(sent)
    driven.send(sent)
    del sent
    assert seen() is None
    with pytest.raises(StopIteration):
        driven.send(None)

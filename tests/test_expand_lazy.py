"""Lazy expansions: pulled as far as there is room, where the iterator was made, closed when left, never in the way."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from typing import Annotated, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallTimeout,
    MemorySink,
    Phase,
    Pipeline,
    PipelineError,
    Policy,
    ServiceManager,
    ToolAdapter,
    check_cancelled,
    current,
    tool,
)
from kgas_async.testing import explore

from .test_expand import forever, run


@tool
async def touch(element: Any) -> Any:
    await checkpoint()
    return element


def lazily(returns: Callable[[int], Any], *more: Phase, sync: bool = True) -> Pipeline:
    """A pipeline that expands what ``returns`` gives, from a worker thread or from the loop."""

    @tool(name="makes")
    def in_thread(n: int) -> Any:
        return returns(n)

    @tool(name="makes")
    async def on_loop(n: int) -> Any:
        return returns(n)

    return Pipeline("p", Phase("makes", in_thread if sync else on_loop, expand="element"), *more, item=["n"])


TOUCH = Phase("touch", touch)


@pytest.mark.parametrize("sync", [True, False])
async def test_a_generator_is_pulled_to_its_end_in_order(sync: bool) -> None:
    def numbers(n: int) -> Iterator[int]:
        yield from range(n)

    outcomes = await run(lazily(numbers, TOUCH, sync=sync), 0, 1, 200)
    assert [outcome.value for outcome in outcomes] == [list(range(n)) for n in (0, 1, 200)]


async def test_an_async_generator_is_pulled_to_its_end_in_order() -> None:
    async def numbers(n: int) -> AsyncIterator[int]:
        for one in range(n):
            await checkpoint()
            yield one

    outcomes = await run(lazily(numbers, TOUCH, sync=False), 0, 1, 100)
    assert [outcome.value for outcome in outcomes] == [list(range(n)) for n in (0, 1, 100)]


async def test_a_generator_of_a_sync_tool_runs_in_worker_threads_only() -> None:
    seen: set[int] = set()

    class Rows:
        """Lazy, and its code runs when it is iterated over: no generator, but no container either."""

        def __init__(self, n: int) -> None:
            self.left = n

        def __iter__(self) -> Rows:
            seen.add(threading.get_ident())
            return self

        def __next__(self) -> int:
            seen.add(threading.get_ident())
            if not self.left:
                raise StopIteration
            self.left -= 1
            return self.left

    def numbers(n: int) -> Iterator[int]:
        try:
            for one in range(n):
                seen.add(threading.get_ident())
                yield one
        finally:
            seen.add(threading.get_ident())

    outcomes = await run(lazily(numbers, TOUCH), 200, 200)
    assert all(outcome.ok for outcome in outcomes)
    outcomes = await run(lazily(Rows, TOUCH), 200)
    assert outcomes[0].value == list(reversed(range(200)))
    assert seen
    assert threading.get_ident() not in seen


async def test_a_generator_in_a_thread_finds_its_manager() -> None:
    found = []

    def asks(n: int) -> Iterator[int]:
        found.append(current())
        yield n

    await run(lazily(asks, TOUCH), 1)
    assert len(found) == 1


async def test_a_lazy_result_is_pulled_only_as_its_elements_are_taken() -> None:
    pulled = [0]

    async def endless(n: int) -> AsyncIterator[int]:
        while True:
            await checkpoint()
            pulled[0] += 1
            yield pulled[0]

    async with ServiceManager() as manager:
        pipeline = lazily(endless, Phase("f", forever), sync=False)
        async with manager.stream(pipeline, [{"n": 1}], in_flight=5):
            await anyio.wait_all_tasks_blocked()
            assert len(manager.calls) == 5
            assert pulled[0] <= 6


@pytest.mark.parametrize("kind", ["thread", "loop", "async"])
async def test_a_generator_that_is_left_early_is_closed(kind: str) -> None:
    closed: list[int] = []

    def numbers(n: int) -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.append(threading.get_ident())

    async def async_numbers(n: int) -> AsyncIterator[int]:
        try:
            for one in range(10**9):
                yield one
        finally:
            await checkpoint()
            closed.append(threading.get_ident())

    begun = anyio.Event()

    @tool
    async def begins(element: int) -> None:
        begun.set()
        await anyio.sleep_forever()

    made = async_numbers if kind == "async" else numbers
    async with ServiceManager() as manager:
        pipeline = lazily(made, Phase("begins", begins), sync=kind == "thread")
        async with manager.stream(pipeline, [{"n": 1}], in_flight=3):
            await begun.wait()
        assert len(closed) == 1
        assert (threading.get_ident() in closed) == (kind != "thread")


@pytest.mark.real_time  # where nothing ever waits, virtual time stands still
@pytest.mark.parametrize("kind", ["list", "thread", "loop", "async"])
@pytest.mark.parametrize("children", ["one", "none", "blocked"])
async def test_an_expansion_into_a_billion_elements_cancels(kind: str, children: str) -> None:
    async def async_numbers(n: int) -> AsyncIterator[int]:
        for one in range(10**9):
            yield one

    makes: dict[str, Callable[[int], Any]] = {
        "list": lambda n: range(10**9),
        "thread": lambda n: (one for one in range(10**9)),
        "loop": lambda n: (one for one in range(10**9)),
        "async": async_numbers,
    }

    @tool
    async def at_once(element: int) -> int:
        return element

    @tool
    async def breaks(n: int) -> int:
        raise OSError

    phases = {
        "one": [Phase("at_once", at_once)],
        "none": [],
        "blocked": [Phase("breaks", breaks), Phase("at_once", at_once, after="breaks")],
    }[children]
    async with ServiceManager(log=None) as manager:
        with anyio.move_on_after(0.05) as scope:
            await manager.run(lazily(makes[kind], *phases, sync=kind == "thread"), [{"n": 1}], in_flight=4)
        assert scope.cancelled_caught
        assert not manager.calls


@pytest.mark.parametrize("kind", ["thread", "loop", "async"])
async def test_an_iterator_that_raises_half_way_fails_its_item_when_its_elements_have_ended(kind: str) -> None:
    done = []

    def numbers(n: int) -> Iterator[int]:
        yield from range(n)
        raise OSError("page torn")

    async def async_numbers(n: int) -> AsyncIterator[int]:
        for one in numbers(n):
            yield one

    @tool
    async def notes(element: int) -> None:
        await checkpoint()
        done.append(element)

    @tool
    async def collects(notes: list[None]) -> None:
        done.append(-1)

    pipeline = lazily(
        async_numbers if kind == "async" else numbers,
        Phase("notes", notes),
        Phase("collects", collects, collect="element", missing="ignore"),
        sync=kind == "thread",
    )
    (outcome,) = await run(pipeline, 10)
    assert sorted(done) == list(
        range(10)
    )  # half a document is not collected, even where failed elements may be missing
    assert (outcome.status, outcome.failed_phase) == ("failed", "makes")
    assert isinstance(outcome.error, PipelineError)
    assert "the elements of 'element' ended after 10: phase 'makes' raised OSError: page torn" in str(outcome.error)


async def test_a_generator_in_a_thread_stops_at_its_next_look_when_the_run_is_cancelled() -> None:
    inside, out = threading.Event(), threading.Event()

    def endless(n: int) -> Iterator[int]:
        try:
            inside.set()
            while True:
                check_cancelled()
                threading.Event().wait(0.002)
            yield n
        finally:
            out.set()

    async with ServiceManager(grace=30) as manager:
        with anyio.fail_after(5):
            async with manager.stream(lazily(endless, TOUCH), [{"n": 1}]):
                await anyio.to_thread.run_sync(inside.wait)
        assert out.is_set()
        assert manager.statistics().threads_abandoned == 0


async def test_a_generator_in_a_thread_that_never_looks_is_abandoned_after_the_grace_and_on_record() -> None:
    inside, release = threading.Event(), threading.Event()

    def stuck(n: int) -> Iterator[int]:
        inside.set()
        release.wait(30)
        yield n

    async with ServiceManager(grace=0.01) as manager:
        async with manager.stream(lazily(stuck, TOUCH), [{"n": 1}]):
            await anyio.to_thread.run_sync(inside.wait)
        assert manager.statistics().threads_abandoned == 1
        release.set()


async def test_open_items_are_never_more_than_in_flight() -> None:
    opened: set[str] = set()
    worst = 0

    @tool
    async def opens(n: int) -> list[int]:
        nonlocal worst
        opened.add(str(n))
        worst = max(worst, len(opened))
        await checkpoint()
        return [n] * (n % 4)

    @tool
    async def closes(n: int, touch: list[int]) -> None:
        await checkpoint()
        opened.discard(str(n))

    pipeline = Pipeline(
        "p", Phase("opens", opens, expand="element"), TOUCH, Phase("closes", closes, collect="element"), item=["n"]
    )
    outcomes = await run(pipeline, *range(300), in_flight=6)
    assert all(outcome.ok for outcome in outcomes)
    assert worst <= 6


async def test_a_visit_to_a_lazy_generator_holds_the_tools_token() -> None:
    inside = worst = 0

    def counted(n: int) -> Iterator[int]:
        nonlocal inside, worst
        for one in range(20):
            inside += 1
            worst = max(worst, inside)
            threading.Event().wait(0.0005)
            inside -= 1
            yield one

    pipeline = lazily(counted, TOUCH)
    makes = pipeline.phases[0].tool.using(concurrency=2)
    pipeline = Pipeline("p", Phase("makes", makes, expand="element", policy=Policy()), TOUCH, item=["n"])
    outcomes = await run(pipeline, *range(8))
    assert all(outcome.value == list(range(20)) for outcome in outcomes)
    assert worst <= 2


async def test_so_does_a_visit_to_an_async_generator() -> None:
    inside = worst = 0

    @tool(policy=Policy(concurrency=2))
    async def makes(n: int) -> AsyncIterator[int]:
        nonlocal inside, worst
        for one in range(5):
            inside += 1
            worst = max(worst, inside)
            await anyio.sleep(0.002)
            inside -= 1
            yield one

    outcomes = await run(Pipeline("p", Phase("makes", makes, expand="element"), TOUCH, item=["n"]), *range(8))
    assert all(outcome.value == list(range(5)) for outcome in outcomes)
    assert worst == 2


@pytest.mark.parametrize("scope", [anyio.create_task_group, anyio.CancelScope])
async def test_an_async_generator_that_yields_inside_a_scope_fails_its_item_and_says_why(scope: Any) -> None:
    @tool
    async def makes(n: int) -> AsyncIterator[int]:
        if n == 1:
            async with AsyncExitStack() as stack:
                entered = scope()
                enter = stack.enter_async_context if hasattr(entered, "__aenter__") else stack.enter_context
                if (waited := enter(entered)) is not None and hasattr(waited, "__await__"):
                    await waited
                yield n
        yield n

    outcomes = await run(Pipeline("p", Phase("makes", makes, expand="element"), TOUCH, item=["n"]), *range(3))
    assert [outcome.value for outcome in outcomes] == [[0], None, [2]]
    assert "yields inside a task group or a cancel scope" in str(outcomes[1].error)


async def test_what_merely_has_a_length_is_pulled_in_threads_too() -> None:
    seen: set[int] = set()

    class Dataset:
        def __len__(self) -> int:
            return 5

        def __iter__(self) -> Iterator[int]:
            for one in range(5):
                seen.add(threading.get_ident())
                yield one

    (outcome,) = await run(lazily(lambda n: Dataset(), TOUCH), 1)
    assert outcome.value == [0, 1, 2, 3, 4]
    assert threading.get_ident() not in seen


@pytest.mark.parametrize("sync", [True, False])
async def test_a_result_that_cannot_be_iterated_over_after_all_fails_its_item(sync: bool) -> None:
    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise OSError("no cursor")

    (outcome,) = await run(lazily(lambda n: Broken(), TOUCH, sync=sync), 1)
    assert (outcome.status, outcome.failed_phase) == ("failed", "makes")
    assert "no cursor" in str(outcome.error)


async def test_a_stream_may_be_left_after_its_manager() -> None:
    begun, closed = anyio.Event(), anyio.Event()
    manager = ServiceManager()

    @tool
    async def begins(element: int) -> None:
        begun.set()
        await anyio.sleep_forever()

    async def foreign() -> None:
        pipeline = lazily(lambda n: (one for one in range(10**9)), Phase("begins", begins))
        async with manager.stream(pipeline, [{"n": 1}], in_flight=2) as outcomes:
            async for outcome in outcomes:
                assert outcome.status == "cancelled"
            await closed.wait()

    async with anyio.create_task_group() as group:
        with pytest.raises(KeyError):
            async with manager:
                group.start_soon(foreign)
                await begun.wait()
                raise KeyError
        closed.set()


# --- lazy results that nobody takes apart


def count_up(n: int) -> Any:
    return itertools.count(n)


def endless(n: int) -> Iterator[int]:
    while True:
        yield n


KINDS: list[Any] = [list, list[int], set[int], tuple[int, ...], list[int] | None, Annotated[list[int], 1]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("makes", [count_up, endless])
async def test_a_lazy_result_is_not_made_a_list_of_on_the_event_loop_it_may_be_endless(makes: Any, kind: Any) -> None:
    async def takes(xs: Any) -> int:
        return 0

    takes.__annotations__["xs"] = kind
    pipeline = Pipeline("p", Phase("makes", tool(makes)), Phase("takes", tool(takes), bind={"xs": "makes"}), item=["n"])
    (outcome,) = await run(pipeline, 1)
    assert (outcome.status, outcome.failed_phase) == ("failed", "takes")
    assert "it may be endless" in str(outcome.error)
    assert "tool(returns=list)" in str(outcome.error)


async def test_nor_in_a_collect_or_a_batch() -> None:
    @tool
    async def takes(xs: list[list[int]]) -> list[int]:
        return [0] * len(xs)

    made = Phase("makes", tool(endless))
    collected = Pipeline("p", made, Phase("takes", takes, bind={"xs": "makes"}, collect=True), item=["n"])
    async with ServiceManager(log=None) as manager:
        report = await manager.run(collected, [{"n": 1}])
    assert "it may be endless" in str(report.errors["takes"])
    batched = Pipeline("p", made, Phase("takes", takes, bind={"xs": "makes"}, batch=2), item=["n"])
    outcomes = await run(batched, 1, 2, 3)
    assert ["it may be endless" in str(outcome.error) for outcome in outcomes] == [True] * 3


async def test_it_is_handed_on_to_who_takes_an_iterable() -> None:
    @tool
    def three(xs: Iterable[int]) -> list[int]:
        return list(itertools.islice(xs, 3))

    pipeline = Pipeline("p", Phase("makes", tool(endless)), Phase("three", three, bind={"xs": "makes"}), item=["n"])
    assert [outcome.value for outcome in await run(pipeline, 1, 2)] == [[1, 1, 1], [2, 2, 2]]


# --- elements that do not come


async def timed(made: Any, timeout: float, **options: Any) -> tuple[list[Any], dict[str, Any]]:
    pipeline = Pipeline("p", Phase("makes", made.using(timeout=timeout), expand="element"), TOUCH, item=["n"])
    sink = MemorySink()
    async with ServiceManager(log=None, evidence=sink, **options) as manager:
        report = await manager.run(pipeline, [{"n": n} for n in range(3)], keep="all")
    return report.outcomes, sink.records[-1]


def check_timed(outcomes: list[Any]) -> None:
    assert [outcome.status for outcome in outcomes] == ["succeeded", "timed_out", "succeeded"]
    late = outcomes[1]
    assert late.failed_phase == "makes"
    assert isinstance(late.error, PipelineError)
    assert isinstance(late.error.__cause__, CallTimeout)
    assert "the next element of tool 'makes' did not come within its timeout" in str(late.error)
    assert [one.value for one in late.phases["touch"]] == [0]  # what came in time was gone on with


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_element_of_an_async_generator_has_the_tools_timeout(*, stubborn: bool) -> None:
    @tool
    async def makes(n: int) -> AsyncIterator[int]:
        for element in range(3):
            try:
                await anyio.sleep(9 if element == n == 1 else 0.9)
            except anyio.get_cancelled_exc_class():
                if not stubborn:
                    raise
            yield element

    async def main() -> None:
        outcomes, _ = await timed(makes, 1)
        check_timed(outcomes)

    explore(main, seeds=1)


@pytest.mark.parametrize("stubborn", [False, True])
async def test_an_element_of_a_generator_in_a_thread_has_it_too(*, stubborn: bool) -> None:
    closed: list[int] = []

    @tool
    def makes(n: int) -> Iterator[int]:
        try:
            yield 0
            until = time.monotonic() + (0.1 if stubborn else 30)
            while n == 1 and time.monotonic() < until:
                if not stubborn:
                    check_cancelled()  # told to stop by the timeout
            yield 1
            yield 2
        finally:
            closed.append(n)

    outcomes, end = await timed(makes, 0.05)
    check_timed(outcomes)
    assert end.get("abandoned") is None
    assert sorted(closed) == [0, 1, 2]


async def test_a_thread_that_gives_no_element_is_abandoned_where_its_tool_allows_that() -> None:
    may_end = threading.Event()

    def stuck(n: int) -> Iterator[int]:
        yield 0
        if n == 1:
            may_end.wait()
        yield 1

    try:
        outcomes, end = await timed(ToolAdapter(stuck, name="makes", on_cancel="abandon"), 0.05)
    finally:
        may_end.set()
    check_timed(outcomes)
    assert len(end["abandoned"]) == 1

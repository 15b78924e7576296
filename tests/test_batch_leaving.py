"""When batches leave beside other work, what may yet come to them, and results that are no plain lists."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    InvalidInputs,
    KGASTool,
    Outcome,
    Phase,
    Pipeline,
    PipelineError,
    ServiceManager,
    tool,
)
from kgas_async.testing import explore


@tool
async def same(x: int) -> int:
    return x


async def outcomes_of(pipeline: Pipeline, items: Any, **options: Any) -> list[Outcome[Any]]:
    async with ServiceManager(log=None) as manager:
        return (await manager.run(pipeline, items, keep="all", **options)).outcomes


# --- when they leave


def test_a_batch_that_is_due_leaves_though_there_are_elements_without_end() -> None:
    async def main() -> None:
        left: list[float] = []

        @tool
        async def many(x: int) -> list[int]:
            return list(range(1_000))

        @tool
        async def slow(e: int) -> int:
            await anyio.sleep(0.5)
            return e

        @tool
        async def doubled(xs: list[int]) -> list[int]:
            left.append(anyio.current_time() - began)
            return [2 * x for x in xs]

        pipeline = Pipeline(
            "p",
            Phase("many", many, expand="e"),
            Phase("slow", slow),
            Phase("doubled", doubled, bind={"xs": "x"}, batch=4, batch_wait=10),
        )

        async def source() -> AsyncIterator[dict[str, int]]:
            yield {"x": 0}
            await anyio.sleep(1_000)

        began = anyio.current_time()
        await outcomes_of(pipeline, source(), in_flight=4)
        assert left == [pytest.approx(10, abs=0.6)]  # when the next worker was free

    explore(main, seeds=2)


@pytest.mark.parametrize("first", [0, 1])
def test_a_batch_waits_for_the_elements_of_another_batch_that_runs(first: int) -> None:
    async def main() -> None:
        sizes: list[int] = []

        @tool
        async def apart(xs: list[int]) -> list[list[int] | Exception]:
            await anyio.sleep(1 if first in xs else 5)
            return [ValueError(x) if x == 3 else [x, x] for x in xs]

        @tool
        async def doubled(es: list[int]) -> list[int]:
            sizes.append(len(es))
            return [2 * e for e in es]

        pipeline = Pipeline(
            "p",
            Phase("apart", apart, bind={"xs": "x"}, batch=2, expand="e"),
            Phase("doubled", doubled, bind={"es": "e"}, batch=8),
        )
        outcomes = await outcomes_of(pipeline, [{"x": x} for x in range(4)])
        assert [outcome.value for outcome in outcomes] == [[0, 0], [2, 2], [4, 4], None]
        assert sizes == [6]

    explore(main, seeds=2)


async def test_who_leaves_a_batch_of_an_expansion_holds_up_no_batch_below_it() -> None:
    @tool
    async def apart(xs: list[int]) -> list[list[int]]:
        return [[x] for x in xs]

    @tool
    async def doubled(es: list[int]) -> list[int]:
        return [2 * e for e in es]

    pipeline = Pipeline(
        "p",
        Phase("slow", same, when=lambda x: x < 5),
        Phase("apart", apart, bind={"xs": "slow"}, batch=3, expand="e"),
        Phase("doubled", doubled, bind={"es": "e"}, batch=3),
    )
    more = anyio.Event()

    async def source() -> AsyncIterator[dict[str, int]]:
        yield {"x": 1}
        yield {"x": 2}
        await more.wait()

    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:

        async def cancel_one() -> None:
            while len(waiting := [call for call in manager.calls.values() if call.tool_name == "apart"]) < 2:
                await checkpoint()
            waiting[0].cancel("this one")
            more.set()

        tasks.start_soon(cancel_one)
        report = await manager.run(pipeline, source(), keep="all")
    assert [(outcome.status, outcome.value) for outcome in report.outcomes] == [("cancelled", None), ("succeeded", [4])]


def doubler(began: anyio.Event) -> KGASTool:
    """Cancelled as it looks at three inputs, it finds that the second is at fault."""

    class Doubler(KGASTool):
        name, description = "doubler", "doubles, and is slow to look at what it is given"

        async def validate_inputs(self, *, xs: list[int]) -> dict[str, Any]:
            if len(xs) == 3:
                began.set()
                try:
                    await anyio.sleep(10)
                except anyio.get_cancelled_exc_class():
                    errors = [{"field": "xs.1", "type": "odd", "message": "odd", "value": xs[1]}]
                    raise InvalidInputs("odd", errors=errors) from None
            return {"xs": xs}

        async def execute_async(self, *, xs: list[int]) -> list[int]:
            await checkpoint()
            return [2 * x for x in xs]

    return Doubler()


async def test_those_who_are_to_go_again_are_not_hit_by_the_cancellation_of_the_call_before() -> None:
    began = anyio.Event()
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:

        async def cancel() -> None:
            await began.wait()
            next(call for call in manager.calls.values() if call.item is None).cancel("the batch")

        tasks.start_soon(cancel)
        pipeline = Pipeline("p", Phase("doubled", doubler(began), bind={"xs": "x"}, batch=3))
        report = await manager.run(pipeline, [{"x": x} for x in range(3)], keep="all")
    assert [(outcome.status, outcome.value) for outcome in report.outcomes] == [
        ("succeeded", 0),
        ("failed", None),
        ("succeeded", 4),
    ]


async def test_and_they_wait_for_nobody_who_may_come_later() -> None:
    began, all_there = anyio.Event(), anyio.Event()

    async def source() -> AsyncIterator[dict[str, int]]:
        for x in range(3):
            yield {"x": x}
        await all_there.wait()

    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:

        async def cancel() -> None:
            await began.wait()
            next(call for call in manager.calls.values() if call.item is None).cancel("the batch")

        tasks.start_soon(cancel)
        pipeline = Pipeline("p", Phase("doubled", doubler(began), bind={"xs": "x"}, batch=3))
        seen: list[tuple[int, str]] = []
        with anyio.fail_after(10):
            async with manager.stream(pipeline, source()) as outcomes:
                async for outcome in outcomes:
                    seen.append((outcome.index, outcome.status))
                    if len(seen) == 3:
                        all_there.set()
    assert seen == [(0, "succeeded"), (1, "failed"), (2, "succeeded")]


# --- what they return


class Keyed:
    """As a series of pandas: it has a length and keys of its own, and iterates over its values."""

    def __init__(self, *values: int) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Any:
        return iter(self.values)

    def __getitem__(self, key: object) -> int:
        raise KeyError(key)


class Broken(Keyed):
    def __iter__(self) -> Any:
        raise OSError("torn")


class Measureless(Keyed):
    def __len__(self) -> int:
        raise OSError("torn")


class Endless(Keyed):
    __iter__ = None  # type: ignore[assignment]

    def __getitem__(self, key: object) -> int:
        return 1


class Untrue(Keyed):
    def __len__(self) -> int:
        return 3


async def test_a_batch_may_return_what_iterates_in_order_whatever_its_keys() -> None:
    @tool
    async def doubled(xs: list[int]) -> Any:
        return Keyed(*(2 * x for x in xs))

    pipeline = Pipeline("p", Phase("doubled", doubled, bind={"xs": "x"}, batch=3))
    outcomes = await outcomes_of(pipeline, [{"x": x} for x in range(3)])
    assert [outcome.value for outcome in outcomes] == [0, 2, 4]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (Broken(1, 2, 3), "which cannot be read as a list"),
        (Measureless(1, 2, 3), "which cannot be read as a list"),
        (Endless(1, 2, 3), "which cannot be read as a list"),
        (Untrue(1, 2), "returned 2 results for 3 items"),
        (Untrue(1, 2, 3, 4, 5), "returned 4 results for 3 items"),
    ],
)
async def test_one_that_cannot_be_read_fails_its_batch_and_hangs_nobody(result: Any, message: str) -> None:
    @tool
    async def odd(xs: list[int]) -> Any:
        return result if 0 in xs else xs

    pipeline = Pipeline("p", Phase("odd", odd, bind={"xs": "x"}, batch=3))
    outcomes = await outcomes_of(pipeline, [{"x": x} for x in range(4)])
    assert [outcome.status for outcome in outcomes] == ["failed"] * 3 + ["succeeded"]
    assert outcomes[0].error is not None
    assert isinstance(outcomes[0].error.__cause__, PipelineError)
    assert message in str(outcomes[0].error)

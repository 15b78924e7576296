"""What random declarations found: whose failure is whose, and what is skipped, in pipelines with branches."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from kgas_async import MemorySink, Outcome, Phase, Pipeline, ServiceManager, tool


@tool
async def split(x: int) -> list[int]:
    return list(range(x))


@tool
def torn(x: int) -> Iterator[int]:
    yield 0
    raise OSError("torn")


@tool
async def plus(a: int, b: int = 0) -> int:
    if a == 1:
        raise ValueError("one")
    return a + b


@tool
async def late(a: int) -> int:
    if a == 2:
        raise KeyError("two")
    return a


@tool
async def total(parts: list[int]) -> int:
    return sum(parts)


async def run(*phases: Phase, items: Any, fields: Any = ("x",)) -> tuple[list[Outcome[Any]], list[Any]]:
    sink = MemorySink()
    async with ServiceManager(log=None, evidence=sink) as manager:
        report = await manager.run(Pipeline("p", *phases, item=fields), items, keep="all")
    return report.outcomes, sink.records


async def test_a_phase_whose_elements_ended_by_an_error_is_a_failed_one_among_the_phases() -> None:
    (outcome,), _ = await run(
        Phase("torn", torn, expand="part"), Phase("each", late, bind={"a": "part"}), items=[{"x": 1}]
    )
    assert outcome.failed_phase == "torn"
    assert outcome.phases["torn"].status == "failed"
    assert isinstance(outcome.phases["torn"].error.__cause__, OSError)
    assert [one.status for one in outcome.phases["each"]] == ["succeeded"]


async def test_a_leaf_below_an_empty_expansion_is_an_empty_list_though_something_else_was_skipped() -> None:
    phases = [
        Phase("other", late, bind={"a": "x"}, when=lambda a: False),
        Phase("split", split, expand="part"),
        Phase("each", late, bind={"a": "part"}),
    ]
    (outcome,), _ = await run(*phases, items=[{"x": 0}])
    assert (outcome.status, outcome.value) == ("succeeded", {"each": []})


async def test_an_item_without_a_field_that_a_batch_takes_fails_alone() -> None:
    @tool
    async def batched(xs: list[int], z: list[int] | None = None) -> list[int]:
        assert z is not None
        return [x + more for x, more in zip(xs, z, strict=True)]

    phase = Phase("batched", batched, bind={"xs": "x"}, batch=3)
    for items in ([{"x": 1, "z": 1}, {"x": 2}, {"x": 3, "z": 1}], [{"x": 2}, {"x": 1, "z": 1}, {"x": 3, "z": 1}]):
        outcomes, _ = await run(phase, items=items, fields=("x", "z"))
        assert sorted(str(one.value) for one in outcomes) == ["2", "4", "None"]
        (failed,) = [one for one in outcomes if not one.ok]
        assert failed.failed_phase == "batched"
        assert "no field 'z'" in str(failed.error)


def test_a_live_collect_takes_no_when() -> None:
    @tool
    async def reads(values: AsyncIterable[int]) -> None: ...

    with pytest.raises(TypeError, match="'live': when= cannot be asked: input 'values' is a live stream"):
        live = Phase("live", reads, bind={"values": "each"}, collect=True, when=lambda: False)
        Pipeline("p", Phase("each", late, bind={"a": "x"}), live, item=["x"])


async def test_elements_that_come_after_their_own_expansion_run_however_it_ends() -> None:
    is_torn = anyio.Event()

    @tool
    async def tears(x: int) -> AsyncIterator[int]:
        async def parts() -> AsyncIterator[int]:
            yield 0
            is_torn.set()
            raise OSError("torn")

        return parts()

    @tool
    async def waits(a: int) -> int:
        await is_torn.wait()
        await wait_all_tasks_blocked()
        return a

    phases = [
        Phase("tears", tears, expand="part"),
        Phase("waits", waits, bind={"a": "part"}),
        Phase("then", late, bind={"a": "waits"}, after="tears"),
    ]
    (outcome,), _ = await run(*phases, items=[{"x": 1}])
    assert outcome.failed_phase == "tears"
    assert [one.status for one in outcome.phases["then"]] == ["succeeded"]


async def test_a_skipped_collect_fails_its_parent_by_what_it_lacks_and_not_by_what_another_goes_on_without() -> None:
    phases = [
        Phase("split", split, expand="part"),
        Phase("excused", plus, bind={"a": "part"}),  # fails for 1
        Phase("needed", late, bind={"a": "part"}),  # fails for 2
        Phase("whole", total, bind={"parts": "needed"}, collect="part"),
        Phase("some", total, bind={"parts": "excused"}, collect="part", missing="ignore"),
    ]
    (outcome,), _ = await run(*phases, items=[{"x": 4}])
    assert outcome.failed_phase == "needed"
    assert isinstance(outcome.error.__cause__, KeyError)
    assert "1 of 4 elements of 'part' failed" in str(outcome.phases["whole"].error)
    assert isinstance(outcome.phases["whole"].error.__cause__.__cause__, KeyError)


async def test_a_collect_that_lacks_what_failed_above_its_elements_is_skipped_and_no_failure_of_its_own() -> None:
    phases = [
        Phase("whole", total, bind={"parts": "each"}, collect="part"),
        Phase("split", split, expand="part"),
        Phase("above", plus, bind={"a": "x"}),
        Phase("each", plus, bind={"a": "part", "b": "above"}),
    ]
    (outcome,), records = await run(*phases, items=[{"x": 1}])
    assert outcome.failed_phase == "above"
    assert outcome.phases["whole"].status == "skipped"
    assert not [one for one in records if one["event"] == "item.failed"]


async def test_a_skipped_collect_is_skipped_before_its_other_inputs_are_read() -> None:
    @tool
    async def both(parts: list[int], y: int) -> int:
        return y

    phases = [
        Phase("split", split, expand="part"),
        Phase("each", plus, bind={"a": "part"}),
        Phase("both", both, bind={"parts": "each"}, collect="part"),
    ]
    (outcome,), _ = await run(*phases, items=[{"x": 2}], fields=("x", "y"))
    assert (outcome.failed_phase, outcome.phases["both"].status) == ("each", "skipped")


async def test_a_batch_whose_only_item_was_cancelled_is_not_due_any_more() -> None:
    """Else a worker looks for it again and again, and no clock goes on."""
    go_on = anyio.Event()

    async def source() -> AsyncIterator[dict[str, int]]:
        yield {"x": 1}
        await go_on.wait()

    @tool
    async def same(xs: list[int]) -> list[int]:
        return xs

    pipeline = Pipeline("p", Phase("same", same, bind={"xs": "x"}, batch=3, batch_wait=0.1), item=["x"])
    async with ServiceManager(log=None) as manager, manager.stream(pipeline, source(), in_flight=3) as outcomes:
        while not manager.calls:
            await checkpoint()
        await manager.cancel(next(iter(manager.calls)))
        assert (await anext(aiter(outcomes))).status == "cancelled"
        await anyio.sleep(0.2)
        with anyio.fail_after(1):
            await wait_all_tasks_blocked()  # nobody is busy
        go_on.set()

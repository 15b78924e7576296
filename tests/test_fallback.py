"""Fallbacks: which tools are asked, with what, within which deadline, and what is on record."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
import sniffio
from anyio.lowlevel import checkpoint
from pydantic import BaseModel

from kgas_async import (
    Batcher,
    CallFailed,
    CallTimeout,
    CircuitBreaker,
    CircuitOpen,
    InvalidInputs,
    KGASTool,
    MemorySink,
    Phase,
    Pipeline,
    Policy,
    Retry,
    Service,
    ServiceManager,
    ToolAdapter,
    current,
    tool,
)
from kgas_async._context import current_call
from kgas_async.testing import virtual_backends


@pytest.fixture(params=virtual_backends())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


@tool
async def broken(x: int) -> str:
    raise OSError("down")


@tool
async def mirror(x: int) -> str:
    await checkpoint()
    return f"mirror {x}"


@tool
def archive(x: int) -> str:
    return f"archive {x}"


@tool
async def also_broken(x: int) -> str:
    raise LookupError("nothing here")


@tool
async def slow(x: int) -> str:
    await anyio.sleep(100)
    return "late"


# --- which is used


@pytest.mark.parametrize(
    ("fallback", "value", "used"),
    [
        (mirror, "mirror 1", "mirror"),
        ([mirror, archive], "mirror 1", "mirror"),
        ([also_broken, archive], "archive 1", "archive"),
        (also_broken.using(fallback=archive), "archive 1", "archive"),
        ([slow.using(timeout=1), mirror], "mirror 1", "mirror"),
    ],
)
async def test_the_first_that_gives_a_value_is_used_and_named(fallback: Any, value: str, used: str) -> None:
    async with ServiceManager() as manager:
        outcome = await manager.outcome(broken.using(fallback=fallback), x=1)
    assert (outcome.status, outcome.value, outcome.tool) == ("succeeded", value, used)
    assert outcome.attempts == 1


async def test_nobody_is_asked_where_the_tool_gives_a_value() -> None:
    async with ServiceManager() as manager:
        outcome = await manager.outcome(mirror.using(fallback=broken), x=1)
        assert (outcome.value, outcome.tool) == ("mirror 1", "mirror")
        assert set(manager.statistics().tools) == {"mirror", "broken"}
        assert manager.statistics().tools["broken"].calls == 0


async def test_they_are_asked_after_the_last_attempt() -> None:
    story = []

    @tool(policy=Policy(retry=Retry(3, wait=1), fallback=mirror))
    async def tries(x: int) -> str:
        story.append(anyio.current_time())
        raise OSError("again")

    async with ServiceManager() as manager:
        assert await manager.execute(tries, x=2) == "mirror 2"
        assert [at - story[0] for at in story] == pytest.approx([0, 1, 2])
        assert (await manager.outcome(tries.using(retry=None), x=2)).attempts == 1


async def test_they_answer_for_an_open_breaker() -> None:
    async with ServiceManager() as manager:
        guarded = broken.using(breaker=1, fallback=mirror)
        for _ in range(3):
            assert await manager.execute(guarded, x=1) == "mirror 1"
        assert isinstance((await manager.outcome(guarded.using(fallback=None), x=1)).error, CircuitOpen)


async def test_the_first_error_is_raised_where_all_fail_with_the_others_noted() -> None:
    async with ServiceManager() as manager:
        with pytest.raises(CallFailed, match="'broken' failed: OSError: down") as caught:
            await manager.execute(broken.using(fallback=[also_broken, slow.using(timeout=1)]), x=1)
    notes = getattr(caught.value.__cause__, "__notes__", [])
    assert any("'also_broken' failed too" in note and "nothing here" in note for note in notes)
    assert any("'slow' failed too" in note and "timeout of 1 s" in note for note in notes)


# --- not after


class Outcast(BaseException):
    """As those of test frameworks, and of libraries that want past ``except Exception``."""


async def raises_outcast() -> str:
    raise Outcast


def raises_outcast_at_once() -> str:
    raise Outcast


@pytest.mark.parametrize(
    "make",
    [
        lambda: tool(name="async")(raises_outcast),
        lambda: tool(name="bounded", policy=Policy(timeout=5.0))(raises_outcast),
        lambda: tool(name="thread")(raises_outcast_at_once),
        lambda: tool(name="inline", offload="inline")(raises_outcast_at_once),
    ],
    ids=["async", "bounded", "thread", "inline"],
)
async def test_an_error_that_is_no_exception_is_a_failure_of_the_attempt_wherever_the_tool_runs(make: Any) -> None:
    @tool
    async def instead() -> str:
        return "instead"

    failing = make()
    async with ServiceManager(log=None) as manager:
        answered = await manager.outcome(failing.using(fallback=instead))
        assert (answered.value, answered.tool) == ("instead", "instead")
        again = await manager.outcome(failing.using(retry=Retry(3, on=lambda error: True, wait=0.0)))
        assert (again.status, again.attempts) == ("failed", 3)
        assert isinstance(again.error.__cause__, Outcast)  # type: ignore[union-attr]


async def test_what_a_tool_makes_of_its_timeout_is_a_timeout() -> None:
    @tool(policy=Policy(timeout=1.0))
    async def stubborn() -> None:
        try:
            await anyio.sleep(5)
        except BaseException as error:
            raise Outcast from error

    async with ServiceManager(log=None) as manager:
        assert (await manager.outcome(stubborn)).status == "timed_out"


async def test_not_after_invalid_inputs() -> None:
    async with ServiceManager() as manager:
        outcome = await manager.outcome(broken.using(fallback=mirror), x="no number")  # type: ignore[arg-type]
        assert isinstance(outcome.error, InvalidInputs)
        assert manager.statistics().tools["mirror"].calls == 0


@pytest.mark.parametrize("first", [slow, broken])
async def test_not_after_a_cancellation(first: Any) -> None:
    async with ServiceManager() as manager:
        call = manager.submit(first.using(fallback=[slow, mirror]), x=1)
        await anyio.sleep(1)
        call.cancel()
        assert (await call.outcome()).status == "cancelled"
        with anyio.move_on_after(1) as scope:
            await manager.execute(first.using(fallback=[slow, mirror]), x=1)
        assert scope.cancelled_caught
        assert manager.statistics().tools["mirror"].calls == 0
        assert not manager.calls


@pytest.mark.parametrize("how", ["call", "scope", "native"])
async def test_not_after_an_error_that_the_tool_made_of_its_cancellation(how: str) -> None:
    asked: list[int] = []

    @tool
    async def quick(x: int) -> str:  # never suspends, so that no cancellation stops it
        asked.append(x)
        return "quick"

    @tool(policy=Policy(fallback=quick))
    async def disguises(x: int) -> str:
        try:
            await anyio.sleep(10)
        except BaseException:  # noqa: BLE001
            raise OSError("interrupted") from None
        return ""

    async with ServiceManager() as manager:
        if how == "call":
            call = manager.submit(disguises, x=1)
            await anyio.sleep(1)
            call.cancel()
            assert (await call.outcome()).status == "cancelled"
        elif how == "scope":
            with anyio.move_on_after(1):
                await manager.outcome(disguises, x=1)
        elif sniffio.current_async_library() == "asyncio":
            import asyncio

            with suppress(TimeoutError):
                await asyncio.wait_for(manager.outcome(disguises, x=1), 1)
    assert asked == []


async def test_a_fallback_that_is_cancelled_alone_ends_it() -> None:
    async with ServiceManager() as manager:
        call = manager.submit(broken.using(fallback=[slow, mirror]), x=1)
        await anyio.sleep(1)
        inner = next(one for one in manager.calls.values() if one.tool_name == "slow")
        inner.cancel()
        outcome = await call.outcome()
        assert isinstance(outcome.error, CallFailed)
        assert any("'slow' was cancelled" in note for note in outcome.error.__cause__.__notes__)  # type: ignore[union-attr]
        assert manager.statistics().tools["mirror"].calls == 0


async def test_they_share_the_deadline_of_the_call() -> None:
    async with ServiceManager() as manager:
        began = anyio.current_time()
        outcome = await manager.outcome(broken.using(fallback=[slow, mirror], deadline=5), x=1)
        assert anyio.current_time() - began == pytest.approx(5)
        assert isinstance(outcome.error, CallTimeout)
        assert isinstance(outcome.error.__cause__, OSError)
        outcome = await manager.outcome(slow.using(fallback=mirror, deadline=5), x=1)
        assert isinstance(outcome.error, CallTimeout)
        assert manager.statistics().tools["mirror"].calls == 0


# --- their inputs


async def test_inputs_go_by_name_those_that_it_takes() -> None:
    seen: list[Any] = []

    @tool
    async def wide(x: int, y: int = 2, z: int = 3) -> str:
        raise OSError

    @tool
    async def narrow(y: int, z: int = 30) -> str:
        seen.append((y, z))
        return "narrow"

    async with ServiceManager() as manager:
        guarded = wide.using(fallback=narrow)
        assert await manager.execute(guarded, x=1) == "narrow"
        await manager.execute(guarded, x=1, y=20, z=4)
    assert seen == [(2, 30), (20, 4)]  # what it needs is the first one's default; its own defaults are its own


async def test_a_request_object_is_made_of_the_same_inputs() -> None:
    class Request(BaseModel):
        x: int

    class Legacy:
        def execute(self, request: Request) -> str:
            return f"legacy {request.x}"

    adapted = ToolAdapter(Legacy(), inputs=Request, name="legacy")
    async with ServiceManager() as manager:
        assert await manager.execute(broken.using(fallback=adapted), x="7") == "legacy 7"  # type: ignore[arg-type]
        assert await manager.execute(adapted.using(fallback=mirror, name="b"), x=7) == "legacy 7"


@tool
async def needs_more(x: int, key: str) -> str:
    return key


@tool
async def takes_a_list(x: list[int]) -> str:
    return str(x)


@tool
async def gives_a_list(x: int) -> list[str]:
    return [str(x)]


class Circular(KGASTool):
    async def execute_async(self, x: int) -> str:
        return ""


def circular() -> KGASTool:
    one, other = Circular(), Circular().using(name="other")
    one.policy = Policy(fallback=other)
    other.policy = Policy(fallback=one)
    return one


MISFITS: list[Any] = [
    (
        lambda: broken.using(fallback=needs_more),
        TypeError,
        "'needs_more' cannot be .* of tool 'broken': it needs 'key'",
    ),
    (lambda: broken.using(fallback=takes_a_list), TypeError, "takes 'x' as list"),
    (lambda: mirror.using(fallback=gives_a_list), TypeError, "gives list.* cannot be"),
    (lambda: broken.using(fallback=broken.execute_async), TypeError, "a tool or a list of tools"),
    (lambda: broken.using(fallback=[]), TypeError, "None is no fallback"),
    (lambda: broken.using(fallback=Circular), TypeError, r"its objects are tools: Circular\("),
    (lambda: ToolAdapter(broken, policy=Policy(fallback=needs_more)), TypeError, "it needs 'key'"),
    (lambda: Phase("a", broken, policy=Policy(fallback=needs_more)), TypeError, "it needs 'key'"),
    (lambda: circular().using(timeout=1, fallback=circular()), ValueError, "'Circular' -> .*'other' -> 'Circular'"),
]


@pytest.mark.parametrize(("make", "error", "says"), MISFITS)
def test_what_cannot_be_a_fallback_is_told_where_it_is_given(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


async def test_a_circle_is_told_before_anything_runs() -> None:
    async with ServiceManager() as manager:
        with pytest.raises(ValueError, match=r"circle: 'Circular' -> 'other' -> 'Circular'; .*fallback=None"):
            await manager.execute(circular(), x=1)  # type: ignore[arg-type]
    own = Circular()
    own.policy = Policy(fallback=own)
    async with ServiceManager() as manager:
        with pytest.raises(ValueError, match="circle: 'Circular' -> 'Circular'"):
            await manager.execute(own, x=1)


async def test_a_copy_without_its_fallback_is_no_circle() -> None:
    again = slow.using(timeout=1, fallback=slow.using(timeout=200))
    async with ServiceManager() as manager:
        outcome = await manager.outcome(again, x=1)
    assert (outcome.value, outcome.tool) == ("late", "slow")


# --- a call of its own


async def test_each_is_a_call_of_its_own_on_record() -> None:
    seen: list[Any] = []

    @tool(policy=Policy(retry=Retry(2, wait=0)))
    async def second(x: int) -> str:
        seen.append(current_call.get())
        if len(seen) == 1:
            raise OSError("once")
        return f"{x} {await current().execute(mirror, x=x)}"

    async with ServiceManager(evidence=(sink := MemorySink())) as manager:
        assert await manager.execute(broken.using(fallback=[also_broken, second]), x=1) == "1 mirror 1"
    events = [(record["event"], record["tool"]) for record in sink.records if "call_id" in record]
    assert [one for one in events if one[0] != "call.started"] == [
        ("call.fell_back", "broken"),
        ("call.failed", "also_broken"),
        ("call.fell_back", "broken"),
        ("call.retried", "second"),
        ("call.succeeded", "mirror"),
        ("call.succeeded", "second"),
        ("call.succeeded", "broken"),
    ]
    ends = {record["tool"]: record for record in sink.records if "status" in record and "tool" in record}
    assert ends["second"]["parent_id"] == ends["also_broken"]["parent_id"] == ends["broken"]["call_id"]
    assert ends["mirror"]["parent_id"] == ends["second"]["call_id"]
    assert (ends["broken"]["answered_by"], ends["second"]["attempt"]) == ("second", 2)
    fell = next(record for record in sink.records if record["event"] == "call.fell_back")
    assert (fell["fallback"], fell["error"]) == ("also_broken", {"type": "OSError", "message": "down"})
    assert seen[0].id == ends["second"]["call_id"]


async def test_one_that_is_isolated_has_a_task_of_its_own() -> None:
    tasks = []

    @tool(policy=Policy(isolated=True))
    async def alone(x: int) -> str:
        tasks.append(anyio.get_current_task().id)
        return "alone"

    async with ServiceManager() as manager:
        assert await manager.execute(broken.using(fallback=alone), x=1) == "alone"
        assert tasks != [anyio.get_current_task().id]
        call = manager.submit(broken.using(fallback=slow.using(isolated=True)), x=1)
        await anyio.sleep(1)
        call.cancel()
        await call.wait()
        assert not manager.calls


async def test_the_tool_that_failed_cleans_up_before_another_is_called_and_once() -> None:
    story: list[str] = []

    class Cleans(KGASTool):
        policy = Policy(fallback=mirror)

        async def execute_async(self, x: int) -> str:
            story.append("runs")
            raise OSError

        async def cleanup_resources(self, call: Any) -> None:
            await checkpoint()
            story.append("cleans up")

    @tool
    async def last(x: int) -> str:
        story.append("last")
        raise OSError

    async with ServiceManager() as manager:
        assert await manager.execute(Cleans(), x=1) == "mirror 1"
        assert (await manager.outcome(Cleans().using(fallback=last), x=1)).status == "failed"
    assert story == ["runs", "cleans up", "runs", "cleans up", "last"]


class Store(Service):
    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield


class Needs(KGASTool):
    def __init__(self, store: Store) -> None:
        self.store = store

    async def execute_async(self, x: int) -> str:
        self.store.ensure_running()
        return f"store {x}"


async def test_their_services_are_brought_along_by_a_pipeline_and_missed_by_a_call() -> None:
    needs = Needs(Store())
    async with ServiceManager() as manager:
        outcome = await manager.outcome(broken.using(fallback=[needs, mirror]), x=1)
        assert outcome.value == "mirror 1"
    pipeline = Pipeline("p", Phase("a", broken, policy=Policy(fallback=needs)), item=["x"])
    assert pipeline.services == (needs.store,)
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": 1}, {"x": 2}], keep="all")
    assert [outcome.value for outcome in report.outcomes] == ["store 1", "store 2"]
    assert [outcome.phases["a"].tool for outcome in report.outcomes] == ["Needs", "Needs"]


def test_the_sync_door_starts_their_services() -> None:
    assert broken.using(fallback=Needs(Store())).execute(x=3) == "store 3"


# --- in maps, batches and batchers


async def test_in_a_map_the_outcomes_tell_which_was_used() -> None:
    @tool(policy=Policy(fallback=mirror))
    async def odd(x: int) -> str:
        if x % 2 == 0:
            raise OSError
        return f"odd {x}"

    async with ServiceManager() as manager, manager.map(odd, range(4), arg="x") as outcomes:
        found = [(outcome.tool, outcome.value) async for outcome in outcomes]
    assert found == [("mirror", "mirror 0"), ("odd", "odd 1"), ("mirror", "mirror 2"), ("odd", "odd 3")]


@tool
async def broken_list(xs: list[int]) -> list[int]:
    raise OSError("down")


@tool
async def doubled(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]


@tool
async def too_few(xs: list[int]) -> list[int]:
    return [2 * x for x in xs][1:]


async def test_a_batch_falls_back_as_a_whole() -> None:
    phase = Phase("a", broken_list, bind={"xs": "x"}, batch=3, policy=Policy(fallback=doubled))
    async with ServiceManager() as manager:
        report = await manager.run(Pipeline("p", phase, item=["x"]), [{"x": x} for x in range(5)], keep="all")
        assert [outcome.value for outcome in report.outcomes] == [0, 2, 4, 6, 8]
        assert report.outcomes[0].phases["a"].tool == "doubled"

        batcher = Batcher(broken_list.using(fallback=doubled), max_size=2)
        await manager.start(batcher)
        assert await batcher(xs=4) == 8

        wrong = Batcher(broken_list.using(fallback=too_few, name="wrong"), max_size=2)
        await manager.start(wrong)
        with pytest.raises(CallFailed, match="returned 0 results"):
            await wrong(xs=4)


async def test_a_lazy_fallback_is_expanded() -> None:
    @tool
    def chunks(x: int) -> Iterator[int]:
        yield from range(x)

    @tool(policy=Policy(fallback=chunks))
    async def broken_chunks(x: int) -> list[int]:
        raise OSError

    pipeline = Pipeline(
        "p",
        Phase("chunks", broken_chunks, expand="chunk"),
        Phase("out", archive, bind={"x": "chunk"}),
        item=["x"],
    )
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": 2}], keep="all")
    assert report.outcomes[0].value == ["archive 0", "archive 1"]


def test_a_shared_breaker_of_a_fallback_is_its_own() -> None:
    breaker = CircuitBreaker(1)

    async def main() -> None:
        async with ServiceManager() as manager:
            guarded = broken.using(fallback=also_broken.using(breaker=breaker))
            await manager.outcome(guarded, x=1)
            outcome = await manager.outcome(guarded, x=1)
        assert any("circuit breaker is open" in note for note in outcome.error.__cause__.__notes__)  # type: ignore[union-attr]

    anyio.run(main)

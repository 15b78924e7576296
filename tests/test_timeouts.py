"""Timeouts, deadlines and the grace of what was cancelled, in virtual time but for one that needs a blocked loop."""

from __future__ import annotations

import math
import threading
import time
from typing import Any, Self

import anyio
import pytest

from kgas_async import (
    CallFailed,
    CallRejected,
    CallTimeout,
    ConcurrencyLimit,
    KGASTool,
    MemorySink,
    Policy,
    ServiceManager,
    ToolAdapter,
    check_cancelled,
    current,
    tool,
)
from kgas_async._in_thread import late_error
from kgas_async._tokens import DeadlinePassed
from kgas_async.testing import assert_clean

from .loops import virtual

real_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


@pytest.fixture(params=virtual())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


class Held:
    """A sync tool that stays in its thread until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.begun = threading.Event()
        self.starts = 0

    def execute(self) -> str:
        self.starts += 1
        self.begun.set()
        self.let_go.wait(30)
        return "late"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.let_go.set()


@tool
async def sleeps(seconds: float) -> float:
    await anyio.sleep(seconds)
    return seconds


@tool
def naps(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


async def taken(manager: ServiceManager, tool: Any, error: type[BaseException], **inputs: Any) -> tuple[float, Any]:
    before = anyio.current_time()
    with pytest.raises(error) as caught:
        await manager.execute(tool, **inputs)
    return anyio.current_time() - before, caught.value


# --- the timeout of an attempt


async def test_an_async_tool_is_stopped_at_its_timeout() -> None:
    async with ServiceManager(log=None) as manager:
        seconds, error = await taken(manager, sleeps.using(timeout=5), CallTimeout, seconds=60)
        assert await manager.execute(sleeps.using(timeout=5), seconds=4) == 4
    assert seconds == pytest.approx(5)
    assert isinstance(error, TimeoutError)
    assert str(error) == "tool 'sleeps' did not end within its timeout of 5 s"
    assert (error.tool, error.attempts) == ("sleeps", 1)


async def test_a_value_of_an_async_tool_that_was_not_interrupted_and_is_late_is_thrown_away() -> None:
    @tool(policy=Policy(timeout=5))
    async def shielded() -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(10)
        return "late"

    async with ServiceManager(log=None) as manager:
        call = manager.submit(shielded)
        await call.wait()
        assert call.status == "timed_out"
        assert call.value is None


async def test_an_error_of_a_tool_that_is_late_is_the_cause_of_the_timeout() -> None:
    @tool(policy=Policy(timeout=5))
    async def fails_late() -> None:
        try:
            await anyio.sleep(60)
        finally:
            raise ValueError("on the way out")

    async with ServiceManager(log=None) as manager:
        _, error = await taken(manager, fails_late, CallTimeout)
    assert isinstance(error.__cause__, ValueError)


@real_loops
@pytest.mark.real_time
async def test_an_inline_tool_that_took_too_long_has_timed_out() -> None:
    blocking = ToolAdapter(lambda: time.sleep(0.02), name="sleep", offload="inline", policy=Policy(timeout=0.01))
    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallTimeout):
            await manager.execute(blocking)


async def test_a_timeout_error_of_the_tools_own_is_its_failure() -> None:
    @tool(policy=Policy(timeout=60))
    async def gives_up() -> None:
        with anyio.fail_after(1):
            await anyio.sleep_forever()

    async with ServiceManager(log=None) as manager:
        outcome = await manager.outcome(gives_up)
    assert outcome.status == "failed"
    assert isinstance(outcome.error, CallFailed)


async def test_a_timeout_of_zero_is_now() -> None:
    async with ServiceManager(log=None) as manager:
        seconds, _ = await taken(manager, sleeps.using(timeout=0), CallTimeout, seconds=1)
    assert seconds < 1


async def test_the_timeout_of_a_sync_tool_does_not_run_while_it_waits_for_a_thread() -> None:
    async with ServiceManager(log=None, threads=1) as manager:
        calls = [manager.submit(naps.using(timeout=0.25), seconds=0.05) for _ in range(8)]  # 0.4 s one after another
        for call in calls:
            await call.wait()
    assert {call.status for call in calls} == {"succeeded"}
    assert max(call.wait_ns for call in calls) > 0.3e9


async def test_a_late_thread_that_is_waited_for_is_a_timeout_when_it_ends() -> None:
    with Held() as held:
        async with ServiceManager(log=None) as manager:
            call = manager.submit(ToolAdapter(held, policy=Policy(timeout=5)))
            await anyio.sleep(60)
            assert call.status == "running"
            held.let_go.set()
            await call.wait()
    assert call.status == "timed_out"
    assert not call.abandoned
    assert_clean(manager)


async def test_an_abandoned_thread_is_left_at_once() -> None:
    with Held() as held:
        async with ServiceManager(log=None, abandoned="join") as manager:
            seconds, _ = await taken(manager, ToolAdapter(held, on_cancel="abandon").using(timeout=5), CallTimeout)
            assert seconds == pytest.approx(5)
            held.let_go.set()
    assert_clean(manager)


async def test_a_thread_that_looks_stops_soon_after_its_timeout() -> None:
    looked: list[int] = []

    @tool(policy=Policy(timeout=1))
    def polite() -> None:
        try:
            while True:
                check_cancelled()
                time.sleep(0.001)
        except Exception:  # noqa: BLE001  (legacy code that eats everything)
            looked.append(1)

    async with ServiceManager(log=None) as manager:
        _, error = await taken(manager, polite, CallTimeout)
    assert error.__cause__ is None
    assert looked == []


@real_loops
@pytest.mark.real_time
async def test_a_thread_that_ended_in_time_is_no_timeout_though_the_loop_heard_of_it_late() -> None:
    held = Held()

    def quick() -> str:
        held.begun.set()
        time.sleep(0.005)
        return "in time"

    adapted = ToolAdapter(quick, policy=Policy(timeout=0.02))
    async with ServiceManager(log=None) as manager:
        for _ in range(10):
            held.begun.clear()
            call = manager.submit(adapted)
            await anyio.to_thread.run_sync(held.begun.wait)
            await anyio.sleep(0.001)  # the loop has learned that the thread has begun: its timer is set
            time.sleep(0.04)  # noqa: ASYNC251  (a loop that is blocked, while the thread ends and the timer is due)
            assert await call.result() == "in time"


# --- the deadline of a call


async def test_a_deadline_ends_an_async_tool() -> None:
    async with ServiceManager(log=None) as manager:
        seconds, error = await taken(manager, sleeps.using(deadline=5), CallTimeout, seconds=60)
    assert seconds == pytest.approx(5)
    assert str(error) == "tool 'sleeps' did not end within its deadline of 5 s"


async def test_the_earlier_of_timeout_and_deadline_counts() -> None:
    async with ServiceManager(log=None) as manager:
        _, error = await taken(manager, sleeps.using(deadline=5, timeout=3), CallTimeout, seconds=60)
        assert "timeout of 3 s" in str(error)
        _, error = await taken(manager, sleeps.using(deadline=5, timeout=30), CallTimeout, seconds=60)
        assert "deadline of 5 s" in str(error)


async def test_a_deadline_bounds_the_wait_for_a_token() -> None:
    limit = ConcurrencyLimit(1)
    async with ServiceManager(log=None) as manager, limit:
        seconds, error = await taken(manager, sleeps.using(deadline=5, concurrency=limit), CallTimeout, seconds=0)
    assert seconds == pytest.approx(5)
    assert error.attempts == 1
    assert_clean(limit)


async def test_a_deadline_bounds_the_wait_for_a_thread_and_the_work_never_starts() -> None:
    ran: list[int] = []
    limit = ConcurrencyLimit(1)
    with Held() as held:
        async with ServiceManager(log=None, threads=1) as manager:
            first = manager.submit(ToolAdapter(held))
            await anyio.to_thread.run_sync(held.begun.wait)
            waits = ToolAdapter(ran.clear, name="waits", policy=Policy(deadline=5, concurrency=limit))
            seconds, _ = await taken(manager, waits, CallTimeout)
            assert seconds == pytest.approx(5)
            assert_clean(limit)
            held.let_go.set()
            await first.wait()


async def test_a_deadline_bounds_the_validation() -> None:
    class SlowToCheck(KGASTool):
        async def execute_async(self) -> None: ...

        async def validate_inputs(self, **inputs: Any) -> dict[str, Any]:
            await anyio.sleep(60)
            return inputs

    async with ServiceManager(log=None) as manager:
        seconds, _ = await taken(manager, SlowToCheck().using(deadline=5), CallTimeout)
    assert seconds == pytest.approx(5)


async def test_a_nested_call_inherits_what_is_left_of_the_deadline() -> None:
    seen: list[BaseException] = []

    @tool(policy=Policy(deadline=10))
    async def outer() -> None:
        await anyio.sleep(4)
        try:
            await current().execute(sleeps, seconds=60)
        except CallTimeout as error:
            seen.append(error)
            raise

    async with ServiceManager(log=None) as manager:
        seconds, _ = await taken(manager, outer, CallTimeout)
    assert seconds == pytest.approx(10)


async def test_a_nested_call_cannot_extend_the_deadline_but_shorten_it() -> None:
    gone: list[float] = []

    @tool(policy=Policy(deadline=10))
    async def outer(inner_deadline: float) -> None:
        before = anyio.current_time()
        try:
            await current().execute(sleeps.using(deadline=inner_deadline), seconds=60)
        finally:
            gone.append(anyio.current_time() - before)

    async with ServiceManager(log=None) as manager:
        await manager.outcome(outer, inner_deadline=60)
        await manager.outcome(outer, inner_deadline=3)
    assert gone == pytest.approx([10, 3])


async def test_a_call_nested_in_a_thread_inherits_the_deadline() -> None:
    seen: list[BaseException] = []

    @tool(policy=Policy(deadline=10))
    def outer() -> None:
        try:
            sleeps.execute(seconds=60)
        except BaseException as error:
            seen.append(error)
            raise

    async with ServiceManager(log=None) as manager:
        seconds, _ = await taken(manager, outer, CallTimeout)
    assert seconds == pytest.approx(10)
    assert len(seen) == 1


async def test_a_submitted_child_inherits_the_deadline() -> None:
    children: list[Any] = []

    @tool(policy=Policy(deadline=10))
    async def outer() -> None:
        children.append(current().submit(sleeps, seconds=60))

    async with ServiceManager(log=None) as manager:
        await manager.execute(outer)
        assert (await children[0].outcome()).status == "timed_out"
        assert anyio.current_time() == pytest.approx(10)


# --- grace


@pytest.mark.parametrize(("policy", "grace"), [(Policy(), 30), (Policy(grace=3), 3), (Policy(grace=None), 30)])
async def test_a_cancelled_thread_that_does_not_look_is_abandoned_after_its_grace(policy: Policy, grace: float) -> None:
    sink = MemorySink()
    with Held() as held:
        async with ServiceManager(log=None, evidence=sink, grace=30) as manager:
            call = manager.submit(ToolAdapter(held, name="held", policy=policy))
            await anyio.to_thread.run_sync(held.begun.wait)
            before = anyio.current_time()
            call.cancel("enough")
            await call.wait()
            assert anyio.current_time() - before == pytest.approx(grace)
            assert manager.statistics().threads_abandoned == 1
            held.let_go.set()
            while manager.statistics().threads_abandoned:  # noqa: ASYNC110  (it is no event, but it comes)
                await anyio.sleep(0.001)
    ends = [record for record in sink.records if record["event"] == "call.cancelled"]
    assert [(end["abandoned"], end["reason"]) for end in ends] == [(True, "enough")]
    assert [record["call_id"] for record in sink.records if record["event"] == "thread.ended"] == [call.id]


async def test_leaving_costs_one_grace_however_many_threads_are_stuck() -> None:
    with Held() as held:
        before = anyio.current_time()
        with pytest.raises(ValueError, match="out"):
            async with ServiceManager(log=None, grace=30) as manager:
                for _ in range(3):
                    manager.submit(ToolAdapter(held, policy=Policy(grace=60)))
                await anyio.to_thread.run_sync(held.begun.wait)
                raise ValueError("out")
        assert anyio.current_time() - before == pytest.approx(30, abs=1)


async def test_at_max_abandoned_new_sync_calls_are_rejected_until_one_ends() -> None:
    limit = ConcurrencyLimit(10)
    with Held() as held:
        async with ServiceManager(log=None, max_abandoned=2, abandoned="join") as manager:
            stuck = ToolAdapter(held, on_cancel="abandon", policy=Policy(timeout=1, concurrency=limit))
            for _ in range(2):
                assert (await manager.outcome(stuck)).status == "timed_out"
            for refused in (stuck, naps.using(timeout=5)):
                inputs = {} if refused is stuck else {"seconds": 0}
                _, error = await taken(manager, refused, CallRejected, **inputs)
                assert "2 abandoned threads still run (max_abandoned)" in str(error)
            assert limit.statistics().borrowed == 2  # those of the two that are stuck
            assert await manager.execute(sleeps, seconds=0) == 0  # an async tool needs no thread
            held.let_go.set()
            while manager.statistics().threads_abandoned:  # noqa: ASYNC110
                await anyio.sleep(0.001)
            assert await manager.execute(naps, seconds=0) == 0
    assert held.starts == 2
    assert_clean(manager, limit)


async def test_a_nested_timeout_at_the_very_deadline_is_late_and_another_error_is_not() -> None:
    """Clocks are as coarse as a millisecond (uvloop): the inner call is out of time, the outer one is just not late."""

    @tool(policy=Policy(deadline=60.0))
    async def waits() -> None:
        await anyio.sleep_forever()

    async with ServiceManager(log=None) as manager:
        call = manager.submit(waits)
        while call.deadline_at is None:  # noqa: ASYNC110  (nobody tells us)
            await anyio.sleep(0.001)
        inner, other = CallTimeout("in it"), ValueError("in it")
        found = [late_error(call, call.deadline_at, math.inf, error) for error in (inner, other, None)]
        call.cancel()
    assert [type(error) for error in found] == [DeadlinePassed, type(None), type(None)]
    assert isinstance(found[0], DeadlinePassed)
    assert found[0].cause is inner

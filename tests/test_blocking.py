"""The blocking door: the manager's names from plain code, on a loop in a thread of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    BlockingCall,
    BlockingManager,
    Call,
    CallCancelled,
    CallFailed,
    CallProgress,
    CallState,
    CallTimeout,
    InvalidInputs,
    ManagerClosed,
    Phase,
    Pipeline,
    PipelineError,
    Service,
    ServiceManager,
    ServiceStartFailed,
    current,
    progress,
    tool,
)
from kgas_async._threads import Reply

INNER = pytest.mark.parametrize("inner", ["asyncio", "trio"])
colour: ContextVar[str] = ContextVar("colour", default="none")


@tool
async def double(x: int) -> int:
    await checkpoint()
    return 2 * x


@tool
def in_thread(x: int) -> int:
    return 2 * x


@tool
async def breaks(x: int = 0) -> int:
    raise KeyError(x)


@tool
async def forever(x: int = 0) -> None:
    await anyio.sleep_forever()


@tool
async def total(doubled: list[int]) -> int:
    return sum(doubled)


PIPELINE = Pipeline("p", Phase("doubled", double), Phase("total", total, collect=True))


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("kgas-blocking")]


# --- every pair of loops


@INNER
async def test_it_works_where_a_loop_already_runs(inner: str) -> None:
    with ServiceManager(threads=2).blocking(inner) as manager:
        assert manager.execute(double, x=4) == 8
        assert manager.execute(in_thread, x=4) == 8
        with manager.map(double, ({"x": n} for n in range(200))) as outcomes:
            assert [outcome.value for outcome in outcomes] == [2 * n for n in range(200)]
        assert manager.run(PIPELINE, [{"x": 1}, {"x": 2}]).results == {"total": 6}
    await checkpoint()  # the loop around it is as it was


@INNER
def test_it_works_where_no_loop_runs(inner: str) -> None:
    with ServiceManager().blocking(inner) as manager:
        assert manager.execute(double, x=4) == 8
    assert our_threads() == []


@INNER
def test_it_works_in_a_worker_thread_of_another_manager(inner: str) -> None:
    @tool
    def outer(x: int) -> int:
        with ServiceManager().blocking(inner) as manager:
            return manager.execute(double, x=x)  # type: ignore[no-any-return]

    with ServiceManager().blocking() as manager:
        assert manager.execute(outer, x=3) == 6


# --- the names


@INNER
def test_submit_gives_a_call_that_is_waited_for_or_cancelled(inner: str) -> None:
    with ServiceManager().blocking(inner) as manager:
        call = manager.submit(double, x=5)
        assert call.result() == 10
        assert (call.status, call.wait(0)) == ("succeeded", True)
        call = manager.submit(forever)
        assert call.wait(0.01) is False
        assert call.cancel("enough") is True
        assert call.outcome().status == "cancelled"
        with pytest.raises(CallCancelled, match="enough"):
            call.result()
        other = manager.submit(forever)
        assert manager.cancel(other.id, "by id") is True
        assert other.status == "cancelled"
        assert manager.cancel() is False


@INNER
def test_a_stream_is_iterated_over_and_left_early(inner: str) -> None:
    pulled = []

    def items() -> Iterator[dict[str, int]]:
        for n in range(10**9):
            pulled.append(n)
            yield {"x": n}

    with ServiceManager().blocking(inner) as manager:
        with manager.stream(PIPELINE, items(), in_flight=5) as outcomes:
            assert [next(outcomes).value for _ in range(10)] == [2 * n for n in range(10)]
        assert manager.statistics().calls_open == 0
        assert len(pulled) < 10 + 64 + 20  # what one hop takes, and the window


def test_a_source_that_raises_gives_its_outcomes_first() -> None:
    def items() -> Iterator[dict[str, int]]:
        yield {"x": 1}
        raise OSError("gone")

    values = []
    with ServiceManager().blocking() as manager, manager.map(double, items()) as outcomes:
        values.append(next(outcomes).value)
        with pytest.raises(PipelineError, match="gone"):
            next(outcomes)
    assert values == [2]


@INNER
def test_services_are_started_and_stopped(inner: str) -> None:
    story = []

    class Store(Service):
        @contextlib.asynccontextmanager
        async def running(self) -> Any:
            story.append("+")
            yield
            story.append("-")

    store = Store()
    with ServiceManager().blocking(inner) as manager:
        manager.start(store)
        assert manager.statistics().services == ["Store"]
        manager.drain()
        with pytest.raises(ManagerClosed, match="draining"):
            manager.execute(double, x=1)
    assert story == ["+", "-"]


def test_the_callers_context_is_seen_and_not_changed() -> None:
    @tool
    async def paints() -> str:
        old = colour.get()
        colour.set("green")
        return old

    colour.set("red")
    with ServiceManager().blocking() as manager:
        assert manager.execute(paints) == "red"
    assert colour.get() == "red"


# --- errors


@INNER
def test_errors_come_as_from_the_manager_itself(inner: str) -> None:
    with ServiceManager().blocking(inner) as manager:
        with pytest.raises(CallFailed) as caught:
            manager.execute(breaks, x=3)
        assert isinstance(caught.value.__cause__, KeyError)
        with pytest.raises(CallTimeout):
            manager.execute(forever.using(timeout=0.01))
        assert manager.outcome(breaks).status == "failed"
        with pytest.raises(TypeError, match="is no tool"):
            manager.execute(print)
        with pytest.raises(CallFailed, match="3"), manager.map(breaks, [{"x": 3}], on_error="raise") as outcomes:
            list(outcomes)


@INNER
def test_an_error_in_the_body_cancels_what_runs_and_comes_out_as_it_is(inner: str) -> None:
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught, ServiceManager(grace=1000).blocking(inner) as manager:
        call = manager.submit(forever)
        raise error
    assert caught.value is error
    assert call.status == "cancelled"


@INNER
def test_an_exit_in_an_async_tool_comes_out_bare(inner: str) -> None:
    @tool
    async def leaves() -> None:
        raise SystemExit(7)

    with pytest.raises(SystemExit) as caught, ServiceManager().blocking(inner) as manager:
        call = manager.submit(leaves)
        with pytest.raises((ManagerClosed, CallFailed, CallCancelled)):
            call.result()
    assert caught.value.code == 7


@INNER
def test_a_service_that_does_not_start_is_raised_on_entering(inner: str) -> None:
    class Bad(Service):
        def running(self) -> Any:
            raise OSError("no")

    with pytest.raises(ServiceStartFailed):
        ServiceManager(Bad()).blocking(inner).__enter__()
    assert our_threads() == []


def test_outside_of_its_lifetime_it_says_how_to_open_it() -> None:
    door = ServiceManager().blocking()
    with pytest.raises(ManagerClosed, match="with ServiceManager"):
        door.execute(double, x=1)
    with door as manager:
        assert manager.execute(double, x=1) == 2
    with pytest.raises(ManagerClosed):
        door.execute(double, x=1)
    with door as manager:  # again
        assert manager.execute(double, x=1) == 2


def test_a_manager_on_its_own_loops_thread_is_refused_and_does_not_hang() -> None:
    @tool
    async def calls_back() -> int:
        return door.execute(double, x=1)  # type: ignore[no-any-return]

    with ServiceManager().blocking() as door, pytest.raises(CallFailed, match="event loop"):
        door.execute(calls_back)


# --- threads and Ctrl-C


@INNER
def test_many_threads_share_one_door(inner: str) -> None:
    results: list[list[int]] = [[] for _ in range(8)]

    def ask(mine: list[int]) -> None:
        for n in range(50):
            mine.append(manager.execute(double, x=n))

    with ServiceManager().blocking(inner) as manager:
        threads = [threading.Thread(target=ask, args=(mine,)) for mine in results]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [[2 * n for n in range(50)]] * 8


@INNER
@pytest.mark.parametrize("attempt", range(10))
def test_who_asks_while_the_door_closes_gets_an_answer(inner: str, attempt: int) -> None:
    answers: list[BaseException] = []

    def ask() -> None:
        try:
            while True:
                manager.execute(double, x=1)
        except (ManagerClosed, CallCancelled) as error:
            answers.append(error)

    with ServiceManager().blocking(inner) as manager:
        threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        manager.execute(double, x=1)
    for thread in threads:
        thread.join(5)
    assert len(answers) == 4


def interrupt_when(happened: threading.Event) -> None:
    def wait_and_send() -> None:
        happened.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait_and_send, daemon=True).start()


@INNER
def test_ctrl_c_cancels_what_is_waited_for_and_the_door_stays_open(inner: str) -> None:
    started, cleaned = threading.Event(), []

    @tool
    async def slow() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append(current())

    with ServiceManager().blocking(inner) as manager:
        interrupt_when(started)
        with pytest.raises(KeyboardInterrupt):
            manager.execute(slow)
        assert len(cleaned) == 1  # it had ended when the interrupt was raised
        assert manager.statistics().tools["slow"].cancelled == 1
        assert manager.execute(double, x=1) == 2


@INNER
def test_ctrl_c_in_the_loop_over_a_stream_leaves_it_clean(inner: str) -> None:
    started = threading.Event()

    @tool
    async def slow(x: int) -> None:
        if x == 3:
            started.set()
        await anyio.sleep(0 if x < 3 else 1000)

    with ServiceManager().blocking(inner) as manager:
        interrupt_when(started)
        with pytest.raises(KeyboardInterrupt), manager.map(slow, ({"x": n} for n in range(10**6))) as outcomes:
            for _ in outcomes:
                pass
        assert manager.statistics().calls_open == 0


@INNER
def test_ctrl_c_at_the_very_moment_of_asking_is_not_lost(inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Reply.wait

    def interrupted_wait(self: Reply) -> Any:
        monkeypatch.setattr(Reply, "wait", wait)
        raise KeyboardInterrupt

    with ServiceManager().blocking(inner) as manager:
        for _ in range(20):
            monkeypatch.setattr(Reply, "wait", interrupted_wait)
            with pytest.raises(KeyboardInterrupt):
                manager.execute(forever)


@INNER
def test_ctrl_c_while_leaving_cancels_what_is_drained_and_leaves_nothing(inner: str) -> None:
    draining = threading.Event()

    @tool
    async def slow() -> None:
        while True:
            await anyio.sleep(0.001)
            if current()._session.is_draining:
                draining.set()

    interrupt_when(draining)
    with pytest.raises(KeyboardInterrupt), ServiceManager(grace=1000).blocking(inner) as manager:
        call = manager.submit(slow)
    assert call.status == "cancelled"
    assert our_threads() == []


@INNER
def test_gather_and_race_block_and_raise_as_the_async_ones(inner: str) -> None:
    with ServiceManager().blocking(inner) as manager:
        assert manager.gather({"a": double, "b": in_thread}, {"x": 2}) == {"a": 4, "b": 4}
        outcomes = manager.gather({"a": double, "b": breaks}, {"x": 2}, on_error="collect")
        assert [outcome.ok for outcome in outcomes.values()] == [True, False]
        with pytest.raises(CallFailed):
            manager.gather({"a": forever, "b": breaks}, {"x": 2})
        assert manager.race({"a": forever, "b": breaks, "c": double}, {"x": 2}).value == 4
        assert manager.statistics().calls_open == 0


@INNER
def test_options_name_a_call(inner: str) -> None:
    with ServiceManager().blocking(inner) as manager:
        named = manager.options(name="one", replace=True)
        first = named.submit(forever)
        assert first.name == "one"
        assert named.execute(double, x=2) == 4
        assert first.status == "cancelled"
        assert manager.options(name="two").outcome(double, x=2).value == 4
        with pytest.raises(TypeError):
            manager.options(replace=True)


@INNER
def test_events_of_a_call_are_iterated(inner: str) -> None:
    @tool
    def tells() -> str:
        progress(1, 2)
        progress(2, 2)
        return "done"

    with ServiceManager().blocking(inner) as manager:
        call = manager.submit(tells)
        events = list(call.events())
        assert getattr(events[-1], "status", None) == "succeeded"
        assert call.progress is not None
        assert call.progress.done == 2


@INNER
def test_a_call_is_found_by_its_id(inner: str) -> None:
    with ServiceManager().blocking(inner) as manager:
        id = manager.submit(double, x=2).id  # noqa: A001
        call = manager.find(id)
        assert call is not None
        assert call.result() == 4
        assert manager.find("nonsense") is None


@INNER
def test_a_call_keeps_its_result_when_the_manager_was_left(inner: str) -> None:
    @tool
    async def tells(x: int) -> int:
        progress(x, 2, "half")
        await checkpoint()
        return x

    with ServiceManager(log=None, grace=0).blocking(inner) as manager:
        calls = [manager.submit(tells, x=n) for n in range(3)]
        for call in calls:
            call.wait()
        events = calls[1].events()
        next(events)
        cut = manager.submit(forever)
        broken = manager.submit(tells, x="no")
        broken.wait()
    assert [call.result() for call in calls] == [0, 1, 2]
    assert [(call.status, call.has_ended, call.wait(), call.cancel()) for call in calls] == [
        ("succeeded", True, True, False)
    ] * 3
    assert [event.status for event in events if isinstance(event, CallState)] == ["succeeded"]
    assert [type(event) for event in calls[2].events()] == [CallProgress, CallState]
    with pytest.raises(CallCancelled):
        cut.result()
    assert cut.outcome().status == "cancelled"
    with pytest.raises(InvalidInputs):
        broken.result()
    with pytest.raises(ManagerClosed):
        manager.submit(tells, x=1)


@INNER
def test_a_call_shows_what_the_async_one_shows(inner: str) -> None:
    with ServiceManager(log=None).blocking(inner) as manager:
        call = manager.options(name="nightly").submit(double, x=2)
        call.wait()
        assert call.id.startswith(manager.session_id)
        assert (call.name, call.tool, call.inputs, call.attempt, call.reason) == ("nightly", double, {"x": 2}, 1, "")
        assert call.started is not None
        assert call.duration >= call.started
        assert repr(call) == f"<BlockingCall {call.id} of 'nightly': succeeded>"


def test_the_blocking_names_are_those_of_the_async_ones() -> None:
    def names(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert names(BlockingManager) == names(ServiceManager) - {"blocking"}
    assert {"id", "name", "tool", "inputs", "status", "started", "duration", "progress"} <= names(BlockingCall)
    assert names(BlockingCall) <= names(Call) | {"inputs"}  # which is set by its constructor

"""Hedging: when a second attempt begins, which value counts, and that the slower one ends and counts for nothing."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import sniffio

from kgas_async import (
    Cache,
    CallFailed,
    CallTimeout,
    CircuitBreaker,
    ConcurrencyLimit,
    KGASTool,
    MemorySink,
    Phase,
    Policy,
    RateLimit,
    Retry,
    RetryBudget,
    ServiceManager,
    ToolAdapter,
    check_cancelled,
    current,
    progress,
    tool,
)
from kgas_async._context import current_call
from kgas_async.testing import assert_clean, explore, virtual_backends


@pytest.fixture(params=virtual_backends())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


class Replica(KGASTool):
    """Each attempt takes the next of the given times, and ends with the next of the errors; its copies are one."""

    idempotent = True

    def __init__(self, *seconds: float, errors: tuple[Exception | None, ...] = ()) -> None:
        self.now = SimpleNamespace(seconds=list(seconds), errors=list(errors), began=[], ended=[], attempts=[])

    async def execute_async(self, x: int = 0) -> int:
        now = self.now
        number = len(now.began)
        now.began.append(anyio.current_time())
        call: Any = current_call.get()
        now.attempts.append(call.attempt)
        try:
            await anyio.sleep(now.seconds[number])
            if number < len(now.errors) and now.errors[number] is not None:
                raise now.errors[number]
            now.ended.append((number, "value"))
            return number
        except Exception:
            now.ended.append((number, "error"))
            raise
        except BaseException:
            now.ended.append((number, "cancelled"))
            raise


# --- which one counts


async def test_a_second_attempt_begins_when_the_first_is_slow_and_its_value_counts() -> None:
    replica = Replica(10, 1)
    async with ServiceManager(evidence=(sink := MemorySink())) as manager:
        outcome = await manager.outcome(replica.using(hedge_after=2))
        assert anyio.current_time() == pytest.approx(3)
        assert (outcome.status, outcome.value, outcome.attempts) == ("succeeded", 1, 2)
        assert replica.now.began == pytest.approx([0, 2])
        assert sorted(replica.now.ended) == [(0, "cancelled"), (1, "value")]
        assert replica.now.attempts == [1, 2]
        assert manager.statistics().tools["Replica"].cancelled == 0
    hedge = next(record for record in sink.records if record["event"] == "call.hedged")
    end = next(record for record in sink.records if record["event"] == "call.succeeded")
    assert (hedge["attempt"], hedge["call_id"], hedge["tool"]) == (2, end["call_id"], "Replica")
    assert (end["attempt"], end["winner"]) == (2, 2)


async def test_the_first_may_still_win() -> None:
    replica = Replica(3, 10)
    async with ServiceManager(evidence=(sink := MemorySink())) as manager:
        outcome = await manager.outcome(replica.using(hedge_after=2))
        assert (anyio.current_time(), outcome.value) == (pytest.approx(3), 0)
    assert next(record for record in sink.records if record["event"] == "call.succeeded")["winner"] == 1
    assert sorted(replica.now.ended) == [(0, "value"), (1, "cancelled")]


@pytest.mark.parametrize("fast", [0, 1.5])
async def test_a_quick_one_stays_alone(fast: float) -> None:
    replica = Replica(fast)
    async with ServiceManager(evidence=(sink := MemorySink())) as manager:
        outcome = await manager.outcome(replica.using(hedge_after=2))
        assert (outcome.value, outcome.attempts, anyio.current_time()) == (0, 1, pytest.approx(fast))
    assert not [record for record in sink.records if record["event"] == "call.hedged"]
    assert "winner" not in next(record for record in sink.records if record["event"] == "call.succeeded")


async def test_an_error_before_the_hedge_is_the_attempts() -> None:
    replica = Replica(1, 1, errors=(OSError("down"),))
    async with ServiceManager() as manager:
        outcome = await manager.outcome(replica.using(hedge_after=2))
        assert (outcome.status, outcome.attempts) == ("failed", 1)
        replica = Replica(1, 1, errors=(OSError("down"),))
        outcome = await manager.outcome(replica.using(hedge_after=2, retry=Retry(2, wait=0)))
        assert (outcome.value, outcome.attempts) == (1, 2)


@pytest.mark.parametrize(
    ("seconds", "errors", "value", "at"),
    [
        ((3, 5), (OSError("first"), None), 1, 7),  # the first fails while the second runs
        ((6, 1), (None, OSError("second")), 0, 6),  # the second fails while the first runs
        ((3, 5), (OSError("first"), OSError("second")), "second", 7),
        ((6, 1), (OSError("first"), OSError("second")), "first", 6),
    ],
)
async def test_an_error_counts_only_where_both_fail(seconds: Any, errors: Any, value: Any, at: float) -> None:
    replica = Replica(*seconds, errors=errors)
    async with ServiceManager() as manager:
        outcome = await manager.outcome(replica.using(hedge_after=2))
        assert anyio.current_time() == pytest.approx(at)
        if isinstance(value, str):
            assert isinstance(outcome.error, CallFailed)
            assert str(outcome.error.__cause__) == value
        else:
            assert outcome.value == value


async def test_zero_is_now() -> None:
    replica = Replica(5, 3)
    async with ServiceManager() as manager:
        outcome = await manager.outcome(replica.using(hedge_after=0))
        assert (outcome.value, anyio.current_time()) == (1, pytest.approx(3))


async def test_retries_count_hedged_attempts_as_one() -> None:
    error = OSError("down")
    replica = Replica(3, 3, 3, 3, errors=(error, error, error, None))
    async with ServiceManager() as manager:
        outcome = await manager.outcome(replica.using(hedge_after=2, retry=Retry(2, wait=1)))
    assert (outcome.value, outcome.attempts) == (3, 4)
    assert replica.now.began == pytest.approx([0, 2, 6, 8])


async def test_each_has_the_timeout_and_both_the_deadline() -> None:
    replica = Replica(10, 10)
    async with ServiceManager() as manager:
        outcome = await manager.outcome(replica.using(hedge_after=2, timeout=5))
        assert isinstance(outcome.error, CallTimeout)
        assert anyio.current_time() == pytest.approx(7)
        replica.now.seconds += [10, 3]
        assert (await manager.outcome(replica.using(hedge_after=2, timeout=4))).value == 3  # at 2 + 3
        replica.now.seconds += [10, 10]
        began = anyio.current_time()
        outcome = await manager.outcome(replica.using(hedge_after=2, deadline=5))
        assert isinstance(outcome.error, CallTimeout)
        assert anyio.current_time() - began == pytest.approx(5)


# --- tokens


@pytest.mark.parametrize("what", ["concurrency", "rate", "breaker", "budget"])
async def test_without_tokens_there_is_no_second_attempt(what: str) -> None:
    limit, rate, breaker = ConcurrencyLimit(1), RateLimit(0.01, burst=1), CircuitBreaker(1, recovery=10)
    other = ConcurrencyLimit(5)
    options: dict[str, Any] = {
        "concurrency": {"concurrency": [other, limit]},
        "rate": {"concurrency": other, "rate": rate},
        "breaker": {"breaker": breaker, "concurrency": other},
        "budget": {"retry": Retry(1, budget=RetryBudget(0.01, min_per_s=0)), "concurrency": other},
    }[what]
    replica = Replica(0, 5, 1, errors=(OSError("down"),) if what == "breaker" else ())
    hedged = replica.using(hedge_after=2, **options)
    async with ServiceManager() as manager:
        await manager.outcome(hedged)
        await anyio.sleep(100)
        outcome = await manager.outcome(hedged)  # of the breaker the one probe
        assert (outcome.value, outcome.attempts, len(replica.now.began)) == (1, 1, 2)
        if what == "rate":
            assert rate.statistics().taken == 2
    assert_clean(manager, limit, other)


async def test_the_time_begins_when_the_first_does_and_not_while_it_waits() -> None:
    limit = ConcurrencyLimit(2)
    replica = Replica(10, 1)
    async with ServiceManager() as manager:
        for _ in range(2):
            await limit.acquire()
        call = manager.submit(replica.using(hedge_after=2, concurrency=limit))
        await anyio.sleep(100)
        assert call.status == "waiting"
        for _ in range(2):
            limit.release()
        assert (await call.outcome()).value == 1
    assert replica.now.began == pytest.approx([100, 102])
    assert_clean(manager, limit)


async def test_what_it_waited_for_before_the_first_attempt_is_on_record() -> None:
    sink = MemorySink()
    replica = Replica(1, 1, 1).using(hedge_after=30, concurrency=ConcurrencyLimit(1), rate=RateLimit(0.2))
    async with ServiceManager(evidence=sink, log=None) as manager:
        calls = [manager.submit(replica) for _ in range(3)]
        outcomes = [await call.outcome() for call in calls]
    waits = [record["wait_us"] for record in sink.records if record["event"] == "call.succeeded"]
    assert waits[0]["concurrency"] == 0
    assert all(wait["concurrency"] > 0 for wait in waits[1:])  # in real time, of which little passes here
    assert all(wait["rate"] > 0 for wait in waits[1:])
    assert sum(outcome.wait_s > 0 for outcome in outcomes) == 2


async def test_the_slower_one_is_no_failure_to_the_breaker() -> None:
    breaker = CircuitBreaker(1)
    replica = Replica(10, 1, 10, 1)

    @tool(idempotent=True, policy=Policy(hedge_after=2, breaker=breaker))
    async def disguises() -> int:
        replica.now.began.append(0)
        try:
            await anyio.sleep(replica.now.seconds[len(replica.now.began) - 1])
        except BaseException:  # noqa: BLE001
            raise OSError("interrupted") from None
        return 1

    async with ServiceManager() as manager:
        assert (await manager.outcome(replica.using(hedge_after=2, breaker=breaker))).value == 1
        replica.now.began.clear()
        assert (await manager.outcome(disguises)).value == 1
    statistics = breaker.statistics()
    assert (statistics.state, statistics.failures, statistics.probes) == ("closed", 0, 0)


# --- cancellation


@pytest.mark.parametrize("how", ["call", "scope", "native"])
@pytest.mark.parametrize("at", [1, 3])
def test_cancellation_reaches_both(how: str, at: float) -> None:
    async def main() -> None:
        if how == "native" and sniffio.current_async_library() == "trio":
            return
        limit = ConcurrencyLimit(4)
        replica = Replica(10, 10)
        hedged = replica.using(hedge_after=2, concurrency=limit)
        async with ServiceManager() as manager:
            if how == "call":
                call = manager.submit(hedged)
                await anyio.sleep(at)
                call.cancel("enough")
                assert (await call.outcome()).status == "cancelled"
            elif how == "scope":
                with anyio.move_on_after(at) as scope:
                    await manager.execute(hedged)
                assert scope.cancelled_caught
            else:
                import asyncio

                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(manager.execute(hedged), at)
            assert anyio.current_time() == pytest.approx(at)
            assert [end for _, end in replica.now.ended] == ["cancelled"] * len(replica.now.began)
            assert len(replica.now.began) == (1 if at < 2 else 2)
        assert_clean(manager, limit)

    explore(main, seeds=3)


async def test_what_the_slower_one_called_ends_with_it() -> None:
    replica = Replica(10, 1)
    ended: list[str] = []

    @tool
    async def inner(name: str, seconds: float) -> str:
        try:
            await anyio.sleep(seconds)
        except BaseException:
            ended.append(f"{name} cancelled")
            raise
        ended.append(f"{name} ended")
        return name

    @tool(idempotent=True, policy=Policy(hedge_after=2))
    async def outer() -> str:
        call: Any = current_call.get()
        background = current().submit(inner, name=f"background {call.attempt}", seconds=100)
        assert background.parent is call
        return str(await current().execute(inner, name=f"inner {call.attempt}", seconds=10 if call.attempt == 1 else 1))

    async with ServiceManager(evidence=(sink := MemorySink())) as manager:
        call = manager.submit(outer)
        assert await call.result() == "inner 2"
        await anyio.sleep(0.1)
        assert sorted(ended) == ["background 1 cancelled", "inner 1 cancelled", "inner 2 ended"]
        assert [one.parent for one in manager.calls.values()] == [call]  # as of any call: what it left running goes on
    parents = {record["parent_id"] for record in sink.records if record.get("tool") == "inner"}
    assert parents == {call.id}
    assert replica.now.began == []


async def test_a_tool_that_cancels_itself_has_failed() -> None:
    if sniffio.current_async_library() == "trio":
        return
    import asyncio

    @tool(idempotent=True, policy=Policy(hedge_after=2))
    async def suicidal() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.sleep(1)

    async with ServiceManager() as manager:
        outcome = await manager.outcome(suicidal)
        assert outcome.status == "failed"
        assert isinstance(outcome.error.__cause__, asyncio.CancelledError)  # type: ignore[union-attr]
        assert (await manager.outcome(Replica(0).using(hedge_after=2))).ok


async def test_a_scope_that_a_tool_leaves_open_ends_with_its_attempt() -> None:
    @tool(idempotent=True, policy=Policy(hedge_after=2))
    async def leaks() -> int:
        anyio.CancelScope().__enter__()
        await anyio.sleep(1)
        return 1

    async with ServiceManager(evidence=(sink := MemorySink())) as manager:
        assert await manager.execute(leaks) == 1
        await anyio.sleep(1)
    assert "scope.leaked" in [record["event"] for record in sink.records]


async def test_exits_end_the_session() -> None:
    @tool(idempotent=True, policy=Policy(hedge_after=1))
    async def exits() -> None:
        await anyio.sleep(2)
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        async with ServiceManager() as manager:
            await manager.outcome(exits)
            await anyio.sleep(100)


async def test_an_exit_of_the_slower_one_is_not_lost() -> None:
    @tool(idempotent=True, policy=Policy(hedge_after=1))
    async def exits() -> int:
        call: Any = current_call.get()
        if call.attempt == 2:
            return 2
        try:
            await anyio.sleep(100)
        except BaseException:  # noqa: BLE001
            raise SystemExit(3) from None
        return 1

    with pytest.raises(SystemExit):
        async with ServiceManager() as manager:
            await manager.outcome(exits)
            await anyio.sleep(100)


# --- threads


async def test_an_abandoned_thread_that_was_slower_keeps_its_token_until_it_ends() -> None:
    limit = ConcurrencyLimit(2)
    go_on = threading.Event()
    began: list[int] = []

    def blocks() -> int:
        began.append(1)
        number = len(began)
        if number == 1:
            go_on.wait(30)
        return number

    hedged = ToolAdapter(
        blocks,
        on_cancel="abandon",
        idempotent=True,
        name="blocks",
        policy=Policy(hedge_after=0.1, concurrency=limit),
    )
    async with ServiceManager(evidence=(sink := MemorySink())) as manager:
        outcome = await manager.outcome(hedged)
        assert (outcome.value, outcome.attempts) == (2, 2)
        assert manager.statistics().threads_abandoned == 1
        assert limit.statistics().borrowed == 1
        go_on.set()
        while manager.statistics().threads_abandoned:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    end = next(record for record in sink.records if record["event"] == "call.succeeded")
    assert (end["abandoned"], end["winner"]) == (True, 2)
    left = next(record for record in sink.records if record["event"] == "thread.abandoned")
    assert (left["call_id"], left["attempt"]) == (end["call_id"], 1)
    assert_clean(manager, limit)


async def test_a_cooperative_thread_that_was_slower_sees_that_it_is_to_stop() -> None:
    stopped = threading.Event()
    began: list[int] = []

    def works() -> int:
        began.append(1)
        number = len(began)
        while number == 1:
            try:
                check_cancelled()
            except BaseException:
                stopped.set()
                raise
        return number

    hedged = ToolAdapter(works, on_cancel="abandon", idempotent=True, name="works", policy=Policy(hedge_after=0.1))
    async with ServiceManager(abandoned="join") as manager:
        assert await manager.execute(hedged) == 2
    assert stopped.wait(10)


async def test_where_both_threads_still_run_it_is_not_tried_again() -> None:
    go_on = threading.Event()
    began: list[int] = []

    def hangs() -> None:
        began.append(1)
        go_on.wait(30)

    hedged = ToolAdapter(
        hangs,
        on_cancel="abandon",
        idempotent=True,
        name="hangs",
        policy=Policy(hedge_after=0.05, timeout=0.2, retry=Retry(3, wait=0)),
    )
    async with ServiceManager() as manager:
        outcome = await manager.outcome(hedged)
        assert (outcome.status, outcome.attempts, len(began)) == ("timed_out", 2, 2)
        assert manager.statistics().threads_abandoned == 2
        go_on.set()


# --- what it is refused for


@tool
async def not_idempotent() -> None: ...


@tool(idempotent=True)
def waits() -> None: ...


@tool(idempotent=True, offload="inline")
def inline() -> None: ...


MISUSE: list[Any] = [
    (lambda: not_idempotent.using(hedge_after=1), "run twice at once; .* idempotent=True"),
    (lambda: tool(name="a", policy=Policy(hedge_after=1))(lambda: None), "idempotent=True"),
    (lambda: waits.using(hedge_after=1), "on_cancel='wait' .* use on_cancel='abandon'"),
    (lambda: inline.using(hedge_after=1), "offload='inline' blocks"),
    (lambda: Phase("a", waits, policy=Policy(hedge_after=1)), "on_cancel='abandon'"),
    (
        lambda: ToolAdapter(
            factory=dict, method="copy", params=[], instances="dedicated", idempotent=True, policy=Policy(hedge_after=1)
        ),
        "one instance",
    ),
    (
        lambda: ToolAdapter(
            str, params=[], instances="serial", on_cancel="abandon", idempotent=True, policy=Policy(hedge_after=1)
        ),
        "one instance",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "says"), MISUSE)
def test_what_cannot_be_hedged_is_told_where_it_is_asked_for(make: Any, says: str) -> None:
    with pytest.raises(TypeError, match=f"cannot have hedge_after: .*{says}"):
        make()


async def test_a_class_that_cannot_be_hedged_is_told_before_it_runs() -> None:
    class Forgot(KGASTool):
        policy = Policy(hedge_after=1)

        async def execute_async(self) -> None:
            raise AssertionError

    async with ServiceManager() as manager:
        with pytest.raises(TypeError, match="'Forgot' cannot have hedge_after"):
            await manager.execute(Forgot())


# --- with the rest


async def test_progress_and_states_are_the_calls() -> None:
    @tool(idempotent=True, policy=Policy(hedge_after=2))
    async def tells() -> None:
        call: Any = current_call.get()
        progress(call.attempt)
        await anyio.sleep(10 if call.attempt == 1 else 1)
        progress(10 * call.attempt)

    async with ServiceManager() as manager:
        call = manager.submit(tells)
        events = [event async for event in call.events()]
        assert [event.done for event in events if hasattr(event, "done")] == [1, 2, 20]
        states = [event.status for event in events if hasattr(event, "status")]
        assert states[-2:] == ["running", "succeeded"]


async def test_in_a_map_others_work_meanwhile() -> None:
    replica = Replica(*[10, 1] * 5)
    async with ServiceManager() as manager:
        async with manager.map(replica.using(hedge_after=2), range(5), arg="x", in_flight=5) as outcomes:
            found = [outcome async for outcome in outcomes]
        assert all(outcome.ok for outcome in found)
        assert anyio.current_time() <= 13


async def test_with_a_cache_and_a_fallback() -> None:
    replica = Replica(10, 1)
    failing = Replica(3, 3, errors=(OSError(), OSError()))
    async with ServiceManager() as manager:
        cached = replica.using(hedge_after=2, cache=Cache(60))
        assert [(await manager.outcome(cached)).status for _ in range(2)] == ["succeeded", "reused"]
        outcome = await manager.outcome(failing.using(name="failing", hedge_after=1, fallback=cached))
        assert (outcome.value, outcome.tool) == (1, "Replica")


async def test_what_it_calls_is_nested_in_the_call_and_not_only_in_an_attempt() -> None:
    depths: list[int] = []

    @tool(idempotent=True, policy=Policy(hedge_after=5, cache=60))
    async def calls_itself(x: int) -> int:
        depths.append(len(depths))
        # With the same inputs: it would wait for its own result.
        return 0 if len(depths) == 3 else 1 + await current().execute(calls_itself, x=x)  # type: ignore[no-any-return]

    @tool(idempotent=True, policy=Policy(hedge_after=5))
    async def replaces_itself() -> Any:
        return await current().options(name="me", replace=True).execute(calls_itself, x=2)

    async with ServiceManager() as manager:
        with anyio.fail_after(10):
            assert await manager.execute(calls_itself, x=1) == 2
            outcome = await manager.options(name="me").outcome(replaces_itself)
        assert "it cannot be replaced from within" in str(outcome.error)


def test_contention_leaves_nothing_out() -> None:
    async def main() -> None:
        limit = ConcurrencyLimit(4)
        breaker = CircuitBreaker(50)

        @tool(
            idempotent=True,
            policy=Policy(hedge_after=0.5, concurrency=limit, rate=RateLimit(50, burst=5), breaker=breaker, timeout=2),
        )
        async def sometimes(x: int) -> int:
            call: Any = current_call.get()
            await anyio.sleep(3 if x % 4 == 0 and call.attempt == 1 else 0.3)
            if x % 5 == 0:
                raise OSError("five")
            return x

        async with ServiceManager(seed=1) as manager, anyio.create_task_group() as tasks:
            for x in range(40):
                call = manager.submit(sometimes, x=x)
                if x % 3 == 0:
                    tasks.start_soon(_cancel_later, call, x / 7)
        assert_clean(manager, limit)

    explore(main, seeds=8)


async def _cancel_later(call: Any, seconds: float) -> None:
    await anyio.sleep(seconds)
    call.cancel()

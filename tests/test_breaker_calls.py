"""Circuit breakers on the path of calls: when they refuse, what they count, and that nothing taken stays out."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import sniffio

from kgas_async import (
    CallFailed,
    CallRejected,
    CallTimeout,
    CircuitBreaker,
    CircuitOpen,
    ConcurrencyLimit,
    KGASTool,
    MemorySink,
    Policy,
    RateLimit,
    Retry,
    ServiceManager,
    ToolAdapter,
    current,
    tool,
)
from kgas_async.testing import assert_clean, explore, virtual_backends

from .test_call_context import Lines, lines  # noqa: F401  (a fixture)


@pytest.fixture(params=virtual_backends())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


class Server(KGASTool):
    """Answers as it is told, and counts who is in it; its copies are one server."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.now = SimpleNamespace(seconds=seconds, error=OSError("down"), inside=0, most=0, calls=0)

    async def execute_async(self, x: int = 0) -> int:
        now = self.now
        now.calls += 1
        now.inside += 1
        now.most = max(now.most, now.inside)
        try:
            await anyio.sleep(now.seconds)
            if now.error is not None:
                raise now.error
            return x
        finally:
            now.inside -= 1


async def trip(manager: ServiceManager, server: KGASTool, times: int) -> None:
    for _ in range(times):
        outcome = await manager.outcome(server)  # type: ignore[arg-type]
        assert outcome.status == "failed"


# --- open


async def test_an_open_one_rejects_at_once_and_says_when_to_come_again() -> None:
    breaker = CircuitBreaker(3, recovery=30)
    server = Server()
    async with ServiceManager() as manager:
        guarded = server.using(breaker=breaker)
        await trip(manager, guarded, 3)
        began = anyio.current_time()
        await anyio.sleep(10)
        with pytest.raises(CircuitOpen, match=r"'Server' was not run: its circuit breaker is open.*in 20 s") as caught:
            await manager.execute(guarded)
        assert caught.value.retry_after == pytest.approx(20)
        assert (caught.value.tool, caught.value.attempts) == ("Server", 1)
        assert isinstance(caught.value, CallRejected)
        assert (await manager.outcome(guarded)).status == "rejected"
        assert anyio.current_time() == began + 10
        assert server.now.calls == 3
        assert breaker.statistics().rejected == 2
        assert manager.statistics().tools["Server"].rejected == 2


async def test_it_does_not_wait_for_tokens_to_be_refused() -> None:
    breaker, limit = CircuitBreaker(1, recovery=30), ConcurrencyLimit(1)
    server = Server()
    guarded = server.using(breaker=breaker, concurrency=limit, rate=RateLimit(0.001))
    async with ServiceManager() as manager:
        await trip(manager, guarded, 1)
        async with limit:
            with anyio.fail_after(0):
                outcome = await manager.outcome(guarded)
        assert isinstance(outcome.error, CircuitOpen)


async def test_a_retry_ends_when_it_opens_with_the_last_real_error_as_the_cause() -> None:
    server = Server()
    guarded = server.using(breaker=2, retry=Retry(9, wait=1))
    async with ServiceManager() as manager:
        outcome = await manager.outcome(guarded)
    assert isinstance(outcome.error, CircuitOpen)
    assert outcome.error.__cause__ is server.now.error
    assert server.now.calls == 2


# --- half-open


@pytest.mark.parametrize("probes", [1, 3])
def test_of_a_hundred_callers_exactly_so_many_probe(probes: int) -> None:
    async def main() -> None:
        breaker = CircuitBreaker(1, recovery=30, probes=probes)
        server = Server()
        guarded = server.using(breaker=breaker)
        async with ServiceManager() as manager:
            await trip(manager, guarded, 1)
            await anyio.sleep(30)
            server.now.error, server.now.most, server.now.calls = None, 0, 0
            async with manager.map(guarded, range(100), arg="x", in_flight=100) as outcomes:
                statuses = Counter([outcome.status async for outcome in outcomes])
            assert statuses == {"succeeded": probes, "rejected": 100 - probes}
            assert (server.now.calls, server.now.most) == (probes, probes)
            assert breaker.state == "closed"
            async with manager.map(guarded, range(100), arg="x", in_flight=100) as outcomes:
                assert [outcome.value async for outcome in outcomes] == list(range(100))

    explore(main, seeds=6)


async def test_who_waited_for_tokens_and_finds_the_probes_taken_gives_them_back() -> None:
    breaker, limit, rate = CircuitBreaker(1, recovery=30), ConcurrencyLimit(2), RateLimit(1, burst=10)
    server = Server()
    guarded = server.using(breaker=breaker, concurrency=limit, rate=rate)
    async with ServiceManager() as manager:
        await trip(manager, guarded, 1)
        await anyio.sleep(30)
        taken = rate.statistics().taken
        for _ in range(2):
            await limit.acquire()
        calls = [manager.submit(guarded) for _ in range(2)]
        await anyio.sleep(1)
        assert limit.statistics().waiting == 2  # none of them was refused at the door
        for _ in range(2):
            limit.release()
        await anyio.sleep(0.5)
        assert server.now.inside == 1
        assert limit.statistics().borrowed == 1
        assert rate.statistics().taken == taken + 1
        outcomes = [await call.outcome() for call in calls]
    assert sorted(outcome.status for outcome in outcomes) == ["failed", "rejected"]
    assert_clean(manager, limit, rate)


async def test_a_result_of_a_call_that_was_let_in_before_does_not_count() -> None:
    breaker = CircuitBreaker(1, recovery=5)
    slow, quick = Server(6.5), Server(1)
    async with ServiceManager() as manager:
        late = manager.submit(slow.using(name="slow", breaker=breaker))
        await trip(manager, quick.using(breaker=breaker), 1)  # open from 1 to 6
        await anyio.sleep(5)
        probe = manager.submit(quick.using(breaker=breaker))
        quick.now.error = None
        assert (await late.outcome()).status == "failed"  # at 6.5, while the probe is under way
        assert breaker.state == "half_open"
        await probe.result()
        assert breaker.state == "closed"


# --- what counts


@pytest.mark.parametrize("how", ["call", "scope", "native"])
def test_cancellation_does_not_count_and_gives_the_probe_to_another(how: str) -> None:
    async def main() -> None:
        if how == "native" and sniffio.current_async_library() == "trio":
            return
        breaker = CircuitBreaker(1, recovery=30)
        server = Server()
        guarded = server.using(breaker=breaker)
        async with ServiceManager() as manager:
            for _ in range(3):
                await _cancelled(manager, guarded, how)
            assert breaker.state == "closed"
            await trip(manager, guarded, 1)
            await anyio.sleep(30)
            await _cancelled(manager, guarded, how)
            assert breaker.state == "half_open"
            assert breaker.statistics().probes == 0
            server.now.error = None
            await manager.execute(guarded)
            assert breaker.state == "closed"

    explore(main, seeds=3)


async def _cancelled(manager: ServiceManager, guarded: Server, how: str) -> None:
    if how == "call":
        call = manager.submit(guarded)
        await anyio.sleep(0.5)
        call.cancel()
        await call.wait()
    elif how == "scope":
        with anyio.move_on_after(0.5):
            await manager.execute(guarded)
    else:
        import asyncio

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(manager.execute(guarded), 0.5)


async def test_an_error_that_a_tool_makes_of_its_cancellation_does_not_count() -> None:
    @tool(policy=Policy(breaker=(breaker := CircuitBreaker(1))))
    async def disguises() -> None:
        try:
            await anyio.sleep(10)
        except BaseException:  # noqa: BLE001
            raise OSError("interrupted") from None

    async with ServiceManager() as manager:
        call = manager.submit(disguises)
        await anyio.sleep(1)
        call.cancel()
        assert (await call.outcome()).status == "cancelled"
        with anyio.move_on_after(1):
            await manager.outcome(disguises)
        if sniffio.current_async_library() == "asyncio":
            import asyncio

            with suppress(TimeoutError):  # a tool that swallows its cancellation has swallowed ours
                await asyncio.wait_for(manager.outcome(disguises), 1)
        assert breaker.state == "closed"
        assert breaker.statistics().failures == 0


async def test_what_never_ran_does_not_count() -> None:
    breaker, limit = CircuitBreaker(1), ConcurrencyLimit(1)
    server = Server()
    guarded = server.using(breaker=breaker, concurrency=limit, deadline=1)

    @tool(policy=Policy(breaker=breaker, rate=RateLimit(1, cost=lambda inputs: 5)))
    async def too_dear() -> None: ...

    @tool(policy=Policy(breaker=breaker))
    async def nests() -> None:
        await current().execute(too_dear)

    async with ServiceManager(threads=1) as manager:
        assert (await manager.outcome(guarded, x="no number")).status == "failed"  # type: ignore[arg-type]
        async with limit:
            assert (await manager.outcome(guarded)).status == "timed_out"  # waiting for its token
        assert (await manager.outcome(too_dear)).status == "rejected"
        assert (await manager.outcome(nests)).status == "failed"  # what it calls was refused
        go_on = threading.Event()
        busy = manager.submit(tool(lambda: go_on.wait(20), name="busy"))  # type: ignore[call-overload]
        await anyio.sleep(1)
        in_thread = tool(lambda: None, name="in_thread", policy=Policy(breaker=breaker, deadline=1))  # type: ignore[call-overload]
        assert (await manager.outcome(in_thread)).status == "timed_out"  # waiting for its thread
        go_on.set()
        await busy.wait()
        assert breaker.state == "closed"
        assert breaker.statistics().failures == 0


@pytest.mark.parametrize("field", ["timeout", "deadline"])
@pytest.mark.parametrize("how", ["async", "wait", "abandon"])
async def test_a_tool_that_does_not_answer_in_time_has_failed(field: str, how: Any) -> None:
    breaker = CircuitBreaker(1)
    go_on = threading.Event()
    hangs: Any = Server(10)
    if how != "async":

        def sleep() -> None:
            go_on.wait(0.6 if how == "wait" else 20)

        hangs = ToolAdapter(sleep, on_cancel=how, name="hangs")
    guarded = hangs.using(breaker=breaker, **{field: 0.05})
    async with ServiceManager() as manager:
        outcome = await manager.outcome(guarded)
        assert isinstance(outcome.error, CallTimeout)
        assert breaker.state == "open"
        go_on.set()
    assert breaker.statistics().opened == 1  # the end of an abandoned thread is nobody's result


@pytest.mark.parametrize("field", ["timeout", "deadline"])
async def test_no_answer_in_time_is_a_failure_whatever_errors_are_named(field: str) -> None:
    breaker = CircuitBreaker(1, recovery=5, on=ConnectionError)
    server = Server(10)
    guarded = server.using(breaker=breaker, **{field: 1.0})
    async with ServiceManager(log=None) as manager:
        assert (await manager.outcome(guarded)).status == "timed_out"
        assert breaker.state == "open"
        await anyio.sleep(5)
        assert (await manager.outcome(guarded)).status == "timed_out"
        assert (breaker.state, breaker.statistics().opened) == ("open", 2)  # a probe that hangs does not close it


async def test_other_errors_are_answers() -> None:
    breaker = CircuitBreaker(2, on=OSError)
    server = Server()
    guarded = server.using(breaker=breaker)
    async with ServiceManager() as manager:
        await trip(manager, guarded, 1)
        server.now.error = KeyError("no such document")
        await trip(manager, guarded, 1)
        server.now.error = OSError("down")
        await trip(manager, guarded, 1)
        assert breaker.state == "closed"
        await trip(manager, guarded, 1)
        assert breaker.state == "open"


async def test_a_slow_call_is_a_failure_though_its_value_counts() -> None:
    breaker = CircuitBreaker(2, slow=2.0)
    server = Server(1)
    server.now.error = None
    guarded = server.using(breaker=breaker)
    async with ServiceManager(evidence=(sink := MemorySink())) as manager:
        assert await manager.execute(guarded, x=1) == 1
        server.now.seconds = 3
        assert [await manager.execute(guarded, x=x) for x in (2, 3)] == [2, 3]
        assert breaker.state == "open"
    assert opened(sink)[0]["why"] == "2 failures in a row; the last: slow, 3 s"


async def test_an_answer_that_is_an_error_may_be_slow_too() -> None:
    breaker = CircuitBreaker(1, slow=1.0, on=ConnectionError)
    server = Server(2.0)
    server.now.error = KeyError("no such document")
    guarded = server.using(breaker=breaker)
    async with ServiceManager(log=None) as manager:
        assert (await manager.outcome(guarded)).status == "failed"
    assert breaker.state == "open"


@pytest.mark.parametrize("slow", [0.1, 30.0])
async def test_the_wait_for_a_thread_makes_no_call_slow(slow: float) -> None:
    breaker = CircuitBreaker(1, slow=slow)
    gates = [threading.Event(), threading.Event()]

    @tool
    def blocks(n: int) -> None:
        gates[n].wait(20)

    async with ServiceManager(threads=1) as manager:
        first = manager.submit(blocks, n=0)
        await anyio.sleep(1)
        second = manager.submit(blocks.using(name="second", breaker=breaker), n=1)
        await anyio.sleep(10)  # the second waits for the thread of the first
        gates[1].set()
        gates[0].set()
        await first.result()
        await second.result()
        assert breaker.state == "closed"


async def test_what_error_when_calls_an_error_is_judged_by_it() -> None:
    breaker = CircuitBreaker(1, on=ConnectionError)
    answers: list[Any] = [ValueError("bad"), ConnectionError("down")]
    adapted = ToolAdapter(
        lambda: answers.pop(0), error_when=lambda raw: raw, name="answers", policy=Policy(breaker=breaker)
    )
    async with ServiceManager() as manager:
        await trip(manager, adapted, 1)
        assert breaker.state == "closed"
        await trip(manager, adapted, 1)
        assert breaker.state == "open"


async def test_a_filter_that_raises_fails_its_call_and_nothing_else() -> None:
    def broken(error: BaseException) -> bool:
        raise RuntimeError("broken filter")

    breaker = CircuitBreaker(1, on=broken)
    limit = ConcurrencyLimit(1)
    server = Server()
    guarded = server.using(breaker=breaker, concurrency=limit)
    async with ServiceManager() as manager:
        outcome = await manager.outcome(guarded)
        assert isinstance(outcome.error, CallFailed)
        assert "broken filter" in str(outcome.error)
        assert breaker.statistics().probes == 0
    assert_clean(manager, limit)


# --- whose it is


async def test_a_number_makes_one_per_tool_name_and_manager() -> None:
    one, other = Server(), Server()
    async with ServiceManager() as manager:
        await trip(manager, one.using(breaker=2), 1)
        await trip(manager, one.using(breaker=2, timeout=9), 1)  # a copy of the same name
        assert (await manager.outcome(one.using(breaker=2))).status == "rejected"
        assert (await manager.outcome(other.using(name="other", breaker=2))).status == "failed"
        assert (await manager.outcome(one.using(breaker=True))).status == "failed"  # 5, by a breaker of its own
    async with ServiceManager() as manager:
        assert (await manager.outcome(one.using(breaker=2))).status == "failed"


async def test_an_object_is_shared_by_tools_and_managers() -> None:
    breaker = CircuitBreaker(2)
    one, other = Server().using(breaker=breaker), Server().using(name="other", breaker=breaker)
    async with ServiceManager() as first, ServiceManager() as second:
        await trip(first, one, 1)
        await trip(second, other, 1)
        for manager in (first, second):
            for guarded in (one, other):
                assert (await manager.outcome(guarded)).status == "rejected"


def test_it_goes_from_loop_to_loop_with_its_time() -> None:
    breaker = CircuitBreaker(1, recovery=3600)
    server = Server(0)

    async def fails() -> None:
        async with ServiceManager() as manager:
            await trip(manager, server.using(breaker=breaker), 1)

    async def is_refused() -> None:
        async with ServiceManager() as manager:
            outcome = await manager.outcome(server.using(breaker=breaker))
            assert isinstance(outcome.error, CircuitOpen)
            assert outcome.error.retry_after == pytest.approx(3600, abs=60)

    anyio.run(fails, backend="asyncio")
    anyio.run(is_refused, backend="trio")


# --- on record


def opened(sink: MemorySink) -> list[dict[str, Any]]:
    return [record for record in sink.records if record["event"].startswith("breaker.")]


async def test_its_moves_are_in_the_evidence_with_why() -> None:
    server = Server()
    async with ServiceManager(evidence=(sink := MemorySink())) as manager:
        guarded = server.using(breaker=CircuitBreaker(2, recovery=10, name="graph"))
        await trip(manager, guarded, 2)
        await anyio.sleep(10)
        await trip(manager, guarded, 1)
        await anyio.sleep(10)
        server.now.error = None
        await manager.execute(guarded)
    assert [(record["event"], record["why"]) for record in opened(sink)] == [
        ("breaker.opened", "2 failures in a row; the last: OSError"),
        ("breaker.half_open", "10 s have passed"),
        ("breaker.opened", "a probe failed: OSError"),
        ("breaker.half_open", "10 s have passed"),
        ("breaker.closed", "a probe succeeded"),
    ]
    ids = {record["call_id"] for record in sink.records if record["event"] == "call.failed"}
    first = opened(sink)[0]
    assert (first["breaker"], first["tool"], first["attempt"]) == ("graph", "Server", 1)
    assert first["call_id"] in ids


async def test_its_moves_and_a_fallback_are_told_to_structlog(lines: Lines) -> None:  # noqa: F811
    server = Server()
    spare = tool(lambda x: x, params=["x"], name="spare")  # type: ignore[call-overload]
    async with ServiceManager(log="events") as manager:
        assert await manager.execute(server.using(breaker=1, fallback=spare), x=1) == 1
        assert await manager.execute(server.using(breaker=1, fallback=spare), x=2) == 2
    told = [(line["event"], line["level"]) for line in lines if line["event"] in ("breaker.opened", "call.fell_back")]
    assert told == [("breaker.opened", "warning"), ("call.fell_back", "warning"), ("call.fell_back", "warning")]


def test_contention_leaves_no_permit_and_no_token_out() -> None:
    async def main() -> None:
        breaker, limit = CircuitBreaker(3, recovery=5, probes=2), ConcurrencyLimit(4)

        @tool(policy=Policy(breaker=breaker, concurrency=limit, rate=RateLimit(20, burst=4), timeout=1, retry=2))
        async def sometimes(x: int) -> int:
            await anyio.sleep(0.1 if x % 3 else 2)
            if x % 7 == 0:
                raise OSError("seven")
            return x

        async with ServiceManager(seed=1) as manager, anyio.create_task_group() as tasks:
            for x in range(60):
                call = manager.submit(sometimes, x=x)
                if x % 5 == 0:
                    tasks.start_soon(_cancel_later, call, x / 20)
        assert breaker.statistics().probes == 0
        assert_clean(manager, limit)

    explore(main, seeds=8)


async def _cancel_later(call: Any, seconds: float) -> None:
    await anyio.sleep(seconds)
    call.cancel()

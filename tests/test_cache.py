"""The cache on the path of calls: values used again, one flight for those that come together, stores that fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import sniffio
from anyio.lowlevel import checkpoint

from kgas_async import (
    Batcher,
    Cache,
    CallFailed,
    CallRejected,
    CallTimeout,
    CircuitOpen,
    ConcurrencyLimit,
    InvalidInputs,
    KGASTool,
    MemorySink,
    MemoryStore,
    Phase,
    Pipeline,
    Policy,
    RateLimit,
    Retry,
    ServiceManager,
    ToolAdapter,
    current,
    tool,
)
from kgas_async._context import current_call
from kgas_async.testing import assert_clean, explore, virtual_backends


@pytest.fixture(params=virtual_backends())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


class Look(KGASTool):
    """Looks something up, slowly, and counts; its copies are one."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.now = SimpleNamespace(seconds=seconds, error=None, calls=Counter(), inside=0, most=0)

    async def execute_async(self, key: str, page: int = 0) -> list[str]:
        now = self.now
        now.calls[key] += 1
        now.inside += 1
        now.most = max(now.most, now.inside)
        try:
            await anyio.sleep(now.seconds)
            if now.error is not None:
                raise now.error
            return [key, str(page)]
        finally:
            now.inside -= 1


# --- used again


async def test_a_value_is_used_again_until_its_time() -> None:
    look = Look()
    cached = look.using(cache=60)
    async with ServiceManager() as manager:
        first = await manager.outcome(cached, key="a")
        assert (first.status, first.ok, first.attempts) == ("succeeded", True, 1)
        await anyio.sleep(59)
        again = await manager.outcome(cached, key="a")
        assert (again.status, again.ok, again.value, again.attempts, again.run_s) == ("reused", True, ["a", "0"], 0, 0)
        assert again.unwrap() is first.value
        assert await manager.execute(cached, key="a") == ["a", "0"]
        await anyio.sleep(1)
        assert (await manager.outcome(cached, key="a")).status == "succeeded"
        assert look.now.calls == {"a": 2}
        statistics = manager.statistics().tools["Look"]
        assert (statistics.calls, statistics.succeeded, statistics.reused) == (4, 2, 2)
        assert statistics.success_rate == 1.0


async def test_other_inputs_tools_and_versions_are_other_values() -> None:
    look = Look()
    cache = Cache(60)
    newer = look.using(cache=cache)
    newer.version = "2"
    async with ServiceManager() as manager:
        for one in (look.using(cache=cache), newer, look.using(cache=cache, name="other")):
            for inputs in ({"key": "a"}, {"key": "b"}, {"key": "a", "page": 1}):
                assert (await manager.outcome(one, **inputs)).status == "succeeded"  # type: ignore[arg-type]
                assert (await manager.outcome(one, **inputs)).status == "reused"  # type: ignore[arg-type]
    statistics = cache.statistics()
    assert (statistics.hits, statistics.misses, statistics.shared, statistics.errors) == (9, 9, 0, 0)


async def test_inputs_count_as_they_were_coerced() -> None:
    @tool(policy=Policy(cache=60))
    async def double(x: int) -> int:
        return 2 * x

    async with ServiceManager() as manager:
        assert await manager.execute(double, x=2) == 4
        assert (await manager.outcome(double, x="2")).status == "reused"  # type: ignore[arg-type]
        assert isinstance((await manager.outcome(double, x="two")).error, InvalidInputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, 0, [], "", False])
async def test_a_value_that_is_nothing_is_a_value(value: object) -> None:
    @tool(policy=Policy(cache=60))
    async def gives() -> Any:
        return value

    async with ServiceManager() as manager:
        outcomes = [await manager.outcome(gives) for _ in range(2)]
    assert [(outcome.status, outcome.value) for outcome in outcomes] == [("succeeded", value), ("reused", value)]


async def test_it_takes_no_token_no_thread_and_no_breaker() -> None:
    limit, rate = ConcurrencyLimit(1), RateLimit(0.1, burst=1)
    calls = []

    @tool(policy=Policy(cache=60, concurrency=limit, rate=rate, breaker=1))
    def look(x: int) -> int:
        calls.append(x)
        if x < 0:
            raise OSError
        return x

    async with ServiceManager() as manager:
        assert await manager.execute(look, x=1) == 1
        await anyio.sleep(10)
        assert (await manager.outcome(look, x=-1)).status == "failed"  # opens the breaker
        async with limit:
            with anyio.fail_after(0):
                assert await manager.execute(look, x=1) == 1
        assert isinstance((await manager.outcome(look, x=2)).error, CircuitOpen)
        assert calls == [1, -1]
        assert manager.statistics().tools["look"].threads_used == 2


async def test_a_number_is_per_tool_name_and_manager_an_object_is_shared() -> None:
    look = Look()
    cache = Cache(None)
    async with ServiceManager() as one, ServiceManager() as other:
        for shared in (60, cache):
            assert (await one.outcome(look.using(cache=shared), key="a")).status == "succeeded"
            assert (await one.outcome(look.using(cache=shared, timeout=9), key="a")).status == "reused"
        assert (await other.outcome(look.using(cache=60), key="a")).status == "succeeded"
        await anyio.sleep(10**6)
        assert (await other.outcome(look.using(cache=cache), key="a")).status == "reused"


def test_an_object_goes_from_loop_to_loop() -> None:
    cached = Look(0).using(cache=Cache(3600))

    async def main(status: str) -> None:
        async with ServiceManager() as manager:
            assert (await manager.outcome(cached, key="a")).status == status

    anyio.run(main, "succeeded", backend="asyncio")
    anyio.run(main, "reused", backend="trio")


# --- one flight


def test_of_those_that_come_together_one_runs() -> None:
    async def main() -> None:
        look = Look()
        cached = look.using(cache=Cache(60))
        keys = [str(n % 5) for n in range(50)]
        async with (
            ServiceManager(evidence=(sink := MemorySink())) as manager,
            manager.map(cached, keys, arg="key", in_flight=50) as outcomes,
        ):
            found = [outcome async for outcome in outcomes]
        assert [outcome.value for outcome in found] == [[str(n % 5), "0"] for n in range(50)]
        assert Counter(outcome.status for outcome in found) == {"succeeded": 5, "reused": 45}
        assert look.now.calls == {str(n): 1 for n in range(5)}
        ends = [
            record for record in sink.records if record.get("status") in ("succeeded", "reused") and "tool" in record
        ]
        ran = {record["call_id"] for record in ends if record["status"] == "succeeded"}
        shared = [record["reused_from"] for record in ends if record["status"] == "reused"]
        assert len(shared) == 45
        assert set(shared) == ran

    explore(main, seeds=5)


async def test_with_zero_seconds_only_those_that_wait_share() -> None:
    look = Look()
    cached = look.using(cache=0)
    async with ServiceManager() as manager:
        calls = [manager.submit(cached, key="a") for _ in range(3)]
        assert Counter([(await call.outcome()).status for call in calls]) == {"succeeded": 1, "reused": 2}
        assert (await manager.outcome(cached, key="a")).status == "succeeded"


async def test_a_failure_is_not_kept_and_goes_to_those_who_waited() -> None:
    look = Look()
    look.now.error = OSError("down")
    cached = look.using(cache=60, retry=Retry(2, wait=1))
    async with ServiceManager(evidence=(sink := MemorySink())) as manager:
        calls = [manager.submit(cached, key="a") for _ in range(4)]
        outcomes = [await call.outcome() for call in calls]
        assert {outcome.status for outcome in outcomes} == {"failed"}
        errors: list[Any] = [outcome.error for outcome in outcomes]
        assert len({id(error) for error in errors}) == 4
        assert [error.call_id for error in errors] == [call.id for call in calls]
        assert all(isinstance(error, CallFailed) and error.__cause__ is look.now.error for error in errors)
        assert sorted(outcome.attempts for outcome in outcomes) == [0, 0, 0, 2]
        assert look.now.calls == {"a": 2}
        look.now.error = None
        assert (await manager.outcome(cached, key="a")).status == "succeeded"
    assert Counter(record["event"] for record in sink.records)["call.failed"] == 4


async def test_a_timeout_goes_to_those_who_waited() -> None:
    cached = Look(10).using(cache=60, timeout=1)
    async with ServiceManager() as manager:
        calls = [manager.submit(cached, key="a") for _ in range(3)]
        outcomes = [await call.outcome() for call in calls]
        assert anyio.current_time() == pytest.approx(1)
    assert {outcome.status for outcome in outcomes} == {"timed_out"}
    for call, outcome in zip(calls, outcomes, strict=True):
        assert isinstance(outcome.error, CallTimeout)
        assert outcome.error.call_id == call.id


@pytest.mark.parametrize("others", [{"timeout": None}, {"retry": 2}, {"fallback": tool(lambda word: 0, name="other")}])
async def test_who_would_try_otherwise_does_not_fail_with_the_one_that_ran(others: dict[str, Any]) -> None:
    began: list[float] = []

    @tool(policy=Policy(cache=Cache(60), timeout=1.0))
    async def look(word: str) -> int:
        began.append(anyio.current_time())
        await anyio.sleep(2 if len(began) == 1 or "timeout" in others else 0)
        return len(word)

    async with ServiceManager(log=None) as manager:
        first = manager.submit(look, word="abc")
        await anyio.wait_all_tasks_blocked()
        alike, other = manager.submit(look, word="abc"), manager.submit(look.using(**others), word="abc")
        assert [(await call.outcome()).status for call in (first, alike, other)] == ["timed_out"] * 2 + ["succeeded"]
    assert len(began) == 2


@pytest.mark.parametrize("how", ["call", "scope", "native"])
def test_where_the_one_that_runs_is_cancelled_another_runs(how: str) -> None:
    async def main() -> None:
        if how == "native" and sniffio.current_async_library() == "trio":
            return
        look = Look(10)
        cached = look.using(cache=60)
        async with ServiceManager() as manager, anyio.create_task_group() as tasks:
            tasks.start_soon(_cancelled_at_5, manager, cached, how)
            await anyio.sleep(1)
            calls = [manager.submit(cached, key="a") for _ in range(3)]
            await anyio.sleep(1)
            calls[1].cancel()
            outcomes = [await call.outcome() for call in calls]
            assert anyio.current_time() == pytest.approx(15)
            assert sorted(outcome.status for outcome in outcomes) == ["cancelled", "reused", "succeeded"]
            assert (look.now.calls, look.now.most) == ({"a": 2}, 1)

    explore(main, seeds=4)


async def _cancelled_at_5(manager: ServiceManager, cached: Look, how: str) -> None:
    if how == "call":
        call = manager.submit(cached, key="a")
        await anyio.sleep(5)
        call.cancel()
    elif how == "scope":
        with anyio.move_on_after(5):
            await manager.execute(cached, key="a")
    else:
        import asyncio

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(manager.execute(cached, key="a"), 5)


async def test_a_deadline_is_each_ones_own() -> None:
    look = Look(10)
    cache = Cache(60)
    async with ServiceManager() as manager:
        hasty = manager.submit(look.using(cache=cache, deadline=5), key="a")
        await anyio.sleep(1)
        waits = manager.submit(look.using(cache=cache), key="a")
        waits_less = manager.submit(look.using(cache=cache, deadline=3), key="a")
        assert (await waits_less.outcome()).status == "timed_out"
        assert anyio.current_time() == pytest.approx(4)
        assert (await hasty.outcome()).status == "timed_out"
        assert anyio.current_time() == pytest.approx(5)
        assert (await waits.outcome()).status == "succeeded"  # it ran itself from then on
        assert anyio.current_time() == pytest.approx(15)
        assert not manager._opened().cache_waits


async def test_where_the_one_that_runs_is_rejected_the_others_are_by_themselves() -> None:
    limit = RateLimit(1, cost=lambda inputs: 5)
    cached = Look().using(cache=60, rate=limit)
    async with ServiceManager() as manager:
        calls = [manager.submit(cached, key="a") for _ in range(3)]
        outcomes = [await call.outcome() for call in calls]
        assert {outcome.status for outcome in outcomes} == {"rejected"}
        assert [outcome.error.call_id for outcome in outcomes] == [call.id for call in calls]  # type: ignore[union-attr]
        assert not manager._opened().states["Look"].flights


async def test_what_a_fallback_gave_is_shared_and_not_kept() -> None:
    look = Look()
    look.now.error = OSError("down")
    spare = Look(0).using(name="spare")
    cached = look.using(cache=60, fallback=spare)
    async with ServiceManager() as manager:
        calls = [manager.submit(cached, key="a") for _ in range(2)]
        outcomes = [await call.outcome() for call in calls]
        assert [outcome.value for outcome in outcomes] == [["a", "0"]] * 2
        assert [outcome.tool for outcome in outcomes] == ["spare", "spare"]
        assert sorted(outcome.status for outcome in outcomes) == ["reused", "succeeded"]
        look.now.error = None
        outcome = await manager.outcome(cached, key="a")
        assert (outcome.status, outcome.tool) == ("succeeded", "Look")


# --- what can be read but once


async def test_an_iterator_is_neither_kept_nor_shared() -> None:
    @tool(policy=Policy(cache=60))
    async def lines(x: int) -> Any:
        await anyio.sleep(1)
        return iter(range(x))

    async with ServiceManager() as manager:
        calls = [manager.submit(lines, x=3) for _ in range(3)]
        assert [list(await call.result()) for call in calls] == [[0, 1, 2]] * 3
        assert anyio.current_time() == pytest.approx(2)  # those who waited ran side by side
        assert list(await manager.execute(lines, x=3)) == [0, 1, 2]


@tool
def lazy(x: int) -> Iterator[int]:
    yield x


@tool
async def takes_a_stream(xs: AsyncIterator[int]) -> int:
    return 0


@tool
async def takes_a_client(client: ServiceManager, x: int) -> int:
    return x


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: lazy.using(cache=60), "'lazy' cannot have a cache: it returns .*read but once; return a list"),
        (lambda: takes_a_stream.using(cache=60), "no key can be made of its input 'xs'"),
        (lambda: takes_a_client.using(cache=60), "input 'client' .*cache=Cache.ttl, key="),
        (lambda: Phase("a", takes_a_client, policy=Policy(cache=60)), "input 'client'"),
        (lambda: ToolAdapter(takes_a_client, policy=Policy(cache=60)), "input 'client'"),
    ],
)
def test_what_cannot_have_a_cache_is_told_where_it_is_given(make: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        make()


async def test_the_key_function_is_given_inputs_that_were_left_out_too() -> None:
    runs: list[str] = []

    @tool(policy=Policy(cache=Cache(60, key=lambda inputs: (inputs["word"], inputs["language"]))))
    async def translate(word: str, language: str = "de") -> str:
        runs.append(word)
        return word

    async with ServiceManager(log=None) as manager:
        await manager.execute(translate, word="a")
        assert (await manager.outcome(translate, word="a", language="de")).status == "reused"
        assert (await manager.outcome(translate, word="a", language="fr")).status == "succeeded"
    assert runs == ["a", "a"]


async def test_inputs_without_a_key_fail_their_call_and_nothing_runs() -> None:
    ran = []

    @tool(policy=Policy(cache=60, fallback=Look(0).using(name="spare")))
    async def anything(key: Any) -> Any:
        ran.append(key)
        return key

    async with ServiceManager() as manager:
        outcome = await manager.outcome(anything, key=object())
        assert isinstance(outcome.error, CallFailed)
        assert "no cache key can be made of its inputs" in str(outcome.error)
        by_page = takes_a_client.using(cache=Cache(60, key=lambda inputs: inputs["x"]))
        assert await manager.execute(by_page, client=manager, x=1) == 1
        assert (await manager.outcome(by_page, client=manager, x=1)).status == "reused"
        broken = takes_a_client.using(cache=Cache(60, key=lambda inputs: inputs["y"]), name="broken")
        outcome = await manager.outcome(broken, client=manager, x=1)
        assert isinstance(outcome.error, CallFailed)
        assert isinstance(outcome.error.__cause__, KeyError)
    assert ran == []


# --- nested


async def test_a_call_that_would_wait_for_itself_runs() -> None:
    cache = Cache(60)

    @tool(policy=Policy(cache=cache))
    async def one(depth: int, key: str) -> int:
        call: Any = current_call.get()
        if call.parent is not None and call.parent.parent is not None:
            return 0
        return 1 + await current().execute(other, depth=depth, key=key)  # type: ignore[no-any-return]

    @tool(policy=Policy(cache=cache))
    async def other(depth: int, key: str) -> int:
        await checkpoint()
        return 1 + await current().execute(one, depth=depth, key=key)  # type: ignore[no-any-return]

    async with ServiceManager() as manager:
        with anyio.fail_after(10):
            assert await manager.execute(one, depth=1, key="a") == 2


@pytest.mark.parametrize("waits_first", [True, False])
async def test_a_call_that_holds_what_the_one_that_it_would_wait_for_needs_runs_by_itself(waits_first: bool) -> None:
    limit = ConcurrencyLimit(1)
    is_there, may_go_on = anyio.Event(), anyio.Event()

    @tool(policy=Policy(concurrency=limit))
    async def limited() -> int:
        return 1

    @tool(policy=Policy(cache=60))
    async def shared(x: int) -> int:
        if waits_first:
            is_there.set()
            await may_go_on.wait()
        return await current().execute(limited)  # type: ignore[no-any-return]

    @tool(policy=Policy(concurrency=limit))
    async def holds() -> int:
        if not waits_first:
            is_there.set()
            await may_go_on.wait()
        return await current().execute(shared, x=1)  # type: ignore[no-any-return]

    first, second = (shared.using(), holds) if waits_first else (holds, shared.using())
    async with ServiceManager(log=None) as manager:
        with anyio.fail_after(10):
            calls = {}
            for one in (first, second):
                calls[one.name] = manager.submit(one, **({"x": 1} if one.name == "shared" else {}))
                await is_there.wait()
            await anyio.wait_all_tasks_blocked()
            may_go_on.set()
            refused = await calls["holds"].outcome()
            assert (await calls["shared"].outcome()).value == 1
        assert "which tool 'holds' holds while it waits" in str(refused.error)
    assert_clean(manager, limit)


def test_calls_that_would_wait_for_each_other_run() -> None:
    async def main() -> None:
        ran: Counter[str] = Counter()

        @tool(policy=Policy(cache=60))
        async def node(name: str, deep: bool) -> str:
            ran[name] += 1
            await anyio.sleep(1)
            if not deep:
                return name
            peer = "b" if name == "a" else "a"
            call: Any = current_call.get()
            nested = call.parent is None
            return name + str(await current().execute(node, name=peer, deep=nested))

        async with ServiceManager() as manager:
            with anyio.fail_after(60):
                calls = [manager.submit(node, name=name, deep=True) for name in "ab"]
                values = [await call.result() for call in calls]
        assert all(value[:2] in ("ab", "ba") for value in values)

    explore(main, seeds=6)


async def test_waiting_for_one_that_needs_what_the_own_chain_holds_is_refused() -> None:
    limit = ConcurrencyLimit(1)
    look = Look(5).using(cache=60, concurrency=limit)

    @tool(policy=Policy(concurrency=limit))
    async def outer() -> None:
        await anyio.sleep(1)
        await current().execute(look, key="a")

    async with ServiceManager() as manager:
        holds = manager.submit(outer)
        await anyio.sleep(0.5)
        leads = manager.submit(look, key="a")  # waits for the token of outer
        with anyio.fail_after(10):
            outcome = await holds.outcome()
            assert isinstance(outcome.error.__cause__, CallRejected)  # type: ignore[union-attr]
            assert "'Look' wants a token" in str(outcome.error)
            assert (await leads.outcome()).ok


# --- stores


class Remote:
    """A store elsewhere, that may be down or slow."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.error: Exception | None = None
        self.seconds = 0.1
        self.ttls: list[Any] = []

    async def get(self, key: str, default: Any, /) -> Any:
        await anyio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self.kept.get(key, default)

    async def set(self, key: str, value: Any, ttl: float | None, /) -> None:
        await anyio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.ttls.append(ttl)
        self.kept[key] = value


async def test_a_store_of_ones_own_is_read_and_written_once_per_flight() -> None:
    store = Remote()
    look = Look()
    cached = look.using(cache=Cache(60, store=store))
    async with ServiceManager() as manager:
        for expected in ({"succeeded": 1, "reused": 4}, {"reused": 5}):
            calls = [manager.submit(cached, key="a") for _ in range(5)]
            assert Counter([(await call.outcome()).status for call in calls]) == expected
    assert store.ttls == [60.0]
    assert look.now.calls == {"a": 1}
    (key,) = store.kept
    assert key.startswith("Look:")


async def test_errors_of_a_store_cost_the_call_nothing_and_are_on_record() -> None:
    store = Remote()
    store.error = ConnectionError("refused")
    cache = Cache(60, store=store)
    cached = Look().using(cache=cache)
    async with ServiceManager(evidence=(sink := MemorySink())) as manager:
        for _ in range(2):
            assert (await manager.outcome(cached, key="a")).status == "succeeded"
    failed = [record for record in sink.records if record["event"] == "cache.failed"]
    assert [record["operation"] for record in failed] == ["get", "set", "get", "set"]
    assert failed[0]["error"] == {"type": "ConnectionError", "message": "refused"}
    assert failed[0]["tool"] == "Look"
    assert cache.statistics().errors == 4


async def test_a_store_that_hangs_is_given_up_and_never_outlives_the_deadline() -> None:
    store = Remote()
    store.seconds = 1000
    cached = Look().using(cache=Cache(60, store=store))
    async with ServiceManager(evidence=(sink := MemorySink())) as manager:
        assert await manager.execute(cached, key="a") == ["a", "0"]
        assert anyio.current_time() == pytest.approx(11)  # 5 for each, 1 for the tool
        outcome = await manager.outcome(cached.using(deadline=2), key="b")
        assert outcome.status == "timed_out"
        assert anyio.current_time() == pytest.approx(13)
    failed = [record for record in sink.records if record["event"] == "cache.failed"]
    assert "within 5 s" in failed[0]["error"]["message"]


async def test_a_store_that_is_no_store_at_all() -> None:
    class Wrong:
        def get(self, key: str, default: Any, /) -> Any:
            return default

        def set(self, key: str, value: Any, ttl: float | None, /) -> None: ...

    async with ServiceManager() as manager:
        assert (await manager.outcome(Look().using(cache=Cache(60, store=Wrong())), key="a")).ok  # type: ignore[arg-type]


async def test_cancelled_while_the_store_is_asked() -> None:
    store = Remote()
    store.seconds = 3
    look = Look()
    cached = look.using(cache=Cache(60, store=store))
    async with ServiceManager() as manager:
        for moment in (1, 3.5, 5):  # reading, running, writing
            call = manager.submit(cached, key="a")
            waits = manager.submit(cached, key="a")
            await anyio.sleep(moment)
            call.cancel()
            assert (await waits.outcome()).ok
            assert (await call.outcome()).status == "cancelled"
            store.kept.clear()
        assert not manager._opened().states["Look"].flights


# --- in pipelines and batchers


async def test_a_phase_reuses_and_its_items_succeed() -> None:
    look = Look()
    pipeline = Pipeline("p", Phase("found", look, policy=Policy(cache=60)), item=["key"])
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"key": key} for key in "aabab"], keep="all")
    assert (report.succeeded, report.ok) == (5, True)
    assert [outcome.value[0] for outcome in report.outcomes] == list("aabab")
    assert Counter(outcome.phases["found"].status for outcome in report.outcomes) == {"succeeded": 2, "reused": 3}
    assert look.now.calls == {"a": 1, "b": 1}


@pytest.mark.parametrize("ttl", [0, 60])
async def test_who_shares_a_value_has_it_though_a_pipeline_takes_that_apart(ttl: float) -> None:
    look = Look()
    phase = Phase("found", look, expand="part", policy=Policy(cache=ttl))
    pipeline = Pipeline("p", phase, Phase("up", whole, bind={"word": "part"}), item=["key"])
    taken: list[Any] = []

    async def beside() -> None:
        await checkpoint()  # the items have come by now
        taken.append(await manager.execute(look.using(cache=phase.policy.cache), key="a"))

    async with ServiceManager() as manager, anyio.create_task_group() as group:
        group.start_soon(beside)
        report = await manager.run(pipeline, [{"key": "a"}] * 5, keep="all")
    assert [outcome.value for outcome in report.outcomes] == [["A", "0"]] * 5
    assert taken == [["a", "0"]]


@tool
async def whole(word: str) -> str:
    return word.upper()


async def test_gather_race_and_batches_take_reused_values() -> None:
    @tool(policy=Policy(cache=60))
    async def doubles(xs: list[int]) -> list[int]:
        await checkpoint()
        return [2 * x for x in xs]

    look = Look()
    cached = look.using(cache=60)
    async with ServiceManager() as manager:
        for _ in range(2):
            assert await manager.gather({"a": cached}, {"key": "a"}) == {"a": ["a", "0"]}
            assert (await manager.race({"a": cached, "b": cached.using(name="b")}, {"key": "a"})).ok
            batcher = Batcher(doubles, max_size=2)
            await manager.start(batcher)
            assert await batcher(xs=4) == 8
            phase = Phase("a", doubles, bind={"xs": "x"}, batch=2)
            report = await manager.run(Pipeline("p", phase, item=["x"]), [{"x": 1}, {"x": 2}], keep="all")
            assert [outcome.value for outcome in report.outcomes] == [2, 4]
            assert report.ok
        assert report.outcomes[0].phases["a"].status == "reused"


def test_contention_leaves_no_flight_no_token_and_no_wait() -> None:
    async def main() -> None:
        limit = ConcurrencyLimit(2)
        cache = Cache(3, store=MemoryStore(2))

        @tool(policy=Policy(cache=cache, concurrency=limit, timeout=2, retry=Retry(2, wait=0.1), deadline=6))
        async def sometimes(x: int) -> int:
            await anyio.sleep(0.7 if x % 3 else 3)
            if x % 4 == 0:
                raise OSError("four")
            return x

        async with ServiceManager(seed=1) as manager:
            async with anyio.create_task_group() as tasks:
                calls = [manager.submit(sometimes, x=n % 7) for n in range(60)]
                for number, call in enumerate(calls):
                    if number % 4 == 0:
                        tasks.start_soon(_cancel_later, call, number / 10)
            for number, call in enumerate(calls):
                outcome = await call.outcome()
                assert not outcome.ok or outcome.value == number % 7
            session = manager._opened()
            assert not session.states["sometimes"].flights
            assert not session.cache_waits
        assert_clean(manager, limit)

    explore(main, seeds=8)


async def _cancel_later(call: Any, seconds: float) -> None:
    await anyio.sleep(seconds)
    call.cancel()

"""Limits with keys, limits that turn callers away, and limits whose total changes while they are used."""

from __future__ import annotations

import pickle
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    AdaptiveLimit,
    Cache,
    CallFailed,
    CallRejected,
    CallTimeout,
    CircuitBreaker,
    ConcurrencyLimit,
    KGASTool,
    Phase,
    Pipeline,
    Policy,
    RateLimit,
    Retry,
    ServiceManager,
    tool,
)
from kgas_async.testing import assert_clean, explore, virtual_backends


def host_of(inputs: Mapping[str, Any]) -> str:
    """The key function of these tests: at module level, so that it pickles."""
    host: str = inputs["url"].split("/")[0]
    return host


class Fetches:
    """Counts what runs at once for each host."""

    def __init__(self) -> None:
        self.inside: Counter[str] = Counter()
        self.peaks: Counter[str] = Counter()
        self.peak = 0
        self.served: list[str] = []

    def tool(self, limit: ConcurrencyLimit, **policy: Any) -> Any:
        @tool(policy=Policy(concurrency=limit, **policy))
        async def fetch(url: str) -> str:
            host = url.split("/", maxsplit=1)[0]
            self.served.append(url)
            self.inside[host] += 1
            self.peaks[host] = max(self.peaks[host], self.inside[host])
            self.peak = max(self.peak, self.inside.total())
            try:
                for _ in range(3):
                    await checkpoint()
            finally:
                self.inside[host] -= 1
            return url

        return fetch


# --- what is refused


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"key": 3}, TypeError, r"ConcurrencyLimit\(key\) must be the name of an input or a function of the inputs"),
        ({"key": ""}, TypeError, r"ConcurrencyLimit\(key\) must be"),
        ({"per_key": 3}, TypeError, r"ConcurrencyLimit\(per_key\) needs key="),
        ({"key": "url", "per_key": 0}, ValueError, r"ConcurrencyLimit\(per_key\) must be at least 1"),
        ({"max_queue": -1}, ValueError, r"ConcurrencyLimit\(max_queue\) must be at least 0"),
        ({"max_queue": 1.5}, TypeError, r"ConcurrencyLimit\(max_queue\) must be a whole number"),
    ],
)
def test_what_makes_no_sense_is_refused_where_the_limit_is_made(
    options: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        ConcurrencyLimit(3, **options)


async def test_a_key_that_is_no_input_of_the_tool_is_refused_with_the_nearest_one() -> None:
    @tool
    async def fetch(url: str) -> str:
        return url

    class Fetch(KGASTool):
        name = "fetch"
        policy = Policy(concurrency=ConcurrencyLimit(3, key="urll"))

        async def execute_async(self, url: str) -> str:
            return url

    said = r"'urll' of .* is no input of tool 'fetch', which takes url.*'url'"
    for make in (
        lambda: Fetches().tool(ConcurrencyLimit(3, key="urll")),
        lambda: fetch.using(concurrency=ConcurrencyLimit(3, key="urll")),
        lambda: fetch.using(rate=[RateLimit(1), RateLimit(3, key="urll")]),
        lambda: Phase("fetched", fetch, policy=Policy(rate=RateLimit(3, key="urll"))),
    ):
        with pytest.raises(ValueError, match=said):
            make()  # where they first meet
    async with ServiceManager(log=None) as manager:
        with pytest.raises(ValueError, match=said):
            await manager.execute(Fetch(), url="a/1")


async def awaited(value: Any) -> Any:
    return value


class Awaited:
    async def __call__(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize("function", [awaited, Awaited()], ids=["function", "object"])
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda function: ConcurrencyLimit(3, key=function), r"ConcurrencyLimit\(key\)"),
        (lambda function: RateLimit(3, key=function), r"RateLimit\(key\)"),
        (lambda function: RateLimit(3, cost=function), r"RateLimit\(cost\)"),
        (lambda function: AdaptiveLimit(1, 3, on=function), r"AdaptiveLimit\(on\)"),
        (lambda function: CircuitBreaker(on=function), r"CircuitBreaker\(on\)"),
        (lambda function: Cache(3, key=function), r"Cache\(key\)"),
        (lambda function: Retry(on=function), r"Retry\(on\)"),
        (lambda function: Retry(after=function), r"Retry\(after\)"),
        (lambda function: Retry(wait=function), r"Retry\(wait\)"),
    ],
)
def test_a_policys_function_that_would_have_to_be_awaited_is_refused(make: Any, what: str, function: Any) -> None:
    with pytest.raises(
        TypeError, match=f"{what} is a plain function, asked without waiting, not an async one.*use 'def'"
    ):
        make(function)


@pytest.mark.parametrize("key", [lambda inputs: inputs["nothing"], lambda inputs: [inputs["url"]]])
async def test_a_key_function_that_raises_or_gives_no_key_fails_its_own_call(key: Any) -> None:
    limit = ConcurrencyLimit(3, key=lambda inputs: key(inputs) if inputs["url"] == "bad/1" else "good")
    fetches = Fetches()
    fetch = fetches.tool(limit, retry=Retry(3, wait=0))
    async with ServiceManager(log=None) as manager:
        bad = await manager.outcome(fetch, url="bad/1")
        assert (await manager.outcome(fetch, url="good/1")).ok
    assert bad.status == "failed"
    assert isinstance(bad.error, CallFailed)
    assert isinstance(bad.error.__cause__, (KeyError, TypeError))
    assert "the key of its ConcurrencyLimit" in str(bad.error)
    assert bad.attempts == 1
    assert fetches.served == ["good/1"]
    assert_clean(manager, limit)


async def test_a_limit_without_keys_has_none_to_enter() -> None:
    with pytest.raises(TypeError, match="has no keys"):
        ConcurrencyLimit(1).for_key("a")
    with pytest.raises(TypeError, match="unhashable"):
        ConcurrencyLimit(1, key="a").for_key([])


# --- keys


@explore(seeds=10)
async def test_at_most_so_many_of_each_key_and_in_all_run_at_once_and_as_many_do() -> None:
    limit = ConcurrencyLimit(5, key=host_of, per_key=2)
    fetches = Fetches()
    fetch = fetches.tool(limit)
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(lambda number=number: manager.execute(fetch, url=f"{'abcd'[number % 4]}/{number}"))
    assert fetches.peaks == dict.fromkeys("abcd", 2)
    assert fetches.peak == 5
    assert len(fetches.served) == 40
    assert limit.statistics().keys == 0  # nothing is kept of keys that are not in use
    assert_clean(manager, limit)


async def test_a_hot_key_does_not_starve_the_others() -> None:
    limit = ConcurrencyLimit(1, key=host_of)
    fetches = Fetches()
    fetch = fetches.tool(limit)
    urls = [f"hot/{n}" for n in range(50)] + ["cold/1", "cool/1", "cold/2"]
    async with ServiceManager(log=None) as manager:
        async with limit:
            calls = []
            for url in urls:
                calls.append(manager.submit(fetch, url=url))
                await anyio.wait_all_tasks_blocked()
        for call in calls:
            await call.result()
    assert fetches.served[:6] == ["hot/0", "cold/1", "cool/1", "hot/1", "cold/2", "hot/2"]


async def test_a_key_bounds_the_calls_of_a_pipeline() -> None:
    limit = ConcurrencyLimit(5, key=host_of, per_key=2)
    fetches = Fetches()
    pipeline = Pipeline("pages", Phase("page", fetches.tool(limit)), item=["url"])
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, ({"url": f"{'ab'[n % 2]}/{n}"} for n in range(40)))
    assert report.ok
    assert fetches.peaks == {"a": 2, "b": 2}
    assert_clean(manager, limit)


async def test_an_input_by_name_is_a_key_and_one_that_was_left_out_is_its_default() -> None:
    inside: Counter[str] = Counter()
    most: Counter[str] = Counter()

    @tool(policy=Policy(concurrency=ConcurrencyLimit(10, key="model", per_key=1)))
    async def ask(prompt: str, model: str = "small") -> None:
        inside[model] += 1
        most[model] = max(most[model], inside[model])
        await checkpoint()
        inside[model] -= 1

    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(lambda number=number: manager.execute(ask, prompt=str(number)))
            tasks.start_soon(lambda number=number: manager.execute(ask, prompt=str(number), model="small"))
            tasks.start_soon(lambda number=number: manager.execute(ask, prompt=str(number), model="large"))
    assert most == {"small": 1, "large": 1}


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_cancelled_waiter_of_a_key_leaves_and_the_key_goes_on(kind: str) -> None:
    limit = ConcurrencyLimit(5, key="host", per_key=1)
    ran: list[str] = []

    async def in_task(host: str, name: str) -> None:
        ran.append(name)

    def in_thread(host: str, name: str) -> None:
        ran.append(name)

    fetch = tool(in_task if kind == "async" else in_thread).using(name="fetch", concurrency=limit)
    async with ServiceManager(log=None) as manager:
        async with limit.for_key("a"):
            doomed = manager.submit(fetch, host="a", name="doomed")
            await anyio.wait_all_tasks_blocked()
            after = manager.submit(fetch, host="a", name="after")
            await manager.execute(fetch, host="b", name="other")
            await anyio.wait_all_tasks_blocked()
            assert limit.statistics().waiting == 2
            doomed.cancel()
            await doomed.wait()
            assert limit.statistics().waiting == 1
        await after.wait()
    assert ran == ["other", "after"]
    assert_clean(manager, limit)


async def test_a_thread_that_was_left_behind_keeps_the_token_of_its_key() -> None:
    limit = ConcurrencyLimit(5, key="host", per_key=1)
    let_go = threading.Event()
    begun = threading.Event()

    @tool(on_cancel="abandon", policy=Policy(concurrency=limit))
    def stuck(host: str, hang: bool = True) -> None:
        begun.set()
        if hang:
            let_go.wait(30)

    async with ServiceManager(log=None, grace=0) as manager:
        call = manager.submit(stuck, host="a")
        await anyio.to_thread.run_sync(begun.wait)
        call.cancel()
        await call.wait()
        assert call.abandoned
        late = await manager.outcome(stuck.using(deadline=0.05), host="a", hang=False)
        assert isinstance(late.error, CallTimeout)
        await manager.execute(stuck, host="b", hang=False)  # another key is free
        assert limit.statistics().borrowed == 1
        let_go.set()
        await manager.execute(stuck, host="a", hang=False)  # its own comes back with the thread
    assert_clean(manager, limit)


async def test_code_of_ones_own_enters_a_key_or_takes_a_token_of_no_key() -> None:
    limit = ConcurrencyLimit(2, key="host", per_key=1)
    async with limit.for_key("a"):
        assert not limit.for_key("a").acquire_nowait()
        assert limit.acquire_nowait()  # which only the total bounds
        assert limit.statistics().borrowed == 2
        assert not limit.for_key("b").acquire_nowait()
        limit.release()
        assert limit.for_key("b").acquire_nowait()
        limit.for_key("b").release()
    assert_clean(limit)


async def test_a_token_of_a_key_that_was_not_taken_cannot_be_given_back() -> None:
    limit = ConcurrencyLimit(3, key="host", per_key=1)
    async with limit.for_key("a"):
        for key in ("b", "c"):
            with pytest.raises(RuntimeError, match="not taken"):
                limit.for_key(key).release()
    assert_clean(limit)


def test_a_limit_with_all_it_takes_pickles_by_its_arguments() -> None:
    limit = ConcurrencyLimit(3, key=host_of, per_key=2, max_queue=4)
    limit.for_key("a").acquire_nowait()
    limit.total = 5
    copy = pickle.loads(pickle.dumps(limit))
    assert repr(copy) == repr(limit) == "ConcurrencyLimit(5, key=host_of, per_key=2, max_queue=4)"
    assert (copy.total, copy.statistics().borrowed) == (5, 0)


def test_a_key_of_one_loop_is_served_in_the_next() -> None:
    limit = ConcurrencyLimit(2, key="host", per_key=1)
    assert limit.for_key("a").acquire_nowait()

    async def find_it_held() -> None:
        with anyio.move_on_after(0.01) as scope:
            await limit.for_key("a").acquire()
        assert scope.cancelled_caught
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(limit.for_key("a").acquire)
            await anyio.wait_all_tasks_blocked()
            limit.for_key("a").release()
        limit.for_key("a").release()

    anyio.run(find_it_held, backend="trio")
    assert limit.for_key("a").acquire_nowait()
    anyio.run(find_it_held, backend="asyncio")
    assert_clean(limit)


# --- a total that changes


async def test_without_a_number_of_its_own_a_key_may_have_all_there_are_whatever_the_total_becomes() -> None:
    limit = ConcurrencyLimit(1, key="host")
    tokens = limit.for_key("a")
    await tokens.acquire()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tokens.acquire)
        await anyio.wait_all_tasks_blocked()
        limit.total = 3
    assert limit.statistics().borrowed == 2
    assert tokens.acquire_nowait()
    assert not tokens.acquire_nowait()
    for _ in range(3):
        tokens.release()
    assert_clean(limit)


async def test_raising_the_total_wakes_waiters_and_lowering_it_lets_running_ones_end() -> None:
    limit = ConcurrencyLimit(1)
    inside = 0
    let_go = anyio.Event()

    async def hold() -> None:
        nonlocal inside
        async with limit:
            inside += 1
            await let_go.wait()
            inside -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(hold)
        await anyio.wait_all_tasks_blocked()
        assert inside == 1
        limit.total = 4
        await anyio.wait_all_tasks_blocked()
        assert inside == 4
        limit.total = 2
        await anyio.wait_all_tasks_blocked()
        now = limit.statistics()
        assert (inside, now.total, now.borrowed, now.waiting) == (4, 2, 4, 2)
        assert not limit.acquire_nowait()
        let_go.set()
    assert_clean(limit)
    assert limit.statistics().peak == 4


@pytest.mark.parametrize("total", [0, -1, 1.5, None, True])
def test_a_total_that_is_none_is_refused(total: Any) -> None:
    limit = ConcurrencyLimit(2)
    with pytest.raises((TypeError, ValueError), match=r"ConcurrencyLimit\.total must be"):
        limit.total = total
    assert limit.total == 2


async def test_a_thread_may_raise_the_total() -> None:
    limit = ConcurrencyLimit(1)
    async with limit, anyio.create_task_group() as tasks:
        tasks.start_soon(limit.acquire)
        await anyio.wait_all_tasks_blocked()
        await anyio.to_thread.run_sync(setattr, limit, "total", 2)
    assert limit.statistics().borrowed == 1
    limit.release()


# --- turned away at the door


class TestTheDoor:
    """In virtual time, so that rates are exact."""

    @pytest.fixture(params=virtual_backends())
    def anyio_backend(self, request: pytest.FixtureRequest) -> Any:
        return request.param()

    async def test_one_more_than_may_wait_is_rejected_at_once_and_told_when_to_come_back(self) -> None:
        limit = ConcurrencyLimit(1, max_queue=2)

        @tool(policy=Policy(concurrency=limit))
        async def work() -> float:
            await anyio.sleep(1)
            return anyio.current_time()

        async with ServiceManager(log=None) as manager:
            running = manager.submit(work)
            await anyio.wait_all_tasks_blocked()
            waiting = [manager.submit(work), manager.submit(work)]
            await anyio.wait_all_tasks_blocked()
            refused = await manager.outcome(work)
            assert refused.status == "rejected"
            assert isinstance(refused.error, CallRejected)
            assert "2 wait for ConcurrencyLimit(1, max_queue=2) already" in str(refused.error)
            assert refused.error.retry_after is None  # nobody knows yet
            for call in (running, *waiting):
                await call.result()
            crowd = [manager.submit(work) for _ in range(3)]
            for _ in range(12):  # one ends each second, and another comes
                await anyio.sleep(1)
                crowd.append(manager.submit(work))
                await anyio.wait_all_tasks_blocked()
            refused = await manager.outcome(work)
            assert isinstance(refused.error, CallRejected)
            assert refused.error.retry_after == pytest.approx(1.0, rel=0.2)
            for call in crowd:
                await call.wait()
        assert_clean(manager, limit)

    async def test_a_queue_of_none_rejects_whatever_is_not_free(self) -> None:
        limit = ConcurrencyLimit(1, max_queue=0)
        async with limit:
            with pytest.raises(CallRejected):
                await limit.acquire()
        async with limit:
            pass
        assert_clean(limit)

    async def test_the_queue_is_that_of_each_key(self) -> None:
        limit = ConcurrencyLimit(1, key="host", max_queue=1)
        async with limit, anyio.create_task_group() as tasks:
            tasks.start_soon(limit.for_key("hot").acquire)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(CallRejected):
                await limit.for_key("hot").acquire()
            tasks.start_soon(limit.for_key("cold").acquire)  # is not turned away for the hot one's crowd
            await anyio.wait_all_tasks_blocked()
            assert limit.statistics().waiting == 2
            limit.total = 3
        limit.for_key("hot").release()
        limit.for_key("cold").release()
        assert_clean(limit)

    @pytest.mark.parametrize(("total", "seconds"), [(1, 1.0), (4, 1.0), (3, 0.2)])
    async def test_who_cannot_make_it_is_rejected_at_once_and_who_would_is_not(
        self, total: int, seconds: float
    ) -> None:
        # A steady crowd of 40 in front of so many tokens: the one that comes now begins after 40 / total rounds.
        limit = ConcurrencyLimit(total, max_queue=1000)

        @tool(policy=Policy(concurrency=limit))
        async def work() -> None:
            await anyio.sleep(seconds)

        async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
            for _ in range(12 * total + 40):
                tasks.start_soon(manager.execute, work)
            await anyio.sleep(12.5 * seconds)
            ahead = limit.statistics().waiting
            needs = ahead / total * seconds
            began = anyio.current_time()
            hopeless = await manager.outcome(work.using(deadline=needs / 4))
            assert hopeless.status == "rejected"
            assert anyio.current_time() == began
            assert isinstance(hopeless.error, CallRejected)
            assert f"{ahead} wait for" in str(hopeless.error)
            assert 0 < (hopeless.error.retry_after or 0) <= needs
            possible = await manager.outcome(work.using(deadline=needs + 2 * seconds))
            assert possible.status == "succeeded"
        assert_clean(manager, limit)

    async def test_nobody_is_turned_away_for_a_pause_in_which_nobody_waited(self) -> None:
        limit = ConcurrencyLimit(1, max_queue=100)

        @tool(policy=Policy(concurrency=limit))
        async def work() -> None:
            await anyio.sleep(0.1)

        async with ServiceManager(log=None) as manager:
            for _ in range(3):
                calls = [manager.submit(work) for _ in range(10)]
                for call in calls:
                    await call.result()
                await anyio.sleep(3600)
            calls = [manager.submit(work) for _ in range(10)]
            await anyio.wait_all_tasks_blocked()
            assert (await manager.outcome(work.using(deadline=2.0))).ok
            for call in calls:
                await call.result()

    async def test_without_a_bound_on_the_queue_a_call_waits_until_its_deadline(self) -> None:
        limit = ConcurrencyLimit(1)

        @tool(policy=Policy(concurrency=limit))
        async def work() -> None:
            await anyio.sleep(1)

        async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
            for _ in range(30):
                tasks.start_soon(manager.execute, work)
            await anyio.sleep(12.5)
            began = anyio.current_time()
            late = await manager.outcome(work.using(deadline=1.2))
            assert late.status == "timed_out"
            assert anyio.current_time() - began == pytest.approx(1.2)

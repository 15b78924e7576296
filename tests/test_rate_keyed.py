"""Rates of each key: buckets of their own, in memory only for as long as they are not full."""

from __future__ import annotations

import gc
import pickle
from typing import Any

import anyio
import pytest

from kgas_async import CallFailed, CallRejected, Policy, RateLimit, Retry, ServiceManager, tool
from kgas_async.testing import assert_clean, virtual_backends


@pytest.fixture(params=virtual_backends())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


def host_of(inputs: Any) -> Any:
    return inputs["host"]


@pytest.mark.parametrize("key", [3, "", b"host"])
def test_a_key_that_is_none_is_refused(key: Any) -> None:
    with pytest.raises(TypeError, match=r"RateLimit\(key\) must be the name of an input or a function of the inputs"):
        RateLimit(1, key=key)


async def test_each_key_has_a_rate_of_its_own() -> None:
    limit = RateLimit(2, burst=2, key="host")
    starts: dict[str, list[float]] = {"a": [], "b": []}

    @tool(policy=Policy(rate=limit))
    async def fetch(host: str) -> None:
        starts[host].append(anyio.current_time())

    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        begin = anyio.current_time()
        for _ in range(5):
            for host in "ab":
                tasks.start_soon(lambda host=host: manager.execute(fetch, host=host))
        await anyio.wait_all_tasks_blocked()
        assert limit.statistics().waiting == 6
        assert limit.statistics().keys == 2
    for times in starts.values():
        assert [at - begin for at in times] == pytest.approx([0, 0, 0.5, 1.0, 1.5])
    assert limit.statistics().taken == 10
    assert_clean(manager, limit)


async def test_an_input_that_was_left_out_has_the_key_of_its_default() -> None:
    limit = RateLimit(1, key="host")

    @tool(policy=Policy(rate=limit))
    async def fetch(host: str = "a") -> float:
        return anyio.current_time()

    async with ServiceManager(log=None) as manager:
        first = await manager.execute(fetch)
        second = await manager.execute(fetch, host="a")
    assert second - first == pytest.approx(1.0)


@pytest.mark.parametrize("key", [lambda inputs: inputs["nothing"], lambda inputs: [inputs["host"]]])
async def test_a_key_function_that_raises_fails_its_own_call_only(key: Any) -> None:
    limit = RateLimit(1, burst=5, key=lambda inputs: key(inputs) if inputs["host"] == "bad" else "good")
    ran: list[str] = []

    @tool(policy=Policy(rate=limit, concurrency=1, retry=Retry(3, wait=0)))
    async def fetch(host: str) -> None:
        ran.append(host)

    async with ServiceManager(log=None) as manager:
        bad = await manager.outcome(fetch, host="bad")
        await manager.execute(fetch, host="good")
    assert isinstance(bad.error, CallFailed)
    assert isinstance(bad.error.__cause__, (KeyError, TypeError))
    assert "the key of its RateLimit" in str(bad.error)
    assert (bad.attempts, ran) == (1, ["good"])
    assert_clean(manager, limit)


async def test_when_a_server_says_later_only_the_calls_of_its_key_wait() -> None:
    limit = RateLimit(1000, burst=10, key="host")
    waits = {"a": 5.0}

    class Busy(Exception):
        pass

    @tool(policy=Policy(rate=limit, retry=Retry(2, on=Busy, after=lambda _: 5.0)))
    async def fetch(host: str) -> float:
        if waits.pop(host, None):
            raise Busy
        return anyio.current_time()

    async with ServiceManager(log=None) as manager:
        begin = anyio.current_time()
        asked = manager.submit(fetch, host="a")
        await anyio.wait_all_tasks_blocked()
        also = manager.submit(fetch, host="a")
        other = await manager.execute(fetch, host="b")
        assert other - begin < 1
        assert await asked.result() - begin >= 5
        assert await also.result() - begin >= 5


async def test_costs_are_those_of_the_key() -> None:
    limit = RateLimit(1, burst=10, cost=lambda inputs: inputs["size"], key="host")

    @tool(policy=Policy(rate=limit))
    async def send(host: str, size: int) -> float:
        return anyio.current_time()

    async with ServiceManager(log=None) as manager:
        begin = await manager.execute(send, host="a", size=10)
        assert await manager.execute(send, host="b", size=10) == begin
        assert await manager.execute(send, host="a", size=3) == pytest.approx(begin + 3)
        refused = await manager.outcome(send, host="a", size=11)
    assert isinstance(refused.error, CallRejected)


async def test_memory_is_kept_for_keys_that_are_in_use_only() -> None:
    limit = RateLimit(10, burst=5, key=host_of)
    for number in range(3000):
        await limit.of({"host": number}).acquire()
        await anyio.sleep(0.01)
    gc.collect()
    # One token is back after a tenth of a second: ten keys.
    assert 5 <= limit.statistics().keys <= 30
    assert len(limit._buckets._known) <= 30  # type: ignore[union-attr]
    assert limit.statistics().taken == 3000


async def test_a_bucket_that_somebody_has_in_hand_is_not_made_a_second_time() -> None:
    limit = RateLimit(1, key="host")
    mine = limit.for_key("a")
    for number in range(10):
        limit.of({"host": number})
    assert limit.for_key("a") is mine
    await mine.acquire()
    for number in range(10):
        limit.of({"host": number})
    assert limit.for_key("a") is mine
    begin = anyio.current_time()
    async with limit.for_key("a"):
        assert anyio.current_time() - begin == pytest.approx(1.0)


async def test_without_a_key_nothing_can_be_taken_and_a_limit_without_keys_has_none() -> None:
    limit = RateLimit(1, key="host")
    for wrong in (lambda: limit.pause(10), limit.refund):
        with pytest.raises(TypeError, match="say whose"):
            wrong()  # it would be nobody's
    with pytest.raises(TypeError, match="say whose"):
        await limit.acquire()
    with pytest.raises(TypeError, match="say whose"):
        async with limit:
            pass
    with pytest.raises(TypeError, match="has no keys"):
        RateLimit(1).for_key("a")
    assert limit.statistics().taken == 0


def test_a_limit_pickles_by_its_arguments() -> None:
    limit = RateLimit(3, per=2, burst=4, key=host_of)
    copy = pickle.loads(pickle.dumps(limit))
    assert repr(copy) == repr(limit) == "RateLimit(3, per=2, burst=4, key=host_of)"
    assert copy.key is host_of
    assert repr(pickle.loads(pickle.dumps(limit.for_key("a")))) == f"{limit!r}.for_key('a')"

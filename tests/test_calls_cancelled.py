"""Cancelled calls whose tools make something else of it, and clean-up that a further cancellation must not end."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from kgas_async import (
    CallCancelled,
    CallFailed,
    CallRejected,
    KGASTool,
    Policy,
    RateLimit,
    Retry,
    ServiceManager,
    current,
    tool,
)

pytestmark = pytest.mark.real_time


@pytest.fixture
def on_asyncio(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("asyncio's own cancellation")


class Lost(KGASTool):
    """Like many drivers: says that the connection was lost, when it was cancelled."""

    def __init__(self) -> None:
        self.log: list[str] = []  # shared by its copies

    async def execute_async(self, *, seconds: float = 30.0) -> int:
        self.log.append("run")
        try:
            await anyio.sleep(seconds)
        except BaseException as cancelled:
            raise ConnectionError("lost") from cancelled
        raise ConnectionError("down")


class Careful(Lost):
    async def execute_async(self, *, seconds: float = 30.0) -> int:
        self.log.append("run")
        await anyio.sleep(seconds)
        raise ConnectionError("down")

    async def cleanup_resources(self, call: Any) -> None:
        self.log.append("begun")
        await anyio.sleep(0.1)
        self.log.append("ended")


@pytest.mark.parametrize(
    "policy",
    [{}, {"retry": Retry(3, wait=0)}, {"timeout": 60.0, "retry": Retry(3, wait=0)}],
    ids=["plain", "retried", "bounded"],
)
async def test_an_error_that_a_tool_makes_of_its_cancellation_is_no_failure(policy: dict[str, Any]) -> None:
    lost = Lost()
    async with ServiceManager(log=None) as manager:
        call = manager.submit(lost.using(**policy))
        await anyio.sleep(0.03)
        call.cancel("enough")
        with pytest.raises(CallCancelled, match="enough") as caught:
            await call.result()
        assert isinstance(caught.value.__cause__, ConnectionError)
        counts = manager.statistics().tools["Lost"]
        assert (call.status, counts.cancelled, counts.failed, counts.retried) == ("cancelled", 1, 0, 0)
    assert lost.log == ["run"]


async def test_who_is_cancelled_is_told_so_whatever_the_tool_makes_of_it() -> None:
    async with ServiceManager(log=None) as manager:
        with anyio.move_on_after(0.03) as scope:
            await manager.execute(Lost())
        assert scope.cancelled_caught
        assert manager.statistics().tools["Lost"].cancelled == 1


async def test_a_native_cancellation_that_a_tool_made_an_error_of_is_not_retried_but_raised(on_asyncio: None) -> None:
    lost = Lost()
    async with ServiceManager(log=None) as manager:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(manager.execute(lost.using(retry=Retry(5, wait=0))), 0.03)
        assert manager.statistics().tools["Lost"].cancelled == 1
    assert lost.log == ["run"]


async def test_a_call_that_its_tool_made_and_that_was_rejected_is_retried_as_any_error() -> None:
    runs = []

    @tool(policy=Policy(rate=RateLimit(1, cost=lambda inputs: 5)))
    async def too_dear() -> None: ...

    @tool(policy=Policy(retry=Retry(3, on=CallRejected, wait=0)))
    async def asks() -> None:
        runs.append(1)
        await current().execute(too_dear)

    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallFailed):
            await manager.execute(asks)
    assert len(runs) == 3


async def test_a_second_native_cancellation_does_not_end_the_clean_up(on_asyncio: None) -> None:
    careful = Careful()
    async with ServiceManager(log=None) as manager:
        task = asyncio.ensure_future(manager.execute(careful))
        for _ in range(3):
            await anyio.sleep(0.02)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert careful.log == ["run", "begun", "ended"]
        assert manager.statistics().tools["Careful"].cancelled == 1


async def test_a_native_cancellation_while_a_failed_call_cleans_up_is_raised_after_it(on_asyncio: None) -> None:
    careful = Careful()
    async with ServiceManager(log=None) as manager:
        task = asyncio.ensure_future(manager.execute(careful, seconds=0.0))
        await anyio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert careful.log == ["run", "begun", "ended"]
        assert manager.statistics().tools["Careful"].failed == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_an_exit_in_the_clean_up_ends_the_session_and_comes_out_bare(kind: type[BaseException]) -> None:
    class Exits(Lost):
        async def cleanup_resources(self, call: Any) -> None:
            raise kind

    with pytest.raises(kind):
        async with ServiceManager(log=None) as manager:
            await manager.execute(Exits(), seconds=0.0)


@pytest.mark.parametrize("offload", ["thread", "inline", "async"])
async def test_a_call_whose_deadline_has_passed_before_it_begins_never_runs(offload: Any) -> None:
    runs, limit = [], RateLimit(0.001)

    async def run_async() -> None:
        runs.append(1)

    def run_sync() -> None:
        runs.append(1)

    policy = Policy(deadline=0.0, rate=limit, concurrency=1)
    late: Any = tool(policy=policy)(run_async) if offload == "async" else tool(offload=offload, policy=policy)(run_sync)
    async with ServiceManager(log=None) as manager:
        assert (await manager.outcome(late)).status == "timed_out"
    assert (runs, limit.statistics().taken) == ([], 0)

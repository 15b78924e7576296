"""The test kit's own behaviour: faults, FakeService, check_tool, assert_clean."""

from __future__ import annotations

import pytest

from kgas_async import (
    CallFailed,
    ConcurrencyLimit,
    KGASTool,
    Policy,
    Retry,
    Service,
    ServiceCrashed,
    ServiceManager,
    ServiceNotRunning,
    current,
    tool,
)
from kgas_async.testing import FakeService, assert_clean, check_tool, faults


@tool
async def double(x: int) -> int:
    return 2 * x


@tool
def halve(x: int) -> float:
    return x / 2


@pytest.mark.parametrize("real", [double, halve])
async def test_faults_strike_at_the_numbered_calls_only(real: KGASTool) -> None:
    async with ServiceManager(log=None) as manager:
        flaky = faults(real, at={1, 3}, error=ConnectionError("gone"))
        seen = [(await manager.outcome(flaky, x=4)).status for _ in range(4)]
    assert seen == ["failed", "succeeded", "failed", "succeeded"]


async def test_faults_leave_the_policy_and_count_retries() -> None:
    patient = double.using(retry=Retry(3, on=ConnectionError, wait=0.0))
    async with ServiceManager(log=None) as manager:
        assert await manager.execute(faults(patient, at=[1, 2], error=ConnectionError), x=4) == 8
        with pytest.raises(CallFailed):
            await manager.execute(faults(patient, at=lambda number: True, error=ConnectionError), x=4)


@pytest.mark.real_time
async def test_faults_delay_in_the_tools_own_place() -> None:
    async with ServiceManager(log=None) as manager:
        outcome = await manager.outcome(faults(halve, at=1, delay=0.05).using(timeout=0.01), x=4)
    assert outcome.status == "timed_out"


def test_faults_that_do_nothing_are_refused() -> None:
    with pytest.raises(TypeError, match="error= or delay="):
        faults(double, at=1)


async def test_fake_service_remembers_its_life_and_refuses_use_outside_of_it() -> None:
    service = FakeService("db")
    with pytest.raises(ServiceNotRunning):
        service.use()
    async with ServiceManager(service, log=None):
        assert service.use() == 1
    assert service.log == [("db", "started"), ("db", "stopped")]


async def test_fake_service_crashes_when_told() -> None:
    service = FakeService("db")
    with pytest.raises(ServiceCrashed, match="db"):
        async with ServiceManager(service, log=None) as manager:
            service.crash(OSError("disk"))
            await manager.execute(waits_long)


@tool
async def waits_long() -> None:
    import anyio

    await anyio.sleep(60)


class Uses(KGASTool):
    def __init__(self, service: FakeService) -> None:
        self.service = service

    async def execute_async(self, *, x: int) -> int:
        return self.service.use() + x


async def test_check_tool_passes_good_tools_and_starts_their_services() -> None:
    assert await check_tool(double, pickles=True, x=3) == 6
    assert await check_tool(halve, x=3) == 1.5
    assert await check_tool(Uses(FakeService()), x=3) == 4


@tool
async def swallows() -> None:
    import anyio

    try:
        await anyio.sleep(0.05)
    except BaseException:  # noqa: BLE001  (the fault that is to be found)
        return


async def test_check_tool_finds_a_swallowed_cancellation() -> None:
    with pytest.raises(AssertionError, match="swallow"):
        await check_tool(swallows)


async def test_assert_clean_says_what_is_out() -> None:
    limit = ConcurrencyLimit(2)
    await limit.acquire()
    with pytest.raises(AssertionError, match="1 tokens out"):
        assert_clean(limit)
    limit.release()
    assert_clean(limit)
    async with ServiceManager(log=None) as manager:
        with pytest.raises(AssertionError, match="still open"):
            assert_clean(manager)
        await manager.execute(halve, x=1)
    assert_clean(manager)


def test_a_plain_service_is_usable_by_name() -> None:
    assert isinstance(FakeService("x"), Service)
    assert FakeService("x", requires=[FakeService("y")]).requires[0].name == "y"
    assert Policy() == Policy()


async def test_check_tool_takes_an_input_named_tool_and_a_tool_that_calls_itself() -> None:
    @tool
    async def factorial(tool: int) -> int:
        return 1 if tool < 2 else tool * await current().execute(factorial, tool=tool - 1)

    assert await check_tool(factorial, tool=3) == 6

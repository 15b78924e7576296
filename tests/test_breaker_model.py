"""A circuit breaker under random callers, in virtual time, on both loops, under seeds, beside a plain model of it.

`test_breaker` holds its decision to a model in any order of calls and results; here it is on the path of real calls,
which are cancelled and time out. Callers come on full seconds, and no call ends on one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kgas_async import CircuitBreaker, Policy, ServiceManager, tool
from kgas_async.testing import assert_clean, virtual_backend

from .loops import SEED

pytestmark = pytest.mark.anyio  # so that they are among those that KGAS_TEST_SEED runs
BOTH = pytest.mark.parametrize("name", ["asyncio", "trio"])
RECOVERY = 3.0
TIMEOUT = 2.4
END = 45

Result = Literal["value", "error", "timeout", "cancelled"]


@dataclass(frozen=True)
class Caller:
    """Comes at a time; its call runs for a while, and ends so."""

    at: int
    seconds: float
    result: Result


callers = st.lists(
    st.builds(
        Caller,
        at=st.integers(0, 30),
        seconds=st.sampled_from([0.25, 0.5, 1.25, 2.25]),
        result=st.sampled_from(["value", "value", "error", "error", "timeout", "cancelled"]),
    ),
    min_size=1,
    max_size=60,
)


class Plain:
    """The breaker as its documentation has it."""

    def __init__(self, failures: int, calls: int | None, probes: int) -> None:
        self.failures, self.calls, self.probes = failures, calls, probes
        self.results: deque[bool] = deque(maxlen=calls)
        self.state = "closed"
        self.number = 0  # of the state
        self.since = 0.0
        self.probing = self.passed = self.opened = 0

    def move(self, state: str, now: float) -> None:
        self.state, self.since = state, now
        self.number += 1
        self.results.clear()
        self.probing = self.passed = 0
        self.opened += state == "open"

    def lets(self, now: float) -> bool:
        if self.state == "open":
            return now - self.since >= RECOVERY
        return self.state == "closed" or self.probing + self.passed < self.probes

    def begin(self, now: float) -> int:
        assert self.lets(now), f"{self.state} since {self.since}, and yet a call began at {now}"
        if self.state == "open":
            self.move("half_open", now)
        if self.state == "half_open":
            self.probing += 1
        return self.number

    def end(self, number: int, result: Result, now: float) -> None:
        if number != self.number:
            return
        failed = result in ("error", "timeout")
        if self.state == "half_open":
            self.probing -= 1
            self.passed += result == "value"
            if failed:
                self.move("open", now)
            elif self.passed == self.probes:
                self.move("closed", now)
        elif result != "cancelled":
            if self.calls is None and not failed:
                self.results.clear()
            self.results.append(failed)
            if failed and sum(self.results) >= self.failures:
                self.move("open", now)


async def use(breaker: CircuitBreaker, plain: Plain, crowd: list[Caller]) -> None:
    zero = anyio.current_time()
    rejected_at: list[int] = []

    @tool(policy=Policy(breaker=breaker, timeout=TIMEOUT))
    async def server(seconds: float, result: Result) -> float:
        number = plain.begin(anyio.current_time() - zero)
        try:
            await anyio.sleep(100 if result in ("timeout", "cancelled") else seconds)
        finally:
            plain.end(number, result, anyio.current_time() - zero)
        if result == "error":
            raise ConnectionError
        return seconds

    async def call(caller: Caller) -> None:
        await anyio.sleep_until(zero + caller.at)
        with anyio.move_on_after(caller.seconds if caller.result == "cancelled" else None):
            outcome = await manager.outcome(server, seconds=caller.seconds, result=caller.result)
            if outcome.status == "rejected":
                rejected_at.append(caller.at)
            else:
                expected = {"value": "succeeded", "error": "failed", "timeout": "timed_out"}
                assert outcome.status == expected[caller.result]

    async def look() -> None:
        for second in range(END):
            await anyio.sleep_until(zero + second + 0.1)
            now = breaker.statistics()
            assert (now.state, now.opened, now.probes) == (plain.state, plain.opened, plain.probing)
            assert now.rejected == len(rejected_at)
            if second in rejected_at:
                assert not plain.lets(second + 0.1)  # nobody was turned away for whom there was room

    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        for caller in crowd:
            tasks.start_soon(call, caller)
    assert_clean(manager)
    assert breaker.statistics().probes == 0


@BOTH
@settings(max_examples=60, deadline=None)
@given(
    failures=st.integers(1, 3),
    calls=st.sampled_from([None, 3, 5]),
    probes=st.integers(1, 3),
    crowd=callers,
    seed=st.integers(0, 1000),
)
def test_a_breaker_with_callers(
    name: str, failures: int, calls: int | None, probes: int, crowd: list[Caller], seed: int
) -> None:
    backend, options = virtual_backend(name, seed + 1000 * (SEED or 0))
    breaker = CircuitBreaker(failures, RECOVERY, probes, calls=calls)
    anyio.run(use, breaker, Plain(failures, calls, probes), crowd, backend=backend, backend_options=options)

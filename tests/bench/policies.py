"""What each policy costs that is on and has nothing to do: microseconds per call over a call with no policy."""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Iterable
from functools import partial
from threading import Lock
from time import monotonic
from typing import Any

import anyio

from kgas_async import (
    AdaptiveLimit,
    Cache,
    CircuitBreaker,
    ConcurrencyLimit,
    Priority,
    RateLimit,
    Retry,
    RetryBudget,
    ServiceManager,
    tool,
)

from .cases import IN_FLIGHT, LOOPS, timed
from .measure import Interval

NO_POLICY = "no policy"


@tool(idempotent=True)
async def quick(x: int) -> int:
    return x


# The policy, and on asyncio the goal in microseconds. Limits are never in the way, no hedge is due: it is the policies
# themselves that cost.
POLICIES: dict[str, tuple[dict[str, Any], float | None]] = {
    NO_POLICY: ({}, None),
    "a free rate limit": ({"rate": RateLimit(1e9, burst=1e9)}, 0.4),
    "retry around a success": ({"retry": Retry(3)}, 0.8),
    "retry with a budget": ({"retry": Retry(3, budget=RetryBudget())}, None),
    "a free concurrency token": ({"concurrency": ConcurrencyLimit(1000)}, 0.5),
    "the same, with a priority": ({"concurrency": ConcurrencyLimit(1000), "priority": Priority.HIGH}, None),
    "a free token of a key": ({"concurrency": ConcurrencyLimit(1000, key="x", per_key=2)}, None),
    "a free rate limit of a key": ({"rate": RateLimit(1e9, burst=1e9, key="x")}, None),
    "a free adaptive limit": ({"concurrency": AdaptiveLimit(1000, 2000)}, None),
    "a closed breaker": ({"breaker": CircuitBreaker()}, None),
    "a closed breaker, share in a window": ({"breaker": CircuitBreaker(0.5, window=60.0)}, None),
    "a cache hit": ({"cache": Cache(None, key=lambda inputs: 0)}, None),
    "a cache hit, key of the inputs": ({"cache": 3600.0}, None),
    "a miss in a cache": ({"cache": 3600.0}, None),
    "a fallback that is not asked": ({"fallback": quick.using(name="other")}, None),
    "a hedge that is not due": ({"hedge_after": 60.0}, None),
    "a timeout": ({"timeout": 60.0}, None),
}


async def calls_with(name: str, policy: dict[str, Any], calls: int) -> float:
    """Seconds per call."""
    subject = quick.using(**policy) if policy else quick
    async with ServiceManager(log=None) as manager:
        hits = "cache hit" in name
        inputs: Iterable[int] = [0] * calls if hits else range(calls)
        if hits:
            await manager.execute(subject, x=0)

        async def work() -> list[int]:
            async with manager.map(subject, inputs, arg="x", in_flight=IN_FLIGHT) as outcomes:
                values = [outcome.unwrap() async for outcome in outcomes]
            return list(range(calls)) if hits and values == [0] * calls else values

        return await timed(work, calls)


def floors() -> str:
    """What a token and a rate that any thread may use cannot cost less than: their locks, and a look at the clock."""
    names = {"lock": Lock(), "monotonic": monotonic}

    def micros(statement: str) -> float:
        return min(timeit.repeat(statement, globals=names, number=100_000, repeat=9)) / 100_000 * 1e6

    token, rate = micros("with lock: pass\nwith lock: pass"), micros("with lock: monotonic()")
    return f"  by themselves: two locks (a token) {token:.2f} us, a lock and a look at the clock (a rate) {rate:.2f} us"


def policies_table(calls: int, rounds: int) -> tuple[str, list[str]]:
    """The table, and the names of the rows that miss their goal."""
    lines = [
        f"A call that does nothing, {IN_FLIGHT} in flight: what a policy adds, over the call of the same round",
        f"  {'':44} {'us/call':>9} {'adds us':>8} {'95 %':>15} {'goal':>6}",
    ]
    missed = []
    for loop in ("asyncio", "trio"):
        times: dict[str, list[float]] = {name: [] for name in POLICIES}
        for number in range(rounds + 1):
            order = list(POLICIES) if number % 2 else list(reversed(POLICIES))
            for name in order:
                run = partial(anyio.run, calls_with, name, POLICIES[name][0], calls, **LOOPS[loop])
                seconds = run()
                if number:  # the first does not count
                    times[name].append(seconds * 1e6)
        for name, (_, goal) in POLICIES.items():
            added = [one - other for one, other in zip(times[name], times[NO_POLICY], strict=True)]
            interval = Interval.of(added)
            wanted = goal if loop == "asyncio" else None
            label = f"{name} ({loop})"
            verdict = "" if wanted is None else f"{wanted:.2f}" + ("" if interval.median <= wanted else " MISSED")
            if wanted is not None and interval.median > wanted:
                missed.append(label)
            micros = statistics.median(times[name])
            lines.append(f"  {label:44} {micros:9.2f} {interval.median:8.2f} {interval.shown()} {verdict:>6}")
    lines.append(floors())
    return "\n".join(lines), missed

"""Blocking calls in worker threads: the speed-up over one after the other, which so many threads bound."""

from __future__ import annotations

import math
import time
from time import perf_counter

import anyio

from kgas_async import ServiceManager, tool

from .measure import Interval

BACKENDS = ("asyncio", "trio")
THREADS = 5
COUNTS = (1, 3, 5, 10)
SLEEP_S = 0.2
GOAL = 0.99  # of the limit, for the upper end of the interval


@tool
def blocks(x: int) -> int:
    time.sleep(SLEEP_S)
    return x


def one_after_the_other() -> dict[int, float]:
    """Seconds for each of the counts."""
    seconds = {}
    began = perf_counter()
    for number in range(1, max(COUNTS) + 1):
        time.sleep(SLEEP_S)
        if number in COUNTS:
            seconds[number] = perf_counter() - began
    return seconds


async def together(manager: ServiceManager, count: int) -> float:
    began = perf_counter()
    async with manager.map(blocks, range(count), arg="x") as outcomes:
        values = [outcome.unwrap() async for outcome in outcomes]
    seconds = perf_counter() - began
    assert values == list(range(count))
    return seconds


async def one_round() -> dict[int, float]:
    """Seconds for each of the counts, with threads that were there before."""
    async with ServiceManager(log=None, threads=THREADS) as manager:
        await together(manager, THREADS)
        return {count: await together(manager, count) for count in COUNTS}


def blocking_table(rounds: int) -> tuple[str, list[str]]:
    """The table, and the names of the rows that miss their goal."""
    speed_ups: dict[tuple[str, int], list[float]] = {(on, count): [] for on in BACKENDS for count in COUNTS}
    for number in range(rounds):
        plain = one_after_the_other()
        for backend in BACKENDS if number % 2 else reversed(BACKENDS):
            ours = anyio.run(one_round, backend=backend)
            for count in COUNTS:
                speed_ups[backend, count].append(plain[count] / ours[count])
    lines = [
        f"Blocking calls of {SLEEP_S * 1000:g} ms in {THREADS} worker threads: speed-up over one after the other",
        f"  {'':44} {'median':>7} {'95 %':>15} {'limit':>6} {'goal':>6}  (of the upper end)",
    ]
    missed = []
    for (backend, count), values in speed_ups.items():
        interval = Interval.of(values)
        limit = count / math.ceil(count / THREADS)
        name = f"{count} calls ({backend})"
        is_missed = interval.high < GOAL * limit
        if is_missed:
            missed.append(name)
        goal = f"{GOAL * limit:.2f}" + (" MISSED" if is_missed else "")
        lines.append(
            f"  {name:44} {interval.median:6.3f}x {interval.low:6.3f} to {interval.high:5.3f} {limit:6.2f} {goal:>6}"
        )
    return "\n".join(lines), missed

"""What a session costs that has nothing to do: the CPU of the monitor's watchdog and sampler."""

from __future__ import annotations

import time
from typing import Any

import anyio

from kgas_async import PerformanceMonitor, ServiceManager

from .cases import LOOPS

GOAL_PERCENT = 1.0


async def idle(monitor: PerformanceMonitor | None, seconds: float) -> float:
    """Percent of one CPU that the whole process uses while a session sleeps."""
    async with ServiceManager(log=None, monitor=monitor):
        await anyio.sleep(0.2)  # what the start leaves to do
        began, used = time.perf_counter(), time.process_time()
        await anyio.sleep(seconds)
        return 100 * (time.process_time() - used) / (time.perf_counter() - began)


def idle_table(seconds: float) -> tuple[str, list[str]]:
    """The table, and the names of the rows that miss their goal."""
    lines = [f"A session that sleeps for {seconds:g} s", f"  {'':44} {'% of a CPU':>10} {'goal':>6}"]
    missed = []
    watching: dict[str, dict[str, Any] | None] = {
        "no monitor": None,
        "watchdog": {"sample_every": None},
        "watchdog and samples": {},
    }
    for loop, where in LOOPS.items():
        for what, options in watching.items():
            monitor = None if options is None else PerformanceMonitor(**options)
            percent = anyio.run(idle, monitor, seconds, **where)
            name = f"{what} ({loop})"
            if percent > GOAL_PERCENT:
                missed.append(name)
            goal = f"{GOAL_PERCENT:.2f}" + ("" if percent <= GOAL_PERCENT else " MISSED")
            lines.append(f"  {name:44} {percent:10.2f} {goal:>6}")
    return "\n".join(lines), missed

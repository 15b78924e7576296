"""What the live view costs a run: the CPU time of the thread that paints it, as a share of the time that passes."""

from __future__ import annotations

import io
import time
from typing import Any

import anyio

from kgas_async import Phase, Pipeline, Policy, Retry, ServiceManager, tool
from kgas_async._cli_picture import SteadyConsole
from kgas_async._cli_view import View

from .cases import LOOPS

GOAL_PERCENT = 1.0


@tool
def load(x: int) -> int:
    time.sleep(0.002)
    return x


@tool(policy=Policy(concurrency=20, retry=Retry(attempts=2, on=ConnectionError, wait=0.001)))
async def parse(load: int) -> int:
    await anyio.sleep(0.004)
    if load % 20 == 7:
        raise ConnectionError(f"no page {load}")
    return load


@tool(policy=Policy(rate=2000))
async def link(parse: int) -> int:
    return parse


@tool
async def nothing(x: int) -> int:
    return x


BUSY = Pipeline("busy", Phase("load", load), Phase("parse", parse), Phase("link", link), item=["x"], key="x")
BUSIEST = Pipeline("busiest", Phase("a", nothing), Phase("b", nothing, bind={"x": "a"}), item=["x"], key="x")


async def painted(pipeline: Pipeline, columns: int, seconds: float) -> tuple[float, float]:
    """Percent of a CPU that painting takes, and calls per second meanwhile."""
    console = SteadyConsole(file=io.StringIO(), force_terminal=True, width=columns, height=50, color_system="truecolor")
    view = View(pipeline.name, 10.0, console)
    until = time.perf_counter() + seconds

    def items() -> Any:
        number = 0
        while time.perf_counter() < until:
            yield {"x": number}
            number += 1

    began = time.perf_counter()
    async with ServiceManager(log=None, monitor=view.monitor) as manager:
        view.open(manager)
        await manager.run(pipeline, items(), on_progress=view.on_progress)
    lasted = time.perf_counter() - began
    calls = view.picture().calls
    view.close()
    return 100 * view.cpu_s / lasted, calls / lasted


def view_table(seconds: float) -> tuple[str, list[str]]:
    """The table, and the names of the rows that miss their goal."""
    lines = [f"The live view over {seconds:g} s of a run", f"  {'':44} {'% of a CPU':>10} {'calls/s':>9} {'goal':>6}"]
    missed = []
    for loop, where in LOOPS.items():
        for pipeline, columns in ((BUSY, 80), (BUSY, 160), (BUSIEST, 80)):
            percent, rate = anyio.run(painted, pipeline, columns, seconds, **where)
            name = f"{pipeline.name}, {columns} columns ({loop})"
            missed += [name] if percent > GOAL_PERCENT else []
            goal = f"{GOAL_PERCENT:.2f}" + ("" if percent <= GOAL_PERCENT else " MISSED")
            lines.append(f"  {name:44} {percent:10.2f} {rate:9.0f} {goal:>6}")
    return "\n".join(lines), missed

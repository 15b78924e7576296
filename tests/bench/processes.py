"""What worker processes cost: CPU work beside two bare forks, the kill of a busy one, an empty call, large bytes.

A worker imports this module, so it imports little.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from time import perf_counter
from typing import Any

import anyio
import anyio.to_process

from kgas_async import ServiceManager, progress, tool

from .measure import Interval

BACKENDS = ("asyncio", "trio")
CORES = 2
TASKS = 8
TASK_S = 0.1
LARGE = 100 * 2**20
GOAL_CPU = 1.03  # the lower end of the interval over two bare forks


def spun(steps: int) -> int:
    """Pure Python that needs nothing but a CPU."""
    state = 1
    for _ in range(steps):
        state = (state * 1103515245 + 12345) % 2147483648
    return state


@tool(offload="process")
def spin(steps: int) -> int:
    return spun(steps)


@tool(offload="process")
def busy() -> int:
    """Says who it is, and does not come back from C."""
    progress(os.getpid())
    return sum(range(10**13))


def same(x: int) -> int:
    return x


@tool(offload="process")
def empty(x: int) -> int:
    return x


def size_of(data: bytes) -> int:
    return len(data)


@tool(offload="process")
def taken(data: bytes) -> int:
    return len(data)


KEPT: list[bytes] = []


def kept() -> bytes:
    if not KEPT:
        KEPT.append(os.urandom(LARGE))
    return KEPT[0]


@tool(offload="process")
def given() -> bytes:
    return kept()


# --- CPU work


def steps_for(seconds: float) -> int:
    """How many steps of `spun` take so long here and now."""
    steps = 100_000
    return round(steps * seconds / min(_seconds(lambda: spun(steps)) for _ in range(5)))


def _seconds(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


@contextmanager
def bare_forks(tasks: int) -> Iterator[Callable[[int], float]]:
    """Processes that wait at a pipe, are told how many steps, make their share of the tasks and write one line.

    Forked before there is any thread. What is yielded has them all make it once, and gives the seconds that took.
    """
    pipes = [(os.pipe(), os.pipe()) for _ in range(CORES)]
    children = []
    for order, answer in pipes:
        child = os.fork()
        if not child:
            try:
                while told := os.read(order[0], 64):
                    steps = int(told)
                    results = [spun(steps) for _ in range(tasks // CORES)]
                    os.write(answer[1], b"%d" % results[-1])
            finally:
                os._exit(0)
        children.append(child)

    def together(steps: int) -> float:
        began = perf_counter()
        for order, _ in pipes:
            os.write(order[1], b"%d" % steps)
        results = {int(os.read(answer[0], 64)) for _, answer in pipes}
        seconds = perf_counter() - began
        assert len(results) == 1
        return seconds

    try:
        yield together
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)
        for fd in (fd for pair in pipes for ends in pair for fd in ends):
            os.close(fd)


async def _spin_all(manager: ServiceManager, steps: int) -> float:
    began = perf_counter()
    async with manager.map(spin, [steps] * TASKS, arg="steps") as outcomes:
        values = [outcome.unwrap() async for outcome in outcomes]
    seconds = perf_counter() - began
    assert len(values) == TASKS
    assert len(set(values)) == 1
    return seconds


async def cpu_ratios(forks: Callable[[int], float], rounds: int) -> tuple[float, list[float]]:
    """Seconds of the first time, with the start of the workers, over two bare forks; and the ratios once warm."""
    steps = steps_for(TASK_S)
    forks(steps)
    async with ServiceManager(log=None, processes=CORES) as manager:
        cold = await _spin_all(manager, steps) / forks(steps)
        ratios = []
        for number in range(rounds):
            if number % 2:
                ours, theirs = await _spin_all(manager, steps), forks(steps)
            else:
                theirs, ours = forks(steps), await _spin_all(manager, steps)
            ratios.append(ours / theirs)
    return cold, ratios


def cpu_table(rounds: int) -> tuple[str, list[str]]:
    """The table, and the names of the rows that miss their goal."""
    lines = [
        f"CPU work: {TASKS} tasks of {TASK_S * 1000:g} ms over {CORES} cores, over two bare forks that wait at pipes",
        f"  {'':44} {'ratio':>7} {'95 %':>15} {'goal':>6}  (of the lower end)",
    ]
    missed = []
    for backend in BACKENDS:
        with bare_forks(TASKS) as forks:
            cold, ratios = anyio.run(cpu_ratios, forks, rounds, backend=backend)
        interval = Interval.of(ratios)
        name = f"map in warm workers ({backend})"
        if interval.low > GOAL_CPU:
            missed.append(name)
        goal = f"{GOAL_CPU:.2f}" + (" MISSED" if interval.low > GOAL_CPU else "")
        lines.append(f"  {name:44} {interval.median:6.2f}x {interval.shown()} {goal:>6}")
        lines.append(f"  {f'the first time, workers not started ({backend})':44} {cold:6.2f}x")
    return "\n".join(lines), missed


# --- the kill


async def kills(count: int) -> list[float]:
    """Seconds from `cancel` until the call has ended, which is when the worker was seen dead."""
    seconds = []
    async with ServiceManager(log=None, processes=1) as manager:
        for _ in range(count):
            call = manager.submit(busy)
            while call.progress is None:  # noqa: ASYNC110  (the sum begins a moment after it)
                await anyio.sleep(0.005)
            await anyio.sleep(0.02)
            worker = int(call.progress.done)
            began = perf_counter()
            call.cancel()
            await call.wait()
            seconds.append(perf_counter() - began)
            with suppress(ProcessLookupError):
                os.kill(worker, 0)
                raise AssertionError("a call has ended whose worker is not dead")
    return seconds


def kill_table(count: int) -> str:
    lines = [
        "A worker that is busy in C: milliseconds from cancel until it is seen dead",
        f"  {'':44} {'median':>9} {'p95':>8} {'worst':>8}",
    ]
    for backend in BACKENDS:
        seconds = sorted(anyio.run(kills, count, backend=backend))
        p95 = statistics.quantiles(seconds, n=20, method="inclusive")[-1]
        figures = f"{statistics.median(seconds) * 1e3:9.2f} {p95 * 1e3:8.2f} {seconds[-1] * 1e3:8.2f}"
        lines.append(f"  {f'{count} kills ({backend})':44} {figures}")
    return "\n".join(lines)


# --- calls that do nothing, and bytes


async def _timed(work: Callable[[], Awaitable[object]], times: int) -> float:
    began = perf_counter()
    for _ in range(times):
        await work()
    return (perf_counter() - began) / times


async def beside_anyio(
    ours: Callable[[ServiceManager], Awaitable[object]],
    theirs: Callable[[], Awaitable[object]],
    times: int,
    rounds: int,
) -> tuple[list[float], list[float]]:
    """Seconds per call, ours and theirs, one at a time in a warm worker, round by round."""
    ours_s, theirs_s = [], []
    async with ServiceManager(log=None, processes=1) as manager:
        here = partial(ours, manager)
        await here()
        await theirs()
        for number in range(rounds):
            if number % 2:
                ours_s.append(await _timed(here, times))
                theirs_s.append(await _timed(theirs, times))
            else:
                theirs_s.append(await _timed(theirs, times))
                ours_s.append(await _timed(here, times))
    return ours_s, theirs_s


def beside_anyio_table(calls: int, rounds: int) -> str:
    """An empty call in microseconds, and 100 MB each way in times that copying them once takes."""
    data = os.urandom(LARGE)
    copy = min(_seconds(lambda: bytearray(data)) for _ in range(5))
    rows: list[tuple[str, Any, Any, int, float, str]] = [
        ("an empty call", lambda m: m.execute(empty, x=1), partial(_apart, same, 1), calls, 1e-6, "us"),
        ("100 MB in", lambda m: m.execute(taken, data=data), partial(_apart, size_of, data), 1, copy, "copies"),
        ("100 MB out", lambda m: m.execute(given), partial(_apart, kept), 1, copy, "copies"),
    ]
    lines = [
        f"One call at a time in a warm worker, beside anyio.to_process.run_sync; copying 100 MB: {copy * 1e3:.0f} ms",
        f"  {'':44} {'ours':>9} {'theirs':>9} {'':6} {'ratio':>7} {'95 %':>15}",
    ]
    for backend in BACKENDS:
        for name, ours, theirs, times, unit, named in rows:
            ours_s, theirs_s = anyio.run(beside_anyio, ours, theirs, times, rounds, backend=backend)
            interval = Interval.of([one / other for one, other in zip(ours_s, theirs_s, strict=True)])
            figures = f"{statistics.median(ours_s) / unit:9.1f} {statistics.median(theirs_s) / unit:9.1f} {named:6}"
            lines.append(f"  {f'{name} ({backend})':44} {figures} {interval.median:6.2f}x {interval.shown()}")
    return "\n".join(lines)


async def _apart(function: Callable[..., Any], *args: Any) -> Any:
    return await anyio.to_process.run_sync(function, *args)

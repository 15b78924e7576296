"""Row 7 of rows.md: which tool belongs where. What the rules make of figures, and that those are what was measured."""

from __future__ import annotations

import json
import time
from typing import Any

import anyio
import pytest

from kgas_async import CallFigures, PerformanceMonitor, Phase, Pipeline, ServiceManager, tool
from kgas_async._advice import COMPUTES, ENOUGH, NOT_WORTH_A_PROCESS_S, STALLS_ENOUGH, advise
from kgas_async._figures import Computing
from kgas_async._metrics import Distribution

from . import process_tools
from .process_tools import until

STEP_S = 0.01


def runs(mean: float, count: int = ENOUGH, most: float | None = None) -> Distribution:
    return Distribution(count, mean, 0.0, 2 * mean if most is None else most, mean, mean, mean)


def figures(offload: str | None, run: float = 0.0, cpu: float | None = None, count: int = ENOUGH, **more: Any) -> Any:
    computing = None if cpu is None else Computing(count, cpu * count, cpu)
    return CallFigures(calls=count, run_s=runs(run, count), offload=offload, cpu_s=computing, **more)


def advised(one: Any, together: float | None = None, **options: Any) -> str | None:
    """Where the rules would have it, if elsewhere."""
    found = advise({"it": one}, one.cpus if together is None else together, **options)
    assert all(advice.offload == one.offload and advice.tool == "it" for advice in found)
    return found[0].instead if found else None


# --- the rules


def test_a_tool_that_computes_in_threads_belongs_in_a_process() -> None:
    ner = figures("thread", run=0.245, cpu=0.230, cpus=0.94)
    (advice,) = advise({"ner": ner}, 0.94)
    assert str(advice) == (
        "ner: computed for 230 ms a call, 94% of the time that any of its calls ran, and threads share one "
        "interpreter (but where native code lets go of it): offload='process'"
    )


@pytest.mark.parametrize(
    ("figures", "why"),
    [
        (figures("thread", 0.245, 0.230, ENOUGH - 1, cpus=0.94), "too few runs"),
        (figures("thread", 0.5, 0.02, cpus=0.04), "it waits"),
        (figures("thread", 0.002, 0.002, cpus=0.9), "the way to a process would take as long as its work"),
        (figures("thread", 0.2, 0.2, cpus=1.2), "its threads compute side by side"),
        (figures(None, 0.2, 0.2, cpus=0.9), "tools of that name run in several places"),
        (figures("process", 0.25, 0.23), "it computes where it should"),
        (figures("process", 0.0, 0.0, ENOUGH - 1), "too few runs"),
        (figures("inline", 0.001), "it is quick"),
        (figures("inline", 0.1, count=ENOUGH - 1), "too few runs"),
        (figures("async", 3.0, stalls=STALLS_ENOUGH - 1, stalled_s=1.0), "too few stalls"),
        (figures("async", 3.0), "it waits"),
        (CallFigures(), "nothing is known"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tool_that_is_in_its_place_is_left_there(figures: Any, why: str) -> None:
    assert advised(figures) is None, why


def test_tools_that_share_the_threads_are_seen_together() -> None:
    """Each of three computes all the time that it gets, which is a third."""
    three = {name: figures("thread", 0.3, 0.1, cpus=0.32) for name in "abc"}
    small = {"small": figures("thread", 0.02, 0.007, cpus=0.02)}
    assert [(advice.tool, advice.instead) for advice in advise(three | small, 0.98)] == [
        ("a", "process"), ("b", "process"), ("c", "process"),
    ]  # fmt: skip
    assert advise(three | small, 0.4) == ()  # they wait for something else
    assert advise(three | small, 1.8) == ()  # and here they do not hold each other up


def test_where_threads_compute_side_by_side_nothing_is_to_be_won_by_processes() -> None:
    assert advised(figures("thread", 0.2, 0.2, cpus=1.0)) == "process"
    assert advised(figures("thread", 0.2, 0.2, cpus=1.0), one_interpreter=False) is None


def test_a_tool_that_hardly_computes_needs_no_process() -> None:
    assert advised(figures("process", run=0.0008, cpu=0.0002)) == "thread"
    assert advised(figures("process", run=0.5, cpu=0.02)) == "thread"


def test_a_tool_that_is_quicker_than_the_way_to_a_thread_may_run_on_the_loop() -> None:
    assert advised(figures("thread", run=0.00001)) == "inline"
    assert advised(CallFigures(run_s=runs(0.00001, most=0.5), offload="thread")) is None  # it is not always quick


def test_a_tool_that_holds_up_the_loop_belongs_in_a_thread() -> None:
    assert advised(figures("inline", run=0.02)) == "thread"
    blocks = figures("async", run=3.0, stalls=3, stalled_s=1.2)
    (advice,) = advise({"parse": blocks}, None)
    assert str(advice) == (
        "parse: blocked the event loop 3 times, for 400 ms on average; make what blocks a plain function: "
        "offload='thread'"
    )


# --- the figures


@tool
def computes(x: int) -> None:
    began = time.thread_time()
    while time.thread_time() - began < STEP_S:
        pass


@tool
def waits(x: int) -> None:
    time.sleep(STEP_S / 10)


@tool(offload="inline")
def holds(x: int) -> None:
    time.sleep(2 * STEP_S)


@tool
async def blocks(x: int) -> None:
    time.sleep(0.1)  # noqa: ASYNC251


@tool
async def idles(x: int) -> None:
    await anyio.sleep(0.001)


def quiet(**options: Any) -> PerformanceMonitor:
    return PerformanceMonitor(**{"stall": None, "sample_every": None, **options})


async def run_all(manager: ServiceManager, *tools: Any) -> None:
    for one in tools:
        async with manager.map(one, range(ENOUGH), arg="x") as outcomes:
            assert all([outcome.ok async for outcome in outcomes])


async def test_what_threads_compute_is_measured_and_advised_on() -> None:
    monitor = quiet()
    async with ServiceManager(monitor=monitor, log=None, threads=2) as manager:
        await run_all(manager, computes, waits, idles)
        kept = manager.statistics().tools["computes"].figures
    report = monitor.report()
    computing, waiting, idle = (report.tools[name] for name in ("computes", "waits", "idles"))
    assert (computing.offload, waiting.offload, idle.offload) == ("thread", "thread", "async")
    assert computing.cpu_s is not None
    assert waiting.cpu_s is not None
    assert computing.cpus is not None
    assert (computing.cpu_s.runs, waiting.cpu_s.runs) == (ENOUGH, ENOUGH)
    assert computing.cpu_s.mean >= STEP_S
    assert computing.cpu_s.total == pytest.approx(ENOUGH * computing.cpu_s.mean)
    assert waiting.cpu_s.mean < STEP_S / 10
    assert 0 < computing.cpus < 2
    assert (idle.cpu_s, idle.cpus) == (None, None)
    assert kept is not None
    assert kept.cpu_s == computing.cpu_s
    # On a machine that others keep busy a thread computes for less of its time: then nothing is to be said.
    wanted = [("computes", "process")] if computing.cpus >= COMPUTES else []
    assert [(advice.tool, advice.instead) for advice in report.advice] == wanted


@pytest.mark.real_time
async def test_what_holds_up_the_loop_is_advised_on_and_nothing_is_moved() -> None:
    monitor = quiet(stall=0.02)
    async with ServiceManager(monitor=monitor, log=None) as manager:
        await run_all(manager, holds)
        for stalls in range(STALLS_ENOUGH):
            await manager.execute(blocks, x=0)
            await until(lambda: monitor.report().tools["blocks"].stalls > stalls)  # noqa: B023  (it is over then)
        report = monitor.report()
        await manager.execute(holds, x=0)
    assert report.tools["blocks"].stalled_s >= STALLS_ENOUGH * 0.02
    assert [(advice.tool, advice.offload, advice.instead) for advice in report.advice] == [
        ("holds", "inline", "thread"), ("blocks", "async", "thread"),
    ]  # fmt: skip
    assert "\nadvice\n  holds: holds the event loop for " in str(report)
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["advice"][1]["why"] == report.advice[1].why
    assert monitor.report().tools["holds"].offload == "inline"


@pytest.mark.real_time
async def test_a_process_for_next_to_nothing_is_advised_against() -> None:
    monitor = quiet()
    async with ServiceManager(monitor=monitor, log=None, processes=1) as manager:
        for _ in range(25):  # the first call in a worker computes more than the others
            await run_all(manager, process_tools.double)
    report = monitor.report()
    double = report.tools["double"]
    assert double.offload == "process"
    assert double.cpu_s is not None
    assert double.cpu_s.runs == 25 * ENOUGH
    assert double.cpus is None  # what several processes do is not to be had from here
    # On a machine that others keep busy the first call alone may compute for longer than all others are allowed to.
    if double.cpu_s.mean < NOT_WORTH_A_PROCESS_S:
        assert [(advice.tool, advice.instead) for advice in report.advice] == [("double", "thread")]


async def test_phases_are_measured_too_and_tools_of_one_name_in_two_places_are_not_advised_on() -> None:
    monitor = quiet()
    pipeline = Pipeline("p", Phase("first", computes), Phase("second", holds, after="first"), item=["x"])
    async with ServiceManager(monitor=monitor, log=None) as manager:
        assert (await manager.run(pipeline, [{"x": 1}])).ok
    async with ServiceManager(monitor=monitor, log=None) as manager:
        await run_all(manager, holds.using(name="computes"))
    report = monitor.report()
    first = report.phases["p/first"]
    assert first.offload == "thread"
    assert first.cpu_s is not None
    assert first.cpu_s.runs == 1
    assert report.phases["p/second"].cpu_s is None
    assert (report.tools["computes"].offload, report.tools["computes"].cpu_s) == (None, None)
    assert report.advice == ()

"""Random pipelines whose calls stand in line for few tokens, with others who want them too; in virtual time.

What comes of them is what a plain interpreter says. And whenever nobody moves, no token is held by a call that nobody
has begun, and no more is worked at than may be in flight.

`KGAS_TEST_EXAMPLES=5000` runs more of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import anyio
from anyio import get_running_tasks
from hypothesis import given, settings
from hypothesis import strategies as st

from kgas_async import ConcurrencyLimit, Policy, ServiceManager, tool
from kgas_async.testing import assert_clean, virtual_backend

from .interrupted_pipelines import KEEPING, Interrupted, Stop, is_touched, stops
from .plain_interpreter import Interpreter
from .random_declarations import declarations, items
from .random_pipelines import ASYNC_FLAVOURS, Declaration, Extra, Log, pipeline_of
from .test_random_pipelines import BACKENDS, EXAMPLES, HOW, shown

HANGS_S = 5_000.0  # of virtual time
LOOK_S = 0.0371  # no timer of a tool fires when somebody looks
LOOKS = 300
FEW = 12  # tasks besides the workers of runs


@dataclass(frozen=True)
class Dress:
    """What the tools of one step have besides: numbers of limits, a nested call, stumbles, a priority."""

    limits: tuple[int, ...]
    nests: bool
    stumbles: int
    priority: int | None


@dataclass(frozen=True)
class Run:
    """One run, and how it is taken: with a window it is streamed, and each outcome is looked at for so long."""

    declaration: Declaration
    found: list[Any]
    dresses: tuple[Dress, ...]
    in_flight: int
    window: int | None
    ordered: bool
    source_s: float | None
    consumer_s: float


@dataclass(frozen=True)
class Outsider:
    """Somebody who holds a token for a while; or who changes how many there are."""

    at: float
    limit: int
    holds: float
    total: int | None


dresses = st.builds(
    Dress,
    limits=st.sampled_from([(), (0,), (0,), (1,), (0, 1), (1,), (0, 1)]),
    nests=st.sampled_from([False, False, True]),
    stumbles=st.sampled_from([0, 0, 0, 1, 2]),
    priority=st.sampled_from([None, None, 0, 9]),
)
runs = st.builds(
    Run,
    declaration=declarations(most=7),
    found=items(most=6),
    dresses=st.lists(dresses, min_size=8, max_size=8).map(tuple),
    in_flight=st.sampled_from([1, 2, 2, 3, 4]),
    window=st.sampled_from([None, None, 1, 2, 5]),
    ordered=st.booleans(),
    source_s=st.sampled_from([None, None, 0.0, 0.3]),
    consumer_s=st.sampled_from([0.0, 0.5]),
)
outsiders = st.lists(
    st.builds(
        Outsider,
        at=st.sampled_from([0.0, 0.0, 0.15, 0.5, 1.0]),
        limit=st.integers(0, 2),
        holds=st.sampled_from([0.0, 0.25, 1.0, 3.0]),
        total=st.sampled_from([None, None, None, 1, 2, 3]),
    ),
    max_size=5,
)
totals = st.tuples(*[st.sampled_from([1, 1, 2])] * 3)


class Crowd:
    """Runs, others, and the limits that they share."""

    def __init__(
        self, wanted: list[Run], others: list[Outsider], totals: tuple[int, ...], managers: int, *, nests: bool = True
    ) -> None:
        self.runs, self.others, self.managers, self.nests = wanted, others, managers, nests
        self.limits = [ConcurrencyLimit(total) for total in totals]
        self.came: list[list[Any]] = [[] for _ in wanted]
        self.logs = [Log() for _ in wanted]
        self.open = len(wanted) + len(others)

        @tool(policy=Policy(concurrency=self.limits[2]))
        async def inner(x: int) -> int:
            await anyio.sleep(0.15)
            return x

        self.inner = inner
        self.pipelines = [self.pipeline_of(number, run) for number, run in enumerate(wanted)]

    def pipeline_of(self, number: int, run: Run) -> Any:
        extras = {
            step.name: Extra(
                f"{step.name} of run {number}",
                tuple(self.limits[one] for one in dress.limits) if not step.live else (),
                self.inner if self.nests and dress.nests and not step.late and step.flavour in ASYNC_FLAVOURS else None,
                dress.stumbles if not step.live else 0,
                dress.priority,
            )
            for step, dress in zip(run.declaration.steps, run.dresses, strict=False)
        }
        return pipeline_of(run.declaration, self.logs[number], extras)

    def in_flight_of(self, run: Run) -> int:
        return max([run.in_flight, *(step.batch or 1 for step in run.declaration.steps)])

    async def main(self) -> None:
        self.all_ended = anyio.Event()
        managers = [ServiceManager(log=None, threads=2) for _ in range(self.managers)]
        with anyio.fail_after(HANGS_S):
            async with anyio.create_task_group() as group, managers[0], managers[1] if managers[1:] else nullcontext():
                for other in self.others:
                    group.start_soon(self.meddle, other)
                group.start_soon(self.look, managers)
                for number, run in enumerate(self.runs):
                    group.start_soon(self.take, managers[number % len(managers)], number, run)
                await self.all_ended.wait()
        for manager in managers:
            assert_clean(manager)

    async def take(self, manager: ServiceManager, number: int, run: Run) -> None:
        pipeline, in_flight = self.pipelines[number], self.in_flight_of(run)
        source: Any = run.found if run.source_s is None else slowly(run.found, run.source_s)
        if run.window is None:
            report = await manager.run(pipeline, source, in_flight=in_flight, keep="all")
            self.came[number] = list(report.outcomes)
        else:
            options: Any = {"in_flight": in_flight, "ordered": run.ordered, "ordered_window": run.window}
            async with manager.stream(pipeline, source, **options) as stream:
                async for outcome in stream:
                    self.came[number].append(outcome)
                    await anyio.sleep(run.consumer_s)
        self.one_ended()

    async def meddle(self, other: Outsider) -> None:
        await anyio.sleep(other.at)
        limit = self.limits[other.limit]
        if other.total is not None:
            limit.total = other.total
        else:
            async with limit:
                await anyio.sleep(other.holds)
        self.one_ended()

    def one_ended(self) -> None:
        self.open -= 1
        if not self.open:
            self.all_ended.set()

    async def look(self, managers: list[ServiceManager]) -> None:
        """Whenever nobody moves: nobody is let in and not begun, and no more is worked at than may be."""
        before = len(get_running_tasks())
        for _ in range(LOOKS):
            await anyio.sleep(LOOK_S)
            if self.all_ended.is_set():
                return
            crews: list[Any] = [crew for manager in managers for crew in manager._session.crews]
            for crew in crews:
                assert not crew._let_in, "a token that nobody comes for"
                assert crew.room() >= 0, "more is worked at than may be in flight"
                assert crew._coming == 0
            allowed = sum(self.in_flight_of(run) for run in self.runs)
            assert len(get_running_tasks()) - before <= 3 * allowed + FEW

    def check(self) -> None:
        for limit in self.limits:
            statistics = limit.statistics()
            assert (statistics.borrowed, statistics.waiting) == (0, 0)


async def slowly(found: list[Any], seconds: float) -> AsyncIterator[Any]:
    for item in found:
        yield item
        await anyio.sleep(seconds)


@settings(HOW, max_examples=EXAMPLES // 2)
@given(
    wanted=st.lists(runs, min_size=1, max_size=2),
    others=outsiders,
    totals=totals,
    managers=st.integers(1, 2),
    seed=st.integers(0, 9),
)
def test_runs_that_share_few_tokens_all_end_as_they_would_alone(
    wanted: list[Run], others: list[Outsider], totals: tuple[int, ...], managers: int, seed: int
) -> None:
    for backend in BACKENDS:
        crowd = Crowd(wanted, others, totals, managers)
        library, options = virtual_backend(backend, seed)
        anyio.run(crowd.main, backend=library, backend_options=options)
        crowd.check()
        for run, came, log in zip(wanted, crowd.came, crowd.logs, strict=True):
            interpreter = Interpreter(run.declaration)
            should = [interpreter.item(item) for item in run.found]
            interpreter.once()
            assert [shown(one) for one in sorted(came, key=lambda one: one.index)] == should, backend
            assert not log.too_big, backend
            if run.window is None:
                assert log.calls == interpreter.calls, backend


@settings(HOW, max_examples=EXAMPLES // 2)
@given(run=runs, totals=totals, seed=st.integers(0, 9), stop=stops)
def test_a_run_in_lines_stopped_at_a_random_moment_leaves_no_token_behind(
    run: Run, totals: tuple[int, ...], seed: int, stop: Stop
) -> None:
    interpreter = Interpreter(run.declaration)
    should = [interpreter.item(item) for item in run.found]
    for backend in BACKENDS[: 1 if stop.how == "native" else 2]:
        # Where a nested call is cancelled alone, the call that waits for it has failed.
        crowd = Crowd([run], [], totals, 1, nests=stop.how != "one call")
        options = {"in_flight": crowd.in_flight_of(run), "ordered": run.ordered, "ordered_window": run.window}
        interrupted = Interrupted(crowd.pipelines[0], run.found, stop, **options)
        interrupted.run(backend, seed)
        crowd.check()
        came = sorted(one.index for one in interrupted.came)
        assert len(set(came)) == len(came), backend
        if stop.how in KEEPING:
            assert came == interrupted.pulled, backend
        if stop.how == "one call":
            assert len(came) == len(run.found), backend
        if stop.how in ("drain", "one call", "leave"):
            spared = [one for one in interrupted.came if not is_touched(one)]
            assert [shown(one) for one in spared] == [should[one.index] for one in spared], backend

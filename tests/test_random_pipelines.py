"""Random declarations of all that a pipeline can have give what a plain sequential interpreter gives, on both loops.

`KGAS_TEST_EXAMPLES=5000` runs more of them, and makes one that fails as small as it can. That takes minutes: say
`-o faulthandler_timeout=3000` too. `KGAS_TEST_SHRINK=1` does so with those that are run otherwise.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import anyio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kgas_async import Outcome, ServiceManager
from kgas_async.testing import assert_clean, virtual_backend

from .interrupted_pipelines import HANGS_S, KEEPING, Interrupted, Stop, is_touched, stops
from .plain_interpreter import Interpreter, Wanted
from .random_declarations import declarations, items
from .random_pipelines import Declaration, Log, later, pipeline_of, plain

BACKENDS = ("asyncio", "trio")
EXAMPLES = int(os.environ.get("KGAS_TEST_EXAMPLES", "300"))
# The same ones in each run of CI; a long run (KGAS_TEST_EXAMPLES) looks for others.
THE_SAME = "KGAS_TEST_EXAMPLES" not in os.environ
# Making a failing example small can take longer than a test may, which would then end the run without a word about it.
IS_SHRUNK = not THE_SAME or "KGAS_TEST_SHRINK" in os.environ

HOW = settings(
    derandomize=THE_SAME,
    deadline=None,
    phases=tuple(Phase) if IS_SHRUNK else (Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@dataclass(frozen=True)
class How:
    """How a pipeline is run; with a window it is streamed."""

    in_flight: int
    window: int | None
    ordered: bool
    seed: int
    asynchronous: bool  # the source


@st.composite
def hows(draw: Any) -> How:
    window = draw(st.sampled_from([None, None, 1, 2, 5]))
    in_flight = draw(st.sampled_from([1, 2, 3, 4, 50]))
    return How(in_flight, window, draw(st.booleans()), draw(st.integers(0, 9)), draw(st.booleans()))


def in_flight_of(declaration: Declaration, how: How) -> int:
    return max([how.in_flight, *(step.batch or 1 for step in declaration.steps)])


def statuses(outcome: Outcome[Any]) -> dict[str, Any]:
    """Of an item's phases."""
    return {
        name: [one.status for one in found] if isinstance(found, list) else found.status
        for name, found in outcome.phases.items()
    }


def shown(outcome: Outcome[Any]) -> Wanted:
    return Wanted(outcome.status, outcome.failed_phase, plain(outcome.value), statuses(outcome))


def source_of(found: list[Any], how: How) -> Any:
    return later(iter(found)) if how.asynchronous else iter(found)


def run_to_the_end(backend: str, declaration: Declaration, found: list[Any], how: How, log: Log) -> tuple[Any, Any]:
    manager = ServiceManager(log=None, threads=2)
    pipeline = pipeline_of(declaration, log)
    in_flight = in_flight_of(declaration, how)

    async def main() -> tuple[list[Outcome[Any]], Any]:
        with anyio.fail_after(HANGS_S):
            async with manager:
                if how.window is None:
                    report = await manager.run(pipeline, source_of(found, how), in_flight=in_flight, keep="all")
                    return report.outcomes, report
                options: Any = {"in_flight": in_flight, "ordered": how.ordered, "ordered_window": how.window}
                async with manager.stream(pipeline, source_of(found, how), **options) as stream:
                    outcomes = [outcome async for outcome in stream]
                return sorted(outcomes, key=lambda one: one.index), None

    library, options = virtual_backend(backend, how.seed)
    ended: tuple[Any, Any] = anyio.run(main, backend=library, backend_options=options)
    assert_clean(manager)
    return ended


@settings(HOW, max_examples=EXAMPLES)
@given(declaration=declarations(), found=items(), how=hows())
def test_a_random_declaration_gives_what_a_sequential_interpreter_gives(
    declaration: Declaration, found: list[Any], how: How
) -> None:
    interpreter = Interpreter(declaration)
    wanted = [interpreter.item(item) for item in found]
    interpreter.once()
    for backend in BACKENDS:
        log = Log()
        outcomes, report = run_to_the_end(backend, declaration, found, how, log)
        assert [shown(one) for one in outcomes] == wanted, backend
        assert log.calls == interpreter.calls, backend
        assert not log.too_big, backend
        if report is not None:
            told = report.results, report.errors.keys(), report.missing
            assert told == (interpreter.results, interpreter.errors, interpreter.missing), backend


@settings(HOW, max_examples=EXAMPLES // 2)
@given(declaration=declarations(), found=items(least=3, most=8), how=hows(), stop=stops)
def test_a_random_declaration_stopped_at_a_random_moment_loses_nothing_and_leaves_nothing(
    declaration: Declaration, found: list[Any], how: How, stop: Stop
) -> None:
    interpreter = Interpreter(declaration)
    wanted = [interpreter.item(item) for item in found]
    for backend in BACKENDS[: 1 if stop.how == "native" else 2]:
        options = {"in_flight": in_flight_of(declaration, how), "ordered": how.ordered, "ordered_window": how.window}
        run = Interrupted(pipeline_of(declaration, Log()), found, stop, **options)
        run.run(backend, how.seed)
        came = sorted(one.index for one in run.came)
        assert len(set(came)) == len(came), backend
        if stop.how in KEEPING:
            assert came == run.pulled, backend
        if stop.how == "one call":
            assert len(came) == len(found), backend
        if stop.how in ("drain", "one call", "leave"):  # who was not stopped has the outcome that he would have had
            assert not run.was_cut, backend
            spared = [one for one in run.came if not is_touched(one)]
            assert [shown(one) for one in spared] == [wanted[one.index] for one in spared], backend

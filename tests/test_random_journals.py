"""Random pipelines with a journal: the same as without, and again the same from the journal, on both loops.

`KGAS_TEST_EXAMPLES=5000` runs more of them; see test_random_pipelines.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from kgas_async import Outcome, ServiceManager
from kgas_async.testing import assert_clean, virtual_backend

from .interrupted_pipelines import HANGS_S
from .plain_interpreter import Interpreter, Wanted
from .random_declarations import declarations, items
from .random_pipelines import Declaration, Log, pipeline_of, plain
from .test_random_pipelines import BACKENDS, EXAMPLES, HOW, How, hows, in_flight_of, source_of, statuses

MOMENTS = st.sampled_from([None, 0.0, 0.1, 0.5, 1.0, 3.0])


def run(
    backend: str,
    declaration: Declaration,
    found: list[Any],
    how: How,
    log: Log,
    journal: Path,
    cut_after: float | None = None,
) -> Any:
    """Run it with a journal, cut off after so many seconds of virtual time; None where it was."""
    manager = ServiceManager(log=None, threads=2)
    pipeline = pipeline_of(declaration, log)
    reports: list[Any] = []

    async def main() -> None:
        with anyio.fail_after(HANGS_S):
            async with manager:
                with anyio.move_on_after(cut_after):
                    options: Any = {"in_flight": in_flight_of(declaration, how), "keep": "all"}
                    reports.append(await manager.run(pipeline, source_of(found, how), journal=journal, **options))

    library, options = virtual_backend(backend, how.seed)
    anyio.run(main, backend=library, backend_options=options)
    assert_clean(manager)
    return reports[0] if reports else None


def shown(outcome: Outcome[Any]) -> Wanted:
    """What a user sees of it, wherever it came from."""
    return Wanted(outcome.status, outcome.failed_phase, plain(outcome.value), ran_or_reused(statuses(outcome)))


def ran_or_reused(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: ran_or_reused(one) for name, one in found.items()}
    return [ran_or_reused(one) for one in found] if isinstance(found, list) else found.replace("reused", "succeeded")


def may_run(declaration: Declaration, report: Any) -> bool:
    """Whether something of it runs again for a reason: a failure, a live stream."""
    return (
        any(not one.ok for one in report.outcomes)
        or bool(report.errors)
        or any(step.live for step in declaration.steps)
    )


@settings(HOW, max_examples=max(1, EXAMPLES // 3))
@given(
    declaration=declarations(), found=items(), how=hows(), cut_after=st.sampled_from([None, 0.0, 0.1, 0.5, 1.0, 3.0])
)
def test_a_random_declaration_resumes(
    declaration: Declaration, found: list[Any], how: How, cut_after: float | None
) -> None:
    interpreter = Interpreter(declaration)
    wanted = [interpreter.item(item) for item in found]
    interpreter.once()
    for backend in BACKENDS:
        with tempfile.TemporaryDirectory() as folder:
            journal = Path(folder) / "run.db"
            before = Log()
            if cut_after is not None:
                run(backend, declaration, found, how, before, journal, cut_after)
            first = Log()
            report = run(backend, declaration, found, how, first, journal)
            assert [shown(one) for one in report.outcomes] == wanted, backend
            told = report.results, report.errors.keys(), report.missing
            assert told == (interpreter.results, interpreter.errors, interpreter.missing), backend
            if cut_after is None:
                assert first.calls == interpreter.calls, backend
            again = Log()
            second = run(backend, declaration, found, how, again, journal)
            assert [shown(one) for one in second.outcomes] == wanted, backend
            assert [one.key for one in second.outcomes] == [one.key for one in report.outcomes], backend
            assert (second.results, second.errors.keys(), second.missing) == told, backend
            if not may_run(declaration, report):
                assert not again.calls, backend

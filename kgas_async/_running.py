"""A run of a pipeline within a session: its services, bound tools and crew, from start to end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from ._journal import Journal
from ._journaled import JournaledCrew
from ._pipeline import Pipeline
from ._run import RunCrew
from ._session import Session

__all__ = ["running"]


@asynccontextmanager
async def running(
    session: Session,
    pipeline: Pipeline,
    items: Iterable[Any] | AsyncIterable[Any],
    journal: Journal | None = None,
    retry: str = "all",
    **options: Any,
) -> AsyncGenerator[RunCrew]:
    """The crew of a new run, which is ended on leaving; the services that the pipeline needs stay for the session.

    Raises:
        ManagerClosed, ServiceStartFailed, JournalError: It did not begin.
    """
    parent = session.parent()
    session.check_open(parent)
    if not isinstance(pipeline, Pipeline):
        raise TypeError(f"run and stream take a Pipeline, not {pipeline!r}; for a single tool there is map")
    await session.hosting.start_all(pipeline.services)
    session.check_open(parent)  # it may have been drained meanwhile
    run_id = session.next_run_id()
    bound = {
        phase.name: session.bind(phase.tool, phase.policy, pipeline=pipeline.name, phase=phase.name, run_id=run_id)
        for phase in pipeline.phases
    }
    options["parent"] = parent
    if journal is None:
        crew = RunCrew(session, pipeline, bound, run_id, items, **options)
    else:
        crew = journaled = JournaledCrew(
            session, pipeline, bound, run_id, items, journal=journal, retry=retry, **options
        )
        await journaled.open_journal()
    if session.log is not None:
        session.log.emit(
            "run.started", run_id=run_id, pipeline=pipeline.name, in_flight=crew.in_flight, items=crew.total,
            plan=[one | bound[one["phase"]].on_record() for one in pipeline.plan.on_record()],
            parent_id=None if parent is None else parent.id,
        )  # fmt: skip
    crew.start()
    try:
        yield crew
    finally:
        try:
            await crew.close()
        finally:  # a generator of the user's may raise as it is closed
            if session.log is not None:
                session.log.emit(
                    "run.ended", run_id=run_id, pipeline=pipeline.name, items=crew.done, failed=crew.failed,
                    cancelled=crew.cancelled, skipped=crew.skipped,
                )  # fmt: skip

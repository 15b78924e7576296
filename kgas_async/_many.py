"""The manager's public methods over many inputs or tools: `map`, `stream`, `run`, `gather`, `race`.

What moves them is `_map`, `_run` and, under both, `_crew`; and `_together`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from time import perf_counter
from typing import Any, Literal, ParamSpec, TypeVar, overload

from ._errors import JournalError, PipelineError
from ._journal import Journal, as_journal
from ._map import MapCrew
from ._outcome import Outcome
from ._pipeline import Pipeline
from ._report import Progress, RunReport
from ._running import running
from ._session import Session
from ._stream import Opening, OutcomeStream, check_crew_options, not_taken
from ._suggest import suggests
from ._together import Together
from ._tool import SupportsExecute

__all__ = ["ManyCalls"]

P = ParamSpec("P")
R = TypeVar("R")
OnError = Literal["collect", "raise"] | float


class ManyCalls(ABC):
    """See the module; `ServiceManager` has these among its own."""

    # Of a run that raised, for the command line: its report, and whether on_error= has ended it.
    _last_report: RunReport | None = None
    _gave_up = False

    @abstractmethod
    def _here(self, what: str) -> Session:
        """The session, if there is one, on the thread of its event loop."""

    @suggests
    def map(
        self,
        tool: SupportsExecute[P, R],
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        arg: str | None = None,
        in_flight: int = 100,
        ordered: bool = True,
        on_error: OnError = "collect",
        on_progress: Callable[[Progress], object] | None = None,
    ) -> Opening[R]:
        """One tool over many inputs: ``async with manager.map(tool, inputs) as outcomes: async for outcome in ...``.

        Args:
            tool: The tool.
            inputs: Mappings of inputs, from a sync or async iterable, pulled lazily; or bare values with ``arg``.
            arg: The input that bare values are for.
            in_flight: Calls at once.
            ordered: Outcomes in source order, else as they come.
            on_error: ``"collect"``: each failure is an outcome; ``"raise"``: the first one cancels the rest and is
                raised; a share: raise when more than that share of at least 20 has failed.
            on_progress: Called with a `Progress` after each outcome.

        Returns:
            One `Outcome` per input.

        Raises:
            PipelineError: From the iteration, after the last outcome: the source of inputs raised.
            TypeError: Arguments that do not fit.

        Cancellation: On leaving, however, what is in flight is cancelled and waited for.
        """
        check_crew_options(on_progress, ordered=ordered)
        options = {"in_flight": in_flight, "ordered": ordered, "on_error": on_error, "on_progress": on_progress}
        return Opening("manager.map", self._mapping(tool, inputs, arg, options))

    @asynccontextmanager
    async def _mapping(
        self, tool: Any, inputs: Iterable[Any] | AsyncIterable[Any], arg: str | None, options: dict[str, Any]
    ) -> AsyncGenerator[OutcomeStream[Any]]:
        session = self._here("manager.map")
        parent = session.parent()
        session.check_open(parent)
        bound = session.bind(tool)
        if bound.requires:
            session.hosting.check_running(bound.requires, bound.name)
        if arg is not None and arg not in bound.signature.types:
            raise TypeError(
                f"arg={arg!r} is no input of tool {bound.name!r}; it takes {', '.join(bound.signature.types)}"
            )
        crew = MapCrew(session, bound, inputs, arg, window=None, parent=parent, **options)
        crew.start()
        try:
            yield OutcomeStream(crew)
        finally:
            await crew.close()

    @suggests
    def stream(
        self,
        pipeline: Pipeline,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        ordered: bool = True,
        ordered_window: int | None = None,
        journal: str | os.PathLike[str] | Journal | None = None,
        retry: Literal["all", "failed", "none"] = "all",
        in_flight: int = 100,
        on_error: OnError = "collect",
        on_progress: Callable[[Progress], object] | None = None,
    ) -> Opening[Any]:
        """A pipeline over items, as outcomes: ``async with manager.stream(pipeline, items) as outcomes:``.

        Args:
            pipeline: What to run; its tools' services are started if the manager does not hold them yet.
            items: Mappings, models or dataclasses, from a sync or async iterable, pulled lazily; may be endless.
            ordered: Outcomes in source order, else as they come.
            ordered_window: How far the source may be ahead of what was taken; four times ``in_flight`` unless given.
            journal: A file, or a `Journal`, that finished phases are kept in and taken from.
            retry: What of a journal runs: ``"all"``: what is new and what failed before; ``"failed"``: only what failed
                before, new items are skipped; ``"none"``: only what is new, what failed keeps its outcome.
            in_flight: Calls at once, and open source items.
            on_error, on_progress: As of `map`.

        Returns:
            One `Outcome` per source item. Run-level phases run after the last one was taken.

        Raises:
            PipelineError: From the iteration: the source raised (after the last outcome), the first item lacks a
                field.
            JournalError: The journal cannot be used; from the iteration: a value cannot be kept in it, or it cannot be
                written any more.

        Cancellation: On leaving, however, what is in flight is cancelled and waited for.
        """
        check_crew_options(on_progress, ordered=ordered)
        options: dict[str, Any] = {"in_flight": in_flight, "ordered": ordered, "window": ordered_window}
        options |= {"on_error": on_error, "on_progress": on_progress}
        options |= {"journal": as_journal(journal, retry), "retry": retry}
        return Opening("manager.stream", self._streaming(pipeline, items, options))

    @asynccontextmanager
    async def _streaming(
        self, pipeline: Pipeline, items: Iterable[Any] | AsyncIterable[Any], options: dict[str, Any]
    ) -> AsyncGenerator[OutcomeStream[Any]]:
        async with running(self._here("manager.stream"), pipeline, items, **options) as crew:
            yield OutcomeStream(crew)

    @suggests
    async def run(
        self,
        pipeline: Pipeline,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        journal: str | os.PathLike[str] | Journal | None = None,
        retry: Literal["all", "failed", "none"] = "all",
        in_flight: int = 100,
        on_error: OnError = "collect",
        on_progress: Callable[[Progress], object] | None = None,
        keep: Literal["all"] | None = None,
    ) -> RunReport:
        """Run a pipeline over items to the end.

        Args:
            pipeline, items, journal, retry, in_flight, on_error, on_progress: As of `stream`.
            keep: ``"all"`` keeps every outcome on the report; else memory does not grow with the items.

        Returns:
            A `RunReport`: counts, results of run-level phases, the first 1,000 failures.

        Raises:
            PipelineError: The source raised, or too many items failed; ``.report`` has what had finished.
            JournalError: The journal cannot be used, or written any more; ``.report`` likewise.
            CallError: The first failure, with ``on_error="raise"``.

        Cancellation: Cancels what is in flight and waits for it.
        """
        if keep not in (None, "all"):
            raise ValueError(f"keep= is 'all' or None, not {keep!r}")
        check_crew_options(on_progress)
        kept = as_journal(journal, retry)
        report = self._last_report = None
        crew: Any = None
        try:
            async with running(
                self._here("manager.run"), pipeline, items, ordered=True, window=None, in_flight=in_flight,
                on_error=on_error, on_progress=on_progress, journal=kept, retry=retry,
            ) as crew:  # fmt: skip
                report = RunReport(pipeline.name, crew.run_id)
                await _fill(report, crew, keep_all=keep == "all")
        except BaseException as error:
            if report is not None:
                for outcome in not_taken(crew):  # what was cut off has its outcomes by now
                    report.add(outcome, keep_all=keep == "all")
                if isinstance(error, (PipelineError, JournalError)):
                    error.report = report
            self._last_report, self._gave_up = report, crew is not None and crew.gave_up
            raise
        return report

    @overload
    async def gather(
        self,
        tools: Mapping[str, SupportsExecute[..., R]],
        inputs: Mapping[str, Any] | None = None,
        on_error: Literal["raise"] = "raise",
    ) -> dict[str, R]: ...
    @overload
    async def gather(
        self,
        tools: Mapping[str, SupportsExecute[..., R]],
        inputs: Mapping[str, Any] | None = None,
        *,
        on_error: Literal["collect"],
    ) -> dict[str, Outcome[R]]: ...
    @overload
    async def gather(
        self,
        tools: Mapping[str, SupportsExecute[..., R]],
        inputs: Mapping[str, Any] | None,
        on_error: Literal["collect"],
    ) -> dict[str, Outcome[R]]: ...
    @suggests
    async def gather(
        self,
        tools: Mapping[str, SupportsExecute[..., Any]],
        inputs: Mapping[str, Any] | None = None,
        on_error: Literal["raise", "collect"] = "raise",
    ) -> dict[str, Any]:
        """Several tools on the same inputs at once, results by name: ``await manager.gather({"a": tool}, inputs)``.

        Args:
            tools: Tools, async and sync, by the names that the results are to have.
            inputs: For all; each tool gets those that it takes.
            on_error: ``"raise"``: the first failure cancels the rest; ``"collect"``: each failure is an outcome.

        Returns:
            The values by name, in the order of ``tools``; with ``"collect"`` an `Outcome` for each.

        Raises:
            CallError: The one that failed, as of `execute`.
            ExceptionGroup: Of those that failed, where several did before they could be cancelled.
            ManagerClosed: Nothing was admitted.
            TypeError: An input that no tool takes.

        Cancellation: Cancels all and waits for them, so ``fail_after`` around it bounds the whole.
        """
        if on_error not in ("raise", "collect"):
            raise ValueError(f"on_error= of gather is 'raise' or 'collect', not {on_error!r}")
        return await Together(self._here("manager.gather"), tools, inputs or {}).all(on_error=on_error)

    @suggests
    async def race(
        self, tools: Mapping[str, SupportsExecute[..., R]], inputs: Mapping[str, Any] | None = None
    ) -> Outcome[R]:
        """Several tools on the same inputs; the first success wins, the others are cancelled and waited for.

        Args:
            tools, inputs: As of `gather`.

        Returns:
            The winner's `Outcome`: ``key`` is its name in ``tools``, ``tool`` its tool's.

        Raises:
            CallError: All failed: the error if there is one, else
            ExceptionGroup: of all of them.
            ManagerClosed, TypeError: As of `gather`.

        Cancellation: Cancels all and waits for them.
        """
        if not tools:
            raise ValueError("race needs at least one tool: nobody can win")
        return await Together(self._here("manager.race"), tools, inputs or {}).first()


async def _fill(report: RunReport, crew: Any, *, keep_all: bool) -> None:
    """Count the outcomes of a run, each as it comes: no task has to wake up for it."""
    began = perf_counter()
    crew.on_outcome = partial(report.add, keep_all=keep_all)
    try:
        with suppress(StopAsyncIteration):
            await crew.next()
    finally:
        report.elapsed_s = perf_counter() - began
        crew.on_outcome = None  # else all that the report keeps is left to the garbage collector, with the crew
        crew.level.tell(report)
        report.reused = crew.reused
        report.drained = crew.drained

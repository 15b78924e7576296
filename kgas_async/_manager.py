"""`ServiceManager`: the composition root. Opens and leaves a session, and has the public methods.

Ownership, threads and registers are the session's (`_session`); a pipeline in motion is `_run`'s.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from types import MappingProxyType, TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar

import anyio.lowlevel

from ._blocking import BlockingManager
from ._call import Call
from ._errors import KgasAsyncError, ManagerClosed, PipelineError
from ._evidence import Sink
from ._evidence_sinks import StructlogSink, as_sinks, open_sinks
from ._hosting import lifetime_check
from ._lifetime import Lifetime
from ._limits import check_count, check_seconds
from ._map import MapCrew
from ._outcome import Outcome
from ._pipeline import Pipeline
from ._report import ManagerStatistics, Progress, RunReport
from ._running import running
from ._session import Session
from ._stream import OutcomeStream, not_taken
from ._system import default_threads
from ._tool import SupportsExecute

__all__ = ["ServiceManager"]

P = ParamSpec("P")
R = TypeVar("R")
OnError = Literal["collect", "raise"] | float
Evidence = str | os.PathLike[str] | Sink | Sequence[str | os.PathLike[str] | Sink]


class ServiceManager:
    """Owns the execution of tools and the lifetimes of services: ``async with ServiceManager(...) as manager:``.

    After the ``async with`` nothing that it started runs, but for threads on record as abandoned. It may be entered
    again, also on another event loop.

    Args:
        services: Started on entering, with what they require, stopped in reverse on leaving.
        evidence: A path for JSON lines (continued, never truncated), a sink, or a list of them. None: off.
        log: What goes to structlog: ``"events"`` (failures, retries, services, runs), ``"calls"`` (every call too),
            None (nothing).
        grace: Seconds that cancelled work has to end.
        abandoned: On leaving, ``"leave"`` abandoned threads to themselves (they are daemons, and the evidence names
            them), or ``"join"``: wait for them.
        signals: The first SIGINT or SIGTERM drains, the second cancels, the third ends the process. Without it, in
            the main thread, SIGINT cancels the session. Either way a bare ``KeyboardInterrupt`` (SIGTERM:
            ``SystemExit(143)``) is raised on leaving.
        seed: Of the random numbers (waits of retries).
        threads: Worker threads at the most; ``min(32, cpus + 4)`` unless given.
        max_abandoned: Abandoned threads above which new sync calls are rejected.
        on_sink_error: When evidence cannot be written: ``"stop"`` the session, or ``"continue"`` without it.

    Raises:
        ServiceStartFailed: On entering; what had started was stopped.
        EvidenceError: On entering, where the evidence cannot be opened; on leaving, where it could not be written.
    """

    def __init__(
        self,
        *services: Any,
        evidence: Evidence | None = None,
        log: Literal["events", "calls"] | None = "events",
        grace: float = 10.0,
        abandoned: Literal["leave", "join"] = "leave",
        signals: bool = False,
        seed: int | None = None,
        threads: int | None = None,
        max_abandoned: int = 100,
        on_sink_error: Literal["stop", "continue"] = "stop",
    ) -> None:
        for service in services:
            lifetime_check(service)
        if log not in ("events", "calls", None):
            raise ValueError(f"log= is 'events', 'calls' or None, not {log!r}")
        if abandoned not in ("leave", "join"):
            raise ValueError(f"abandoned= is 'leave' or 'join', not {abandoned!r}")
        if on_sink_error not in ("stop", "continue"):
            raise ValueError(f"on_sink_error= is 'stop' or 'continue', not {on_sink_error!r}")
        self._services = services
        self._sinks = as_sinks(evidence)
        self._log = log
        self._signals = signals
        self._options: dict[str, Any] = {
            "grace": check_seconds("grace", grace),
            "abandoned": abandoned,
            "seed": seed,
            "threads": default_threads() if threads is None else check_count("threads", threads),
            "max_abandoned": check_count("max_abandoned", max_abandoned),
            "on_sink_error": on_sink_error,
        }
        self._session: Session | None = None
        self._last_session: Session | None = None  # what kgas_async.testing looks into
        self._lifetime: Lifetime | None = None

    # --- lifetime

    async def __aenter__(self) -> Self:
        if self._session is not None:
            raise RuntimeError("this manager is open already; use one per lifetime, or share this one")
        open_sinks(self._sinks)
        session = self._session = self._last_session = Session(self, **self._options)
        session.record(self._sinks, [StructlogSink(self._log)] if self._log is not None else [])
        self._lifetime = Lifetime(session, signals=self._signals)
        try:
            await self._lifetime.open(self._services)
        except BaseException:
            self._session = None
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        assert self._lifetime is not None
        try:
            return await self._lifetime.leave(exc_type, exc, tb)
        finally:
            self._session = None

    def _opened(self) -> Session:
        if self._session is None:
            raise ManagerClosed("the manager is not open; use it inside 'async with ServiceManager(...) as manager:'")
        return self._session

    @property
    def session_id(self) -> str:
        """The id of this lifetime, as in the evidence; the prefix of its calls' ids."""
        return self._opened().session

    async def start(self, service: Any) -> None:
        """Start a service, with what it requires, unless it runs already; it is stopped on leaving.

        Raises:
            ServiceStartFailed: What had started with it was stopped.

        Cancellation: Stops what was starting.
        """
        session = self._opened()
        session.check_open(session.parent())
        await session.hosting.start_all([service])

    async def drain(self) -> None:
        """Admit no new calls, let those in flight end for ``grace`` seconds, then cancel them.

        Cancellation: Stops waiting; the manager goes on draining.
        """
        await self._opened().drain()

    # --- single calls

    async def execute(self, tool: SupportsExecute[P, R], /, *args: P.args, **inputs: P.kwargs) -> R:
        """Run a tool and give its value.

        Raises:
            CallFailed: The tool raised; its exception is the ``__cause__``.
            CallTimeout: Timeout or deadline; also a ``TimeoutError``.
            InvalidInputs: The inputs do not fit.
            CallRejected: There is no room for it.
            CallCancelled: Somebody else cancelled the call.
            ManagerClosed, ServiceNotRunning: It was not admitted.

        Cancellation: Reaches the tool; a thread that does not look has its grace, then is abandoned.
        """
        call = await self._run_here(tool, args, inputs)
        result: R = call.unwrap()
        return result

    async def outcome(self, tool: SupportsExecute[P, R], /, *args: P.args, **inputs: P.kwargs) -> Outcome[R]:
        """Run a tool and give what came of it; raises nothing but the caller's own cancellation."""
        try:
            call = await self._run_here(tool, args, inputs)
        except (KgasAsyncError, TypeError, ValueError) as error:
            name = getattr(tool, "name", type(tool).__name__)
            return Outcome("rejected", None, error, "", -1, name)
        return call.to_outcome()

    async def _run_here(self, tool: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> Call[Any]:
        session = self._opened()
        if session.log is not None and session.log.behind:
            await session.log.caught_up()
        call = session.admit(tool, args, inputs)
        await session.host_call(call)
        if call.status == "cancelled":
            await anyio.lowlevel.checkpoint_if_cancelled()  # as in `Call.wait`
        return call

    def submit(self, tool: SupportsExecute[P, R], /, *args: P.args, **inputs: P.kwargs) -> Call[R]:
        """Start a tool in the background; the manager owns it.

        Returns:
            The `Call`: ``await call.result()``, ``call.cancel()``.

        Raises:
            ManagerClosed, ServiceNotRunning, InvalidInputs: It was not admitted.
        """
        session = self._opened()
        call = session.admit(tool, args, inputs)  # type: ignore[arg-type]
        session.start_call(call)
        return call

    @property
    def calls(self) -> Mapping[str, Call[Any]]:
        """The calls that have not ended, by id; a snapshot."""
        return MappingProxyType({call.id: call for call in self._opened().calls_open.values()})

    async def cancel(self, id: str | None = None, reason: str = "") -> bool:  # noqa: A002  (the word that users have)
        """Cancel one call, or all calls, maps and runs, and wait until they have ended.

        Args:
            id: The call's id; None for all.
            reason: Goes into evidence and into `CallCancelled.reason`.

        Returns:
            Whether there was anything to cancel.

        Cancellation: Stops waiting; the calls stay cancelled.
        """
        session = self._opened()
        own = session._own_chain()
        if id is None:
            found = [call for serial, call in session.calls_open.items() if serial not in own]
            session.cancel_calls(reason)
        else:
            found = [call for call in session.calls_open.values() if call.id == id]
            for call in found:
                call.cancel(reason)
        for call in found:
            if call.serial not in own:
                await call.wait()
        return bool(found)

    # --- many

    @asynccontextmanager
    async def map(
        self,
        tool: SupportsExecute[P, R],
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        arg: str | None = None,
        in_flight: int = 100,
        ordered: bool = True,
        on_error: OnError = "collect",
        on_progress: Callable[[Progress], object] | None = None,
    ) -> AsyncGenerator[OutcomeStream[R]]:
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

        Cancellation: On leaving, however, what is in flight is cancelled and waited for.
        """
        session = self._opened()
        parent = session.parent()
        session.check_open(parent)
        bound = session.bind(tool)  # type: ignore[arg-type]
        if bound.requires:
            session.hosting.check_running(bound.requires, bound.name)
        if arg is not None and arg not in bound.signature.types:
            raise TypeError(
                f"arg={arg!r} is no input of tool {bound.name!r}; it takes {', '.join(bound.signature.types)}"
            )
        crew = MapCrew(
            session, bound, inputs, arg, in_flight=in_flight, ordered=ordered, window=None, on_error=on_error,
            on_progress=on_progress, parent=parent,
        )  # fmt: skip
        crew.start()
        try:
            yield OutcomeStream(crew)
        finally:
            await crew.close()

    @asynccontextmanager
    async def stream(
        self,
        pipeline: Pipeline,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        ordered: bool = True,
        ordered_window: int | None = None,
        in_flight: int = 100,
        on_error: OnError = "collect",
        on_progress: Callable[[Progress], object] | None = None,
    ) -> AsyncGenerator[OutcomeStream[Any]]:
        """A pipeline over items, as outcomes: ``async with manager.stream(pipeline, items) as outcomes:``.

        Args:
            pipeline: What to run; its tools' services are started if the manager does not hold them yet.
            items: Mappings, models or dataclasses, from a sync or async iterable, pulled lazily; may be endless.
            ordered: Outcomes in source order, else as they come.
            ordered_window: How far the source may be ahead of what was taken; four times ``in_flight`` unless given.
            in_flight: Calls at once, and open source items.
            on_error, on_progress: As of `map`.

        Returns:
            One `Outcome` per source item. Run-level phases run after the last one was taken.

        Raises:
            PipelineError: From the iteration: the source raised (after the last outcome), the first item lacks a
                field.

        Cancellation: On leaving, however, what is in flight is cancelled and waited for.
        """
        async with running(
            self._opened(), pipeline, items, ordered=ordered, window=ordered_window, in_flight=in_flight,
            on_error=on_error, on_progress=on_progress,
        ) as crew:  # fmt: skip
            yield OutcomeStream(crew)

    async def run(
        self,
        pipeline: Pipeline,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        in_flight: int = 100,
        on_error: OnError = "collect",
        on_progress: Callable[[Progress], object] | None = None,
        keep: Literal["all"] | None = None,
    ) -> RunReport:
        """Run a pipeline over items to the end.

        Args:
            pipeline, items, in_flight, on_error, on_progress: As of `stream`.
            keep: ``"all"`` keeps every outcome on the report; else memory does not grow with the items.

        Returns:
            A `RunReport`: counts, results of run-level phases, the first 1,000 failures.

        Raises:
            PipelineError: The source raised, or too many items failed; ``.report`` has what had finished.
            CallError: The first failure, with ``on_error="raise"``.

        Cancellation: Cancels what is in flight and waits for it.
        """
        if keep not in (None, "all"):
            raise ValueError(f"keep= is 'all' or None, not {keep!r}")
        began = perf_counter()
        async with running(
            self._opened(), pipeline, items, ordered=True, window=None, in_flight=in_flight, on_error=on_error,
            on_progress=on_progress,
        ) as crew:  # fmt: skip
            report = RunReport(pipeline.name, crew.run_id)
            try:
                async for outcome in OutcomeStream(crew):
                    report.add(outcome, keep_all=keep == "all")
            except PipelineError as error:
                for outcome in not_taken(crew):
                    report.add(outcome, keep_all=keep == "all")
                error.report = report
                raise
            finally:
                report.elapsed_s = perf_counter() - began
                report.results = crew.results
                report.missing = crew.missing
                report.drained = crew.drained
                report.errors = {
                    name: outcome.error for name, outcome in crew.run_outcomes.items() if outcome.error is not None
                }
        return report

    # --- looking

    def statistics(self) -> ManagerStatistics:
        """Counts per tool name, and what is open now."""
        return self._opened().statistics()

    def blocking(self, backend: str = "asyncio", backend_options: dict[str, Any] | None = None) -> BlockingManager:
        """The same names, blocking, for scripts and notebooks: ``with ServiceManager().blocking() as manager:``.

        The manager lives on an event loop in a thread of its own, so it works where a loop already runs. Ctrl-C
        cancels the call that is waited for.
        """
        return BlockingManager(self, backend, backend_options)

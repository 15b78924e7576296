"""`ServiceManager`: the composition root. Opens and leaves a session, and has the public methods.

Ownership, threads and registers are the session's (`_session`); the methods that make calls are in `_single` and
`_many`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from ._blocking import BlockingManager
from ._book import CallBook
from ._call import Call
from ._context import door
from ._errors import ManagerClosed
from ._evidence import Sink
from ._evidence_sinks import StructlogSink, as_sinks, open_sinks
from ._health import HealthReport
from ._hosting import lifetime_check
from ._lifetime import Lifetime
from ._limits import check_count, check_seconds, check_text, one_of
from ._many import ManyCalls
from ._monitor import PerformanceMonitor
from ._options import CallOptions
from ._report import ManagerStatistics
from ._session import Session
from ._single import SingleCalls
from ._standing import statistics_of
from ._suggest import suggests
from ._system import cpus, default_threads
from ._tracing import tracing_of

__all__ = ["ServiceManager"]

Evidence = str | os.PathLike[str] | Sink | Sequence[str | os.PathLike[str] | Sink]


class ServiceManager(SingleCalls, ManyCalls):
    """Owns the execution of tools and the lifetimes of services: ``async with ServiceManager(...) as manager:``.

    After the ``async with`` nothing that it started runs, but for threads on record as abandoned. It may be entered
    again, also on another event loop.

    Args:
        services: Started on entering, with what they require, stopped in reverse on leaving.
        evidence: A path for JSON lines (continued, never truncated), a sink, or a list of them. None: off.
        log: What goes to structlog: ``"events"`` (failures, retries, services, runs), ``"calls"`` (every call too),
            None (nothing).
        monitor: Measures calls, resources and stalls of the event loop. None: a blocked loop goes unnoticed.
        grace: Seconds that cancelled work has to end.
        abandoned: On leaving, ``"leave"`` abandoned threads to themselves (they are daemons, and the evidence names
            them), or ``"join"``: wait for them.
        signals: The first SIGINT, SIGTERM or SIGHUP drains for ``grace`` seconds, then cancels what is left; the second
            cancels at once, the third ends the process. Without it, in the main thread, SIGINT cancels the session.
            Either way a bare ``KeyboardInterrupt`` (SIGTERM: ``SystemExit(143)``, SIGHUP: ``SystemExit(129)``) is
            raised on leaving. One that is ignored, as SIGHUP by ``nohup``, stays so.
        seed: Of the random numbers (waits of retries).
        threads: Worker threads at the most; ``min(32, cpus + 4)`` unless given.
        processes: Worker processes at the most; as many as there are CPUs for us (affinity, cgroup) unless given.
        on_crash: When a service crashes that its `RestartPolicy` does not start again (any more): ``"raise"`` takes the
            session down, and leaving it raises `ServiceCrashed`; ``"continue"`` goes on without it and without those
            that require it, and calls that use it get `ServiceCrashed`.
        max_abandoned: Abandoned threads above which new sync calls are rejected.
        on_sink_error: When evidence cannot be written: ``"stop"`` the session, or ``"continue"`` without it.
        lineage: Whether the end of a call has the digests of its inputs and its result.
        record_values: Whether it has the inputs and the result themselves, as text.
        redact: Names of inputs that go into neither, and whose values are taken out of messages of errors.

    Raises:
        ServiceStartFailed: On entering; what had started was stopped.
        EvidenceError: On entering, where the evidence cannot be opened; on leaving, where it could not be written.
    """

    @suggests
    def __init__(
        self,
        *services: Any,
        evidence: Evidence | None = None,
        log: Literal["events", "calls"] | None = "events",
        monitor: PerformanceMonitor | None = None,
        grace: float = 10.0,
        abandoned: Literal["leave", "join"] = "leave",
        signals: bool = False,
        seed: int | None = None,
        threads: int | None = None,
        processes: int | None = None,
        on_crash: Literal["raise", "continue"] = "raise",
        max_abandoned: int = 100,
        on_sink_error: Literal["stop", "continue"] = "stop",
        lineage: bool = False,
        record_values: bool = False,
        redact: Collection[str] = (),
    ) -> None:
        for service in services:
            lifetime_check(service)
        if log not in ("events", "calls", None):
            raise ValueError(f"log= is 'events', 'calls' or None, not {log!r}")
        if monitor is not None and not isinstance(monitor, PerformanceMonitor):
            raise TypeError(f"monitor= is a PerformanceMonitor, not {monitor!r}")
        if not isinstance(signals, bool):
            raise TypeError(f"signals= is True or False, not {signals!r}")
        one_of("abandoned", abandoned, "leave", "join")
        one_of("on_sink_error", on_sink_error, "stop", "continue")
        one_of("on_crash", on_crash, "raise", "continue")
        self._services = services
        self._sinks = as_sinks(evidence)
        self._log = log
        self._signals = signals
        self._options: dict[str, Any] = {
            "grace": check_seconds("grace", grace),
            "abandoned": abandoned,
            "seed": seed,
            "threads": default_threads() if threads is None else check_count("threads", threads),
            "processes": cpus() if processes is None else check_count("processes", processes),
            "max_abandoned": check_count("max_abandoned", max_abandoned),
            "on_sink_error": on_sink_error,
            "on_crash": on_crash,
            "monitor": monitor,
            "tracing": tracing_of(lineage, record_values, redact),
        }
        self._session: Session | None = None
        self._last_session: Session | None = None  # what kgas_async.testing looks into
        self._lifetime: Lifetime | None = None
        self._calls: CallBook | None = None

    # --- lifetime

    async def __aenter__(self) -> Self:
        if door.imports_main:
            raise RuntimeError(
                "a worker process imports this program's main module again, and that opened a manager; what is to run "
                "only once stands under \"if __name__ == '__main__':\""
            )
        if self._session is not None:
            raise RuntimeError("this manager is open already; use one per lifetime, or share this one")
        open_sinks(self._sinks)
        session = self._session = self._last_session = Session(self, **self._options)
        session.recording.open(self._sinks, [StructlogSink(self._log)] if self._log is not None else [])
        self._calls = CallBook(session.calls_open)
        self._lifetime = Lifetime(session, signals=self._signals)
        try:
            await self._lifetime.open(self._services)
        except BaseException:
            self._session = self._calls = None
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        assert self._lifetime is not None
        try:
            return await self._lifetime.leave(exc_type, exc, tb)
        finally:
            self._session = self._calls = None

    def _signalled(self) -> int | None:
        """The latest signal of this lifetime, or of the one before, for the command line."""
        return None if self._lifetime is None else self._lifetime.signal

    if not TYPE_CHECKING:

        def _refuse_with(self, *arguments: object) -> NoReturn:
            raise TypeError(
                "write 'async with ServiceManager(...) as manager:', or, in a program without an event loop, "
                "'with ServiceManager(...).blocking() as manager:'"
            )

        __enter__ = __exit__ = _refuse_with

    def _opened(self) -> Session:
        if self._session is None:
            was = "is not open" if self._last_session is None else "was closed"
            raise ManagerClosed(f"the manager {was}; use it inside 'async with ServiceManager(...) as manager:'")
        return self._session

    def _here(self, what: str) -> Session:
        """The session, on the thread of its event loop.

        Raises:
            ManagerClosed: There is none.
            RuntimeError: This is another thread; nothing was registered.
        """
        session = self._opened()
        session.mailbox.check_here(what)
        return session

    @property
    def _book(self) -> CallBook:
        self._opened()
        assert self._calls is not None
        return self._calls

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
        session = self._here("manager.start")
        session.check_open(session.parent())
        await session.hosting.start_all([service])

    async def health(self) -> HealthReport:
        """Ask the services that run how they are, all at once.

        Returns:
            The status of each, the time and the error of its latest check, how often it was started again.

        Cancellation: Stops waiting; checks under way end by their time limits.
        """
        return await self._here("manager.health").hosting.health()

    async def drain(self) -> None:
        """Admit no new calls, let those in flight end for ``grace`` seconds, then cancel them.

        Cancellation: Stops waiting; the manager goes on draining.
        """
        await self._here("manager.drain").drain()

    # --- calls

    @suggests
    def options(self, *, name: str | None = None, replace: bool = False, priority: int | None = None) -> CallOptions:
        """How the next call is made: ``await manager.options(name="nightly").execute(tool, ...)``.

        Args:
            name: Of the call, in `Call.name`, evidence and log lines; `cancel` takes it. At most one call of a name is
                open: a second one is refused (`CallRejected`), unless it replaces the first.
            replace: Cancel an open call of that name, and wait for its end before the new one begins.
            priority: Whose turn it is among calls that wait for a concurrency token: a `Priority`, or a whole number
                from 0 to 9. Without it the policy's.

        Returns:
            A view with ``execute``, ``outcome`` and ``submit``, as the manager's own.
        """
        return CallOptions(self, name, replace, priority)

    @property
    def calls(self) -> Mapping[str, Call[Any]]:
        """The calls that have not ended, by id; a snapshot. From any thread."""
        return MappingProxyType({call.id: call for call in list(self._opened().calls_open.values())})

    def find(self, id: str) -> Call[Any] | None:  # noqa: A002
        """A call by its ``id``, or by the name that `options` gave it (the latest of that name); None if there is none.

        Open calls are found, and those made by ``submit`` that have ended, the last 256 of them.
        """
        return self._book.find(id)

    async def cancel(self, id: str | None = None, reason: str = "") -> bool:  # noqa: A002  (the word that users have)
        """Cancel one call, or all calls, maps and runs, and wait until they have ended.

        Args:
            id: The call's id, or the name that `options` gave it; None for all.
            reason: Goes into evidence and into `CallCancelled.reason`.

        Returns:
            Whether there was anything to cancel.

        Raises:
            TypeError: The id or the reason is no string; nothing was cancelled.

        Cancellation: Stops waiting; the calls stay cancelled.
        """
        session = self._here("manager.cancel")
        check_text("the reason of a cancellation", reason, empty=True)
        own = session.own_chain()
        crews = []
        if id is None:
            found = [call for serial, call in session.calls_open.items() if serial not in own]
            crews = session.busy_crews()
            session.cancel_calls(reason)
        else:
            found = self._book.open_calls(id)
            for call in found:
                call.cancel(reason)
        for call in found:
            if call.serial not in own:
                await call.wait()
        for crew in crews:
            await crew.left.wait()
        return bool(found or crews)

    # --- looking

    def statistics(self) -> ManagerStatistics:
        """Counts per tool name, and what is open now. From any thread."""
        return statistics_of(self._opened())

    def blocking(self, backend: str = "asyncio", backend_options: dict[str, Any] | None = None) -> BlockingManager:
        """The same names, blocking, for scripts and notebooks: ``with ServiceManager().blocking() as manager:``.

        The manager lives on an event loop in a thread of its own, so it works where a loop already runs. Ctrl-C
        cancels the call that is waited for.

        Args:
            backend: ``"asyncio"`` or ``"trio"``.
            backend_options: As of ``anyio.run``; uvloop is ``{"use_uvloop": True}``.

        Raises:
            ValueError: There is no such backend.
            ModuleNotFoundError: uvloop is not installed.
        """
        return BlockingManager(self, backend, backend_options)
